//! A data directory that another index is copied to.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::dump::{BATCH_BYTES, OpenJournal, SEGMENT_BYTES, append};
use super::scratch::Scratch;
use crate::index::local::data_dir::{self, JOURNAL, SLED, UNFINISHED_COPY};
use crate::index::local::journal::Journal;
use crate::index::local::journal::files::sync_directory;
use crate::index::maintenance::{MaintenanceError, failed};
use crate::index::record::Record;

/// A data directory that is written to, and that nobody serves from meanwhile. Without an index, it gets one when the
/// copy is complete; a copy that was interrupted goes on.
pub(crate) struct TargetDirectory {
    data_dir: PathBuf,
    journal: Journal,
    /// Records that are not written yet, and the highest order in them.
    payload: Vec<u8>,
    last_order: u64,
    /// Whether it was served, so that it may hold more than was copied.
    pub(crate) was_served: bool,
    _lock: File,
}

impl std::fmt::Debug for TargetDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TargetDirectory").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

impl TargetDirectory {
    pub(crate) fn open(data_dir: &Path) -> Result<Self, MaintenanceError> {
        let data_dir = data_dir::create(data_dir)?;
        let lock = data_dir::lock(&data_dir)?;
        data_dir::finish_rebuild(&data_dir)?;
        let complete = data_dir.join(JOURNAL);
        let directory = if complete.exists() { complete } else { data_dir.join(UNFINISHED_COPY) };
        let was_served = data_dir.join(SLED).exists();
        let journal = match Journal::open(&directory, SEGMENT_BYTES)? {
            Some(journal) => journal,
            None if directory.ends_with(JOURNAL) => return Err(MaintenanceError::NoIndex(data_dir)),
            None => Journal::create(&directory, SEGMENT_BYTES)?,
        };
        let last_order = journal.last_order();
        Ok(Self { data_dir, journal, payload: Vec::new(), last_order, was_served, _lock: lock })
    }

    /// What it holds. To be asked for before anything is added: a journal that has lost its end looks whole after that.
    pub(crate) fn states(&self) -> Result<Scratch, MaintenanceError> {
        Scratch::of_journal(OpenJournal::open_held(self.journal.directory(), &self.data_dir)?)
    }

    /// Adds records, all of which or none are applied after a crash.
    pub(crate) fn add(&mut self, records: &[Record]) -> Result<(), MaintenanceError> {
        for record in records {
            let written = record.write_to(&mut self.payload);
            written.map_err(|error| failed("writing the journal")(error.into()))?;
            self.last_order = record.order().map_or(self.last_order, |order| self.last_order.max(order.0));
        }
        if self.payload.len() >= BATCH_BYTES { self.write() } else { Ok(()) }
    }

    /// Writes the rest.
    pub(crate) fn write(&mut self) -> Result<(), MaintenanceError> {
        if self.payload.is_empty() {
            return Ok(());
        }
        append(&mut self.journal, &self.payload, self.last_order)?;
        self.payload.clear();
        Ok(())
    }

    /// Makes the copy the index of the data directory.
    pub(crate) fn complete(&mut self) -> Result<(), MaintenanceError> {
        self.write()?;
        let complete = self.data_dir.join(JOURNAL);
        if !complete.exists() {
            let put = fs::rename(self.journal.directory(), &complete);
            put.and_then(|()| sync_directory(&self.data_dir))
                .map_err(failed("putting the journal in its place"))?;
            if let Some(journal) = Journal::open(&complete, SEGMENT_BYTES)? {
                self.journal = journal;
            }
        }
        Ok(())
    }
}
