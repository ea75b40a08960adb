//! The commands `refshim index check`, `rebuild`, `dump` and `load`, on the index in a data directory.
//!
//! All but `dump` lock the data directory, so they refuse to work on an index that is in use. `dump` reads the
//! journal of a running refshim: its files are only appended to, replaced or removed, and a removed one can still
//! be read by whoever has it open.

pub(crate) mod copying;
mod damaged_snapshot;
mod dump;
mod rebuild;
mod salvage;
pub(crate) mod scratch;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

pub use dump::{dump, load};
pub use rebuild::{Rebuilt, rebuild};

use super::data_dir::{self, JOURNAL};
use super::journal::format::Identity;
use super::opening::stored;
use super::sled::DeltaSettings;
use crate::index::Repository;
use crate::index::maintenance::{MaintenanceError, failed};
use crate::oci::Digest;
pub use salvage::Gap;
use salvage::{JournalSalvage, Piece};

/// How a delta is opened by a command.
const DELTA: DeltaSettings =
    DeltaSettings { cache_bytes: 64 << 20, flush_interval: Duration::from_millis(500) };

/// Numbers of manifests, by repository.
pub type RepositoryCounts = BTreeMap<Repository, u64>;

/// A manifest of a repository.
pub type RepositoryManifest = (Repository, Digest);

/// The result of a check.
#[derive(Debug)]
pub struct CheckReport {
    /// Intact writes (frames) of the journal.
    pub commits: u64,
    /// Records in them.
    pub records: u64,
    /// Where the journal is damaged.
    pub gaps: Vec<Gap>,
    /// A last write interrupted by a crash. No damage: the next start cuts it off.
    pub torn: Option<Gap>,
    /// What the next start will find in the snapshot and sled together: the numbers of referrers and links, or why sled
    /// will be rebuilt.
    pub sled: Result<(u64, u64), String>,
}

/// Reads the journal and sled in `data_dir` from end to end. Changes nothing in the journal.
///
/// # Errors
/// Another process has the index, there is none, or a newer build wrote it.
pub fn check(data_dir: &Path) -> Result<CheckReport, MaintenanceError> {
    let journal = data_dir.join(JOURNAL);
    if !journal.exists() {
        return Err(MaintenanceError::NoIndex(data_dir.to_owned()));
    }
    let _lock = data_dir::lock(data_dir)?;
    let salvage = JournalSalvage::find(&journal)?;
    let mut report = CheckReport {
        commits: 0,
        records: 0,
        gaps: Vec::new(),
        torn: None,
        sled: Err("it is missing".to_owned()),
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

/// Opens what is stored, and compares its entries with its numbers.
fn check_sled(data_dir: &Path, identity: Identity) -> Result<(u64, u64), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let store = stored(data_dir, DELTA, identity).map_err(|error| text(&error))?;
    let store = store.ok_or_else(|| "it is missing".to_owned())?;
    let meta = store.meta();
    let counted = store.view().counted().map_err(|error| text(&error))?;
    let numbers = (meta.referrers, meta.links);
    if counted == numbers {
        Ok(numbers)
    } else {
        let ((referrers, links), (found, found_links)) = (numbers, counted);
        Err(format!("it has {found} referrers and {found_links} links in place of {referrers} and {links}"))
    }
}
