//! Compaction: writes the whole index as a snapshot, on a thread of its own, and removes the segments of the journal
//! that it replaces.
//!
//! First a new segment is begun. Its position is the snapshot's: everything before it is in sled already. Then all
//! referrers are read from sled and written as records, while writes go on. So the snapshot is not one moment of the
//! index; it may hold changes from behind its position, which the segments hold as well. Each record says which
//! version it makes, and applying one that is included already changes nothing.
//!
//! On disk, the snapshot gets its name when it is complete and synced, and only then the older segments are removed,
//! the oldest first. A crash or error before leaves the journal as it was; one in between leaves segments that the
//! next opening ignores. What sled does not give back would be lost for good, so the number of referrers is compared
//! before anything is removed: a compaction that finds fewer fails, and the journal only grows.

use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::journal::files::SnapshotWriter;
use super::journal::files::{self, Snapshot};
use super::journal::format::Header;
use super::journal::{Journal, JournalError};
use super::sled::{Numbers, Store, StoreError, guarded};
use super::state::SharedState;
use crate::index::record::{Record, Recorded};

#[derive(Debug, thiserror::Error)]
enum CompactionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the snapshot cannot be written: {0}")]
    Write(#[from] io::Error),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("sled gave {found} referrers where there are {} to {}", expected.start(), expected.end())]
    Count { found: u64, expected: RangeInclusive<u64> },
    #[error("the index was closed, or failed, meanwhile")]
    Stopped,
}

/// Starts a compaction when one is due, and takes its result.
#[derive(Debug)]
pub(crate) struct Compactor {
    compact_bytes: u64,
    running: Option<Compacting>,
    /// No compaction before the segments are this long. Raised when one failed, so that the next attempt is not
    /// made at once.
    from: u64,
}

impl Compactor {
    pub(crate) fn new(compact_bytes: u64) -> Self {
        Self { compact_bytes, running: None, from: 0 }
    }

    /// The snapshot of a compaction that has ended since the last call.
    pub(crate) fn ended(&mut self, journal: &Journal) -> Option<Snapshot> {
        let ended = self.running.take_if(|compaction| compaction.is_finished())?;
        self.join(ended, journal)
    }

    /// Whether a compaction is under way.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Waits for the end of the compaction that is under way.
    pub(crate) fn finish(&mut self, journal: &Journal) -> Option<Snapshot> {
        let running = self.running.take()?;
        self.join(running, journal)
    }

    fn join(&mut self, compaction: Compacting, journal: &Journal) -> Option<Snapshot> {
        match compaction.join() {
            Ok(Ok(snapshot)) => return Some(snapshot),
            Ok(Err(CompactionError::Stopped)) => {}
            Ok(Err(error)) => self.put_off(journal, &error.to_string()),
            Err(_) => self.put_off(journal, "it panicked"),
        }
        None
    }

    /// Whether a compaction is due.
    pub(crate) fn is_due(&self, journal: &Journal) -> bool {
        let length = journal.segments_length();
        // Twice the snapshot: rewriting everything costs in proportion to the index, so it happens once it has
        // grown by as much.
        let due = length > self.compact_bytes.max(2 * journal.snapshot_length());
        due && length >= self.from && self.running.is_none()
    }

    /// Compacts what lies before the position in the header, on a thread of its own.
    pub(crate) fn start(
        &mut self,
        shared: Arc<SharedState>,
        store: Arc<Store>,
        journal: &Journal,
        header: Header,
    ) {
        let directory = journal.directory().to_owned();
        match (Compaction { shared, store, directory, header }).start() {
            Ok(compaction) => self.running = Some(compaction),
            Err(error) => self.put_off(journal, &error.to_string()),
        }
    }

    fn put_off(&mut self, journal: &Journal, reason: &str) {
        self.from = journal.segments_length().saturating_add(self.compact_bytes);
        tracing::error!(reason, "the journal could not be compacted; nothing is lost, it only grows");
    }
}

/// A compaction of everything before the position in `header`, all of which is in `store`.
#[derive(Debug)]
struct Compaction {
    shared: Arc<SharedState>,
    store: Arc<Store>,
    directory: PathBuf,
    header: Header,
}

/// The thread that compacts.
type Compacting = JoinHandle<Result<Snapshot, CompactionError>>;

impl Compaction {
    fn start(self) -> io::Result<Compacting> {
        let before = self.store.numbers();
        thread::Builder::new().name("index-compaction".to_owned()).spawn(move || self.run(before))
    }

    fn run(self, before: Numbers) -> Result<Snapshot, CompactionError> {
        let length = self.write(before).inspect_err(|_| {
            let path = files::snapshot_path(&self.directory, self.header.position);
            // If this fails as well, the next opening removes it.
            files::discard_unfinished(&path).ok();
        })?;
        files::remove_before(&self.directory, self.header.position)?;
        Ok(Snapshot { position: self.header.position, length })
    }

    fn write(&self, before: Numbers) -> Result<u64, CompactionError> {
        let mut writer = SnapshotWriter::create(&self.directory, &self.header)?;
        let mut found = 0;
        let mut referrers = self.store.all();
        while let Some((referrer, state)) = guarded(|| referrers.next().transpose())? {
            found += 1;
            writer.append(&Record::Recorded(Recorded::of(referrer, state)))?;
            if self.shared.is_stopping() || self.shared.still_valid(&self.store).is_err() {
                return Err(CompactionError::Stopped);
            }
        }
        // A store that failed meanwhile may have returned anything, and too little above all.
        self.shared.still_valid(&self.store).map_err(|_| CompactionError::Stopped)?;
        let after = self.store.numbers();
        let expected = expected_count(before, after);
        // Only now the older segments may go: what sled did not return would vanish with them.
        if !expected.contains(&found) {
            return Err(CompactionError::Count { found, expected });
        }
        Ok(writer.finish()?)
    }
}

/// How many referrers an iteration may return during which `before` became `after`.
fn expected_count(before: Numbers, after: Numbers) -> RangeInclusive<u64> {
    let removed = after.removed - before.removed;
    let added = after.added - before.added;
    before.meta.referrers.saturating_sub(removed)..=before.meta.referrers + added
}
