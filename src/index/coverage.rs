//! How far the index knows what a registry holds: all that passed since refshim came, and all that was there before in
//! what was read since.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::task::spawn_blocking;

use super::postgres::CoverageChange;
use super::{Engine, Index, ReadError, Repository, WriteError};
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

/// Since when an upstream is recorded, and what is known of all of it (under no name) and of its repositories.
pub type CoverageList = (Timestamp, BTreeMap<Option<RepositoryName>, Covered>);

impl Index {
    /// The time by which the coverage is measured: this machine's, or the database's. A backfill asks for it before it
    /// begins.
    pub async fn time(&self) -> Result<Timestamp, ReadError> {
        match &self.engine {
            Engine::Local(_) => Ok(Timestamp::now()),
            Engine::Postgres(engine) => Box::pin(engine.time()).await,
        }
    }

    /// From now on, what is pushed to this upstream is recorded; nothing changes if it was already.
    pub fn begin_coverage(&self, upstream: u32) {
        match &self.engine {
            Engine::Local(engine) => engine.coverage.begin(upstream),
            Engine::Postgres(engine) => engine.change_coverage(CoverageChange::Begin { upstream }),
        }
    }

    /// What is pushed to this upstream is not recorded any more: whatever is known of its coverage is void.
    pub fn void_coverage(&self, upstream: u32) {
        match &self.engine {
            Engine::Local(engine) => engine.coverage.void(upstream),
            Engine::Postgres(engine) => engine.change_coverage(CoverageChange::Void { upstream }),
        }
    }

    /// Something that was pushed to this upstream until now is not recorded: what was known of its coverage is void.
    pub async fn restart_coverage(&self, upstream: u32) {
        match &self.engine {
            Engine::Local(engine) => {
                let engine = Arc::clone(engine);
                // It waits for the disk. Fails only if the runtime ends.
                let _restarted = spawn_blocking(move || engine.coverage.restart(upstream)).await;
            }
            Engine::Postgres(engine) => {
                engine.change_coverage(CoverageChange::Restart { upstream });
                engine.work_off().await;
            }
        }
    }

    /// Adds to what is known of a repository's coverage; without a name, of all in the upstream. Without effect before
    /// [`Index::begin_coverage`].
    pub async fn cover(
        &self,
        upstream: u32,
        name: Option<&RepositoryName>,
        covered: Covered,
    ) -> Result<(), WriteError> {
        match &self.engine {
            Engine::Local(engine) => {
                engine.coverage.add(upstream, name, covered);
                Ok(())
            }
            Engine::Postgres(engine) => Box::pin(engine.cover(upstream, name, covered)).await,
        }
    }

    /// How far a repository is known.
    pub async fn coverage(&self, repository: &Repository) -> Result<Coverage, ReadError> {
        match &self.engine {
            Engine::Local(engine) => Ok(engine.coverage.of(repository)),
            Engine::Postgres(engine) => {
                Box::pin(engine.coverage(repository.upstream, Some(&repository.name))).await
            }
        }
    }

    /// How far all repositories of an upstream are known, also those that nothing is known of.
    pub async fn coverage_of_all(&self, upstream: u32) -> Result<Coverage, ReadError> {
        match &self.engine {
            Engine::Local(engine) => Ok(engine.coverage.of_all(upstream)),
            Engine::Postgres(engine) => Box::pin(engine.coverage(upstream, None)).await,
        }
    }

    /// What is known of an upstream's coverage; nothing if it is not recorded.
    pub async fn covered(&self, upstream: u32) -> Result<Option<CoverageList>, ReadError> {
        match &self.engine {
            Engine::Local(engine) => Ok(engine.coverage.list(upstream)),
            Engine::Postgres(engine) => Box::pin(engine.covered(upstream)).await,
        }
    }
}
