//! Compaction: merges the snapshot and the delta over it into the next snapshot, on a thread of its own, and removes
//! what it replaces.
//!
//! First a new segment of the journal is begun, and with it a new delta. Its position is the snapshot's: everything
//! before it is in the older delta already, which does not change any more. So the snapshot is the index as it was at
//! exactly this position, while writes and queries go on: those read both deltas and the snapshot before.
//!
//! On disk, the snapshot gets its name when it is complete and synced, and only then the older segments are removed,
//! the oldest first. A crash or error before leaves the journal as it was, with two deltas, and the next attempt makes
//! the same snapshot; one in between leaves files that the next opening removes. What the merge does not give would be
//! lost for good, so referrers, links and pending referrers are counted before anything is removed: a compaction that
//! does not find as many as there are fails, and the journal only grows.
//!
//! It is due when the segments are longer than `index.compact_bytes`, or than an eighth of the snapshot if that is more.
//! Then merging costs each write as much as some nine others, and an opening has to read at most an eighth.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::journal::Journal;
use super::journal::files::{self, Snapshot};
use super::journal::format::Header;
use super::opening::remove_before;
use super::sled::guarded;
use super::state::SharedState;
use super::store::snapshot::{OpenSnapshotError, SnapshotWriter};
use super::store::{Older, SortedSnapshot, Store, StoreError};

/// The part of the snapshot that has to be new.
const PART: u64 = 8;

#[derive(Debug, thiserror::Error)]
enum CompactionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the snapshot cannot be written: {0}")]
    Write(#[from] io::Error),
    #[error(transparent)]
    Open(#[from] OpenSnapshotError),
    #[error("the index gave another number of referrers or links than there are: {0}")]
    Count(String),
    #[error("the index was closed, or failed, meanwhile")]
    Stopped,
}

/// The result of a compaction: the snapshot as a file, and open.
pub(crate) type Compacted = (Snapshot, Arc<SortedSnapshot>);

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

    /// The result of a compaction that has ended since the last call.
    pub(crate) fn ended(&mut self, journal: &Journal) -> Option<Compacted> {
        let ended = self.running.take_if(|compaction| compaction.is_finished())?;
        self.join(ended, journal)
    }

    /// Whether a compaction is under way.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Waits for the end of the compaction that is under way.
    pub(crate) fn finish(&mut self, journal: &Journal) -> Option<Compacted> {
        let running = self.running.take()?;
        self.join(running, journal)
    }

    fn join(&mut self, compaction: Compacting, journal: &Journal) -> Option<Compacted> {
        match compaction.join() {
            Ok(Ok(compacted)) => return Some(compacted),
            Ok(Err(CompactionError::Stopped)) => {}
            Ok(Err(error)) => self.put_off(journal, &error.to_string()),
            Err(_) => self.put_off(journal, "it panicked"),
        }
        None
    }

    /// Whether a new delta is to be begun, and the one so far to be compacted.
    pub(crate) fn is_due(&self, journal: &Journal) -> bool {
        journal.segments_length() > self.compact_bytes.max(journal.snapshot_length() / PART)
    }

    /// Whether a compaction may be started now.
    pub(crate) fn may_start(&self, journal: &Journal) -> bool {
        self.running.is_none() && journal.segments_length() >= self.from
    }

    /// Compacts what does not change any more, and lies before the position in the header, on a thread of its own.
    pub(crate) fn start(
        &mut self,
        shared: Arc<SharedState>,
        store: Arc<Store>,
        older: Older,
        journal: &Journal,
        header: Header,
    ) {
        let directory = journal.directory().to_owned();
        match (Compaction { shared, store, older, directory, header }).start() {
            Ok(compaction) => self.running = Some(compaction),
            Err(error) => self.put_off(journal, &error.to_string()),
        }
    }

    /// Has the next attempt wait until the journal has grown.
    pub(crate) fn put_off(&mut self, journal: &Journal, reason: &str) {
        self.from = journal.segments_length().saturating_add(self.compact_bytes);
        tracing::error!(reason, "the journal could not be compacted; nothing is lost, it only grows");
    }
}

/// A compaction of everything before the position in `header`.
#[derive(Debug)]
struct Compaction {
    shared: Arc<SharedState>,
    store: Arc<Store>,
    older: Older,
    directory: PathBuf,
    header: Header,
}

/// The thread that compacts.
type Compacting = JoinHandle<Result<Compacted, CompactionError>>;

impl Compaction {
    fn start(self) -> io::Result<Compacting> {
        thread::Builder::new().name("index-compaction".to_owned()).spawn(move || self.run())
    }

    fn run(self) -> Result<Compacted, CompactionError> {
        let position = self.header.position;
        let length = self.write().inspect_err(|_| {
            // If this fails as well, the next opening removes it.
            files::discard_unfinished(&files::snapshot_path(&self.directory, position)).ok();
        })?;
        let sorted = SortedSnapshot::open(&self.directory, position)?.ok_or(CompactionError::Stopped)?;
        remove_before(&self.directory, position);
        Ok((Snapshot { position, length }, Arc::new(sorted)))
    }

    fn write(&self) -> Result<u64, CompactionError> {
        let mut writer = SnapshotWriter::create(&self.directory, &self.header)?;
        let mut entries = self.older.view.all();
        while let Some((key, value)) = guarded(|| entries.next().transpose())? {
            writer.append(&key, &value)?;
            if self.shared.is_stopping() || self.shared.still_valid(&self.store).is_err() {
                return Err(CompactionError::Stopped);
            }
        }
        // A sled that failed meanwhile may have returned anything, and too little above all.
        self.shared.still_valid(&self.store).map_err(|_| CompactionError::Stopped)?;
        // Only now the older segments may go: what was not returned would vanish with them.
        if !writer.is_all_of(&self.older.meta) {
            return Err(CompactionError::Count(format!("{writer:?} of {:?}", self.older.meta)));
        }
        Ok(writer.finish()?)
    }
}
