//! `refshim index rebuild`: makes a journal that opens of what is intact of a damaged one.
//!
//! A gap may have held anything, so it costs more than its own records: every referrer read before it is doubted,
//! because its removal may have been lost, and the upstream is asked for it before it is listed again. Manifests that
//! records behind a gap mention, without their links being known, are reported as lost.
//!
//! The result is written as one snapshot, and put in place by renames
//! ([`data_dir`] lists them). The damaged journal is kept. A crash in between leaves it where it was, or both
//! complete.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::salvage::{JournalSalvage, Piece};
use super::{Gap, MaintenanceError, RepositoryCounts, RepositoryManifest, failed};
use crate::index::Order;
use crate::index::Version;
use crate::index::local::building::{Building, Placed, Sum};
use crate::index::local::data_dir::{self, JOURNAL, REBUILT_JOURNAL, UNFINISHED_REBUILD};
use crate::index::local::journal::format::Header;
use crate::index::local::journal::{create_segment, files, random_identity};
use crate::index::local::store::snapshot::SnapshotWriter;
use crate::index::record::{Record, ReferrerKey};
use crate::index::referrer_state::ReferrerState;

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
    data_dir::finish_rebuild(data_dir)?;
    let journal = data_dir.join(JOURNAL);
    if !journal.exists() {
        return Err(MaintenanceError::NoIndex(data_dir.to_owned()));
    }
    let unfinished = data_dir.join(UNFINISHED_REBUILD);
    remove(&unfinished)?;
    let writing = failed("writing the rebuilt journal");
    fs::create_dir(&unfinished).map_err(&writing)?;
    let mut rebuilt = Rebuilt::default();
    let mut salvaged = Salvaged::new(&unfinished);
    JournalSalvage::find(&journal)?.read(|piece| salvaged.take(piece, &mut rebuilt))?;
    salvaged.write_journal(&unfinished, &mut rebuilt)?;
    if rebuilt.gaps.is_empty() {
        remove(&unfinished)?;
    } else {
        let aside = data_dir::free_name_for_damaged_journal(data_dir);
        fs::rename(&unfinished, data_dir.join(REBUILT_JOURNAL)).map_err(failed("the rebuilt journal"))?;
        fs::rename(&journal, &aside).map_err(failed("the damaged journal"))?;
        data_dir::finish_rebuild(data_dir)?;
        rebuilt.set_aside = Some(aside);
    }
    data_dir::set_sled_aside(data_dir).map_err(failed("setting sled aside"))?;
    Ok(rebuilt)
}

/// All records that are left.
struct Salvaged {
    building: Building,
    /// For each gap, how many records stand before it, and the version of the doubt that it brings.
    gaps: Vec<(u64, Version)>,
    end: u64,
    last_order: u64,
    /// The highest version so far.
    highest: u64,
    /// What is added to versions behind a gap. Files may overlap there, and no record behind it may be taken for one
    /// that was applied already.
    shift: u64,
}

impl Salvaged {
    fn new(directory: &Path) -> Self {
        let building = Building::new(directory);
        Self { building, gaps: Vec::new(), end: 0, last_order: 0, highest: 0, shift: 0 }
    }

    fn take(&mut self, piece: Piece, rebuilt: &mut Rebuilt) -> Result<(), MaintenanceError> {
        match piece {
            Piece::Commit(commit) => {
                self.end = self.end.max(commit.end);
                for (version, record) in commit.into_versions() {
                    self.add(version, &record, rebuilt)?;
                }
            }
            Piece::Gap(gap) => {
                self.highest = self.highest.saturating_add(1);
                self.shift = self.highest;
                self.gaps.push((self.building.added(), Version(self.highest)));
                let before = Some(Order(self.last_order)).filter(|order| order.0 > 0);
                rebuilt.between.push((before, None));
                rebuilt.gaps.push(gap);
            }
            Piece::Torn(_) => {}
        }
        Ok(())
    }

    fn add(
        &mut self,
        version: Version,
        record: &Record,
        rebuilt: &mut Rebuilt,
    ) -> Result<(), MaintenanceError> {
        if let Some(order) = record.order() {
            self.last_order = self.last_order.max(order.0);
            for (_, after) in &mut rebuilt.between {
                after.get_or_insert(order);
            }
        }
        let version = self.shift.saturating_add(version.0);
        self.highest = self.highest.max(version);
        self.building.add(Version(version), record).map_err(failed("sorting what is intact"))
    }

    /// Writes it as a journal of one snapshot and an empty segment.
    fn write_journal(self, directory: &Path, rebuilt: &mut Rebuilt) -> Result<(), MaintenanceError> {
        let failed = failed("writing the rebuilt journal");
        let identity = random_identity().map_err(&failed)?;
        // Not zero: a snapshot stands before what comes.
        let position = self.end.max(1);
        let header = Header::new(identity, position, self.last_order);
        let mut writer = SnapshotWriter::create(directory, &header).map_err(&failed)?;
        let (gaps, state, is_lost) = (&self.gaps, None, false);
        let mut left = Left { gaps, position, rebuilt, state, is_lost, passed: 0 };
        self.building.write(&mut writer, || true, &mut left)?;
        writer.finish().map_err(&failed)?;
        create_segment(directory, &header).map_err(&failed)?;
        files::sync_directory(directory).map_err(&failed)
    }
}

/// Adds up the records that are left of a referrer, and doubts it at each gap behind the first of them.
struct Left<'a> {
    gaps: &'a [(u64, Version)],
    /// The version of all states. Those of the records are positions in the damaged journal, and mean nothing in the new
    /// one.
    position: u64,
    rebuilt: &'a mut Rebuilt,
    state: Option<ReferrerState>,
    /// Whether it is only known that the referrer was there.
    is_lost: bool,
    /// How many of the gaps stand before the record that was added last.
    passed: usize,
}

impl Left<'_> {
    fn pass_gaps(&mut self, referrer: &ReferrerKey, place: u64) {
        let gaps = self.gaps.get(self.passed..).unwrap_or_default();
        for (_, version) in gaps.iter().take_while(|(before, _)| *before <= place) {
            let doubted = Record::Doubted(referrer.clone());
            self.state = ReferrerState::after(self.state.take(), doubted, *version);
            self.passed += 1;
        }
    }
}

impl Sum for Left<'_> {
    fn add(&mut self, referrer: &ReferrerKey, Placed { place, version, record }: Placed) {
        self.pass_gaps(referrer, place);
        let tells_all = record.recorded().is_some() || matches!(record, Record::Removed(_));
        self.is_lost = self.state.is_none() && self.passed > 0 && !tells_all;
        self.state = ReferrerState::after(self.state.take(), record, version);
    }

    fn end(&mut self, referrer: &ReferrerKey) -> Option<ReferrerState> {
        self.pass_gaps(referrer, u64::MAX);
        self.passed = 0;
        if std::mem::take(&mut self.is_lost) {
            self.rebuilt.lost.insert((referrer.repository.clone(), referrer.digest.clone()));
        }
        let state = self.state.take()?;
        self.rebuilt.referrers += 1;
        if state.pending && !self.gaps.is_empty() {
            *self.rebuilt.doubted.entry(referrer.repository.clone()).or_default() += 1;
        }
        Some(ReferrerState { version: Version(self.position), ..state })
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
