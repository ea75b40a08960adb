//! The database is not there, dies, hangs, cuts connections, or takes no writes.

use std::time::Duration;

use reqwest::{Method, StatusCode};

use super::{BACK, GONE, LIMIT, Scene, created, patient_scene, refshim, scene};
use crate::support::postgres::Postgres;
use crate::support::{IMAGE_MANIFEST, Registry, about};

#[tokio::test]
async fn a_database_that_is_not_there_at_the_start_is_waited_for() {
    let mut postgres = Postgres::start_fast();
    postgres.kill9();
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let started = refshim(&registry, &postgres.url(), &directory).launch_unready();
    let scene = Scene::of(registry, started, directory).await;
    scene.refshim.logs(GONE, 1).await;
    scene.passes_and_refuses("without").await;
    assert_eq!(
        scene.ready_with("index: the database cannot be reached").await,
        StatusCode::SERVICE_UNAVAILABLE
    );
    scene.metric("refshim_index_ready 0").await;
    postgres.start_again();
    scene.comes_back(&[]).await;
    scene.client.push("a", &scene.referrer).await;
    scene.lists(&[&scene.referrer]).await;
    scene.metric("refshim_index_ready 1").await;
    assert_eq!((scene.refshim.count(GONE), scene.refshim.count(BACK)), (1, 1));
}

#[tokio::test]
async fn a_database_that_is_killed_comes_back_by_itself() {
    let mut postgres = Postgres::start();
    let scene = Scene::start(&postgres.url(), |start| start).await;
    scene.client.push("a", &scene.referrer).await;
    for round in 0..2 {
        postgres.kill9();
        scene.passes_and_refuses(&format!("killed {round}")).await;
        scene.metric("refshim_index_ready 0").await;
        postgres.start_again();
        scene.comes_back(&[&scene.referrer]).await;
        scene.metric("refshim_index_ready 1").await;
    }
    let (second, answer) = scene.put("second").await;
    created(&answer);
    scene.lists(&[&scene.referrer, &second]).await;
}

/// Not even the kernel says no: connections are taken, and nothing is answered.
#[tokio::test]
async fn a_database_that_hangs_is_waited_for_once() {
    let (postgres, scene) = scene().await;
    scene.client.push("a", &scene.referrer).await;
    postgres.pause();
    // The first ones wait for it. Pulls of what was never read before do not wait as long as that.
    let (query, put) = tokio::join!(scene.query(), scene.put("waits"));
    for answer in [query, put.1] {
        super::refused(&answer);
    }
    scene.passes_and_refuses("paused").await;
    scene.ready_with("in time").await;
    scene.metric("refshim_index_ready 0").await;
    postgres.resume();
    scene.comes_back(&[&scene.referrer]).await;
    assert_eq!((scene.refshim.count(GONE), scene.refshim.count(BACK)), (1, 1));
}

#[tokio::test]
async fn a_database_that_hangs_at_the_start_is_waited_for() {
    let postgres = Postgres::start_fast();
    postgres.pause();
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let started = refshim(&registry, &postgres.url(), &directory).launch_unready();
    let scene = Scene::of(registry, started, directory).await;
    super::refused(&scene.query().await);
    scene.passes_and_refuses("paused").await;
    postgres.resume();
    scene.comes_back(&[]).await;
    assert_eq!(scene.refshim.count(GONE), 1);
}

/// Nobody is told of it.
#[tokio::test]
async fn connections_that_are_cut_are_made_anew() {
    let (postgres, scene) = patient_scene().await;
    scene.client.push("a", &scene.referrer).await;
    let mut expected = vec![scene.referrer.clone()];
    for round in 0..10 {
        postgres.cut_connections();
        let (referrer, answer) = scene.put(&round.to_string()).await;
        created(&answer);
        expected.push(referrer);
        postgres.cut_connections();
        scene.lists(&expected.iter().collect::<Vec<_>>()).await;
    }
}

/// With queries under way on all of them.
#[tokio::test]
async fn many_connections_that_are_cut_are_made_anew() {
    let (postgres, scene) = patient_scene().await;
    scene.client.push("a", &scene.referrer).await;
    for _ in 0..5 {
        let queries: Vec<_> = (0..30)
            .map(|_| {
                let (client, digest) = (scene.client.clone(), scene.image.digest.clone());
                tokio::spawn(async move { client.get(&format!("/v2/a/manifests/{digest}/references")).await })
            })
            .collect();
        postgres.cut_connections();
        let mut answers = Vec::new();
        for query in queries {
            answers.push(query.await.unwrap());
        }
        assert!(answers.iter().all(|answer| answer.status == StatusCode::OK), "{answers:?}");
        scene.comes_back(&[&scene.referrer]).await;
    }
}

/// Whatever a PUT is answered while the database dies, what was acknowledged is there.
#[tokio::test]
async fn what_was_acknowledged_while_the_database_died_is_there() {
    let mut postgres = Postgres::start();
    let scene = Scene::start(&postgres.url(), |start| start).await;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let referrers: Vec<_> =
            (0..40).map(|one| about(&scene.image, &scene.image, &format!("{round} {one}"))).collect();
        let puts: Vec<_> = referrers
            .iter()
            .cloned()
            .map(|referrer| {
                let client = scene.client.clone();
                tokio::spawn(async move {
                    let answer = client.put_manifest("a", &referrer.digest, &referrer).await;
                    (referrer, answer)
                })
            })
            .collect();
        let began = std::time::Instant::now();
        // Some of them are answered by then, some not.
        while !scene.refshim.logged("recorded a manifest's links") && began.elapsed() < LIMIT {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        postgres.kill9();
        for put in puts {
            let (referrer, answer) = put.await.unwrap();
            match answer.status {
                StatusCode::CREATED => acknowledged.push(referrer.digest),
                status => assert!(status.is_server_error(), "{answer:?}"),
            }
        }
        postgres.start_again();
        scene.ready_with("index: ok").await;
        let listed = scene.client.referrers("a", &scene.image.digest, "").await;
        let lost: Vec<_> = acknowledged.iter().filter(|digest| !listed.contains(digest)).collect();
        assert!(lost.is_empty(), "{lost:?}");
        // What was not acknowledged but is in the registry is listed as well.
        for referrer in &referrers {
            let registry = scene.registry.client();
            let head = registry.request(Method::HEAD, &format!("/v2/a/manifests/{}", referrer.digest));
            let head = registry.send(head.header("accept", IMAGE_MANIFEST)).await;
            let is_there = head.status == StatusCode::OK;
            assert_eq!(listed.contains(&referrer.digest), is_there, "{}", referrer.digest);
        }
    }
}

#[tokio::test]
async fn a_database_that_takes_no_writes_is_told_apart() {
    let (postgres, scene) = scene().await;
    scene.client.push("a", &scene.referrer).await;
    postgres.read_only(true);
    scene.put("meets it").await;
    let line = scene.refshim.logs(GONE, 1).await;
    assert!(line.contains("read-only") && line.contains("ERROR"), "{line}");
    assert_eq!(scene.ready_with("read-only").await, StatusCode::SERVICE_UNAVAILABLE);
    scene.passes_and_refuses("read-only").await;
    postgres.read_only(false);
    scene.comes_back(&[&scene.referrer]).await;
    let (second, answer) = scene.put("second").await;
    created(&answer);
    scene.lists(&[&scene.referrer, &second]).await;
    assert_eq!((scene.refshim.count(GONE), scene.refshim.count(BACK)), (1, 1));
}

#[tokio::test]
async fn readiness_need_not_follow_the_database() {
    let mut postgres = Postgres::start_fast();
    let scene = Scene::start(&postgres.url(), |start| start.with("INDEX_READINESS", "false")).await;
    postgres.kill9();
    scene.passes_and_refuses("killed").await;
    let said = "(does not count: index.readiness = false)\nupstream: ok\n";
    assert_eq!(scene.ready_with(said).await, StatusCode::OK);
    postgres.start_again();
    assert_eq!(scene.ready_with("index: ok\nupstream: ok\n").await, StatusCode::OK);
    postgres.pause();
    assert_eq!(scene.ready_with(said).await, StatusCode::OK);
    scene.admin.text("/metrics").await;
}

#[tokio::test]
async fn metrics_say_nothing_of_what_only_the_local_index_has() {
    let (_postgres, scene) = scene().await;
    scene.client.push("a", &scene.referrer).await;
    let metrics = scene.admin.text("/metrics").await;
    for name in ["journal_bytes", "commits", "referrers", "links", "pending"] {
        let sample = format!("refshim_index_{name}");
        assert!(!metrics.lines().any(|line| line.starts_with(&sample)), "{name}\n{metrics}");
    }
    scene.metric("refshim_index_ready 1").await;
}
