//! What is done to an index that is not being served: checking it, mending its journal from what is intact,
//! writing all of it out, which may also be done while it is served, and taking it in again.

mod checking;
mod dump;
mod rebuild;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

pub use checking::{CheckReport, check};
pub use dump::{Dumped, dump, load};
pub use rebuild::{Rebuilt, rebuild};

use super::journal::JournalError;
pub use super::journal::salvage::Gap;
use super::sled::StoreError;
use crate::index::{OpenError, Repository};
use crate::oci::Digest;

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
