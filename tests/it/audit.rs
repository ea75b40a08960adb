//! The audit log: who recorded, deleted and asked for which links.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    Content, Refshim, Registry, Said, Scripted, Shelf, USER, about, json_lines, put, shelf_registry,
};

/// An entry without its time, which must be one, and without the request's id.
fn known(line: &Value) -> Value {
    let mut line = line.as_object().unwrap().clone();
    let _time: jiff::Timestamp = line.remove("time").unwrap().as_str().unwrap().parse().unwrap();
    assert!(!line.remove("request_id").unwrap().as_str().unwrap().is_empty());
    line.into()
}

/// A JSON Web Token of this user, signed by nobody.
fn token(user: &str) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2lnbmF0dXJl", part(json!({"alg": "ES256"})), part(json!({"sub": user})))
}

#[tokio::test]
async fn who_records_asks_and_deletes_is_told_with_what_came_of_it() {
    let registry = Registry::with_user();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.jsonl");
    let refshim = Refshim::prepare(registry.address, directory.path());
    let refshim = refshim.with("AUDIT_OUTPUT", file.to_str().unwrap()).launch().await;
    let (user, password) = USER;
    let alice = refshim.client().as_user(user, password);
    let image = alice.image("team/app", "one").await;
    alice.push_as("team/app", "v1", &image).await;
    let signature = about(&image, &image, "signature");
    alice.push("team/app", &signature).await;
    let broken = about(&image, &image, "broken").changed(|manifest| manifest["layers"] = 5.into());
    assert_eq!(alice.put_manifest("team/app", "x", &broken).await.status, StatusCode::BAD_REQUEST);
    alice.referrers("team/app", "v1", "").await;
    let path = format!("/v2/team/app/referrers/{}", image.digest);
    assert_eq!(alice.get(&path).await.status, StatusCode::OK);
    let wrong = refshim.client().as_user("mallory\n\"}", "s3cret");
    assert_eq!(wrong.get(&path).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refshim.client().get(&path).await.status, StatusCode::UNAUTHORIZED);
    let deleted = format!("/v2/team/app/manifests/{}", signature.digest);
    assert_eq!(alice.delete(&deleted).await.status, StatusCode::ACCEPTED);

    let entry = |action: Value, status: u16, user: Value, user_from: Value| {
        let mut entry = json!({"status": status, "user": user, "user_from": user_from, "client": "127.0.0.1",
            "upstream": "default", "repository": "team/app"});
        entry.as_object_mut().unwrap().extend(action.as_object().unwrap().clone());
        entry
    };
    let by_alice = |action: Value, status: u16| entry(action, status, json!(user), json!("basic"));
    let record = |manifest: &Content, outcome: &str| {
        let link = json!({"referrer": manifest.digest, "subject": image.digest, "kind": "reference"});
        json!({"action": "record", "manifest": manifest.digest, "outcome": outcome, "links": [link]})
    };
    let list = |query: &str, subject: &str, listed: Option<usize>| {
        let digest = listed.map(|_| &image.digest);
        json!({"action": "list", "query": query, "subject": subject, "digest": digest, "listed": listed})
    };
    let expected = [
        by_alice(record(&signature, "recorded"), 201),
        by_alice(record(&broken, "refused"), 400),
        by_alice(list("references", "v1", Some(1)), 200),
        // A link of the proposal's kind is not one of OCI's.
        by_alice(list("referrers", &image.digest, Some(0)), 200),
        entry(list("referrers", &image.digest, None), 401, json!("mallory\\u{a}\"}"), json!("basic")),
        entry(list("referrers", &image.digest, None), 401, Value::Null, Value::Null),
        by_alice(json!({"action": "delete", "manifest": signature.digest, "was_referrer": true}), 202),
    ];
    let lines = json_lines(&file, expected.len()).await;
    assert_eq!(lines.iter().map(known).collect::<Vec<_>>(), expected);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("s3cret") && !text.contains(password), "{text}");
}

#[tokio::test]
async fn the_user_of_a_token_is_its_subject() {
    let shelf = Shelf::default();
    let image = Content::image("config", "layer");
    put(&shelf, "a", &["v1"], &image);
    let upstream = shelf_registry(&shelf, |turn| Some(turn.right.clone()));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.jsonl");
    let refshim = Refshim::prepare(upstream.address, directory.path());
    let refshim = refshim.with("AUDIT_OUTPUT", file.to_str().unwrap()).launch().await;
    for token in [token("robot$ci"), "opaque".to_owned()] {
        refshim.client().with_token(&token).references("a", "v1", "").await;
    }
    let lines = json_lines(&file, 2).await;
    let users: Vec<_> = lines.iter().map(|line| [&line["user"], &line["user_from"]]).collect();
    assert_eq!(users, [[&json!("robot$ci"), &json!("token")], [&Value::Null, &Value::Null]]);
}

#[tokio::test]
async fn what_a_shadow_records_is_told_as_well() {
    let shelf = Shelf::default();
    let image = Content::image("config", "layer");
    put(&shelf, "a", &["v1"], &image);
    let upstream = shelf_registry(&shelf, |turn| {
        let is_failing = !turn.is_read() && turn.path().ends_with("/failing");
        Some(if is_failing { Said::status("500 Internal Server Error") } else { turn.right.clone() })
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.jsonl");
    let refshim = Refshim::prepare(upstream.address, directory.path());
    let refshim = refshim.with("AUDIT_OUTPUT", file.to_str().unwrap());
    let refshim = refshim.with("UPSTREAMS_DEFAULT_MODE", "learn").launch().await;
    let client = refshim.client().as_user("alice", "password");
    client.push("a", &about(&image, &image, "one")).await;
    let two = about(&image, &image, "two");
    assert_eq!(client.put_manifest("a", "failing", &two).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let lines = json_lines(&file, 2).await;
    let seen: Vec<_> = lines.iter().map(|line| [&line["user"], &line["outcome"], &line["status"]]).collect();
    let alice = json!("alice");
    assert_eq!(seen, [[&alice, &json!("recorded"), &json!(201)], [&alice, &json!("pending"), &json!(500)]]);
}

#[tokio::test]
async fn a_long_file_is_replaced_and_so_many_are_kept() {
    let upstream = Scripted::start(|exchange| exchange.answer_status("401 Unauthorized"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.jsonl");
    let refshim = Refshim::prepare(upstream.address, directory.path());
    let refshim = refshim.with("AUDIT_OUTPUT", file.to_str().unwrap());
    let refshim = refshim.with("AUDIT_MAX_BYTES", "2000").with("AUDIT_KEEP", "2").launch().await;
    let client = refshim.client();
    let numbered = |number: usize| directory.path().join(format!("audit.jsonl.{number}"));
    // Until the first of them must have been given up.
    for _ in 0..60 {
        client.get("/v2/a/manifests/v1/references").await;
    }
    assert!(refshim.stop().success());
    for file in [file, numbered(1), numbered(2)] {
        assert!(std::fs::metadata(&file).unwrap().len() <= 2_000, "{}", file.display());
        assert!(!json_lines(&file, 1).await.is_empty());
    }
    assert!(!numbered(3).exists());
}

#[tokio::test]
async fn what_was_told_last_is_in_the_file_when_the_process_ends() {
    let upstream = Scripted::start(|exchange| exchange.answer_status("401 Unauthorized"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.jsonl");
    let refshim = Refshim::prepare(upstream.address, directory.path());
    let refshim = refshim.with("AUDIT_OUTPUT", file.to_str().unwrap()).launch().await;
    for _ in 0..20 {
        refshim.client().get("/v2/a/manifests/v1/references").await;
    }
    assert!(refshim.stop().success());
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 20);
    let permissions = std::fs::metadata(&file).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&permissions) & 0o137, 0, "{permissions:?}");
}
