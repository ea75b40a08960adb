//! SIGTERM under load, no file descriptors left, and a clock that jumps.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Method, StatusCode};

use crate::ledger::{Ledger, REPOSITORY, put};
use crate::random::Random;
use crate::support::{Client, Content, Refshim, Registry, by_environment};
use crate::table::Row;

/// How long pushes go on before SIGTERM, at most, in microseconds.
const LOAD: u64 = 50_000;

/// `FAULT_TERMS` is how often.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_during_uploads_lets_them_end_and_loses_nothing() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let mut random = Random::new(by_environment("FAULT_SEED", 1));
    let mut row = Row::new("SIGTERM during uploads");
    for round in 0..by_environment("FAULT_TERMS", 3) {
        let refshim = Refshim::start(registry.address, directory.path()).await;
        let client = refshim.client();
        let mut ledger = Ledger::about(&behind, &image, &format!("round {round}")).await;
        let referrers: Vec<Content> = (0..200).map(|n| ledger.referrer(n)).collect();
        let progress = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&progress);
        let uploads = client.clone();
        let blob = tokio::spawn(async move {
            let started = uploads
                .send(uploads.request(Method::POST, "/v2/a/blobs/uploads/"))
                .await
                .header("location")
                .to_owned();
            // It may be too late for the next request, and then it is refused as a whole.
            uploads.try_send(uploads.request(Method::PATCH, &started).body(vec![7; 8 << 20])).await
        });
        let pushes = tokio::spawn(async move {
            ledger.push(&client, referrers, 8, &progress).await;
            ledger
        });
        while seen.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(random.below(LOAD))).await;
        row.tried += 1;
        if !tokio::task::spawn_blocking(|| refshim.stop()).await.unwrap().success() {
            row.ended += 1;
        }
        if let Ok(answer) = blob.await.unwrap() {
            assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        }
        let ledger = pushes.await.unwrap();
        row.acknowledged += ledger.acknowledged.len() as u64;
        let refshim = Refshim::start(registry.address, directory.path()).await;
        ledger.check(&mut row, &refshim.client(), &behind).await;
        assert!(refshim.stop().success());
    }
    row.close();
}

const DESCRIPTORS: &str = "--nofile=64:64";

async fn start_with_few_descriptors(registry: &Registry, data_dir: &Path) -> Refshim {
    Refshim::prepare(registry.address, data_dir)
        .with("INDEX_COMPACT_BYTES", "64KiB")
        .under(["prlimit", DESCRIPTORS])
        .launch()
        .await
}

/// `FAULT_DESCRIPTORS` is how often.
#[tokio::test(flavor = "multi_thread")]
async fn without_file_descriptors_it_stays_up_and_goes_on_when_there_are_some() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let mut random = Random::new(by_environment("FAULT_SEED", 1));
    let mut row = Row::new("no file descriptors left");
    let mut refshim = start_with_few_descriptors(&registry, directory.path()).await;
    for round in 0..by_environment("FAULT_DESCRIPTORS", 2) {
        let mut ledger = Ledger::about(&behind, &image, &format!("round {round}")).await;
        let connections = 10 + random.below(60);
        let held: Vec<TcpStream> =
            (0..connections).map(|_| TcpStream::connect(refshim.address).unwrap()).collect();
        let large = |n| ledger.referrer(n).changed(|it| it["annotations"]["x"] = "x".repeat(9000).into());
        for content in (0..20).map(large).collect::<Vec<_>>() {
            // On a connection of its own, which may never be accepted.
            let client = refshim.client();
            let pushed = tokio::time::timeout(Duration::from_millis(100), put(&client, &content)).await;
            ledger.take(content, pushed.ok().flatten().as_ref());
        }
        drop(held);
        row.tried += 1;
        row.acknowledged += ledger.acknowledged.len() as u64;
        ledger.check(&mut row, &refshim.client(), &behind).await;
        if Client::new(refshim.admin).text("/readyz").await.contains("the journal") {
            // No segment could be begun: that is final for this process.
            assert!(refshim.stop().success());
            refshim = start_with_few_descriptors(&registry, directory.path()).await;
        }
        let more = ledger.referrer(1000);
        ledger.push(&refshim.client(), vec![more], 1, &Arc::default()).await;
        assert!(!ledger.acknowledged.is_empty(), "with descriptors again, pushes are taken again");
        ledger.check(&mut row, &refshim.client(), &behind).await;
    }
    assert!(refshim.stop().success());
    row.close();
}

/// The library that changes the clock for those who load it.
fn faketime() -> String {
    let directories = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let mut libraries = directories.map(|path| path.join("faketime/libfaketime.so.1"));
    let library = libraries.find(|path| path.exists()).expect("libfaketime, from faketime");
    format!("LD_PRELOAD={}", library.display())
}

fn set_clock(file: &Path, offset: &str) {
    fs::write(file, offset).unwrap();
}

/// A clock that jumps while refshim runs, and between its runs.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_clock_says_the_oldest_push_is_listed_first() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let (data_dir, clock) = (directory.path().join("data"), directory.path().join("clock"));
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let mut ledger = Ledger::about(&behind, &image, "subject").await;
    let mut row = Row::new("clock jumps");
    let file = format!("FAKETIME_TIMESTAMP_FILE={}", clock.display());
    let mut pushed = Vec::new();
    let mut last: Option<Refshim> = None;
    for jumps in [["+0", "+3d"], ["-400d", "+0"], ["+9000d", "-9000d"]] {
        if let Some(refshim) = last.take() {
            refshim.kill();
        }
        set_clock(&clock, jumps[0]);
        let faked = ["env", &faketime(), &file, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"];
        let refshim = Refshim::prepare(registry.address, &data_dir).under(faked).launch().await;
        for jump in jumps {
            set_clock(&clock, jump);
            row.tried += 1;
            let referrers: Vec<Content> = (0..5).map(|n| ledger.referrer(pushed.len() + n)).collect();
            pushed.extend(referrers.iter().map(|content| content.digest.clone()));
            ledger.push(&refshim.client(), referrers, 1, &Arc::default()).await;
            ledger.check(&mut row, &refshim.client(), &behind).await;
        }
        let listed = refshim.client().referrers(REPOSITORY, &ledger.subject.digest, "").await;
        assert_eq!(listed, pushed, "in the order of the pushes");
        last = Some(refshim);
    }
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(9000 * 24);
    let year = later.to_string()[..4].to_owned();
    assert!(last.unwrap().logged(&format!("\"timestamp\":\"{year}-")), "the clock did jump");
    row.acknowledged = ledger.acknowledged.len() as u64;
    row.close();
}
