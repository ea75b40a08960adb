//! The index through its interface alone, on real files and in a real PostgreSQL.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::oci::{Algorithm, Link, LinkKind};

mod bench;
mod claims;
mod committing;
mod copying;
mod damage;
mod database_maintenance;
mod history;
mod maintenance;
mod model;
mod racing;
mod replicas;
mod snapshots;
mod walking;

use bench::{Bench, copy_directory, files_in, server_sql};

fn repository(name: &str) -> Repository {
    Repository { upstream: 0, name: name.parse().unwrap() }
}

fn digest(n: u32) -> Digest {
    Digest::of(Algorithm::Sha256, &n.to_be_bytes())
}

fn descriptor(n: u32) -> String {
    format!(r#"{{"mediaType":"m","digest":"{}","size":{n}}}"#, digest(n))
}

fn link(subject: u32, kind: LinkKind) -> Link {
    Link { subject: digest(subject), kind }
}

/// A referrer with a `reference` to each subject.
fn referrer(n: u32, subjects: &[u32]) -> Referrer {
    let links = subjects.iter().map(|subject| link(*subject, LinkKind::Reference)).collect();
    Referrer { digest: digest(n), descriptor: descriptor(n), links }
}

fn everything() -> Scan {
    Scan {
        after: None,
        max_entries: usize::MAX,
        max_bytes: usize::MAX,
        max_claims: usize::MAX,
        accepts: Box::new(|_| true),
    }
}

async fn entries(index: &Index, subject: u32) -> Vec<Entry> {
    let page = index.referrers(repository("a"), digest(subject), everything()).await.unwrap();
    assert!(!page.more);
    page.entries
}

/// All referrers, whatever they refer to.
async fn everything_known(index: &Index) -> Vec<KnownReferrer> {
    let mut all = Vec::new();
    for upstream in 0..3 {
        for name in index.referring_repositories(upstream, None, 1000).await.unwrap() {
            let page = index.referrers_in(Repository { upstream, name }, None, 100_000).await.unwrap();
            all.extend(page.referrers);
        }
    }
    all
}

/// Numbers of referrers, links and pending referrers.
async fn counts(index: &Index) -> (usize, usize, usize) {
    let all = everything_known(index).await;
    let counts = (
        all.len(),
        all.iter().map(|referrer| referrer.links.len()).sum(),
        all.iter().filter(|referrer| referrer.pending).count(),
    );
    if let Some(Statistics { referrers, links, pending, .. }) = index.statistics() {
        let told = [referrers, links, pending].map(|number| usize::try_from(number).unwrap());
        assert_eq!(counts, told.into());
    }
    counts
}

/// What a test says of an entry: descriptor, order, pending.
type Listed = (String, Order, bool);

fn listed(entries: Vec<Entry>) -> Vec<Listed> {
    entries.into_iter().map(|entry| (entry.descriptor, entry.order, entry.pending)).collect()
}

/// The answers for all of these subjects.
async fn answers(index: &Index, subjects: std::ops::Range<u32>) -> BTreeMap<u32, Vec<Listed>> {
    let mut answers = BTreeMap::new();
    for subject in subjects {
        answers.insert(subject, listed(entries(index, subject).await));
    }
    answers
}

async fn begin(index: &Index, n: u32, subjects: &[u32]) -> PutInFlight {
    index.begin(repository("a"), referrer(n, subjects)).await.unwrap()
}

async fn put(index: &Index, n: u32, subjects: &[u32]) {
    begin(index, n, subjects).await.confirm().await.unwrap();
}

async fn version(index: &Index, n: u32) -> Option<Version> {
    index.current_version(&repository("a"), &digest(n)).await
}

/// The upstream serves it with a `reference` to each subject.
async fn settle(index: &Index, n: u32, subjects: &[u32], seen: Version) {
    index.settle(repository("a"), seen, referrer(n, subjects)).await.unwrap();
}

async fn absent(index: &Index, n: u32, seen: Version) -> Removed {
    index.absent(repository("a"), digest(n), seen).await.unwrap()
}

async fn remove(index: &Index, n: u32, seen: Version) -> Removed {
    index.remove(repository("a"), digest(n), seen).await.unwrap()
}

/// The numbers of the referrers that are listed, each with whether it is pending.
async fn numbers(index: &Index, subject: u32) -> Vec<(u32, bool)> {
    let number = |entry: &Entry| (0..1000).find(|n| entry.descriptor == descriptor(*n)).unwrap();
    entries(index, subject).await.iter().map(|entry| (number(entry), entry.pending)).collect()
}

#[tokio::test]
async fn lists_what_was_put_and_nothing_else() {
    for bench in Bench::each() {
        let index = bench.open().await;
        put(&index, 10, &[1, 2]).await;
        let pending = begin(&index, 11, &[1]).await;
        index.begin(repository("a/b"), referrer(12, &[1])).await.unwrap().confirm().await.unwrap();
        let other = Repository { upstream: 1, ..repository("a") };
        index.begin(other, referrer(13, &[1])).await.unwrap().confirm().await.unwrap();
        assert_eq!(numbers(&index, 1).await, [(10, false), (11, true)]);
        assert_eq!(numbers(&index, 2).await, [(10, false)]);
        assert_eq!(numbers(&index, 3).await, []);
        assert_eq!(counts(&index).await, (4, 5, 1));
        let in_flight = || index.statistics().map(|statistics| statistics.in_flight);
        assert_eq!(in_flight().unwrap_or(1), 1);
        drop(pending);
        assert_eq!(in_flight().unwrap_or(0), 0);
        index.probe().await.unwrap();
        settle(&index, 11, &[1], version(&index, 11).await.unwrap()).await;
        assert_eq!(numbers(&index, 1).await, [(10, false), (11, false)]);
        assert_eq!(counts(&index).await, (4, 5, 0));
    }
}

#[tokio::test]
async fn tells_the_kinds_of_a_link_and_keeps_what_one_referrer_says_together() {
    for bench in Bench::each() {
        let index = bench.open().await;
        let links = vec![link(1, LinkKind::Reference), link(1, LinkKind::Parent), link(2, LinkKind::Parent)];
        let referrer = Referrer { links, ..referrer(10, &[]) };
        index.begin(repository("a"), referrer).await.unwrap().confirm().await.unwrap();
        let of_1 = entries(&index, 1).await;
        let of_2 = entries(&index, 2).await;
        assert_eq!(of_1.len(), 1);
        assert_eq!(of_1[0].kinds.iter().collect::<Vec<_>>(), [LinkKind::Reference, LinkKind::Parent]);
        assert_eq!(of_1[0].digest, digest(10));
        assert_eq!(of_2[0], Entry { kinds: LinkKind::Parent.into(), ..of_1[0].clone() });
    }
}

#[tokio::test]
async fn a_long_descriptor_of_a_manifest_with_many_links_is_listed_as_any_other() {
    for bench in Bench::each() {
        let index = bench.open().await;
        let subjects: Vec<u32> = (0..300).collect();
        let descriptor = format!("\"{}\"", "x".repeat(1 << 20));
        let long = Referrer { descriptor: descriptor.clone(), ..referrer(1000, &subjects) };
        index.begin(repository("a"), long).await.unwrap().confirm().await.unwrap();
        for subject in [0, 299] {
            assert_eq!(entries(&index, subject).await[0].descriptor, descriptor);
        }
        index.close().await;
        drop(index);
        assert_eq!(entries(&bench.open().await, 150).await[0].descriptor, descriptor);
        assert_eq!(bench.rebuilds(), 0);
    }
}

#[tokio::test]
async fn pages_end_by_entries_and_by_bytes() {
    for bench in Bench::each() {
        let index = bench.open().await;
        for n in 100..110 {
            put(&index, n, &[1]).await;
        }
        let orders: Vec<_> = entries(&index, 1).await.iter().map(|entry| entry.order).collect();
        assert!(orders.is_sorted());
        let length = descriptor(100).len() + 1;
        let check =
            async |after: Option<usize>, max_entries, max_bytes, expected: std::ops::Range<u32>, more| {
                let scan =
                    Scan { after: after.map(|place| orders[place]), max_entries, max_bytes, ..everything() };
                let page = index.referrers(repository("a"), digest(1), scan).await.unwrap();
                let found: Vec<_> = page.entries.into_iter().map(|entry| entry.descriptor).collect();
                assert_eq!((found, page.more), (expected.map(descriptor).collect(), more));
            };
        check(None, 10, usize::MAX, 100..110, false).await;
        check(None, 9, usize::MAX, 100..109, true).await;
        check(Some(8), 9, usize::MAX, 109..110, false).await;
        check(Some(9), 9, usize::MAX, 0..0, false).await;
        check(None, 100, 3 * length, 100..103, true).await;
        check(None, 100, 3 * length - 1, 100..102, true).await;
        check(Some(6), 100, 3 * length, 107..110, false).await;
        check(None, 100, 0, 100..101, true).await;
        check(None, 0, usize::MAX, 0..0, true).await;

        let even = |entry: &Entry| entry.order.0.is_multiple_of(2);
        let expected: Vec<_> = orders.iter().copied().filter(|order| order.0.is_multiple_of(2)).collect();
        let scan = Scan { max_entries: expected.len(), accepts: Box::new(even), ..everything() };
        let page = index.referrers(repository("a"), digest(1), scan).await.unwrap();
        let found: Vec<_> = page.entries.iter().map(|entry| entry.order).collect();
        assert_eq!((found, page.more), (expected, false));
    }
}

#[tokio::test]
async fn a_second_opener_is_refused() {
    let bench = Bench::new();
    let index = bench.open().await;
    let error = bench.try_open().unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    assert_eq!(
        error.to_string(),
        format!("{} is in use by another process", bench.settings.data_dir.display())
    );
    index.close().await;
    drop(index);
    bench.open().await;
}

#[tokio::test]
async fn a_closed_index_says_so() {
    for bench in Bench::each() {
        let index = bench.open().await;
        index.probe().await.unwrap();
        let pending = begin(&index, 10, &[1]).await;
        index.close().await;
        index.close().await;
        assert_eq!(index.state(), IndexState::Closed);
        assert_eq!(pending.confirm().await, Err(WriteError::Closed));
        let read = index.referrers(repository("a"), digest(1), everything()).await;
        assert_eq!(read, Err(ReadError::Closed));
        assert_eq!(index.probe().await, Err(ProbeError::Read(ReadError::Closed)));
    }
}

#[tokio::test]
async fn a_failed_write_is_told_reads_go_on_and_writing_is_resumed_where_it_can_be() {
    let mut bench = Bench::new();
    bench.settings.segment_bytes = 1;
    let index = bench.open().await;
    put(&index, 10, &[1]).await;
    let pending = begin(&index, 11, &[1]).await;
    let failures = index.failures();
    // The next segment cannot be created.
    let (journal, away) = (bench.settings.data_dir.join("journal"), bench.directory.path().join("away"));
    fs::rename(&journal, &away).unwrap();
    assert_eq!(pending.confirm().await, Err(WriteError::Failed));
    let failed = index.begin(repository("a"), referrer(12, &[1])).await.unwrap_err();
    assert_eq!(failed.to_string(), "the index cannot be written at the moment");
    let reason = index.write_failure().unwrap();
    assert!(reason.contains("a new segment of the journal cannot be begun"), "{reason}");
    assert_eq!(index.probe().await, Err(ProbeError::Write(failed)));
    assert!(index.failures() > failures);
    assert_eq!(numbers(&index, 1).await, [(10, false), (11, true)]);
    fs::rename(&away, &journal).unwrap();
    while index.write_failure().is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    index.probe().await.unwrap();
    put(&index, 12, &[1]).await;
    let expected = [(10, false), (11, true), (12, false)];
    assert_eq!(numbers(&index, 1).await, expected);
    index.close().await;
    drop(index);
    fs::remove_dir_all(bench.sled()).unwrap();
    assert_eq!(numbers(&bench.open().await, 1).await, expected);
}
