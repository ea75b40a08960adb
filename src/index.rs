//! The index of links between manifests: its interface, in front of an engine.
//!
//! What a caller may rely on:
//! - A write is answered once it is durable, and a query sees every write answered before it.
//! - A referrer is *pending* from before its manifest goes upstream until the upstream's answer is recorded, and
//!   again whenever its presence in the upstream is in doubt. Whoever lists referrers asks the upstream for the
//!   pending ones first, and records the answer ([`Index::settle`], [`Index::absent`]).
//! - A query that cannot be answered is an error, never an empty list: "nothing refers to this image" while the store
//!   is broken would be taken for "there are no signatures".
//!
//! The index knows neither HTTP nor who may see what.
//!
//! There are two engines: `local`, for one process, a journal on this machine's disk, with its sorted snapshot and with
//! sled for what is newer (why both, it says there); and `postgres`, for several replicas. What a write makes of a referrer is decided in one place for both (`decision`), and one suite of
//! tests runs on both.

use std::sync::Arc;

mod coverage;
mod decision;
mod error;
mod lease;
mod local;
pub mod maintenance;
mod page;
mod postgres;
mod put;
mod record;
mod referrer;
mod referrer_state;
mod settings;
mod shared_queue;
mod status;

pub use coverage::{Coverage, CoverageList, Covered};
pub use error::{OpenError, ProbeError, ReadError, WriteError};
pub use lease::Lease;
#[cfg(any(test, fuzzing))]
pub(crate) use local::fuzzing;
pub use page::{Entry, InvalidOrder, KnownReferrer, Order, Page, RepositoryPage, Scan, Stamp, Version};
pub use put::PutInFlight;
pub use referrer::{Observation, Referrer, Removed, Repository};
pub use settings::IndexSettings;
pub use shared_queue::{Parcel, SharedQueue};
pub use status::{IndexState, Statistics};

use crate::oci::{Digest, RepositoryName};
use local::Local;
use local::in_progress::ReadMark;
use local::journal::format::Identity;
use local::store::View;
use local::write::Write;
use postgres::Postgres;
use put::{InFlight, LocalPut};
use record::ReferrerKey;

/// The index. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Index {
    engine: Engine,
}

/// The futures that ask the database are boxed: they are large, and would make every future large that uses an index, also
/// the local one.
#[derive(Clone, Debug)]
enum Engine {
    Local(Arc<Local>),
    Postgres(Arc<Postgres>),
}

/// A read from the upstream in progress. A deletion during one marks it, and what it read is recorded as pending.
#[derive(Clone, Debug)]
pub struct UpstreamRead(Reading);

#[derive(Clone, Debug)]
enum Reading {
    Local(Arc<ReadMark>),
    Postgres(postgres::Reading),
}

impl Index {
    /// Opens the index. Writes are accepted from now on; queries once sled is opened in the background. A database is
    /// connected to in the background.
    ///
    /// A damaged journal, or a database that is away, is not an error here: [`Index::state`] reports it, and all that
    /// does not need the index works.
    ///
    /// # Panics
    /// With a database, outside of a runtime.
    pub fn open(settings: IndexSettings) -> Result<Self, OpenError> {
        let engine = match &settings.database {
            None => Engine::Local(Arc::new(Local::open(settings)?)),
            Some(database) => {
                let opened = Postgres::open(&settings, database);
                Engine::Postgres(opened.map_err(|error| OpenError::Database(error.to_string()))?)
            }
        };
        Ok(Self { engine })
    }

    /// Whether queries are answered.
    #[must_use]
    pub fn state(&self) -> IndexState {
        match &self.engine {
            Engine::Local(engine) => engine.shared.state(),
            Engine::Postgres(engine) => engine.state(),
        }
    }

    /// Waits until the index is neither [`IndexState::Opening`] nor [`IndexState::Rebuilding`].
    pub async fn opened(&self) {
        match &self.engine {
            Engine::Local(engine) => engine.shared.opened().await,
            Engine::Postgres(engine) => Box::pin(engine.opened()).await,
        }
    }

    /// How many replicas share the index, this one included; `None` for one that is this process's own, and while its
    /// database does not say.
    pub async fn replicas(&self) -> Option<u64> {
        match &self.engine {
            Engine::Local(_) => None,
            Engine::Postgres(engine) => Box::pin(engine.replicas()).await,
        }
    }

    /// Why writes are rejected, if they are. They are accepted again as soon as the disk or the database takes them,
    /// unless the journal is damaged or the thread that writes it ended; then this says what to do.
    #[must_use]
    pub fn write_failure(&self) -> Option<String> {
        match &self.engine {
            Engine::Local(engine) => engine.shared.write_failure(),
            Engine::Postgres(engine) => engine.write_failure(),
        }
    }

    /// How many failures there were so far. A result of [`Index::probe`] is valid only as long as this is the same.
    #[must_use]
    pub fn failures(&self) -> u64 {
        match &self.engine {
            Engine::Local(engine) => engine.shared.failures(),
            Engine::Postgres(engine) => engine.failures(),
        }
    }

    /// Records a PUT before its manifest goes upstream. An unknown referrer becomes pending. Of a confirmed one only
    /// the version changes: whoever PUTs may have no right to.
    pub async fn begin(&self, repository: Repository, referrer: Referrer) -> Result<PutInFlight, WriteError> {
        Ok(PutInFlight(match &self.engine {
            Engine::Local(engine) => {
                let put = engine.write(|reply| Write::Begin { repository, referrer, reply }).await?;
                InFlight::Local(LocalPut { engine: Arc::clone(engine), put: Some(put) })
            }
            Engine::Postgres(engine) => {
                InFlight::Postgres(Box::pin(engine.begin(repository, referrer)).await?)
            }
        }))
    }

    /// The version of a referrer, for [`Index::remove`]; [`Version::UNKNOWN`] while it is being PUT. For what the
    /// registry takes in which order is not known then, and a PUT that changes nothing makes no version: the removal
    /// would not notice that it was accepted after the deletion.
    pub async fn version(
        &self,
        repository: &Repository,
        referrer: &Digest,
    ) -> Result<Option<Version>, ReadError> {
        let key = ReferrerKey { repository: repository.clone(), digest: referrer.clone() };
        match &self.engine {
            Engine::Local(engine) => {
                let is_being_put = engine.shared.puts.any(&key);
                let state = engine.read_now(move |view| view.referrer_state(&key)).await?;
                Ok(state.map(|state| if is_being_put { Version::UNKNOWN } else { state.version }))
            }
            Engine::Postgres(engine) => Box::pin(engine.version(&key)).await,
        }
    }

    /// The version of a referrer, whatever is done with it.
    #[cfg(test)]
    pub(crate) async fn current_version(
        &self,
        repository: &Repository,
        referrer: &Digest,
    ) -> Option<Version> {
        let key = ReferrerKey { repository: repository.clone(), digest: referrer.clone() };
        match &self.engine {
            Engine::Local(engine) => {
                let state = engine.read(move |view| view.referrer_state(&key)).await.unwrap();
                state.map(|state| state.version)
            }
            Engine::Postgres(engine) => Box::pin(engine.current_version(&key)).await,
        }
    }

    /// Records that the upstream serves the referrer as `found`, as read from its bytes. If the version is still the
    /// one `seen`, the referrer is confirmed, and what its bytes say replaces what was claimed of them; links that
    /// tags or other manifests tell of stay. Otherwise nothing changes.
    pub async fn settle(
        &self,
        repository: Repository,
        seen: Version,
        found: Referrer,
    ) -> Result<(), WriteError> {
        match &self.engine {
            Engine::Local(engine) => {
                engine.write(|reply| Write::Settle { repository, seen, found, reply }).await
            }
            Engine::Postgres(engine) => Box::pin(engine.settle(repository, seen, &found)).await,
        }
    }

    /// Records that the upstream answered 404 for the referrer to a caller who was shown to be able to read the
    /// repository. With the version still `seen` and no PUT in progress, it is pending from the first such answer on,
    /// and removed by one that comes [`IndexSettings::forget_after`] later with no sign of it in between; otherwise
    /// it becomes pending.
    pub async fn absent(
        &self,
        repository: Repository,
        referrer: Digest,
        seen: Version,
    ) -> Result<Removed, WriteError> {
        let key = ReferrerKey { repository, digest: referrer };
        match &self.engine {
            Engine::Local(engine) => engine.write(|reply| Write::Absent { key, seen, reply }).await,
            Engine::Postgres(engine) => Box::pin(engine.absent(&key, seen)).await,
        }
    }

    /// Makes the referrer pending: some client was answered 404 for it, which proves little. Costs only a look-up
    /// if it is pending already, or unknown.
    pub async fn doubt(&self, repository: Repository, referrer: Digest) -> Result<(), WriteError> {
        let key = ReferrerKey { repository, digest: referrer };
        match &self.engine {
            Engine::Local(engine) => engine.doubt(key).await,
            Engine::Postgres(engine) => Box::pin(engine.doubt(&key)).await,
        }
    }

    /// Makes the referrer pending and a claim, which is not listed while the upstream cannot be asked: a client that
    /// wanted it deleted was answered 404.
    pub async fn disown(&self, repository: Repository, referrer: Digest) -> Result<(), WriteError> {
        let key = ReferrerKey { repository, digest: referrer };
        match &self.engine {
            Engine::Local(engine) => engine.disown(key).await,
            Engine::Postgres(engine) => Box::pin(engine.disown(&key)).await,
        }
    }

    /// Removes a referrer that the upstream has deleted, if its version is still `seen` and it is not being PUT;
    /// otherwise makes it pending and a claim.
    pub async fn remove(
        &self,
        repository: Repository,
        referrer: Digest,
        seen: Version,
    ) -> Result<Removed, WriteError> {
        let key = ReferrerKey { repository, digest: referrer };
        match &self.engine {
            Engine::Local(engine) => engine.remove(key, seen).await,
            Engine::Postgres(engine) => Box::pin(engine.remove(&key, seen)).await,
        }
    }

    /// Begins a read of the repository from the upstream. Called before the upstream is asked, so that a deletion in
    /// between is not overlooked. Never fails: if the database cannot be asked, what is read is recorded as pending.
    pub async fn begin_read(&self, repository: Repository) -> UpstreamRead {
        UpstreamRead(match &self.engine {
            Engine::Local(engine) => Reading::Local(Arc::new(engine.begin_read(repository))),
            Engine::Postgres(engine) => Reading::Postgres(Box::pin(engine.begin_read(repository)).await),
        })
    }

    /// Records what the read found, in this order; what is known already costs no record. All of it becomes pending
    /// if anything was deleted from the repository since the read began.
    pub async fn observe(
        &self,
        read: &UpstreamRead,
        observations: Vec<Observation>,
    ) -> Result<(), WriteError> {
        match (&self.engine, &read.0) {
            (Engine::Local(engine), Reading::Local(read)) => {
                let read = Arc::clone(read);
                engine.write(|reply| Write::Observe { read, observations, reply }).await
            }
            (Engine::Postgres(engine), Reading::Postgres(read)) => engine.observe(read, &observations).await,
            // The read is another index's: nobody does that.
            (Engine::Local(_), Reading::Postgres(_)) | (Engine::Postgres(_), Reading::Local(_)) => {
                Err(WriteError::Failed)
            }
        }
    }

    /// Whether a repository may have more referrers; also true while they cannot be counted.
    pub async fn has_room(&self, repository: &Repository) -> bool {
        match &self.engine {
            Engine::Local(engine) => engine.has_room(repository.clone()).await,
            Engine::Postgres(engine) => Box::pin(engine.has_room(repository)).await,
        }
    }

    /// The repositories of an upstream in which something refers to `subject`, by name; pending referrers count.
    pub async fn repositories(
        &self,
        upstream: u32,
        subject: Digest,
    ) -> Result<Vec<RepositoryName>, ReadError> {
        match &self.engine {
            Engine::Local(engine) => engine.read(move |view| view.repositories(upstream, &subject)).await,
            Engine::Postgres(engine) => Box::pin(engine.repositories(upstream, &subject)).await,
        }
    }

    /// One page of the referrers of `subject`. Costs as much as the entries looked at, however large the index is.
    pub async fn referrers(
        &self,
        repository: Repository,
        subject: Digest,
        scan: Scan,
    ) -> Result<Page, ReadError> {
        match &self.engine {
            Engine::Local(engine) => {
                engine.read(move |view| view.referrers(&repository, &subject, &scan)).await
            }
            Engine::Postgres(engine) => Box::pin(engine.referrers(&repository, &subject, &scan)).await,
        }
    }

    /// The stamp of a repository's lists. A list that is read after its stamp was taken is still the same for as long as
    /// the stamp is: a write that changes a list changes the stamp before it is answered. `None` while the index cannot be
    /// read, and for one in a database, which others write as well.
    #[must_use]
    pub fn stamp(&self, repository: &Repository) -> Option<Stamp> {
        match &self.engine {
            Engine::Local(engine) => engine.shared.store().ok()?.stamp(repository),
            Engine::Postgres(_) => None,
        }
    }

    /// At most `max` repositories of an upstream that have referrers, those after `after` in an order that stays the
    /// same.
    pub async fn referring_repositories(
        &self,
        upstream: u32,
        after: Option<RepositoryName>,
        max: usize,
    ) -> Result<Vec<RepositoryName>, ReadError> {
        match &self.engine {
            Engine::Local(engine) => {
                engine.read(move |view| view.referring_repositories(upstream, after, max)).await
            }
            Engine::Postgres(engine) => Box::pin(engine.referring_repositories(upstream, after, max)).await,
        }
    }

    /// At most `max` referrers in a repository with all their links, by digest, those after `after`. What is recorded
    /// while one walks may be missing.
    pub async fn referrers_in(
        &self,
        repository: Repository,
        after: Option<Digest>,
        max: usize,
    ) -> Result<RepositoryPage, ReadError> {
        match &self.engine {
            Engine::Local(engine) => {
                engine.read(move |view| view.referrers_by_digest(&repository, after, max)).await
            }
            Engine::Postgres(engine) => Box::pin(engine.referrers_in(&repository, after.as_ref(), max)).await,
        }
    }

    /// A name that no other index has: that of its journal, or one that the database was given with its schema. `None`
    /// if the journal is damaged, or the database was not reached yet.
    #[must_use]
    pub fn identity(&self) -> Option<String> {
        match &self.engine {
            Engine::Local(engine) => engine.journal.map(Identity::name),
            Engine::Postgres(engine) => engine.identity(),
        }
    }

    /// Proves that the index can be read and written. Costs a sync.
    pub async fn probe(&self) -> Result<(), ProbeError> {
        match &self.engine {
            Engine::Local(engine) => {
                engine.read(View::probe).await?;
                engine.write(|reply| Write::Probe { reply }).await?;
            }
            Engine::Postgres(engine) => Box::pin(engine.probe()).await?,
        }
        Ok(())
    }

    /// The index in numbers, from memory; nothing of one in a database, where counting would cost more than it says.
    #[must_use]
    pub fn statistics(&self) -> Option<Statistics> {
        match &self.engine {
            Engine::Local(engine) => Some(engine.shared.statistics()),
            Engine::Postgres(_) => None,
        }
    }

    /// Ends reading and writing, flushes sled and ends the threads.
    pub async fn close(&self) {
        match &self.engine {
            Engine::Local(engine) => engine.close().await,
            Engine::Postgres(engine) => Box::pin(engine.close()).await,
        }
    }
}

#[cfg(test)]
mod tests;
