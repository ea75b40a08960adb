//! The check in the background: reads everything that is stored once a day, a little each minute, so that damage is told
//! while there still is a backup without it, and not when the list is asked for that needs it.
//!
//! What it finds is handled as if a query had met it: a damaged block is told in the log and counted in the metrics, and
//! a delta that cannot be read is built anew from the journal. A compaction reads all of the snapshot that it replaces,
//! so it counts as a check.

use std::io;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::EngineCommand;
use super::sled::guarded;
use super::sorted::SortedError;
use super::state::SharedState;
use super::store::{Store, StoreError};

/// How often a part is read.
const STEP: Duration = Duration::from_secs(60);
/// In how many parts everything is read.
const STEPS: usize = 24 * 60;

/// Checks what is stored, part by part.
#[derive(Debug)]
pub(crate) struct Checker {
    shared: Weak<SharedState>,
    commands: mpsc::WeakSender<EngineCommand>,
    next: Next,
}

/// Where the check goes on.
#[derive(Debug, Default)]
struct Next {
    /// The position of the snapshot that is being checked. Another one is begun with anew.
    snapshot: u64,
    block: usize,
    step: usize,
    /// Whether something could not be read.
    has_failed: bool,
}

impl Checker {
    /// Starts the thread. It ends when the index is closed and the thread unparked.
    pub(crate) fn start(
        shared: &Arc<SharedState>,
        commands: &mpsc::Sender<EngineCommand>,
    ) -> io::Result<JoinHandle<()>> {
        // Both weak, also while it waits: neither the lock nor the committer may be kept alive for a check.
        let (shared, commands) = (Arc::downgrade(shared), commands.downgrade());
        let checker = Self { shared, commands, next: Next::default() };
        thread::Builder::new().name("index-check".to_owned()).spawn(move || checker.run())
    }

    fn run(mut self) {
        loop {
            let due = Instant::now() + STEP;
            // May return early.
            while let Some(left) = due.checked_duration_since(Instant::now()) {
                thread::park_timeout(left);
                if self.shared.upgrade().is_none_or(|shared| shared.is_stopping()) {
                    return;
                }
            }
            let Some(shared) = self.shared.upgrade() else { return };
            let Ok(store) = shared.store() else { continue };
            match self.next.check(&store, STEPS, || !shared.is_stopping()) {
                Ok(true) => {
                    shared.update_statistics(|statistics| statistics.checked = Some(now()));
                    tracing::info!("all that is stored of the index was read and checked");
                }
                Ok(false) => {}
                Err(error) => self.failed(&shared, store, &error),
            }
        }
    }

    fn failed(&self, shared: &SharedState, store: Arc<Store>, error: &StoreError) {
        // Its files are emptied when it is given up: no wonder then.
        if shared.still_valid(&store).is_err() {
            return;
        }
        tracing::error!(%error, "the index cannot be read");
        shared.count_failure();
        // What the disk does not read of the snapshot is no fault of sled.
        if matches!(error, StoreError::Snapshot(_)) {
            return;
        }
        if let Some(commands) = self.commands.upgrade() {
            commands.try_send(EngineCommand::Failed(store)).ok();
        }
    }
}

impl Next {
    /// Checks one of so many parts; whether it was the last one, and all could be read. A damaged block is no error:
    /// whoever met it has told of it.
    fn check(&mut self, store: &Store, parts: usize, go_on: impl Fn() -> bool) -> Result<bool, StoreError> {
        let view = store.view();
        self.step += 1;
        if let Some(snapshot) = view.snapshot() {
            if self.snapshot != snapshot.position() {
                *self = Self { snapshot: snapshot.position(), step: 1, ..Self::default() };
            }
            let end = (snapshot.file.blocks() * self.step).div_ceil(parts);
            while self.block < end && go_on() {
                let checked = snapshot.file.check(self.block);
                self.block += 1;
                if let Err(error @ SortedError::Io { .. }) = checked {
                    self.has_failed = true;
                    return Err(error.into());
                }
            }
        }
        if self.step < parts {
            return Ok(false);
        }
        let is_whole = !self.has_failed;
        *self = Self { snapshot: self.snapshot, ..Self::default() };
        // At once: a delta is small.
        view.deltas().iter().try_for_each(|delta| guarded(|| delta.check(&go_on)))?;
        Ok(is_whole && go_on())
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or(0)
}
