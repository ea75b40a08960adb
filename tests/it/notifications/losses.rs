//! Events that are doubled, shuffled and in bad company, and a refshim that is killed while it has them: the lists are
//! what the registry holds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{event, holds, notified, refer, tell, try_send};
use crate::support::{Random, Refshim, Registry, Scripted, about, fill};

const SEED: u64 = 14;

/// A registry, and what it tells.
fn collecting() -> (Registry, Arc<Mutex<Vec<Value>>>, Scripted) {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let collected = Arc::clone(&bodies);
    let collector = Scripted::start(move |exchange| {
        exchange.read_body();
        collected.lock().unwrap().push(serde_json::from_slice(&exchange.request.body).unwrap());
        exchange.answer("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    });
    let settings = format!(
        "notifications: {{endpoints: [{{name: test, url: 'http://{}/', timeout: 5s, threshold: 3, backoff: 50ms}}]}}",
        collector.address
    );
    (Registry::variant().with(&settings).start(), bodies, collector)
}

/// All of it, once no more comes.
async fn told(bodies: &Mutex<Vec<Value>>) -> Vec<Value> {
    let mut count = usize::MAX;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = bodies.lock().unwrap().len();
        if now == count {
            return bodies.lock().unwrap().clone();
        }
        count = now;
    }
}

#[tokio::test]
async fn a_refshim_that_is_killed_loses_nothing_that_it_took() {
    let data = tempfile::tempdir().unwrap();
    let (registry, bodies, _collector) = collecting();
    let filled = fill(&registry.client(), 4, 60, SEED).await;
    let mut random = Random::new(SEED);
    let mut bodies = told(&bodies).await;
    // Some of them twice, some for what never was, and all in any order.
    for number in 0..bodies.len() / 3 {
        bodies.push(random.pick(&bodies).clone());
        let target = json!({"repository": format!("nobody/{number}"), "tag": "v1"});
        bodies.push(json!({"events": [{"action": "push", "target": target}]}));
    }
    random.shuffle(&mut bodies);
    let all = bodies.len();
    for kills in 1..=20 {
        let refshim = notified(Refshim::before(&registry, data.path()), data.path()).launch_unready();
        let left = all - all * kills / 20;
        while bodies.len() > left {
            // One that is not answered is sent again, as the registry does.
            let body = bodies.pop().unwrap();
            match try_send(refshim.admin, &body).await {
                Ok(answer) if answer.status == StatusCode::OK => {}
                _ => bodies.push(body),
            }
        }
        tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        refshim.kill();
    }
    let refshim = notified(Refshim::before(&registry, data.path()), data.path()).launch().await;
    holds(&refshim, &filled).await;
}

#[tokio::test]
async fn ten_thousand_events_at_once_for_what_does_not_exist_stop_nothing() {
    let (registry, data) = (Registry::start(), tempfile::tempdir().unwrap());
    let refshim = notified(Refshim::before(&registry, data.path()), data.path())
        .with("NOTIFICATIONS_RATE", "100000")
        .launch()
        .await;
    let image = registry.client().image("team/app", "image").await;
    registry.client().push("team/app", &image).await;
    let sbom = about(&image, &image, "sbom");
    registry.client().push("team/app", &sbom).await;
    let nobody = |number: usize| event("push", &format!("nobody/{number}"), &image, None);
    let mut events: Vec<Value> = (0..9_999).map(nobody).collect();
    events.push(event("push", "team/app", &sbom, None));
    tell(&refshim, &events).await;
    refer(&refshim, "team/app", &image, &[&sbom]).await;
}
