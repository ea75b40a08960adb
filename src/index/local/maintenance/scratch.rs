//! What records make of the referrers, sorted: a snapshot in a temporary directory (`TMPDIR`), so that it takes no more
//! memory however large the index is.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::dump::OpenJournal;
use crate::index::local::building::{Building, PlainSum};
use crate::index::local::journal::format::Header;
use crate::index::local::journal::random_identity;
use crate::index::local::store::View;
use crate::index::local::store::snapshot::{SnapshotWriter, SortedSnapshot};
use crate::index::maintenance::{MaintenanceError, failed};
use crate::index::record::Record;
use crate::index::referrer_state::ReferrerState;
use crate::index::{Repository, Version};
use crate::oci::Digest;

/// The states that records make.
#[derive(Debug)]
pub(crate) struct Scratch {
    view: View,
    /// Removed with this.
    _directory: tempfile::TempDir,
}

impl Scratch {
    /// The states in the journal of a data directory, also while it is served.
    pub(crate) fn of_data_dir(data_dir: &Path) -> Result<Self, MaintenanceError> {
        Self::of_journal(OpenJournal::open(data_dir)?)
    }

    /// The states in a journal.
    pub(crate) fn of_journal(journal: OpenJournal) -> Result<Self, MaintenanceError> {
        Self::of_records(|take| journal.read(take))
    }

    /// The states that the records make which are passed to the function that `pass` is given.
    pub(crate) fn of_records(
        pass: impl FnOnce(&mut dyn FnMut(Record) -> Result<(), MaintenanceError>) -> Result<(), MaintenanceError>,
    ) -> Result<Self, MaintenanceError> {
        let directory = tempfile::Builder::new().prefix("refshim-").tempdir();
        let directory = directory.map_err(failed("making a temporary directory (see TMPDIR)"))?;
        let position = write_snapshot(directory.path(), pass)?.position;
        let snapshot = SortedSnapshot::open(directory.path(), position)?;
        let view = snapshot.map(|snapshot| View::of(Arc::new(snapshot))).unwrap_or_default();
        Ok(Self { view, _directory: directory })
    }

    /// The repositories that have referrers.
    pub(crate) fn repositories(&self) -> Result<BTreeSet<Repository>, MaintenanceError> {
        Ok(self.view.all_repositories()?)
    }

    /// Referrers of a repository by digest, and whether there are more.
    pub(crate) fn page(
        &self,
        repository: &Repository,
        after: Option<Digest>,
        max: usize,
    ) -> Result<(Vec<(Digest, ReferrerState)>, bool), MaintenanceError> {
        Ok(self.view.states_by_digest(repository, after, max)?)
    }
}

/// Writes a snapshot of a new journal to `directory`, of what the records make that are passed to the function that
/// `pass` is given. Returns its header.
pub(super) fn write_snapshot(
    directory: &Path,
    pass: impl FnOnce(&mut dyn FnMut(Record) -> Result<(), MaintenanceError>) -> Result<(), MaintenanceError>,
) -> Result<Header, MaintenanceError> {
    let mut building = Building::new(directory);
    let mut last_order = 0;
    let sorting = failed("sorting the index");
    pass(&mut |record| {
        last_order = record.order().map_or(last_order, |order| last_order.max(order.0));
        building.add(Version(building.added() + 1), &record).map_err(&sorting)
    })?;
    // Behind the versions of all records: those that come are higher.
    let position = building.added() + 1;
    let header = Header::new(random_identity().map_err(failed("making an identity"))?, position, last_order);
    let mut writer = SnapshotWriter::create(directory, &header).map_err(&sorting)?;
    building.write(&mut writer, || true, &mut PlainSum::default())?;
    writer.finish().map_err(&sorting)?;
    Ok(header)
}
