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
//! There is one engine, `local`. Its operations are the variants of `local::write::Write` and the reads of its
//! store; an engine for several replicas would stand beside it and make [`Index`] an enum.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

mod coverage;
mod decision;
mod error;
mod local;
mod page;
mod record;
mod referrer_state;

pub use coverage::{Coverage, Covered};
pub use error::{OpenError, ProbeError, ReadError, WriteError};
#[cfg(any(test, fuzzing))]
pub(crate) use local::fuzzing;
pub use local::maintenance;
pub use page::{Entry, InvalidOrder, KnownReferrer, Order, Page, RepositoryPage, Scan, Version};

use crate::config::Config;
use crate::oci::{Digest, Link, RepositoryName};
use local::Local;
use local::in_progress::ReadMark;
use local::journal::format::Identity;
use local::sled::Store;
use local::write::{Put, Write};
use record::ReferrerKey;

/// Where the index is kept, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexSettings {
    /// The data directory, with the journal and sled.
    pub data_dir: PathBuf,
    /// Capacity of sled's cache.
    pub cache_bytes: u64,
    /// How often sled writes its changes to disk. After a crash, the journal is read from there on.
    pub flush_interval: Duration,
    /// Length at which a segment of the journal is full.
    pub segment_bytes: u64,
    /// Bytes by which the journal grows before it is compacted, or twice the length of the last snapshot if that
    /// is more.
    pub compact_bytes: u64,
    /// Maximum number of referrers in a repository; exceeded slightly by writes at the same time.
    pub repository_referrers: u64,
    /// Timeout of a read or write, waiting included.
    pub timeout: Duration,
    /// How long the upstream must have answered nothing but 404 for a referrer before it is forgotten.
    pub forget_after: Duration,
}

impl IndexSettings {
    /// The settings of a configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            data_dir: config.data_dir.clone(),
            cache_bytes: config.index.cache_bytes,
            flush_interval: config.index.flush_interval,
            segment_bytes: config.index.segment_bytes,
            compact_bytes: config.index.compact_bytes,
            repository_referrers: config.limits.repository_referrers as u64,
            timeout: config.timeouts.index,
            forget_after: config.index.forget_after,
        }
    }
}

/// A repository of one upstream. Links are scoped to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// The upstream's number in the index.
    pub upstream: u32,
    /// Its name in the upstream.
    pub name: RepositoryName,
}

/// A manifest that refers to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// Its digest.
    pub digest: Digest,
    /// Its descriptor as JSON, in the form in which queries send it.
    pub descriptor: String,
    /// Its links; each (subject, kind) once.
    pub links: Vec<Link>,
}

/// A referrer that was found in the upstream, rather than pushed through refshim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The referrer. Without links it only says that the upstream has the manifest, and how it serves it.
    pub referrer: Referrer,
    /// Whether only another manifest tells of it. Then the upstream has to be asked for it, and its own descriptor
    /// is preferred once it is known.
    pub claimed: bool,
}

/// Whether queries are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexState {
    /// Not yet: sled is being opened or built. Writes are accepted.
    Opening,
    /// Yes.
    Ready,
    /// No: sled failed for this reason and is being rebuilt from the journal, with retries. Writes are accepted.
    Rebuilding(String),
    /// No, for this reason, until an operator repairs it.
    Damaged(String),
    /// No, the index was closed.
    Closed,
}

/// The result of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The referrer was removed.
    Gone,
    /// It is pending instead: it was changed since it was seen, is being PUT, or was not absent for long enough.
    Doubted,
    /// It was not in the index.
    Unknown,
}

/// The index in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Referrers, the pending ones included.
    pub referrers: u64,
    /// Links; several kinds from one referrer to one subject count once.
    pub links: u64,
    /// Pending referrers.
    pub pending: u64,
    /// Referrers that are being PUT.
    pub in_flight: u64,
    /// Length of the journal.
    pub journal_bytes: u64,
    /// Group commits since the start, each with one sync.
    pub commits: u64,
    /// Records written since the start.
    pub records: u64,
    /// Compactions since the start.
    pub compactions: u64,
}

/// The index. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Index {
    engine: Arc<Local>,
}

/// A PUT that was recorded before its manifest goes upstream. If it is dropped, the outcome is unknown: the referrer
/// becomes pending, so that the upstream is asked for it before it is listed.
#[derive(Debug)]
#[must_use = "dropped, the outcome of the PUT is unknown"]
pub struct PutInFlight {
    engine: Arc<Local>,
    /// None once the outcome is reported.
    put: Option<Put>,
}

/// A read from the upstream in progress. A deletion during one marks it, and what it read is recorded as pending.
#[derive(Clone, Debug)]
pub struct UpstreamRead(Arc<ReadMark>);

impl Index {
    /// Opens the index. Writes are accepted from now on; queries once sled is opened in the background.
    ///
    /// A damaged journal is not an error here: [`Index::state`] reports it, and all that does not need the index
    /// works.
    pub fn open(settings: IndexSettings) -> Result<Self, OpenError> {
        Ok(Self { engine: Arc::new(Local::open(settings)?) })
    }

    /// Whether queries are answered.
    #[must_use]
    pub fn state(&self) -> IndexState {
        self.engine.shared.state()
    }

    /// Waits until the index is neither [`IndexState::Opening`] nor [`IndexState::Rebuilding`].
    pub async fn opened(&self) {
        self.engine.shared.opened().await;
    }

    /// Why writes are rejected, if they are. They are accepted again as soon as the disk takes them, unless the
    /// journal is damaged or the thread that writes it ended; then this says what to do.
    #[must_use]
    pub fn write_failure(&self) -> Option<String> {
        self.engine.shared.write_failure()
    }

    /// How many failures there were so far. A result of [`Index::probe`] is valid only as long as this is the same.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.engine.shared.failures()
    }

    /// Records a PUT before its manifest goes upstream. An unknown referrer becomes pending. Of a confirmed one only
    /// the version changes: whoever PUTs may have no right to.
    pub async fn begin(&self, repository: Repository, referrer: Referrer) -> Result<PutInFlight, WriteError> {
        let put = self.engine.write(|reply| Write::Begin { repository, referrer, reply }).await?;
        Ok(PutInFlight { engine: Arc::clone(&self.engine), put: Some(put) })
    }

    /// The version of a referrer, for [`Index::remove`].
    pub async fn version(
        &self,
        repository: &Repository,
        referrer: &Digest,
    ) -> Result<Option<Version>, ReadError> {
        let key = ReferrerKey { repository: repository.clone(), digest: referrer.clone() };
        let state = self.engine.read(move |store| store.referrer_state(&key)).await?;
        Ok(state.map(|state| state.version))
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
        self.engine.write(|reply| Write::Settle { repository, seen, found, reply }).await
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
        self.engine.write(|reply| Write::Absent { key, seen, reply }).await
    }

    /// Makes the referrer pending: some client was answered 404 for it, which proves little. Costs only a look-up
    /// if it is pending already, or unknown.
    pub async fn doubt(&self, repository: Repository, referrer: Digest) -> Result<(), WriteError> {
        self.engine.doubt(ReferrerKey { repository, digest: referrer }).await
    }

    /// Makes the referrer pending and a claim, which is not listed while the upstream cannot be asked: a client that
    /// wanted it deleted was answered 404.
    pub async fn disown(&self, repository: Repository, referrer: Digest) -> Result<(), WriteError> {
        self.engine.disown(ReferrerKey { repository, digest: referrer }).await
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
        self.engine.write(|reply| Write::Remove { key, seen, reply }).await
    }

    /// Begins a read of the repository from the upstream. Called before the upstream is asked, so that a deletion in
    /// between is not overlooked.
    #[must_use]
    pub fn begin_read(&self, repository: Repository) -> UpstreamRead {
        UpstreamRead(Arc::new(self.engine.begin_read(repository)))
    }

    /// Records what the read found, in this order; what is known already costs no record. All of it becomes pending
    /// if anything was deleted from the repository since the read began.
    pub async fn observe(
        &self,
        read: &UpstreamRead,
        observations: Vec<Observation>,
    ) -> Result<(), WriteError> {
        let read = Arc::clone(&read.0);
        self.engine.write(|reply| Write::Observe { read, observations, reply }).await
    }

    /// Whether a repository may have more referrers; also true while they cannot be counted.
    pub async fn has_room(&self, repository: &Repository) -> bool {
        self.engine.has_room(repository.clone()).await
    }

    /// The repositories of an upstream in which something refers to `subject`, by name; pending referrers count.
    pub async fn repositories(
        &self,
        upstream: u32,
        subject: Digest,
    ) -> Result<Vec<RepositoryName>, ReadError> {
        self.engine.read(move |store| store.repositories(upstream, &subject)).await
    }

    /// One page of the referrers of `subject`. Costs as much as the entries looked at, however large the index is.
    pub async fn referrers(
        &self,
        repository: Repository,
        subject: Digest,
        scan: Scan,
    ) -> Result<Page, ReadError> {
        self.engine.read(move |store| store.referrers(&repository, &subject, &scan)).await
    }

    /// At most `max` repositories of an upstream that have referrers, those after `after` in an order that stays the
    /// same.
    pub async fn referring_repositories(
        &self,
        upstream: u32,
        after: Option<RepositoryName>,
        max: usize,
    ) -> Result<Vec<RepositoryName>, ReadError> {
        self.engine.read(move |store| store.referring_repositories(upstream, after, max)).await
    }

    /// At most `max` referrers in a repository with all their links, by digest, those after `after`. What is recorded
    /// while one walks may be missing.
    pub async fn referrers_in(
        &self,
        repository: Repository,
        after: Option<Digest>,
        max: usize,
    ) -> Result<RepositoryPage, ReadError> {
        self.engine.read(move |store| store.referrers_by_digest(&repository, after, max)).await
    }

    /// The name of its journal, which another one (a dump that was loaded) does not have. `None` if it is damaged.
    #[must_use]
    pub fn journal(&self) -> Option<String> {
        self.engine.journal.map(Identity::name)
    }

    /// Proves that the index can be read and the journal written and synced. Costs a sync.
    pub async fn probe(&self) -> Result<(), ProbeError> {
        self.engine.read(Store::probe).await?;
        Ok(self.engine.write(|reply| Write::Probe { reply }).await?)
    }

    /// The index in numbers, from memory.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.engine.shared.statistics()
    }

    /// Ends reading and writing, flushes sled and ends the threads.
    pub async fn close(&self) {
        self.engine.close().await;
    }
}

impl PutInFlight {
    /// Records that the upstream accepted the manifest.
    pub async fn confirm(mut self) -> Result<(), WriteError> {
        let Some(put) = self.put.take() else { return Ok(()) };
        self.engine.write(|reply| Write::Confirm { put, reply }).await
    }

    /// Records that the upstream refused the manifest.
    pub async fn refuse(mut self) -> Result<(), WriteError> {
        let Some(put) = self.put.take() else { return Ok(()) };
        self.engine.write(|reply| Write::Refuse { put, reply }).await
    }
}

impl Drop for PutInFlight {
    fn drop(&mut self) {
        // Dropping the mark in it asks for a doubt; the committer must be woken to write that.
        if self.put.take().is_some() {
            self.engine.wake();
        }
    }
}

#[cfg(test)]
mod tests;
