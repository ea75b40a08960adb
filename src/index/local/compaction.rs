//! Compaction: the whole index written as a snapshot, on a thread of its own, so that the journal's
//! older segments can go.
//!
//! The snapshot is no frozen moment: it may hold changes from behind its position. Reading them again
//! from the segments ends in the same state, as each record counts once.

use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::journal::files::SnapshotWriter;
use super::journal::files::{self, Snapshot};
use super::journal::format::Header;
use super::journal::{Journal, JournalError};
use super::record::{Record, Recorded};
use super::sled::{Numbers, Store, StoreError, guarded};
use super::state::SharedState;

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

/// When the journal is compacted, and the thread that does it.
#[derive(Debug)]
pub(crate) struct Compactor {
    compact_bytes: u64,
    running: Option<Compacting>,
    /// No compaction before the segments are this long; set when one failed.
    from: u64,
}

impl Compactor {
    pub(crate) fn new(compact_bytes: u64) -> Self {
        Self { compact_bytes, running: None, from: 0 }
    }

    /// What became of a compaction that has ended since this was asked last.
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

    /// Whether it is time for a compaction.
    pub(crate) fn is_due(&self, journal: &Journal) -> bool {
        let length = journal.segments_length();
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

/// What to compact: everything before the position in `header`, all of which `store` has.
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
            // If this fails as well, the next opening does it.
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
        // A store that failed meanwhile may have given anything.
        self.shared.still_valid(&self.store).map_err(|_| CompactionError::Stopped)?;
        let after = self.store.numbers();
        let expected = expected_count(before, after);
        // What sled does not give back must not vanish from the journal.
        if !expected.contains(&found) {
            return Err(CompactionError::Count { found, expected });
        }
        Ok(writer.finish()?)
    }
}

/// How many referrers an iteration may give that ran while `before` became `after`.
fn expected_count(before: Numbers, after: Numbers) -> RangeInclusive<u64> {
    let removed = after.removed - before.removed;
    let added = after.added - before.added;
    before.meta.referrers.saturating_sub(removed)..=before.meta.referrers + added
}
