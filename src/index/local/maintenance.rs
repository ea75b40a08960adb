//! What is done to an index that is not being served: checking it, mending its journal from what is intact,
//! writing all of it out, which may also be done while it is served, and taking it in again.

mod dump;
mod rebuild;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use dump::{Dumped, dump, load};
pub use rebuild::{Rebuilt, rebuild};

use super::data_dir::{self, JOURNAL, SLED};
use super::journal::JournalError;
use super::journal::format::Identity;
pub use super::journal::salvage::Gap;
use super::journal::salvage::{JournalSalvage, Piece};
use super::sled::{Store, StoreError};
use crate::index::{OpenError, Repository};
use crate::oci::Digest;

/// Memory for sled while it is read from end to end.
const CACHE_BYTES: u64 = 64 << 20;
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// Why that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is nothing to work on.
    #[error("{} holds no index", .0.display())]
    NoIndex(PathBuf),
    /// Something would be overwritten.
    #[error("{} holds an index already: load into another directory, or move it away", .0.display())]
    Occupied(PathBuf),
    /// The journal cannot be read, or is damaged.
    #[error("{0}")]
    Journal(String),
    /// The index that is made of it cannot be kept.
    #[error("{0}")]
    Store(String),
    /// What is to be loaded is not what was dumped.
    #[error("line {line}: {what}")]
    Dump {
        /// Counted from one.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A file cannot be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Manifests of each repository.
pub type RepositoryCounts = BTreeMap<Repository, u64>;

/// A manifest of a repository.
pub type RepositoryManifest = (Repository, Digest);

impl From<JournalError> for MaintenanceError {
    fn from(error: JournalError) -> Self {
        Self::Journal(error.to_string())
    }
}

impl From<StoreError> for MaintenanceError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> MaintenanceError {
    move |source| MaintenanceError::Io { what, source }
}

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
    let _lock = data_dir::lock(data_dir)?;
    data_dir::adopt_new_sled(data_dir)?;
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
    let path = data_dir.join(SLED);
    if !path.exists() {
        return Err("not there".to_owned());
    }
    let store = Store::open(&path, CACHE_BYTES, FLUSH_INTERVAL, identity);
    let meta = store.map_err(|error| error.to_string())?.numbers().meta;
    Ok((meta.referrers, meta.links))
}
