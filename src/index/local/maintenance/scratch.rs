//! What records make of the referrers, sorted: a sled in a temporary directory (`TMPDIR`), so that it takes no more
//! memory however large the index is.

use std::collections::BTreeSet;
use std::path::Path;

use super::dump::OpenJournal;
use super::{CACHE_BYTES, FLUSH_INTERVAL};
use crate::index::local::journal::random_identity;
use crate::index::local::sled::{Changes, Store};
use crate::index::maintenance::{MaintenanceError, failed};
use crate::index::record::Record;
use crate::index::referrer_state::ReferrerState;
use crate::index::{Repository, Version};
use crate::oci::Digest;

/// Records that are written to sled at once.
const BATCH: usize = 1_000;

/// The states that records make.
pub(crate) struct Scratch {
    store: Store,
    changes: Changes,
    changed: usize,
    version: u64,
    /// Removed with this.
    _directory: tempfile::TempDir,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").field("records", &self.version).finish_non_exhaustive()
    }
}

impl Scratch {
    pub(crate) fn new() -> Result<Self, MaintenanceError> {
        let directory = tempfile::Builder::new().prefix("refshim-").tempdir();
        let directory = directory.map_err(failed("making a temporary directory (see TMPDIR)"))?;
        let identity = random_identity().map_err(failed("making an identity"))?;
        let store = Store::open(&directory.path().join("sled"), CACHE_BYTES, FLUSH_INTERVAL, identity)?;
        Ok(Self { store, changes: Changes::default(), changed: 0, version: 0, _directory: directory })
    }

    /// The states in the journal of a data directory, also while it is served.
    pub(crate) fn of_data_dir(data_dir: &Path) -> Result<Self, MaintenanceError> {
        Self::of_journal(OpenJournal::open(data_dir)?)
    }

    /// The states in a journal.
    pub(crate) fn of_journal(journal: OpenJournal) -> Result<Self, MaintenanceError> {
        let mut scratch = Self::new()?;
        journal.read(|record| scratch.apply(record))?;
        scratch.write()?;
        Ok(scratch)
    }

    /// Applies a record, which is seen once [`Scratch::write`] was called.
    pub(crate) fn apply(&mut self, record: Record) -> Result<(), MaintenanceError> {
        self.version += 1;
        self.changes.apply(&self.store, record, Version(self.version))?;
        self.changed += 1;
        if self.changed >= BATCH { self.write() } else { Ok(()) }
    }

    pub(crate) fn write(&mut self) -> Result<(), MaintenanceError> {
        self.changed = 0;
        Ok(self.store.write(std::mem::take(&mut self.changes), None)?)
    }

    /// The repositories that have referrers.
    pub(crate) fn repositories(&self) -> Result<BTreeSet<Repository>, MaintenanceError> {
        Ok(self.store.all_repositories()?)
    }

    /// Referrers of a repository by digest, and whether there are more.
    pub(crate) fn page(
        &self,
        repository: &Repository,
        after: Option<Digest>,
        max: usize,
    ) -> Result<(Vec<(Digest, ReferrerState)>, bool), MaintenanceError> {
        Ok(self.store.states_by_digest(repository, after, max)?)
    }
}
