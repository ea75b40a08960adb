//! pgbouncer in transaction mode between refshim and PostgreSQL.

use std::time::Duration;

use reqwest::StatusCode;

use super::{GONE, LIMIT, Scene, created};
use crate::support::postgres::{Pgbouncer, Postgres};
use crate::support::{Content, about};

async fn pooled() -> (Postgres, Pgbouncer, Scene) {
    let postgres = Postgres::start_fast();
    let pgbouncer = Pgbouncer::start(&postgres);
    let scene = Scene::start(&pgbouncer.url(), |start| start.with("INDEX_STATEMENTS", "unnamed")).await;
    (postgres, pgbouncer, scene)
}

/// Pushes referrers of these names, all at once.
async fn push_all(scene: &Scene, names: impl Iterator<Item = String>) -> Vec<Content> {
    let puts: Vec<_> = names
        .map(|name| {
            let (client, referrer) = (scene.client.clone(), about(&scene.image, &scene.image, &name));
            tokio::spawn(async move {
                client.push("a", &referrer).await;
                referrer
            })
        })
        .collect();
    let mut pushed = Vec::new();
    for put in puts {
        pushed.push(put.await.unwrap());
    }
    pushed
}

async fn listed(scene: &Scene) -> Vec<String> {
    let mut listed = scene.client.referrers("a", &scene.image.digest, "").await;
    listed.sort();
    listed
}

fn sorted(contents: &[Content]) -> Vec<String> {
    let mut digests: Vec<String> = contents.iter().map(|content| content.digest.clone()).collect();
    digests.sort();
    digests
}

#[tokio::test]
async fn pushes_queries_deletions_and_what_is_learnt() {
    let (_postgres, _pgbouncer, scene) = pooled().await;
    let mut pushed = push_all(&scene, (0..60).map(|one| one.to_string())).await;
    assert_eq!(listed(&scene).await, sorted(&pushed));
    // Again, which changes nothing.
    push_all(&scene, (0..60).map(|one| one.to_string())).await;
    assert_eq!(listed(&scene).await, sorted(&pushed));
    let deletions: Vec<_> = pushed
        .drain(..20)
        .map(|referrer| {
            let client = scene.client.clone();
            tokio::spawn(async move { client.delete(&format!("/v2/a/manifests/{}", referrer.digest)).await })
        })
        .collect();
    for deletion in deletions {
        assert_eq!(deletion.await.unwrap().status, StatusCode::ACCEPTED);
    }
    assert_eq!(listed(&scene).await, sorted(&pushed));
    // Past refshim, and pulled through it: each is recorded in a transaction of several statements.
    let past: Vec<_> = (0..30).map(|one| about(&scene.image, &scene.image, &format!("past {one}"))).collect();
    let mut pulls = Vec::new();
    for referrer in &past {
        scene.registry.client().push("a", referrer).await;
        let (client, digest) = (scene.client.clone(), referrer.digest.clone());
        pulls.push(tokio::spawn(async move { client.served("a", &digest).await }));
    }
    for pull in pulls {
        pull.await.unwrap();
    }
    pushed.extend(past);
    let began = std::time::Instant::now();
    while listed(&scene).await != sorted(&pushed) {
        assert!(began.elapsed() < LIMIT, "{}", scene.refshim.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(scene.refshim.count("\"ERROR\""), 0, "{}", scene.refshim.lines().join("\n"));
}

/// Transactions too large for one statement, on both sides of a page.
#[tokio::test]
async fn a_backfill_with_the_lease_that_it_takes() {
    let (_postgres, _pgbouncer, scene) = pooled().await;
    let past: Vec<_> =
        (0..120).map(|one| about(&scene.image, &scene.image, &format!("past {one}"))).collect();
    for (place, referrer) in past.iter().enumerate() {
        scene.registry.client().push_as("a", &format!("t{place}"), referrer).await;
    }
    let mut backfill = std::process::Command::new(crate::support::binary());
    backfill.args(["backfill", "--admin", &format!("http://{}", scene.refshim.admin)]);
    let done = tokio::task::spawn_blocking(move || backfill.output().unwrap()).await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(listed(&scene).await, sorted(&past));
}

#[tokio::test]
async fn a_pgbouncer_that_is_started_again_and_loses_its_server() {
    let (mut postgres, mut pgbouncer, scene) = pooled().await;
    scene.client.push("a", &scene.referrer).await;
    let mut pushed = vec![scene.referrer.clone()];
    for round in 0..5 {
        // pgbouncer's connections to the server; refshim's to pgbouncer stay.
        postgres.cut_connections();
        let (referrer, answer) = scene.put(&round.to_string()).await;
        created(&answer);
        pushed.push(referrer);
        assert_eq!(listed(&scene).await, sorted(&pushed));
    }
    pgbouncer.kill9();
    scene.passes_and_refuses("without pgbouncer").await;
    pgbouncer.start_again();
    scene.ready_with("index: ok").await;
    assert_eq!(listed(&scene).await, sorted(&pushed));
    postgres.kill9();
    scene.query().await;
    scene.ready_with("index: the database").await;
    scene.passes("without PostgreSQL").await;
    postgres.start_again();
    scene.ready_with("index: ok").await;
    assert_eq!(listed(&scene).await, sorted(&pushed));
}

/// With prepared statements pgbouncer 1.18 cannot work; the log names the setting that helps.
#[tokio::test]
async fn prepared_statements_are_told_of_with_what_to_set() {
    let postgres = Postgres::start_fast();
    let pgbouncer = Pgbouncer::start(&postgres);
    // The schema without pgbouncer.
    drop(Scene::start(&postgres.url(), |start| start).await);
    let scene = Scene::start(&pgbouncer.url(), |start| start).await;
    let puts: Vec<_> = (0..60)
        .map(|one| {
            let client = scene.client.clone();
            let referrer = about(&scene.image, &scene.image, &one.to_string());
            tokio::spawn(async move { client.put_manifest("a", &referrer.digest, &referrer).await })
        })
        .collect();
    for put in puts {
        let status = put.await.unwrap().status;
        assert!(status == StatusCode::CREATED || status.is_server_error(), "{status}");
    }
    let line = scene.refshim.logs(GONE, 1).await;
    assert!(line.contains("index.statements = \\\"unnamed\\\""), "{line}");
    // Now and then a statement works; the log is not filled for all that.
    assert!(scene.refshim.count(GONE) < 10, "{}", scene.refshim.lines().join("\n"));
}
