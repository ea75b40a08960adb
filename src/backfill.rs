//! Records the links of what a registry held before refshim came, or took past it: walks its repositories, their tags
//! and all that these lead to, and reads each manifest once.
//!
//! - What is asked is what a client would ask, with credentials of its own, and never a blob.
//! - A tag costs a HEAD; a manifest is fetched only if the ledger does not have it. So a second run, or one after a
//!   kill, fetches what is new.
//! - A manifest is in the ledger (a file) only when its links are durable and all that it leads to was read as well.
//!   Whatever ends a run, the next one comes by everything that this one missed. The ledger is of one journal, and
//!   counts for a referrer only while the index has it: what was forgotten and comes back is read again.
//! - What cannot be read is told with its reason, and all else is read.
//! - A sweep is a backfill that comes again and again, and asks for all that is listed besides.

mod ledger;
mod verify;
mod walk;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::client::{Client, Location};
use crate::index::{Covered, Index, Repository};
use crate::oci::RepositoryName;
use crate::registry::reader::ManifestReader;
use ledger::Ledger;
use walk::Walk;

pub use ledger::LedgerError;

/// What is walked, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The upstream's number in the index.
    pub upstream: u32,
    /// `host` or `host:port` of the registry.
    pub host: String,
    /// How many requests are under way at a time.
    pub jobs: usize,
    /// What is done besides reading what is new.
    pub mode: Mode,
}

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Reads what was not read before.
    Read,
    /// Reads what was read before as well.
    ReadAgain,
    /// Only looks what there is to read.
    DryRun,
    /// Reads what was not read before, and asks for everything that is listed whether it is still there.
    Sweep,
}

/// The repositories of a run.
#[derive(Clone, Debug)]
pub struct Repositories {
    /// Their names.
    pub names: Vec<RepositoryName>,
    /// Whether the registry's catalog has them. Then one that is unknown when it is asked for its tags has none;
    /// otherwise its name may be wrong, or hidden from this user.
    pub are_catalogued: bool,
    /// Whether that is all that the registry has.
    pub are_all: bool,
}

/// One run.
#[derive(Debug)]
pub struct Backfill {
    plan: Plan,
    client: Client,
    index: Index,
    reader: ManifestReader,
    ledger: Ledger,
    requests: Semaphore,
    /// What was done so far.
    pub counts: Counts,
    gaps: Mutex<Gaps>,
    began: Timestamp,
}

/// What is missing from the index, with the reasons.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Gaps {
    /// What could not be read; the next run tries again.
    pub unreadable: BTreeSet<Reason>,
    /// What was read, but has links that cannot be recorded.
    pub malformed: BTreeSet<Reason>,
}

/// What a run did so far, for whoever watches it.
#[derive(Debug, Default)]
pub struct Counts {
    /// Repositories to walk.
    pub repositories: AtomicU64,
    /// Repositories walked.
    pub walked: AtomicU64,
    /// Tags looked at.
    pub tags: AtomicU64,
    /// Manifests fetched and read; of a dry run, those that would be.
    pub read: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Manifests that had been read before.
    pub known: AtomicU64,
    /// Links found in what was read.
    pub links: AtomicU64,
    /// Manifests that an index or a list names and the registry does not have.
    pub missing: AtomicU64,
    /// Of a sweep: listed referrers that were asked for.
    pub verified: AtomicU64,
    /// Of a sweep: those that the registry does not have any more. They are doubted.
    pub vanished: AtomicU64,
}

/// What a run did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// See [`Counts`].
    pub repositories: u64,
    /// See [`Counts`].
    pub tags: u64,
    /// See [`Counts`].
    pub read: u64,
    /// See [`Counts`].
    pub bytes: u64,
    /// See [`Counts`].
    pub known: u64,
    /// See [`Counts`].
    pub links: u64,
    /// See [`Counts`].
    pub missing: u64,
    /// See [`Counts`].
    pub verified: u64,
    /// See [`Counts`].
    pub vanished: u64,
    /// What is missing.
    #[serde(flatten)]
    pub gaps: Gaps,
}

/// Why the links of something are not recorded, or not all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reason {
    /// A repository, `repository:tag` or `repository@digest`.
    pub what: String,
    /// The reason.
    pub reason: String,
}

impl Backfill {
    /// A run that records into `index` and begins now, by the index's time; what earlier ones read is in `data_dir`.
    ///
    /// # Errors
    /// That cannot be read or written.
    pub fn new(
        plan: Plan,
        client: Client,
        (index, began): (Index, Timestamp),
        reader: ManifestReader,
        data_dir: &Path,
    ) -> Result<Self, LedgerError> {
        let journal = index.identity().unwrap_or_default();
        let ledger = Ledger::open(data_dir, plan.upstream, &journal, plan.mode == Mode::ReadAgain)?;
        let requests = Semaphore::new(plan.jobs);
        let (counts, gaps) = (Counts::default(), Mutex::default());
        Ok(Self { plan, client, index, reader, ledger, requests, counts, gaps, began })
    }

    /// The repositories in the registry's catalog; names that are none are told as unreadable.
    ///
    /// # Errors
    /// There is no catalog, or not for this user.
    pub async fn catalog(&self) -> crate::client::Result<Vec<RepositoryName>> {
        let names = self.client.catalog(&self.plan.host).await?;
        let mut valid = Vec::new();
        for name in names {
            if let Ok(name) = name.parse() {
                valid.push(name);
            } else {
                let _told = self.fail(name, &"is no name of a repository, but is in the catalog");
            }
        }
        Ok(valid)
    }

    /// Walks these repositories. What could be read whole is known from then on.
    pub async fn run(&self, repositories: Repositories) -> Report {
        let Repositories { names, are_catalogued, are_all } = repositories;
        self.counts.repositories.store(names.len() as u64, Ordering::Relaxed);
        let walks = stream::iter(names).map(|name| self.walk(name, are_catalogued));
        walks.buffer_unordered(self.plan.jobs).for_each(async |()| self.counts.walked.add(1)).await;
        if are_all && self.gaps().unreadable.is_empty() {
            // Repositories that come later come past refshim, or are told of.
            self.cover(None).await;
        }
        self.report()
    }

    async fn walk(&self, name: RepositoryName, is_catalogued: bool) {
        let location = Location::Registry { host: self.plan.host.clone(), name: name.clone() };
        match self.client.open(&location) {
            Ok(place) => {
                let repository = Repository { upstream: self.plan.upstream, name: name.clone() };
                if Walk::new(self, place, repository).whole(is_catalogued).await {
                    self.cover(Some(&name)).await;
                }
            }
            Err(error) => {
                let _told = self.fail(name.to_string(), &error);
            }
        }
    }

    async fn cover(&self, name: Option<&RepositoryName>) {
        let began = Some(self.began);
        let covered = match self.plan.mode {
            Mode::DryRun => return,
            Mode::Read | Mode::ReadAgain => Covered { backfilled: began, ..Covered::default() },
            Mode::Sweep => Covered { swept: began, ..Covered::default() },
        };
        if let Err(error) = self.index.cover(self.plan.upstream, name, covered).await {
            let what =
                name.map_or_else(|| "the coverage".to_owned(), |name| format!("the coverage of {name}"));
            let _told = self.fail(what, &error);
        }
    }

    fn fail(&self, what: String, reason: &dyn std::fmt::Display) -> Failed {
        self.gaps().unreadable.insert(Reason { what, reason: reason.to_string() });
        Failed
    }

    fn warn(&self, what: String, reason: String) {
        self.gaps().malformed.insert(Reason { what, reason });
    }

    fn gaps(&self) -> MutexGuard<'_, Gaps> {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> Report {
        let counts = &self.counts;
        let told = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Report {
            repositories: told(&counts.walked),
            tags: told(&counts.tags),
            read: told(&counts.read),
            bytes: told(&counts.bytes),
            known: told(&counts.known),
            links: told(&counts.links),
            missing: told(&counts.missing),
            verified: told(&counts.verified),
            vanished: told(&counts.vanished),
            gaps: self.gaps().clone(),
        }
    }
}

/// Something could not be read, and the reason is in the report.
struct Failed;

trait Add {
    fn add(&self, more: u64);
}

impl Add for AtomicU64 {
    fn add(&self, more: u64) {
        self.fetch_add(more, Ordering::Relaxed);
    }
}
