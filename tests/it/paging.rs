//! A subject with very many referrers, listed while others write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::stream::{self, StreamExt as _};
use reqwest::StatusCode;
use serde_json::json;

use crate::referrers::{Scene, scene};
use crate::support::{Client, Content};

/// How many there are; `REFSHIM_TEST_REFERRERS=20000` in the environment makes it twenty thousand.
fn lasting_count() -> usize {
    std::env::var("REFSHIM_TEST_REFERRERS").map_or(2_000, |count| count.parse().unwrap())
}

/// One for every so many others is deleted while they are listed.
const PASSING: usize = 51;
const PUSHES_AT_ONCE: usize = 64;
/// With fewer of them each says more, so that they fill the same number of pages.
const ANNOTATION_BYTES: usize = 16 << 20;
/// What clients read of a list at most.
const CLIENT_LIMIT: usize = 4 << 20;

fn signature(image: &Content, name: &str, bundle: usize) -> Content {
    image.changed(|manifest| {
        manifest["artifactType"] = json!("application/vnd.example.signature");
        manifest["subject"] = image.descriptor();
        manifest["annotations"] = json!({
            "org.opencontainers.image.created": "2026-01-01T00:00:00Z",
            "org.example.name": name,
            "org.example.bundle": "b".repeat(bundle),
        });
    })
}

/// Every page of a list, as often as each digest is on them.
async fn walk(client: &Client, first: String) -> (BTreeMap<String, usize>, usize) {
    let (mut counts, mut pages, mut path) = (BTreeMap::new(), 0, Some(first));
    while let Some(page) = path {
        let answer = client.get(&page).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.body.len() < CLIENT_LIMIT, "{} bytes", answer.body.len());
        for entry in answer.json()["manifests"].as_array().unwrap() {
            *counts.entry(entry["digest"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        }
        path = answer.headers.get("link").map(|link| {
            let (target, relation) = link.to_str().unwrap()[1..].split_once('>').unwrap();
            assert_eq!(relation, "; rel=\"next\"");
            target.to_owned()
        });
        pages += 1;
    }
    (counts, pages)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_referrers_are_listed_once_each_while_others_push_and_delete() {
    let Scene { client, image, .. } = &scene().await;
    let lasting_count = lasting_count();
    let count = lasting_count + lasting_count / (PASSING - 1);
    let signature = &|name: &str| signature(image, name, ANNOTATION_BYTES / count);
    let pushes = (0..count).map(|n| async move {
        let signature = signature(&format!("early {n}"));
        client.push("a", &signature).await;
        (n, signature.digest)
    });
    let early: Vec<(usize, String)> = stream::iter(pushes).buffered(PUSHES_AT_ONCE).collect().await;
    let (passing, lasting): (Vec<_>, Vec<_>) = early.into_iter().partition(|(n, _)| n % PASSING == 0);
    let passing: Vec<String> = passing.into_iter().map(|(_, digest)| digest).collect();
    let lasting: BTreeSet<String> = lasting.into_iter().map(|(_, digest)| digest).collect();
    assert_eq!(lasting.len(), lasting_count);

    let is_walking = AtomicBool::new(true);
    let write = async {
        let (mut deleted, mut added) = (0, 0);
        let mut doomed = passing.iter();
        while is_walking.load(Ordering::Relaxed) {
            client.push("a", &signature(&format!("late {added}"))).await;
            added += 1;
            if let Some(digest) = doomed.next() {
                let answer = client.delete(&format!("/v2/a/manifests/{digest}")).await;
                assert_eq!(answer.status, StatusCode::ACCEPTED);
                deleted += 1;
            }
        }
        (deleted, added)
    };
    let read = async {
        for path in ["referrers/", "manifests/"] {
            let end = if path == "manifests/" { "/references" } else { "" };
            let (counts, pages) = walk(client, format!("/v2/a/{path}{}{end}", image.digest)).await;
            assert!(pages > 3, "{pages} pages");
            assert!(counts.values().all(|count| *count == 1));
            assert!(lasting.iter().all(|digest| counts.contains_key(digest)));
        }
        is_walking.store(false, Ordering::Relaxed);
    };
    let ((deleted, added), ()) = tokio::join!(write, read);
    assert!(deleted > 0 && added > 0);

    let (counts, _) = walk(client, format!("/v2/a/referrers/{}", image.digest)).await;
    let remaining = passing[deleted..].iter().chain(&lasting);
    assert_eq!(counts.len(), count - deleted + added);
    assert!(remaining.into_iter().all(|digest| counts.contains_key(digest)));
}
