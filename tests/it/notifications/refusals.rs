//! Notifications that are not taken: from somebody else, of another form, too long, too many.

use std::net::SocketAddr;

use reqwest::Method;
use serde_json::json;

use super::{SECRET, metric, notified, secret, send, waiting};
use crate::support::{Answer, Client, Content, Refshim};

/// Nobody answers there, so that what is queued stays queued.
fn nobody() -> SocketAddr {
    "127.0.0.1:9".parse().unwrap()
}

async fn post(client: &Client, source: &str, body: String) -> Answer {
    client.send(client.request(Method::POST, &format!("/notifications/{source}")).body(body)).await
}

fn body() -> String {
    let target = json!({"repository": "a", "tag": "v1"});
    json!({"events": [{"action": "push", "target": target}]}).to_string()
}

#[track_caller]
fn check(answer: &Answer, status: u16, said: &str) {
    let text = String::from_utf8_lossy(&answer.body);
    assert_eq!(answer.status.as_u16(), status, "{text}");
    assert!(text.contains(said), "{text}");
}

#[tokio::test]
async fn nothing_is_queued_of_what_nobody_vouches_for() {
    let data = tempfile::tempdir().unwrap();
    let refshim = notified(Refshim::prepare(nobody(), data.path()), data.path())
        .with("NOTIFICATIONS_ZOT_KIND", "zot")
        .with("NOTIFICATIONS_ZOT_USER", "zot")
        .with("NOTIFICATIONS_ZOT_PASSWORD_FILE", secret(data.path()).to_str().unwrap())
        .with("NOTIFICATIONS_LAB_KIND", "quay")
        .with("NOTIFICATIONS_LAB_ALLOW_ANONYMOUS", "true")
        .launch_unready();
    let admin = Client::new(refshim.admin);
    let wrong = [
        ("events", admin.clone()),
        ("events", admin.with_token("a secret")),
        ("events", admin.as_user("events", SECRET)),
        ("zot", admin.clone()),
        ("zot", admin.with_token(SECRET)),
        ("zot", admin.as_user("zot", "wrong")),
        ("zot", admin.as_user("Zot", SECRET)),
    ];
    for (source, client) in &wrong {
        let answer = post(client, source, body()).await;
        check(&answer, 401, "not the credentials of this source");
        assert!(answer.headers.contains_key("www-authenticate"));
    }
    assert_eq!(waiting(refshim.admin).await, 0);
    assert_eq!(
        metric(refshim.admin, "refshim_notifications_total{source=\"zot\",told=\"unauthorized\"}").await,
        4
    );
    check(&post(&admin, "nobody", body()).await, 404, "[notifications.nobody]");
    let get = admin.with_token(SECRET).get("/notifications/events").await;
    check(&get, 405, "POST");
    check(&post(&admin.with_token(SECRET), "events", body()).await, 200, "1 events queued");
    let quay = json!({"repository": "a", "updated_tags": ["v2"]}).to_string();
    check(&post(&admin, "lab", quay).await, 200, "1 events queued");
    let raw = admin.request(Method::POST, "/notifications/zot").basic_auth("zot", Some(SECRET));
    let raw = raw.header("ce-type", "zotregistry.image.updated");
    let raw = raw.body(json!({"name": "a", "reference": "v3"}).to_string());
    check(&admin.send(raw).await, 200, "1 events queued");
    assert_eq!(waiting(refshim.admin).await, 3);
    // Rotated, without a restart.
    std::fs::write(secret(data.path()), "another").unwrap();
    check(&post(&admin.with_token(SECRET), "events", body()).await, 401, "");
    check(&post(&admin.with_token("another"), "events", body()).await, 200, "1 events queued");
    std::fs::remove_file(data.path().join("secret")).unwrap();
    check(&post(&admin.with_token("another"), "events", body()).await, 500, "log");
    assert_eq!(waiting(refshim.admin).await, 4, "one that is looked at already may be news");
}

#[tokio::test]
async fn what_is_malformed_or_too_much_is_refused_as_a_whole() {
    let data = tempfile::tempdir().unwrap();
    let refshim = notified(Refshim::prepare(nobody(), data.path()), data.path())
        .with("NOTIFICATIONS_QUEUE", "5")
        .launch_unready();
    let client = Client::new(refshim.admin).with_token(SECRET);
    let image = Content::image("config", "layer");
    let event = |tag: &str| super::event("push", "a", &image, Some(tag));
    for body in ["", "{", "[]", "{\"events\":1}", "action=push"] {
        check(&post(&client, "events", body.to_owned()).await, 400, "not an envelope of distribution's");
    }
    let nonsense = json!({"events": [{"action": "push", "target": {"repository": "A B", "tag": "v1"}}]});
    check(&send(refshim.admin, &nonsense).await, 400, "no name of a repository");
    check(&post(&client, "events", " ".repeat((4 << 20) + 1)).await, 413, "4194304 bytes");
    let many = json!({"events": vec![json!({}); 10_001]});
    check(&send(refshim.admin, &many).await, 413, "10001 events");
    assert_eq!(waiting(refshim.admin).await, 0);

    let full = |range: std::ops::Range<u32>| -> Vec<_> { range.map(|n| event(&format!("v{n}"))).collect() };
    check(&send(refshim.admin, &json!({"events": full(0..3)})).await, 200, "3 events queued");
    let over = send(refshim.admin, &json!({"events": full(3..6)})).await;
    check(&over, 503, "notifications.queue");
    assert_eq!(over.header("retry-after"), "5");
    assert_eq!(waiting(refshim.admin).await, 3, "none of those that are too many");
    let unknown = [json!({"action": "rename"}), json!({"action": "pull", "target": {"repository": "a"}})];
    check(&send(refshim.admin, &json!({"events": unknown})).await, 200, "0 events queued, 2 ignored");
    let count = |told| format!("refshim_notifications_total{{source=\"events\",told=\"{told}\"}}");
    for (told, expected) in [("malformed", 6), ("too_long", 2), ("full", 1), ("push", 3), ("ignored", 2)] {
        assert_eq!(metric(refshim.admin, &count(told)).await, expected, "{told}");
    }
}
