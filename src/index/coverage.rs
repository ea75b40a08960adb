//! How far the index knows what a registry holds: all that passed since refshim came, and all that was there before in
//! what was read since.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::task::spawn_blocking;

use super::{Index, Repository};
use crate::oci::RepositoryName;

/// How far the index knows a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// All that it held was read, and all that was pushed since has passed or was told of.
    Complete,
    /// Only what was pushed since then. What is older may be missing.
    Since(Timestamp),
}

/// When a repository, or everything in an upstream, was last read or told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Covered {
    /// When the last backfill that read all of it began.
    pub backfilled: Option<Timestamp>,
    /// When the last sweep that read all of it began.
    pub swept: Option<Timestamp>,
    /// When the registry last told of a push or a deletion.
    pub notified: Option<Timestamp>,
}

impl Covered {
    /// Whether all that it held at some time was read.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.backfilled.is_some() || self.swept.is_some()
    }

    /// Both together: of each kind the newest.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            backfilled: self.backfilled.max(other.backfilled),
            swept: self.swept.max(other.swept),
            notified: self.notified.max(other.notified),
        }
    }
}

impl Index {
    /// From now on, what is pushed to this upstream is recorded; nothing changes if it was already.
    pub fn begin_coverage(&self, upstream: u32) {
        self.engine.coverage.begin(upstream);
    }

    /// What is pushed to this upstream is not recorded any more: whatever is known of its coverage is void.
    pub fn void_coverage(&self, upstream: u32) {
        self.engine.coverage.void(upstream);
    }

    /// Something that was pushed to this upstream until now is not recorded: what was known of its coverage is void.
    pub async fn restart_coverage(&self, upstream: u32) {
        let engine = Arc::clone(&self.engine);
        // It waits for the disk. Fails only if the runtime ends.
        let _restarted = spawn_blocking(move || engine.coverage.restart(upstream)).await;
    }

    /// Adds to what is known of a repository's coverage; without a name, of all in the upstream. Without effect before
    /// [`Index::begin_coverage`].
    pub fn cover(&self, upstream: u32, name: Option<&RepositoryName>, covered: Covered) {
        self.engine.coverage.add(upstream, name, covered);
    }

    /// How far a repository is known.
    #[must_use]
    pub fn coverage(&self, repository: &Repository) -> Coverage {
        self.engine.coverage.of(repository)
    }

    /// How far all repositories of an upstream are known, also those that nothing is known of.
    #[must_use]
    pub fn coverage_of_all(&self, upstream: u32) -> Coverage {
        self.engine.coverage.of_all(upstream)
    }

    /// Since when an upstream is recorded, and what is known of all of it (under no name) and of its repositories.
    #[must_use]
    pub fn covered(&self, upstream: u32) -> Option<(Timestamp, BTreeMap<Option<RepositoryName>, Covered>)> {
        self.engine.coverage.list(upstream)
    }
}
