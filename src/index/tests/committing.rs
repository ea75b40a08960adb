//! The committer alone: what one batch does, what it does before sled is there, and when it cannot write.

use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::index::command::{Command, Reply, Write};
use crate::index::committer::Committer;
use crate::index::journal::Journal;
use crate::index::shared::Shared;
use crate::index::sled::Store;

/// A committer that does not run yet, and the store that it has not taken over yet.
struct Parts {
    directory: tempfile::TempDir,
    shared: Arc<Shared>,
    store: Arc<Store>,
    committer: Committer,
    commands: mpsc::Sender<Command>,
}

impl Parts {
    fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap(), None)
    }

    /// Of the index in `directory`, with a journal that is written to `device`.
    fn open(directory: tempfile::TempDir, device: Option<&str>) -> Self {
        let lock = fs::File::create(directory.path().join("lock")).unwrap();
        let shared = Arc::new(Shared::new(lock));
        let files = directory.path().join("journal");
        let opened = Journal::open(&files, 1 << 20).unwrap();
        let mut journal = opened.unwrap_or_else(|| Journal::create(&files, 1 << 20).unwrap());
        if let Some(device) = device {
            journal.write_to(fs::File::options().write(true).open(device).unwrap());
        }
        let identity = journal.history().identity();
        let sled = directory.path().join("sled");
        let store = Arc::new(Store::open(&sled, 1 << 20, Duration::from_secs(1), identity).unwrap());
        let (commands, receiver) = mpsc::channel(64);
        let committer = Committer::new(Arc::clone(&shared), journal, receiver, 1 << 30);
        Self { directory, shared, store, committer, commands }
    }
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

type Answer<T> = oneshot::Receiver<Result<T, WriteError>>;

fn send<T>(commands: &mpsc::Sender<Command>, write: impl FnOnce(Reply<T>) -> Write) -> Answer<T> {
    let (reply, answer) = oneshot::channel();
    commands.blocking_send(Command::Write(Box::new(write(reply)))).unwrap();
    answer
}

fn received<T>(answer: Answer<T>) -> T {
    answer.blocking_recv().unwrap().unwrap()
}

/// What is pending of the referrers of subject 1.
fn pending_of_1(store: &Store) -> Vec<bool> {
    let page = store.referrers(&repository("a"), &digest(1), &everything()).unwrap();
    page.entries.iter().map(|entry| entry.pending).collect()
}

/// Once the journal cannot be written to `device`, nothing is acknowledged, and what was is there.
#[track_caller]
fn check_final(device: &str, expected: &str) {
    let Parts { directory, store, committer, commands, .. } = Parts::new();
    commands.blocking_send(Command::Opened(store)).unwrap();
    let acknowledged = [send(&commands, begin(10, &[1])), send(&commands, begin(11, &[1]))];
    commands.blocking_send(Command::Close).unwrap();
    committer.run();
    drop(acknowledged.map(received));

    let Parts { directory, shared, store, committer, commands } = Parts::open(directory, Some(device));
    let thread = thread::spawn(|| committer.run());
    commands.blocking_send(Command::Opened(store)).unwrap();
    let failed = |answer: Result<(), WriteError>| {
        let error = answer.unwrap_err().to_string();
        assert!(error.contains("the journal cannot be written") && error.contains(expected), "{error}");
    };
    for n in 12..14 {
        failed(send(&commands, begin(n, &[1])).blocking_recv().unwrap().map(drop));
    }
    // Nothing would have to be written for this one.
    let unknown = send(&commands, |reply| Write::SettlePresent { key: key(99), seen: Version(1), reply });
    failed(unknown.blocking_recv().unwrap());
    failed(send(&commands, |reply| Write::Probe { reply }).blocking_recv().unwrap());
    assert_eq!(shared.state(), State::Ready);
    assert_eq!(pending_of_1(&shared.store().unwrap()), [true, true]);
    assert_eq!(shared.statistics().in_flight, 0);
    commands.blocking_send(Command::Close).unwrap();
    thread.join().unwrap();

    let Parts { directory: _directory, shared, store, committer, commands } = Parts::open(directory, None);
    commands.blocking_send(Command::Opened(Arc::clone(&store))).unwrap();
    let answer = send(&commands, begin(14, &[1]));
    commands.blocking_send(Command::Close).unwrap();
    committer.run();
    received(answer);
    assert_eq!(pending_of_1(&store), [true, true, true]);
    assert_eq!(shared.write_failure(), None);
}

#[test]
fn after_a_write_or_a_sync_that_failed_nothing_is_acknowledged() {
    check_final("/dev/full", "No space left on device");
    // Takes what is written, but cannot sync it.
    check_final("/dev/null", "Invalid argument");
}

#[test]
fn a_command_sees_what_the_same_batch_did_before_it() {
    let Parts { directory: _directory, shared, store, committer, commands } = Parts::new();
    commands.blocking_send(Command::Opened(Arc::clone(&store))).unwrap();
    let seen = Version::of(shared.journal_end(), 0);
    let first = send(&commands, begin(10, &[1]));
    let settled = send(&commands, |reply| Write::SettlePresent { key: key(10), seen, reply });
    let second = send(&commands, begin(10, &[2]));
    let doubted = send(&commands, remove(10));
    let unknown = send(&commands, remove(11));
    commands.blocking_send(Command::Close).unwrap();
    committer.run();
    received(settled);
    assert_eq!((received(doubted), received(unknown)), (Removed::Doubted, Removed::Unknown));
    let (first, second) = (received(first), received(second));
    assert_eq!(first.order, second.order);
    let known = store.known(&key(10)).unwrap().unwrap();
    assert_eq!((known.order, known.pending, known.links.len()), (first.order, true, 2));
    let statistics = shared.statistics();
    assert_eq!((statistics.commits, statistics.records, statistics.in_flight), (1, 4, 1));
    assert_eq!((statistics.referrers, statistics.links, statistics.pending), (1, 2, 1));
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
    assert_eq!(shared.state(), State::Opening);
    commands.blocking_send(Command::Opened(Arc::clone(&store))).unwrap();
    // From here on it sees what is known.
    assert_eq!(received(send(&commands, remove(99))), Removed::Unknown);
    assert_eq!(shared.state(), State::Ready);
    let pending = |n| store.known(&key(n)).unwrap().map(|known| known.pending);
    assert_eq!([10, 11, 12, 13, 99].map(pending), [Some(true), Some(false), Some(true), Some(true), None]);
    // Whether it made the referrer known was not to be seen when it began.
    refuse(kept);
    assert_eq!(pending(13), Some(true));
    commands.blocking_send(Command::Close).unwrap();
    thread.join().unwrap();
}
