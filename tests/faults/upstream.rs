//! The registry's answers break in the worst ways, to pushes and to what refshim asks for itself.

use std::sync::Arc;

use reqwest::{Method, StatusCode};

use crate::ledger::{Ledger, REPOSITORY, put};
use crate::support::{Content, Refshim, Registry, by_environment};
use crate::table::Row;
use crate::unreliable::{Befallen, Fault, Unreliable};

struct Scene {
    registry: Registry,
    upstream: Unreliable,
    refshim: Refshim,
    image: Content,
    _directory: tempfile::TempDir,
}

impl Scene {
    /// With a refshim that does not wait long.
    async fn new() -> Self {
        let registry = Registry::start();
        let upstream = Unreliable::before(registry.address);
        let directory = tempfile::tempdir().unwrap();
        let refshim = Refshim::prepare(upstream.address(), directory.path())
            .with("TIMEOUTS_RESPONSE", "300ms")
            .with("TIMEOUTS_BODY_IDLE", "300ms")
            .with("REFERRERS_UPSTREAM_TTL", "0s")
            .with("REFERENCES_ACCESS_TTL", "0s")
            .launch()
            .await;
        let image = registry.client().image(REPOSITORY, "image").await;
        Self { registry, upstream, refshim, image, _directory: directory }
    }
}

/// `FAULT_ANSWERS` is how often each.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_registry_answers_to_a_push_the_list_is_what_it_has() {
    let Scene { registry, upstream, refshim, image, _directory } = Scene::new().await;
    let (client, behind) = (refshim.client(), registry.client());
    let mut row = Row::new("registry breaks its answers to pushes");
    for fault in Fault::ALL {
        let mut ledger = Ledger::about(&behind, &image, &format!("{fault:?}")).await;
        for n in 0..by_environment("FAULT_ANSWERS", 1) {
            let n = usize::try_from(n).unwrap();
            upstream.set(Befallen::Pushes, fault);
            let content = ledger.referrer(2 * n);
            let answer = put(&client, &content).await;
            // Who pushes compares the digest, and takes another one for a failure.
            let answer = answer.filter(|_| fault != Fault::WrongDigest);
            ledger.take(content, answer.as_ref());
            upstream.set(Befallen::Pushes, Fault::None);
            let content = ledger.referrer(2 * n + 1);
            let answer = put(&client, &content).await;
            assert_eq!(answer.as_ref().unwrap().status, StatusCode::CREATED, "after {fault:?}: {answer:?}");
            ledger.take(content, answer.as_ref());
            row.tried += 1;
        }
        row.acknowledged += ledger.acknowledged.len() as u64;
        ledger.check(&mut row, &client, &behind).await;
    }
    assert!(refshim.stop().success());
    row.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_registry_answers_to_a_question_no_list_is_short() {
    let Scene { registry, upstream, refshim, image, _directory } = Scene::new().await;
    let (client, behind) = (refshim.client(), registry.client());
    let mut ledger = Ledger::about(&behind, &image, "subject").await;
    let subject = ledger.subject.descriptor();
    let in_two_ways = |content: Content| content.changed(|it| it["subject"] = subject.clone());
    let referrers = (0..5).map(|n| in_two_ways(ledger.referrer(n))).collect();
    ledger.push(&client, referrers, 2, &Arc::default()).await;
    // One that only a question can settle.
    upstream.set(Befallen::Pushes, Fault::ClosedAfterStoring);
    let content = in_two_ways(ledger.referrer(5));
    let answer = put(&client, &content).await;
    ledger.take(content, answer.as_ref());

    let mut row = Row::new("registry breaks its answers to questions");
    row.acknowledged = ledger.acknowledged.len() as u64;
    let digest = &ledger.subject.digest;
    let paths = [
        format!("/v2/{REPOSITORY}/manifests/{digest}/references"),
        format!("/v2/{REPOSITORY}/manifests/{digest}/references?inline=true"),
        format!("/v2/{REPOSITORY}/referrers/{digest}"),
    ];
    for fault in Fault::ALL {
        upstream.set(Befallen::Questions, fault);
        for _ in 0..by_environment("FAULT_ANSWERS", 1) {
            row.tried += 1;
            ledger.check_failing(&mut row, &client).await;
            for path in &paths {
                let answer = client.try_send(client.request(Method::GET, path)).await.unwrap();
                if answer.status.is_server_error() {
                    continue;
                }
                let listed = answer.json()["manifests"].as_array().map_or(0, Vec::len);
                if listed < ledger.acknowledged.len() {
                    row.lose(format!("{fault:?}: {path}: {answer:?}"));
                }
            }
        }
    }
    upstream.set(Befallen::Questions, Fault::None);
    ledger.check(&mut row, &client, &behind).await;
    assert!(refshim.stop().success());
    row.close();
}
