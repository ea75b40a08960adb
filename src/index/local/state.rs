//! The state that the engine's threads share: what can be read and written now, and why not.
//!
//! Reading and writing fail independently. Of a failure, an operator is told the reason (log, [`IndexState`]), a
//! client only what it can do about it (the error).

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::in_progress::{PutsInProgress, ReadsInProgress};
use super::store::Store;

use crate::index::{IndexState, ReadError, Statistics, WriteError};

/// Whether the index can be read.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Opening,
    Ready(Arc<Store>),
    /// sled failed for this reason and is being rebuilt.
    Rebuilding(String),
    /// The journal is damaged, or the thread that writes it ended.
    Damaged(String, ReadError),
    Closed,
}

/// The shared state.
#[derive(Debug)]
pub(crate) struct SharedState {
    phase: watch::Sender<Phase>,
    write_failure: Mutex<Option<WriteFailure>>,
    /// How many failures there were so far.
    failures: AtomicU64,
    statistics: Mutex<Statistics>,
    journal_end: AtomicU64,
    stop: AtomicBool,
    pub(crate) puts: Arc<PutsInProgress>,
    pub(crate) reads: Arc<ReadsInProgress>,
    /// The lock on the data directory, held as long as any thread may write to it.
    _lock: File,
}

/// Why writes are rejected.
#[derive(Clone, Debug)]
struct WriteFailure {
    reason: String,
    /// The error for clients.
    error: WriteError,
}

impl SharedState {
    pub(crate) fn new(lock: File) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Opening),
            write_failure: Mutex::default(),
            failures: AtomicU64::new(0),
            statistics: Mutex::default(),
            journal_end: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            puts: Arc::default(),
            reads: Arc::default(),
            _lock: lock,
        }
    }

    /// The store to read from, or why there is none.
    pub(crate) fn store(&self) -> Result<Arc<Store>, ReadError> {
        match &*self.phase.borrow() {
            Phase::Opening => Err(ReadError::Opening),
            Phase::Ready(store) => Ok(Arc::clone(store)),
            Phase::Rebuilding(_) => Err(ReadError::Rebuilding),
            Phase::Damaged(_, error) => Err(error.clone()),
            Phase::Closed => Err(ReadError::Closed),
        }
    }

    pub(crate) fn state(&self) -> IndexState {
        match &*self.phase.borrow() {
            Phase::Opening => IndexState::Opening,
            Phase::Ready(_) => IndexState::Ready,
            Phase::Rebuilding(reason) => IndexState::Rebuilding(reason.clone()),
            Phase::Damaged(reason, _) => IndexState::Damaged(reason.clone()),
            Phase::Closed => IndexState::Closed,
        }
    }

    /// Waits until the index is neither being opened nor being rebuilt.
    pub(crate) async fn opened(&self) {
        let mut phase = self.phase.subscribe();
        // Cannot fail: the sender lives as long as `self`.
        phase.wait_for(|phase| !matches!(phase, Phase::Opening | Phase::Rebuilding(_))).await.ok();
    }

    /// Whether a result just read from this store is valid. The files of a store that failed are emptied, and sled
    /// may take what it then finds for a shorter list.
    pub(crate) fn still_valid(&self, read_from: &Arc<Store>) -> Result<(), ReadError> {
        match &*self.phase.borrow() {
            Phase::Ready(store) if Arc::ptr_eq(store, read_from) => Ok(()),
            // Closing does not change the files.
            Phase::Closed => Ok(()),
            Phase::Damaged(_, error) => Err(error.clone()),
            Phase::Opening | Phase::Rebuilding(_) | Phase::Ready(_) => Err(ReadError::Rebuilding),
        }
    }

    pub(crate) fn ready(&self, store: Arc<Store>) {
        self.phase.send_replace(Phase::Ready(store));
    }

    pub(crate) fn closed(&self) {
        self.phase.send_replace(Phase::Closed);
    }

    /// Rejects reads until sled is rebuilt.
    pub(crate) fn rebuilding(&self, reason: String) {
        tracing::error!(reason, "the index cannot answer queries; rebuilding it from the journal");
        self.count_failure();
        self.phase.send_replace(Phase::Rebuilding(reason));
    }

    /// Rejects reads and writes for good: the journal is damaged.
    pub(crate) fn damaged(&self, reason: &str) {
        self.fail_reads(reason.to_owned(), ReadError::Damaged);
        self.fail_writes(reason.to_owned(), WriteError::Damaged);
    }

    /// Rejects reads for good.
    pub(crate) fn fail_reads(&self, reason: String, error: ReadError) {
        tracing::error!(reason, "the index cannot answer queries");
        self.count_failure();
        self.phase.send_replace(Phase::Damaged(reason, error));
    }

    /// Rejects writes; for good unless the error is [`WriteError::Failed`].
    pub(crate) fn fail_writes(&self, reason: String, error: WriteError) {
        tracing::error!(reason, "the index cannot be written");
        self.count_failure();
        let mut failure = self.lock_write_failure();
        // Of lasting failures the first is the cause, and later ones its consequences.
        if failure.as_ref().is_none_or(|failure| failure.error == WriteError::Failed) {
            *failure = Some(WriteFailure { reason, error });
        }
    }

    /// Accepts writes again after a passing failure.
    pub(crate) fn resume_writes(&self) {
        self.lock_write_failure().take_if(|failure| failure.error == WriteError::Failed);
    }

    /// Why writes are rejected, for the operator.
    pub(crate) fn write_failure(&self) -> Option<String> {
        self.lock_write_failure().as_ref().map(|failure| failure.reason.clone())
    }

    /// Whether writes are accepted; if not, the error for clients.
    pub(crate) fn writable(&self) -> Result<(), WriteError> {
        self.lock_write_failure().as_ref().map_or(Ok(()), |failure| Err(failure.error.clone()))
    }

    fn lock_write_failure(&self) -> MutexGuard<'_, Option<WriteFailure>> {
        self.write_failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many failures there were so far.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn statistics(&self) -> Statistics {
        let statistics = *self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        let damaged = match &*self.phase.borrow() {
            Phase::Ready(store) => {
                store.view().snapshot().map_or(0, |snapshot| snapshot.file.damaged() as u64)
            }
            Phase::Opening | Phase::Rebuilding(_) | Phase::Damaged(..) | Phase::Closed => 0,
        };
        Statistics { in_flight: self.puts.len() as u64, damaged, ..statistics }
    }

    pub(crate) fn update_statistics(&self, update: impl FnOnce(&mut Statistics)) {
        update(&mut self.statistics.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The position up to which the journal is durable.
    pub(crate) fn journal_end(&self) -> u64 {
        self.journal_end.load(Ordering::Acquire)
    }

    pub(crate) fn set_journal_end(&self, position: u64) {
        self.journal_end.store(position, Ordering::Release);
    }

    /// Whether the index is being closed, so that long work must stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
