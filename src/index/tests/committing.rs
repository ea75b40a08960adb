//! The committer alone: what one batch does, what it does before sled is there, and when it cannot write.

use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::index::local::committer::Committer;
use crate::index::local::journal::Journal;
use crate::index::local::opening::OpenedIndex;
use crate::index::local::sled::{DeltaSettings, Meta};
use crate::index::local::state::SharedState;
use crate::index::local::store::Store;
use crate::index::local::write::{Put, Reply};
use crate::index::local::{EngineCommand, QueuedWrite};

/// A committer that does not run yet, and the store that it has not taken over yet.
struct Parts {
    directory: tempfile::TempDir,
    shared: Arc<SharedState>,
    store: Arc<Store>,
    committer: Committer,
    commands: mpsc::Sender<EngineCommand>,
}

impl Parts {
    fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap(), None)
    }

    /// Of the index in `directory`, with a journal that is written to `device`.
    fn open(directory: tempfile::TempDir, device: Option<&str>) -> Self {
        let lock = fs::File::create(directory.path().join("lock")).unwrap();
        let shared = Arc::new(SharedState::new(lock));
        let files = directory.path().join("journal");
        let opened = Journal::open(&files, 1 << 20).unwrap();
        let mut journal = opened.unwrap_or_else(|| Journal::create(&files, 1 << 20).unwrap());
        if let Some(device) = device {
            journal.write_to(fs::File::options().write(true).open(device).unwrap());
        }
        let identity = journal.reader().identity();
        let sled = directory.path().join("sled");
        let settings = DeltaSettings { cache_bytes: 1 << 20, flush_interval: Duration::from_secs(1) };
        let store = Arc::new(Store::open(&sled, settings, Meta::empty(identity), None).unwrap());
        let (commands, receiver) = mpsc::channel(64);
        let committer =
            Committer::new(Arc::clone(&shared), journal, receiver, 1 << 30, Duration::from_secs(3600));
        Self { directory, shared, store, committer, commands }
    }
}

fn opened(store: Arc<Store>) -> EngineCommand {
    EngineCommand::Opened(OpenedIndex { store: Ok(store), built: None })
}

fn key(n: u32) -> ReferrerKey {
    ReferrerKey { repository: repository("a"), digest: digest(n) }
}

fn begin(n: u32, subjects: &[u32]) -> impl FnOnce(Reply<Put>) -> Write {
    let referrer = referrer(n, subjects);
    |reply| Write::Begin { repository: repository("a"), referrer, reply }
}

fn remove(n: u32) -> impl FnOnce(Reply<Removed>) -> Write {
    move |reply| Write::Remove { key: key(n), seen: Version::UNKNOWN, reply }
}

type WriteAnswer<T> = oneshot::Receiver<Result<T, WriteError>>;

fn send<T>(commands: &mpsc::Sender<EngineCommand>, write: impl FnOnce(Reply<T>) -> Write) -> WriteAnswer<T> {
    let (reply, answer) = oneshot::channel();
    commands
        .blocking_send(EngineCommand::Write(Box::new(QueuedWrite { write: write(reply), _room: None })))
        .unwrap();
    answer
}

fn received<T>(answer: WriteAnswer<T>) -> T {
    answer.blocking_recv().unwrap().unwrap()
}

/// What is pending of the referrers of subject 1.
fn pending_of_1(store: &Store) -> Vec<bool> {
    let page = store.view().referrers(&repository("a"), &digest(1), &everything()).unwrap();
    page.entries.iter().map(|entry| entry.pending).collect()
}

/// While the journal cannot be written to `device`, nothing is acknowledged, and what was is there. Then writing is
/// resumed, behind what was acknowledged.
#[track_caller]
fn check_failing(device: &str, expected: &str) {
    let Parts { directory, store, committer, commands, .. } = Parts::new();
    commands.blocking_send(opened(store)).unwrap();
    let acknowledged = [send(&commands, begin(10, &[1])), send(&commands, begin(11, &[1]))];
    commands.blocking_send(EngineCommand::Close).unwrap();
    committer.run();
    drop(acknowledged.map(received));

    let Parts { directory, shared, store, committer, commands } = Parts::open(directory, Some(device));
    // All of these in one batch, so that none comes when writing is resumed.
    let read = Arc::clone(&store);
    let begun: Vec<_> = (12..14).map(|n| send(&commands, begin(n, &[1]))).collect();
    // Nothing would have to be written for this one.
    let unknown = send(&commands, |reply| Write::Doubt { key: key(99), reply });
    let probe = send(&commands, |reply| Write::Probe { reply });
    commands.blocking_send(opened(store)).unwrap();
    let thread = thread::spawn(|| committer.run());
    for answer in begun {
        assert_eq!(answer.blocking_recv().unwrap().unwrap_err(), WriteError::Failed);
    }
    for answer in [unknown, probe] {
        assert_eq!(answer.blocking_recv().unwrap(), Err(WriteError::Failed));
    }
    assert_eq!(shared.failures(), 1);
    assert_eq!(pending_of_1(&read), [true, true]);
    assert_eq!(shared.statistics().in_flight, 0);
    while shared.writable().is_err() {
        let reason = shared.write_failure().unwrap_or_default();
        assert!(reason.is_empty() || reason.contains(expected), "{reason}");
        thread::sleep(Duration::from_millis(5));
    }
    received(send(&commands, begin(14, &[1])));
    assert_eq!((shared.state(), pending_of_1(&read)), (IndexState::Ready, vec![true, true, true]));
    commands.blocking_send(EngineCommand::Close).unwrap();
    thread.join().unwrap();
    drop((opened, shared));

    fs::remove_dir_all(directory.path().join("sled")).unwrap();
    let Parts { directory: _directory, shared, store, committer, commands } = Parts::open(directory, None);
    let thread = thread::spawn(|| committer.run());
    commands.blocking_send(opened(Arc::clone(&store))).unwrap();
    received(send(&commands, begin(15, &[1])));
    commands.blocking_send(EngineCommand::Close).unwrap();
    thread.join().unwrap();
    assert_eq!(pending_of_1(&store), [true, true, true, true]);
    assert_eq!(shared.write_failure(), None);
}

#[test]
fn after_a_write_or_a_sync_that_failed_nothing_is_acknowledged_until_writing_is_resumed() {
    check_failing("/dev/full", "No space left on device");
    // Takes what is written, but cannot sync it.
    check_failing("/dev/null", "Invalid argument");
}

#[test]
fn a_command_sees_what_the_same_batch_did_before_it() {
    let Parts { directory: _directory, shared, store, committer, commands } = Parts::new();
    commands.blocking_send(opened(Arc::clone(&store))).unwrap();
    let seen = Version::of(shared.journal_end(), 0);
    let first = send(&commands, begin(10, &[1]));
    let (repository, found) = (repository("a"), referrer(10, &[1]));
    let settled = send(&commands, |reply| Write::Settle { repository, seen, found, reply });
    let second = send(&commands, begin(10, &[2]));
    let doubted = send(&commands, remove(10));
    let unknown = send(&commands, remove(11));
    commands.blocking_send(EngineCommand::Close).unwrap();
    committer.run();
    received(settled);
    assert_eq!((received(doubted), received(unknown)), (Removed::Doubted, Removed::Unknown));
    let (first, second) = (received(first), received(second));
    assert_eq!(first.order, second.order);
    let state = store.view().referrer_state(&key(10)).unwrap().unwrap();
    assert_eq!((state.order, state.pending, state.links.len()), (first.order, true, 1));
    let statistics = shared.statistics();
    // The doubt is two: it was confirmed, and is a claim now.
    assert_eq!((statistics.commits, statistics.records, statistics.in_flight), (1, 5, 1));
    assert_eq!((statistics.referrers, statistics.links, statistics.pending), (1, 1, 1));
}

#[test]
fn before_sled_is_there_it_writes_what_is_right_whatever_is_known() {
    let Parts { directory: _directory, shared, store, committer, commands } = Parts::new();
    let thread = thread::spawn(|| committer.run());
    let confirm = |put| received(send(&commands, |reply| Write::Confirm { put, reply }));
    let refuse = |put| received(send(&commands, |reply| Write::Refuse { put, reply }));
    let begun = |n| received(send(&commands, begin(n, &[1])));
    confirm(begun(10));
    confirm(begun(11));
    refuse(begun(11));
    refuse(begun(12));
    let kept = begun(13);
    assert_eq!(received(send(&commands, remove(10))), Removed::Doubted);
    assert_eq!(received(send(&commands, remove(99))), Removed::Doubted);
    assert_eq!(shared.state(), IndexState::Opening);
    commands.blocking_send(opened(Arc::clone(&store))).unwrap();
    // From here on it sees what is known.
    assert_eq!(received(send(&commands, remove(99))), Removed::Unknown);
    assert_eq!(shared.state(), IndexState::Ready);
    let pending = |n| store.view().referrer_state(&key(n)).unwrap().map(|state| state.pending);
    assert_eq!([10, 11, 12, 13, 99].map(pending), [Some(true), Some(false), Some(true), Some(true), None]);
    // Whether it made the referrer known was not to be seen when it began.
    refuse(kept);
    assert_eq!(pending(13), Some(true));
    commands.blocking_send(EngineCommand::Close).unwrap();
    thread.join().unwrap();
}
