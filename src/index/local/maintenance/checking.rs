//! Reading everything, changing nothing of the journal.

use std::path::Path;
use std::time::Duration;

use super::{Gap, MaintenanceError};
use crate::index::local::journal::header::Identity;
use crate::index::local::journal::salvage::{JournalSalvage, Piece};
use crate::index::local::opening;
use crate::index::local::sled::Store;
use crate::index::local::{JOURNAL, adopt_sled, lock};

/// Memory for sled while it is read from end to end.
pub(super) const CACHE_BYTES: u64 = 64 << 20;
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// What a check found.
#[derive(Debug)]
pub struct CheckReport {
    /// How many writes of the journal are intact, and the records in them.
    pub commits: u64,
    /// Records of the journal that are intact.
    pub records: u64,
    /// Where the journal is damaged.
    pub gaps: Vec<Gap>,
    /// A last write that a crash interrupted: no damage, it will be cut off.
    pub torn: Option<Gap>,
    /// What the next start finds of sled: how many referrers and links, or why it will be built anew.
    pub sled: Result<(u64, u64), String>,
}

/// Reads the journal and sled in `data_dir` from end to end.
///
/// # Errors
/// Another process has the index, there is none, or a newer build wrote it.
pub fn check(data_dir: &Path) -> Result<CheckReport, MaintenanceError> {
    let journal = data_dir.join(JOURNAL);
    if !journal.exists() {
        return Err(MaintenanceError::NoIndex(data_dir.to_owned()));
    }
    let _lock = lock(data_dir)?;
    adopt_sled(data_dir)?;
    let salvage = JournalSalvage::find(&journal)?;
    let mut report = CheckReport {
        commits: 0,
        records: 0,
        gaps: Vec::new(),
        torn: None,
        sled: Err("not there".to_owned()),
    };
    salvage.read(|piece| {
        match piece {
            Piece::Commit(commit) => {
                report.commits += 1;
                report.records += commit.records.len() as u64;
            }
            Piece::Gap(gap) => report.gaps.push(gap),
            Piece::Torn(gap) => report.torn = Some(gap),
        }
        Ok::<_, MaintenanceError>(())
    })?;
    if let Some(identity) = salvage.identity() {
        report.sled = check_sled(data_dir, identity);
    }
    Ok(report)
}

fn check_sled(data_dir: &Path, identity: Identity) -> Result<(u64, u64), String> {
    let path = data_dir.join(opening::DIRECTORY);
    if !path.exists() {
        return Err("not there".to_owned());
    }
    let store = Store::open(&path, CACHE_BYTES, FLUSH_INTERVAL, identity);
    let meta = store.map_err(|error| error.to_string())?.numbers().meta;
    Ok((meta.referrers, meta.links))
}
