//! Why an index could not be opened, and whether it may be later.

use std::io;
use std::path::Path;

use crate::index::local::building::BuildError;
use crate::index::local::journal::{Damage, JournalError};
use crate::index::local::sorted::SortedError;
use crate::index::local::store::StoreError;
use crate::index::local::store::snapshot::OpenSnapshotError;

/// Why the index could not be brought up to the journal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpeningError {
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the damaged index could not be set aside: {0}")]
    SetAside(#[source] io::Error),
    #[error("what an older build left could not be removed: {0}")]
    Remove(#[source] io::Error),
    #[error("the snapshot cannot be built: {0}")]
    Build(#[source] io::Error),
    #[error("the index was closed while it was being opened")]
    Stopped,
}

impl From<OpenSnapshotError> for OpeningError {
    fn from(error: OpenSnapshotError) -> Self {
        match error {
            OpenSnapshotError::Journal(error) => error.into(),
            OpenSnapshotError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for OpeningError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Snapshot(error) => error.into(),
            error @ (StoreError::Sled(_)
            | StoreError::Panicked(_)
            | StoreError::Directory(_)
            | StoreError::Damaged(_)) => Self::Store(error),
        }
    }
}

impl From<BuildError> for OpeningError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Io(error) => Self::Build(error),
            BuildError::Invalid => Self::Build(io::Error::other(BuildError::Invalid)),
            BuildError::Stopped => Self::Stopped,
        }
    }
}

/// Of what is needed to open the snapshot at all. Where a record needs a damaged block, only its lists suffer.
impl From<SortedError> for OpeningError {
    fn from(error: SortedError) -> Self {
        Self::Journal(match error {
            SortedError::Io { path, source } => JournalError::Io { path, source },
            SortedError::Damaged { path, offset, what } => Damage::new(&path, offset, what).into(),
            // Is handled where it may come up.
            SortedError::Needed => JournalError::io(Path::new(""), io::Error::other(error)),
        })
    }
}

impl OpeningError {
    /// Whether a retry may succeed.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Store(_)
            | Self::SetAside(_)
            | Self::Remove(_)
            | Self::Build(_)
            | Self::Journal(JournalError::Io { .. }) => true,
            Self::Stopped | Self::Journal(JournalError::Newer { .. } | JournalError::Damaged(_)) => false,
        }
    }
}
