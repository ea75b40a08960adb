//! What the threads of the local index share.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::watch;

use super::in_flight::InFlight;
use super::sled::Store;
use super::watches::Watches;
use super::{ReadError, State, Statistics};

/// How far the index is.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Opening,
    Ready(Arc<Store>),
    Damaged(String),
    Closed,
}

/// What the threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    phase: watch::Sender<Phase>,
    write_failure: OnceLock<String>,
    statistics: Mutex<Statistics>,
    journal_end: AtomicU64,
    stop: AtomicBool,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) watches: Arc<Watches>,
    /// Held as long as any thread may write.
    _lock: File,
}

impl Shared {
    pub(crate) fn new(lock: File) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Opening),
            write_failure: OnceLock::new(),
            statistics: Mutex::default(),
            journal_end: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            in_flight: Arc::default(),
            watches: Arc::default(),
            _lock: lock,
        }
    }

    /// The index to read from, if there is one.
    pub(crate) fn store(&self) -> Result<Arc<Store>, ReadError> {
        match &*self.phase.borrow() {
            Phase::Opening => Err(ReadError::Opening),
            Phase::Ready(store) => Ok(Arc::clone(store)),
            Phase::Damaged(reason) => Err(ReadError::Damaged(reason.clone())),
            Phase::Closed => Err(ReadError::Closed),
        }
    }

    pub(crate) fn state(&self) -> State {
        match &*self.phase.borrow() {
            Phase::Opening => State::Opening,
            Phase::Ready(_) => State::Ready,
            Phase::Damaged(reason) => State::Damaged(reason.clone()),
            Phase::Closed => State::Closed,
        }
    }

    /// Waits until the state is another one than `Opening`.
    pub(crate) async fn opened(&self) {
        let mut phase = self.phase.subscribe();
        // Cannot fail: the sender lives as long as `self`.
        phase.wait_for(|phase| !matches!(phase, Phase::Opening)).await.ok();
    }

    pub(crate) fn ready(&self, store: Arc<Store>) {
        self.phase.send_replace(Phase::Ready(store));
    }

    pub(crate) fn closed(&self) {
        self.phase.send_replace(Phase::Closed);
    }

    /// The index cannot be read any more.
    pub(crate) fn damaged(&self, reason: String) {
        tracing::error!(reason, "the index cannot answer queries");
        self.phase.send_replace(Phase::Damaged(reason));
    }

    /// The index cannot be written any more, for good.
    pub(crate) fn fail_writes(&self, reason: String) {
        tracing::error!(reason, "the index cannot be written any more");
        // The first reason is the one that tells.
        self.write_failure.set(reason).ok();
    }

    pub(crate) fn write_failure(&self) -> Option<&str> {
        self.write_failure.get().map(String::as_str)
    }

    pub(crate) fn statistics(&self) -> Statistics {
        let statistics = *self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        Statistics { in_flight: self.in_flight.len() as u64, ..statistics }
    }

    pub(crate) fn update_statistics(&self, update: impl FnOnce(&mut Statistics)) {
        update(&mut self.statistics.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Up to where the journal is durable.
    pub(crate) fn journal_end(&self) -> u64 {
        self.journal_end.load(Ordering::Acquire)
    }

    pub(crate) fn set_journal_end(&self, position: u64) {
        self.journal_end.store(position, Ordering::Release);
    }

    /// Whether long work has to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
