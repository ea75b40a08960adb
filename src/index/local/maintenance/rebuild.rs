//! `refshim index rebuild`: makes a journal that opens of what is intact of a damaged one.
//!
//! A gap may have held anything, so it costs more than its own records: every referrer read before it is doubted,
//! because its removal may have been lost, and the upstream is asked for it before it is listed again. Manifests that
//! records behind a gap mention, without their links being known, are reported as lost.
//!
//! The result is collected in a sled of its own, written as one snapshot, and put in place by renames
//! ([`data_dir`] lists them). The damaged journal is kept. A crash in between leaves it where it was, or both
//! complete.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{CACHE_BYTES, FLUSH_INTERVAL};
use super::{Gap, MaintenanceError, RepositoryCounts, RepositoryManifest, failed};
use crate::index::Order;
use crate::index::Version;
use crate::index::local::data_dir::{self, JOURNAL, REBUILT_JOURNAL, SCRATCH_SLED, UNFINISHED_REBUILD};
use crate::index::local::journal::files::SnapshotWriter;
use crate::index::local::journal::format::Header;
use crate::index::local::journal::salvage::{JournalSalvage, Piece};
use crate::index::local::journal::{create_segment, files, random_identity};
use crate::index::local::sled::{Changes, Store};
use crate::index::record::{Record, Recorded};

/// Changed referrers that are written to sled at once.
const BATCH: usize = 1_000;

/// The result of a rebuild.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// Where the journal was damaged. Without a gap it is left alone, and only sled will be rebuilt.
    pub gaps: Vec<Gap>,
    /// For each gap, the orders of the referrers recorded before and after it.
    pub between: Vec<(Option<Order>, Option<Order>)>,
    /// Number of referrers kept.
    pub referrers: u64,
    /// Those that the upstream will be asked for before they are listed.
    pub doubted: RepositoryCounts,
    /// Manifests that records mention and whose links are lost.
    pub lost: BTreeSet<RepositoryManifest>,
    /// Where the damaged journal was moved to.
    pub set_aside: Option<PathBuf>,
}

/// Makes the index in `data_dir` usable: sets sled aside, so that the next start rebuilds it, and replaces a
/// damaged journal by what is intact of it.
///
/// # Errors
/// Another process has the index, there is none, a newer build wrote it, or the disk fails. The damaged journal
/// is left in place then.
pub fn rebuild(data_dir: &Path) -> Result<Rebuilt, MaintenanceError> {
    if !data_dir.exists() {
        return Err(MaintenanceError::NoIndex(data_dir.to_owned()));
    }
    let _lock = data_dir::lock(data_dir)?;
    data_dir::adopt_new_sled(data_dir)?;
    data_dir::finish_rebuild(data_dir)?;
    let journal = data_dir.join(JOURNAL);
    if !journal.exists() {
        return Err(MaintenanceError::NoIndex(data_dir.to_owned()));
    }
    let mut rebuilt = Rebuilt::default();
    let scratch = data_dir.join(SCRATCH_SLED);
    remove(&scratch)?;
    let identity = random_identity().map_err(failed("an identity for the journal"))?;
    let mut new_index = NewIndex {
        store: Store::open(&scratch, CACHE_BYTES, FLUSH_INTERVAL, identity)?,
        changes: Changes::default(),
        changed: 0,
        end: 0,
        last_order: 0,
        highest: 0,
        shift: 0,
    };
    JournalSalvage::find(&journal)?.read(|piece| new_index.take(piece, &mut rebuilt))?;
    new_index.write()?;
    rebuilt.referrers = new_index.store.numbers().meta.referrers;
    if !rebuilt.gaps.is_empty() {
        let header = Header::new(identity, new_index.end, new_index.last_order);
        new_index.write_journal(&data_dir.join(UNFINISHED_REBUILD), &header, &mut rebuilt)?;
        let aside = data_dir::free_name_for_damaged_journal(data_dir);
        fs::rename(data_dir.join(UNFINISHED_REBUILD), data_dir.join(REBUILT_JOURNAL))
            .map_err(failed("the rebuilt journal"))?;
        fs::rename(&journal, &aside).map_err(failed("the damaged journal"))?;
        data_dir::finish_rebuild(data_dir)?;
        rebuilt.set_aside = Some(aside);
    }
    drop(new_index);
    remove(&scratch)?;
    data_dir::set_sled_aside(data_dir).map_err(failed("setting sled aside"))?;
    Ok(rebuilt)
}

/// The index as far as it is read, in a sled of its own.
struct NewIndex {
    store: Store,
    changes: Changes,
    changed: usize,
    end: u64,
    last_order: u64,
    /// The highest version so far.
    highest: u64,
    /// What is added to versions behind a gap. Files may overlap there, and no record behind it may be taken for one
    /// that was applied already.
    shift: u64,
}

impl NewIndex {
    fn take(&mut self, piece: Piece, rebuilt: &mut Rebuilt) -> Result<(), MaintenanceError> {
        match piece {
            Piece::Commit(commit) => {
                self.end = self.end.max(commit.end);
                for (version, record) in commit.into_versions() {
                    let version = self.shifted(version);
                    self.apply(record, version, rebuilt)?;
                }
            }
            Piece::Gap(gap) => {
                self.doubt_all()?;
                self.shift = self.highest;
                let before = Some(Order(self.last_order)).filter(|order| order.0 > 0);
                rebuilt.between.push((before, None));
                rebuilt.gaps.push(gap);
            }
            Piece::Torn(_) => {}
        }
        Ok(())
    }

    fn apply(
        &mut self,
        record: Record,
        version: Version,
        rebuilt: &mut Rebuilt,
    ) -> Result<(), MaintenanceError> {
        if let Some(order) = record.order() {
            self.last_order = self.last_order.max(order.0);
            for (_, after) in &mut rebuilt.between {
                after.get_or_insert(order);
            }
        }
        let Some(key) = record.referrer() else { return Ok(()) };
        let manifest = (key.repository.clone(), key.digest.clone());
        let is_known = self.changes.find(&self.store, key)?.is_some();
        let tells_all = record.recorded().is_some() || matches!(record, Record::Removed(_));
        if is_known || rebuilt.gaps.is_empty() || tells_all {
            rebuilt.lost.remove(&manifest);
        } else {
            rebuilt.lost.insert(manifest);
        }
        self.changes.apply(&self.store, record, version)?;
        self.changed += 1;
        if self.changed >= BATCH { self.write() } else { Ok(()) }
    }

    fn shifted(&mut self, version: Version) -> Version {
        let version = self.shift.saturating_add(version.0);
        self.highest = self.highest.max(version);
        Version(version)
    }

    /// Doubts every referrer: its removal may have been lost.
    fn doubt_all(&mut self) -> Result<(), MaintenanceError> {
        self.write()?;
        self.highest = self.highest.saturating_add(1);
        let version = Version(self.highest);
        let mut all = self.store.all().map(|state| state.map(|(referrer, _)| referrer)).peekable();
        while all.peek().is_some() {
            let mut changes = Changes::default();
            for referrer in all.by_ref().take(BATCH) {
                changes.apply(&self.store, Record::Doubted(referrer?), version)?;
            }
            self.store.write(changes, None)?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), MaintenanceError> {
        self.changed = 0;
        Ok(self.store.write(std::mem::take(&mut self.changes), None)?)
    }

    /// Writes it as a journal of one snapshot and an empty segment.
    fn write_journal(
        &self,
        directory: &Path,
        header: &Header,
        rebuilt: &mut Rebuilt,
    ) -> Result<(), MaintenanceError> {
        let failed = failed("writing the rebuilt journal");
        remove(directory)?;
        fs::create_dir(directory).map_err(&failed)?;
        let mut writer = SnapshotWriter::create(directory, header).map_err(&failed)?;
        for state in self.store.all() {
            let (referrer, state) = state?;
            if state.pending {
                *rebuilt.doubted.entry(referrer.repository.clone()).or_default() += 1;
            }
            // Versions are positions in the damaged journal, and mean nothing in the new one.
            let recorded = Recorded { version: None, ..Recorded::of(referrer, state) };
            writer.append(&Record::Recorded(recorded)).map_err(&failed)?;
        }
        writer.finish().map_err(&failed)?;
        create_segment(directory, header).map_err(&failed)?;
        files::sync_directory(directory).map_err(&failed)
    }
}

fn remove(directory: &Path) -> Result<(), MaintenanceError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed("removing what an earlier attempt left")(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
