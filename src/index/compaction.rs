//! Compaction: the whole index written as a snapshot, on a thread of its own, so that the journal's
//! older segments can go.
//!
//! The snapshot is no frozen moment: it may hold changes from behind its position. Reading them again
//! from the segments ends in the same state.

use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::journal::JournalError;
use super::journal::files::{self, Snapshot};
use super::journal::header::Header;
use super::journal::snapshot::SnapshotWriter;
use super::record::{Record, Recorded};
use super::shared::Shared;
use super::sled::{Numbers, Store, StoreError, guarded};

#[derive(Debug, thiserror::Error)]
pub(crate) enum CompactionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the snapshot cannot be written: {0}")]
    Write(#[from] io::Error),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("sled gave {found} referrers where there are {} to {}", expected.start(), expected.end())]
    Count { found: u64, expected: RangeInclusive<u64> },
    #[error("the index was closed meanwhile")]
    Stopped,
}

/// What to compact: everything before the position in `header`, all of which `store` has.
#[derive(Debug)]
pub(crate) struct Compaction {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Arc<Store>,
    pub(crate) directory: PathBuf,
    pub(crate) header: Header,
}

/// The thread that compacts.
pub(crate) type Compacting = JoinHandle<Result<Snapshot, CompactionError>>;

impl Compaction {
    pub(crate) fn start(self) -> io::Result<Compacting> {
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
        while let Some((referrer, known)) = guarded(|| referrers.next().transpose())? {
            found += 1;
            writer.append(&Record::Recorded(Recorded::of(referrer, known)))?;
            if self.shared.is_stopping() {
                return Err(CompactionError::Stopped);
            }
        }
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
