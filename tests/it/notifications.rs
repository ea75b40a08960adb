//! What was pushed past refshim is listed soon after the registry told of it: whatever the registry tells, in any
//! order, and whatever happens in between.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Answer, Client, Content, Filled, Refshim, Start, listed};

mod failures;
mod losses;
mod refusals;
mod registries;

const SECRET: &str = "a secret of the test";
/// Time enough for a machine that does something else as well. In practice it is a fraction of a second.
const SOON: Duration = Duration::from_secs(180);

/// The file with the secret.
fn secret(directory: &Path) -> PathBuf {
    let file = directory.join("secret");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    file
}

/// One that takes the notifications of a distribution called `events`.
fn notified<'a>(start: Start<'a>, directory: &Path) -> Start<'a> {
    start
        .with("NOTIFICATIONS_EVENTS_KIND", "distribution")
        .with("NOTIFICATIONS_EVENTS_SECRET_FILE", secret(directory).to_str().unwrap())
}

/// Sends a body as that distribution does.
async fn send(admin: SocketAddr, body: &Value) -> Answer {
    try_send(admin, body).await.unwrap()
}

async fn try_send(admin: SocketAddr, body: &Value) -> reqwest::Result<Answer> {
    let client = Client::new(admin).with_token(SECRET);
    let request = client.request(Method::POST, "/notifications/events").body(body.to_string());
    client.try_send(request).await
}

/// What distribution tells of a manifest.
fn event(action: &str, repository: &str, content: &Content, tag: Option<&str>) -> Value {
    json!({"action": action, "target": {
        "mediaType": content.media_type, "digest": content.digest, "repository": repository, "tag": tag,
    }})
}

async fn tell(refshim: &Refshim, events: &[Value]) {
    let answer = send(refshim.admin, &json!({"events": events})).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

/// What refers to a manifest, as far as refshim knows.
async fn referrers(refshim: &Refshim, repository: &str, subject: &Content) -> Vec<String> {
    let path = format!("/v2/{repository}/manifests/{}/references", subject.digest);
    let answer = refshim.client().get(&path).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let list = answer.json();
    let entries = list["manifests"].as_array().unwrap().iter();
    entries.map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect()
}

/// Waits until exactly these refer to a manifest.
async fn refer(refshim: &Refshim, repository: &str, subject: &Content, expected: &[&Content]) {
    let mut expected: Vec<&str> = expected.iter().map(|content| content.digest.as_str()).collect();
    expected.sort_unstable();
    let began = Instant::now();
    loop {
        let mut found = referrers(refshim, repository, subject).await;
        found.sort_unstable();
        if found == expected {
            return;
        }
        assert!(began.elapsed() < SOON, "{found:?} and not {expected:?}\n{}", refshim.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The value of a metric; 0 where it was never counted.
async fn metric(admin: SocketAddr, name: &str) -> u64 {
    let text = Client::new(admin).text("/metrics").await;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

async fn waiting(admin: SocketAddr) -> u64 {
    metric(admin, "refshim_notifications_waiting{upstream=\"default\"}").await
}

/// Waits until the lists are what the registry holds.
async fn holds(refshim: &Refshim, filled: &Filled) {
    let (client, began) = (refshim.client(), Instant::now());
    loop {
        // It panics over lists that change while they are read.
        let found = AssertUnwindSafe(listed(&client, filled)).catch_unwind().await;
        if found.is_ok_and(|found| found == filled.links()) {
            return;
        }
        assert!(began.elapsed() < SOON, "{}", refshim.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until nothing waits.
async fn worked_off(refshim: &Refshim) {
    let began = Instant::now();
    while waiting(refshim.admin).await > 0 {
        assert!(began.elapsed() < SOON, "{}", refshim.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
