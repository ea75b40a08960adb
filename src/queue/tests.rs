//! The queue over restarts, at its bound, and with equal events.

use std::path::Path;

use super::*;
use crate::config::{CommandLine, Config};
use crate::index::IndexSettings;
use crate::test_database::Postgres;

impl Event for String {
    const NAMED: &'static str = "words";
    const REMEDY: &'static str = "a dictionary";
}

fn push(tag: &str) -> String {
    tag.to_owned()
}

fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

fn open(directory: &Path) -> Queue<String> {
    Queue::open(Place::Directory(directory.to_owned()), 4).unwrap()
}

async fn next(queue: &Queue<String>) -> Job<String> {
    tokio::time::timeout(Duration::from_secs(60), queue.next()).await.unwrap()
}

#[tokio::test]
async fn what_is_not_worked_off_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path());
    queue.add(vec![push("v1"), push("v2")]).await.unwrap();
    queue.add(vec![push("v3")]).await.unwrap();
    let first = next(&queue).await;
    assert_eq!(first.event, push("v1"));
    queue.done(first).await;
    // Begun, and not ended.
    drop(next(&queue).await);
    let queue = open(directory.path());
    // The file of the first one is not worked off as a whole.
    for tag in ["v1", "v2", "v3"] {
        let job = next(&queue).await;
        assert_eq!(job.event, push(tag));
        queue.done(job).await;
    }
    assert_eq!((files(directory.path()), queue.measure()), (0, (0, None)));
}

#[tokio::test]
async fn equal_events_that_wait_are_worked_off_once() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path());
    for _ in 0..3 {
        queue.add(vec![push("v1"), push("v1")]).await.unwrap();
    }
    assert_eq!((files(directory.path()), queue.measure().0), (1, 1));
    let job = next(&queue).await;
    // What is told while it is being worked off may be news.
    queue.add(vec![push("v1")]).await.unwrap();
    queue.again(job, Duration::from_secs(3600));
    let job = next(&queue).await;
    assert_eq!((queue.measure().0, job.tried), (1, 0), "the newer one comes first");
    queue.done(job).await;
    assert_eq!((files(directory.path()), queue.measure().0), (0, 0));
}

#[tokio::test]
async fn an_event_is_not_worked_off_by_two_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path());
    queue.add(vec![push("v1")]).await.unwrap();
    let job = next(&queue).await;
    for _ in 0..3 {
        queue.add(vec![push("v1")]).await.unwrap();
    }
    assert_eq!(queue.measure().0, 2, "one that is worked off, and one that waits for it");
    queue.add(vec![push("v2")]).await.unwrap();
    let other = next(&queue).await;
    assert_eq!(other.event, push("v2"), "it keeps nobody else waiting");
    assert!(tokio::time::timeout(Duration::from_millis(50), queue.next()).await.is_err());
    queue.done(job).await;
    let job = next(&queue).await;
    assert_eq!(job.event, push("v1"));
    // Neither is worked off when the process dies.
    drop((job, other));
    assert_eq!(open(directory.path()).measure().0, 2);
}

#[tokio::test]
async fn there_is_a_bound_and_none_is_taken_of_what_is_over_it() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path());
    queue.add(vec![push("v1"), push("v2"), push("v3")]).await.unwrap();
    let job = next(&queue).await;
    assert_eq!(queue.add(vec![push("v4"), push("v5")]).await, Err(NotQueued::Full));
    queue.add(vec![push("v4"), push("v2")]).await.unwrap();
    assert_eq!(queue.add(vec![push("v5")]).await, Err(NotQueued::Full));
    queue.done(job).await;
    queue.add(vec![push("v5")]).await.unwrap();
    assert_eq!(queue.measure().0, 4);
}

#[tokio::test]
async fn what_the_disk_does_not_take_is_not_queued() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("queue");
    let queue = open(&path);
    std::fs::remove_dir(&path).unwrap();
    assert_eq!(queue.add(vec![push("v1")]).await, Err(NotQueued::NotWritten));
    assert_eq!(queue.measure().0, 0);
    std::fs::create_dir(&path).unwrap();
    queue.add(vec![push("v1")]).await.unwrap();
    assert_eq!((files(&path), queue.measure().0), (1, 1));
}

#[tokio::test]
async fn events_that_come_together_share_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue::open(Place::Directory(directory.path().to_owned()), 1_000).unwrap();
    let tags: Vec<String> = (0..200).map(|number| format!("v{number}")).collect();
    let adding = tags.iter().map(|tag| queue.add(vec![push(tag)]));
    assert!(futures_util::future::join_all(adding).await.into_iter().all(|added| added.is_ok()));
    assert!(files(directory.path()) < 20, "{}", files(directory.path()));
    assert_eq!(open(directory.path()).measure().0, 200, "a bound does not lose what is there");
}

#[tokio::test(start_paused = true)]
async fn an_event_comes_again_after_its_pause() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path());
    queue.add(vec![push("v1")]).await.unwrap();
    let (job, began) = (queue.next().await, Instant::now());
    queue.again(job, Duration::from_secs(60));
    let job = queue.next().await;
    assert_eq!((job.tried, began.elapsed().as_secs()), (1, 60));
}

#[tokio::test]
async fn what_a_lost_replica_has_queued_is_worked_off_by_another() {
    let server = Postgres::start_fast();
    let index = || {
        let given = CommandLine { upstream: Some("http://127.0.0.1:9".to_owned()), ..CommandLine::default() };
        let variables = [("REFSHIM_INDEX_URL", server.url()), ("REFSHIM_INDEX_MIGRATE", "true".to_owned())];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let config = Config::load(&given, variables).unwrap();
        Index::open(IndexSettings::of(&config)).unwrap()
    };
    let place = |index: &Index| Place::of(index, "words", "/nowhere".into());
    let lost = index();
    let queue = Queue::open(place(&lost), 4).unwrap();
    queue.add(vec![push("v1"), push("v2")]).await.unwrap();
    queue.add(vec![push("v3")]).await.unwrap();
    let first = next(&queue).await;
    queue.done(first).await;
    // Of a file, all must be worked off.
    assert_eq!(server.psql("SELECT count(*) FROM queued").trim(), "2");
    drop(queue);
    // Or its first look for what others have left, which may be under way, takes it over: also one that the server
    // works on when nobody waits for it any more.
    lost.close().await;
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                  AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    while server.psql(others).trim() != "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.psql("UPDATE queued SET until_us = 1");
    let other = index();
    let queue = Queue::<String>::open(place(&other), 4).unwrap();
    let mut met = Vec::new();
    for _ in 0..3 {
        let job = next(&queue).await;
        met.push(job.event.clone());
        queue.done(job).await;
    }
    met.sort();
    assert_eq!(met, ["v1", "v2", "v3"]);
    assert_eq!((server.psql("SELECT count(*) FROM queued").trim(), queue.measure().0), ("0", 0));
    // While the database is away, nothing is taken.
    other.close().await;
    assert_eq!(queue.add(vec![push("v4")]).await, Err(NotQueued::NotWritten));
}
