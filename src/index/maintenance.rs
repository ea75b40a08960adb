//! What the commands `refshim index` do, on an index in a data directory and on one in a database.

mod copy;
pub(crate) mod dump;

use std::io;
use std::path::PathBuf;

use super::OpenError;
use super::local::journal::JournalError;
pub use copy::{Changes, Copied, CopyPlace, CopyProgress, Sums, copy};

use super::local::building::BuildError;
pub use super::local::maintenance::{
    CheckReport, Gap, Rebuilt, RepositoryCounts, RepositoryManifest, check, dump as dump_directory,
    load as load_directory, rebuild,
};
use super::local::store::StoreError;
use super::local::store::snapshot::OpenSnapshotError;
pub use super::postgres::maintenance::{DatabaseReport, IndexDatabase, Migrated, Odd};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no index in the data directory.
    #[error("{} holds no index", .0.display())]
    NoIndex(PathBuf),
    /// An index would be overwritten.
    #[error("{} holds an index already: load into another directory, or move it away", .0.display())]
    Occupied(PathBuf),
    /// An index in a database would be overwritten.
    #[error("the database holds an index already: load into an empty one")]
    OccupiedDatabase,
    /// The journal cannot be read, or is damaged.
    #[error("{0}")]
    Journal(String),
    /// sled failed.
    #[error("{0}")]
    Store(String),
    /// The database cannot be used.
    #[error("{0}")]
    Database(String),
    /// The input is not a complete dump.
    #[error("line {line}: {what}")]
    Dump {
        /// The line, counted from one.
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

/// The result of a dump or load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dumped {
    /// Number of records.
    pub records: u64,
}

impl From<JournalError> for MaintenanceError {
    fn from(error: JournalError) -> Self {
        Self::Journal(error.to_string())
    }
}

impl From<BuildError> for MaintenanceError {
    fn from(error: BuildError) -> Self {
        Self::Store(error.to_string())
    }
}

impl From<OpenSnapshotError> for MaintenanceError {
    fn from(error: OpenSnapshotError) -> Self {
        match error {
            OpenSnapshotError::Journal(error) => error.into(),
            OpenSnapshotError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for MaintenanceError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

pub(crate) fn failed(what: &'static str) -> impl Fn(io::Error) -> MaintenanceError {
    move |source| MaintenanceError::Io { what, source }
}
