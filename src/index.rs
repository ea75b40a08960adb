//! Which manifest refers to which: the one interface of the index, and its engines behind it.
//!
//! What a caller may rely on:
//! - A write is acknowledged once it is durable; a query sees what was acknowledged before it.
//! - A referrer is *pending* from before its manifest goes upstream until the upstream's answer is
//!   known. Whoever lists referrers settles pending ones first, by asking the upstream.
//! - A look-up that cannot be answered is an error, never an empty list.
//!
//! It must not know HTTP, nor who may see what.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

mod error;
mod local;

pub use error::{OpenError, ProbeError, ReadError, WriteError};
#[cfg(any(test, fuzzing))]
pub(crate) use local::fuzzing;
pub use local::maintenance;

use crate::oci::{Digest, Link, LinkKinds, RepositoryName};
use local::command::Put;
use local::record::ReferrerKey;
use local::{Local, watches};

/// Where the index is kept, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexSettings {
    /// The directory that holds the journal and sled.
    pub data_dir: PathBuf,
    /// How much memory sled may use as its cache.
    pub cache_bytes: u64,
    /// How often sled writes out what it has; a crash costs reading the journal since then.
    pub flush_interval: Duration,
    /// How long a segment of the journal gets before the next one is begun.
    pub segment_bytes: u64,
    /// Bytes by which the journal may grow before it is compacted, or twice of what the last compaction
    /// left if that is more.
    pub compact_bytes: u64,
    /// How many referrers one repository may have, about.
    pub repository_referrers: u64,
    /// How long one look-up or write may take, waiting included.
    pub timeout: Duration,
    /// How long the upstream must have answered nothing but 404 for a referrer before it is forgotten.
    pub forget_after: Duration,
}

/// What links are scoped to: a repository of one upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// The upstream's number in the index.
    pub upstream: u32,
    /// The repository there.
    pub name: RepositoryName,
}

/// A manifest that refers to others, as the index keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// Its digest.
    pub digest: Digest,
    /// Its descriptor as JSON, in the form in which queries send it.
    pub descriptor: String,
    /// What it refers to; each (subject, kind) once.
    pub links: Vec<Link>,
}

/// A referrer that was found in the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What was found; without links it only tells that the upstream has the manifest, and how it serves it.
    pub referrer: Referrer,
    /// Whether another manifest told of it: the upstream has to be asked for it, and its own descriptor is
    /// the better one.
    pub claimed: bool,
}

/// When a referrer was first recorded: microseconds since 1970, made strictly increasing over the whole
/// journal, so that it also is its place in the order of pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Order(pub u64);

/// The text is no [`Order`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not sixteen hex digits")]
pub struct InvalidOrder;

/// Which state of a referrer somebody saw; every record of it makes a new one. Lets what was decided on
/// what was seen come too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

/// One referrer of a subject, as a query finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the order of pushes.
    pub order: Order,
    /// Its digest.
    pub digest: Digest,
    /// In which ways it refers to the subject.
    pub kinds: LinkKinds,
    /// Whether the upstream has to be asked if it has it.
    pub pending: bool,
    /// Whether the upstream had it at any time, so that it is more than somebody's claim.
    pub was_confirmed: bool,
    /// The state of it that this is.
    pub version: Version,
    /// Its descriptor as JSON.
    pub descriptor: String,
}

/// What of a subject's referrers a query wants.
pub struct Scan {
    /// Only those behind this one: where the page before ended.
    pub after: Option<Order>,
    /// How many at most.
    pub max_entries: usize,
    /// How many bytes their descriptors may have together, and one more for each of them. An entry that
    /// has more makes a page of its own.
    pub max_bytes: usize,
    /// How many may be claims that the upstream never confirmed; as many more make another page.
    pub max_claims: usize,
    /// Which ones; asked before an entry is counted.
    pub accepts: Box<dyn Fn(&Entry) -> bool + Send>,
}

/// Referrers of a subject, oldest first, the pending ones among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The referrers.
    pub entries: Vec<Entry>,
    /// Whether there are more behind them.
    pub more: bool,
}

/// Whether queries are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexState {
    /// Not yet: the index is being opened or built from the journal. It can be written.
    Opening,
    /// Yes.
    Ready,
    /// No: sled failed for this reason, and is being built anew from the journal, again and again if that fails
    /// too. The index can be written.
    Rebuilding(String),
    /// No, for this reason, until somebody sees to it.
    Damaged(String),
    /// No, the index was closed.
    Closed,
}

/// What became of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The referrer is gone.
    Gone,
    /// It is pending: it may have been PUT again since it was seen, or has not been absent for long enough.
    Doubted,
    /// It was not known.
    Unknown,
}

/// The index in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Referrers, the pending ones among them.
    pub referrers: u64,
    /// Links, each (referrer, subject) counted once.
    pub links: u64,
    /// Referrers that are pending.
    pub pending: u64,
    /// Referrers that are being PUT.
    pub in_flight: u64,
    /// How long the journal is.
    pub journal_bytes: u64,
    /// Group commits since the start, each one sync.
    pub commits: u64,
    /// Records that were written since the start.
    pub records: u64,
    /// Compactions since the start.
    pub compactions: u64,
}

/// The index. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Index {
    // A second engine makes this an enum.
    engine: Arc<Local>,
}

/// A PUT that was recorded before its manifest goes upstream. Dropped, its outcome is unknown: the referrer
/// becomes pending, so that the upstream is asked for it before it is listed.
#[derive(Debug)]
#[must_use = "dropped, the outcome of the PUT is unknown"]
pub struct PutInFlight {
    engine: Arc<Local>,
    /// None once its outcome is told.
    put: Option<Put>,
}

/// Begun before the upstream is asked for what is to be learnt, so that nothing deleted in between is
/// recorded as being there.
#[derive(Clone, Debug)]
pub struct UpstreamRead(Arc<watches::ReadMark>);

impl Version {
    /// A version that nothing has: for a removal by somebody who could not look.
    pub const UNKNOWN: Self = Self(0);
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Order {
    type Err = InvalidOrder;

    fn from_str(text: &str) -> Result<Self, InvalidOrder> {
        let is_ours = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let order = u64::from_str_radix(text, 16).ok().filter(|_| is_ours);
        order.map(Self).ok_or(InvalidOrder)
    }
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan")
            .field("after", &self.after)
            .field("max_entries", &self.max_entries)
            .field("max_bytes", &self.max_bytes)
            .field("max_claims", &self.max_claims)
            .finish_non_exhaustive()
    }
}

impl Index {
    /// Opens the index and reads the end of the journal. Writes are taken from now on; queries are
    /// answered once sled is opened in the background.
    ///
    /// A damaged journal is no error here: what does not need the index goes on, [`Index::state`] tells.
    pub fn open(settings: IndexSettings) -> Result<Self, OpenError> {
        Ok(Self { engine: Arc::new(Local::open(settings)?) })
    }

    /// Whether queries are answered.
    #[must_use]
    pub fn state(&self) -> IndexState {
        self.engine.state()
    }

    /// Waits until the index is neither [`IndexState::Opening`] nor [`IndexState::Rebuilding`].
    pub async fn opened(&self) {
        self.engine.opened().await;
    }

    /// Why nothing can be recorded, if that is so. Writing is resumed as soon as the disk takes it, unless the
    /// journal is damaged or its thread ended; then this says what to do.
    #[must_use]
    pub fn write_failure(&self) -> Option<String> {
        self.engine.write_failure()
    }

    /// How often the index has failed so far: what was found of its health before counts only as long as this
    /// stays the same.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.engine.failures()
    }

    /// Records a PUT before its manifest goes upstream. An unknown referrer becomes pending. A confirmed one stays
    /// as it is but for its version: whoever PUTs may have no right to.
    pub async fn begin(&self, repository: Repository, referrer: Referrer) -> Result<PutInFlight, WriteError> {
        let put = self.engine.begin(repository, referrer).await?;
        Ok(PutInFlight { engine: Arc::clone(&self.engine), put: Some(put) })
    }

    /// The state in which a referrer is, for [`Index::remove`].
    pub async fn version(
        &self,
        repository: &Repository,
        referrer: &Digest,
    ) -> Result<Option<Version>, ReadError> {
        self.engine.version(key(repository.clone(), referrer.clone())).await
    }

    /// The upstream serves the referrer like `found`, as read from its bytes. If it is as it was `seen`, it is
    /// confirmed, and what its bytes say takes the place of what was said of them before; links that tags or other
    /// manifests tell of stay. Else nothing changes.
    pub async fn settle(
        &self,
        repository: Repository,
        seen: Version,
        found: Referrer,
    ) -> Result<(), WriteError> {
        self.engine.settle(repository, seen, found).await
    }

    /// The upstream answered 404 for the referrer to somebody who was shown to be able to read the repository.
    /// If it is as it was `seen` and is not being PUT, it is pending from the first such answer on, and removed
    /// once there was no other for [`IndexSettings::forget_after`]; else it becomes pending.
    pub async fn absent(
        &self,
        repository: Repository,
        referrer: Digest,
        seen: Version,
    ) -> Result<Removed, WriteError> {
        self.engine.absent(key(repository, referrer), seen).await
    }

    /// Some client was answered 404 for the referrer, which says little: it becomes pending. If it is that
    /// already, or is not known, this costs a look-up.
    pub async fn doubt(&self, repository: Repository, referrer: Digest) -> Result<(), WriteError> {
        self.engine.doubt(key(repository, referrer)).await
    }

    /// Removes a referrer that the upstream has deleted, if it is as it was `seen` and is not being PUT;
    /// else makes it pending.
    pub async fn remove(
        &self,
        repository: Repository,
        referrer: Digest,
        seen: Version,
    ) -> Result<Removed, WriteError> {
        self.engine.remove(key(repository, referrer), seen).await
    }

    /// Watches a repository, of which something is going to be learnt.
    #[must_use]
    pub fn begin_read(&self, repository: Repository) -> UpstreamRead {
        UpstreamRead(Arc::new(self.engine.read_mark(repository)))
    }

    /// Records what was found in the upstream since the watch began, in this order; what is known already
    /// costs nothing. If anything was deleted from the repository meanwhile, all of it is pending.
    pub async fn observe(
        &self,
        read: &UpstreamRead,
        observations: Vec<Observation>,
    ) -> Result<(), WriteError> {
        self.engine.learn(Arc::clone(&read.0), observations).await
    }

    /// Whether a repository may have more referrers; it may as long as they cannot be counted.
    pub async fn has_room(&self, repository: &Repository) -> bool {
        self.engine.has_room(repository.clone()).await
    }

    /// The repositories of an upstream in which something refers to `subject`, by name; what is pending
    /// counts.
    pub async fn repositories(
        &self,
        upstream: u32,
        subject: Digest,
    ) -> Result<Vec<RepositoryName>, ReadError> {
        self.engine.repositories(upstream, subject).await
    }

    /// One page of what refers to `subject`, at a cost that depends on nothing but what is looked at.
    pub async fn referrers(
        &self,
        repository: Repository,
        subject: Digest,
        scan: Scan,
    ) -> Result<Page, ReadError> {
        self.engine.referrers(repository, subject, scan).await
    }

    /// Proves that the index can be read and the journal written and synced. Costs a sync.
    pub async fn probe(&self) -> Result<(), ProbeError> {
        self.engine.probe().await
    }

    /// The index in numbers; costs nothing.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.engine.statistics()
    }

    /// Ends writing and reading, hands everything to the operating system and ends the threads.
    pub async fn close(&self) {
        self.engine.close().await;
    }
}

impl PutInFlight {
    /// The upstream took the manifest.
    pub async fn confirm(mut self) -> Result<(), WriteError> {
        let Some(put) = self.put.take() else { return Ok(()) };
        self.engine.confirm(put).await
    }

    /// The upstream refused the manifest.
    pub async fn refuse(mut self) -> Result<(), WriteError> {
        let Some(put) = self.put.take() else { return Ok(()) };
        self.engine.refuse(put).await
    }
}

impl Drop for PutInFlight {
    fn drop(&mut self) {
        // Its mark asks for a doubt, which the committer writes.
        if self.put.take().is_some() {
            self.engine.wake();
        }
    }
}

fn key(repository: Repository, digest: Digest) -> ReferrerKey {
    ReferrerKey { repository, digest }
}

#[cfg(test)]
mod tests;
