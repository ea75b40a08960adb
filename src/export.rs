//! The way out: writes what the index knows into the registry, as the lists at referrers tags by which clients find
//! referrers in a registry without the API. Who removes refshim then loses nothing, and a garbage collection of what
//! has no tag spares what such a list names.
//!
//! - Only what `/referrers` lists by default is written, and only what the registry shows: the tag is OCI's.
//! - Entries of others stay if their manifests name the subject. What names another, or is not there, goes; what cannot
//!   be read now stays. Each entry says what its manifest says.
//! - Nothing is written where nothing changes, so a run that was killed is simply repeated.
//! - In a registry with the API nothing is written at all; what the API lacks is told.
//! - What fails is told with its reason, and all else is done.

mod keep_list;
mod level;
mod merge;
mod subjects;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::backfill::Reason;
use crate::client::{Client, ErrorKind, Location, ReferrersApi};
use crate::index::{Index, KnownReferrer, Order, ReadError, Repository};
use crate::oci::{Digest, LinkKind, LinkKinds, RepositoryName, Tag};
use subjects::Subjects;

pub use keep_list::kept;
pub use level::{Level, NotLevel, bring_level};
pub(crate) use merge::{Verdict, verdict};

/// Entries that are read from the index at a time.
const PAGE: usize = 1_000;
/// Lists that wait to be read once more, for each that is worked on: waiting costs the registry nothing.
const WAITING: usize = 16;

/// What is exported, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The upstream's number in the index.
    pub upstream: u32,
    /// `host` or `host:port` of the registry.
    pub host: String,
    /// How many lists are worked on at a time.
    pub jobs: usize,
    /// What is done about a list that is not as it should be.
    pub mode: Mode,
    /// Whether each referrer gets a tag of its own as well.
    pub tags_each: bool,
}

/// What is done about a list that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It is written.
    Write,
    /// What would be written is told.
    DryRun,
    /// What it lacks is told.
    Check,
}

/// One run.
#[derive(Debug)]
pub struct Export {
    plan: Plan,
    client: Client,
    index: Index,
    turns: Semaphore,
    /// What was done so far.
    pub counts: Counts,
    findings: Mutex<Findings>,
}

/// What a run did so far, for whoever watches it.
#[derive(Debug, Default)]
pub struct Counts {
    /// Repositories to go through.
    pub repositories: AtomicU64,
    /// Repositories gone through.
    pub done: AtomicU64,
    /// Subjects gone through.
    pub subjects: AtomicU64,
    /// Lists written; of a dry run, those that would be.
    pub written: AtomicU64,
    /// Entries added to them.
    pub added: AtomicU64,
    /// Entries of others that say now what their manifests say.
    pub corrected: AtomicU64,
    /// Referrers that got a tag of their own.
    pub tagged: AtomicU64,
    /// Referrers that the index knows and the registry does not have.
    pub absent: AtomicU64,
}

/// What somebody should know of.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    /// What is not in the registry's lists as it should be, or could not be read.
    pub failed: BTreeSet<Reason>,
    /// Referrers that the registry has and does not list, where nothing is written.
    pub missing: BTreeSet<Reason>,
    /// Entries that were taken from lists, or would be.
    pub removed: BTreeSet<Reason>,
    /// Of a dry run: the lists that would be written.
    pub would_write: BTreeSet<Reason>,
}

/// What a run did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// See [`Counts::done`].
    pub repositories: u64,
    /// See [`Counts`].
    pub subjects: u64,
    /// See [`Counts`].
    pub written: u64,
    /// See [`Counts`].
    pub added: u64,
    /// See [`Counts`].
    pub corrected: u64,
    /// See [`Counts`].
    pub tagged: u64,
    /// See [`Counts`].
    pub absent: u64,
    /// What somebody should know of.
    #[serde(flatten)]
    pub findings: Findings,
}

/// The repositories of an upstream that have referrers.
///
/// # Errors
/// The index cannot be read.
pub async fn repositories(index: &Index, upstream: u32) -> Result<Vec<RepositoryName>, ReadError> {
    let mut names: Vec<RepositoryName> = Vec::new();
    loop {
        let page = index.referring_repositories(upstream, names.last().cloned(), PAGE).await?;
        if page.is_empty() {
            return Ok(names);
        }
        names.extend(page);
    }
}

/// The kinds of link that are written into lists.
fn listed() -> LinkKinds {
    [LinkKind::Subject, LinkKind::Fallback].into_iter().collect()
}

/// Meets each referrer of a repository.
///
/// # Errors
/// The index cannot be read.
pub(crate) async fn each_referrer(
    index: &Index,
    repository: &Repository,
    mut meet: impl FnMut(KnownReferrer),
) -> Result<(), ReadError> {
    let mut after = None;
    loop {
        let page = index.referrers_in(repository.clone(), after, PAGE).await?;
        after = page.referrers.last().map(|last| last.digest.clone());
        page.referrers.into_iter().for_each(&mut meet);
        if !page.more {
            return Ok(());
        }
    }
}

impl Export {
    /// A run that writes what `index` knows.
    #[must_use]
    pub fn new(plan: Plan, client: Client, index: Index) -> Self {
        let turns = Semaphore::new(plan.jobs);
        Self { plan, client, index, turns, counts: Counts::default(), findings: Mutex::default() }
    }

    /// Goes through these repositories.
    pub async fn run(&self, repositories: Vec<RepositoryName>) -> Report {
        self.counts.repositories.store(repositories.len() as u64, Ordering::Relaxed);
        let all = stream::iter(repositories).map(|name| self.repository(name));
        let done = all.buffer_unordered(self.plan.jobs);
        done.for_each(async |()| add(&self.counts.done, 1)).await;
        self.report()
    }

    async fn repository(&self, name: RepositoryName) {
        let location = Location::Registry { host: self.plan.host.clone(), name: name.clone() };
        let place = match self.client.open(&location) {
            Ok(place) => place,
            Err(error) => return self.fail(name.to_string(), &error),
        };
        let repository = Repository { upstream: self.plan.upstream, name };
        let mut subjects = match self.subjects(&repository).await {
            Ok(subjects) => subjects,
            Err(error) => return self.fail(repository.name.to_string(), &error),
        };
        if self.plan.mode != Mode::Check {
            // Their lists are put right too, although nothing of ours is missing there.
            match place.tags().await {
                Ok(tags) => {
                    for subject in tags.iter().filter_map(Tag::subject_of_list) {
                        subjects.entry(subject).or_default();
                    }
                }
                // It has none any more.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => self.fail(repository.name.to_string(), &error),
            }
        }
        let all = Subjects { run: self, place: &place, api: ReferrersApi::default(), name: &repository.name };
        let subjects = stream::iter(subjects).map(|(subject, ours)| all.one(subject, ours));
        subjects.buffer_unordered(self.plan.jobs * WAITING).count().await;
    }

    /// The subjects in a repository with their referrers, oldest first.
    async fn subjects(&self, repository: &Repository) -> Result<BTreeMap<Digest, Vec<Digest>>, ReadError> {
        let listed = listed();
        let mut subjects: BTreeMap<Digest, Vec<(Order, Digest)>> = BTreeMap::new();
        each_referrer(&self.index, repository, |referrer| {
            for (subject, _) in referrer.links.into_iter().filter(|(_, kinds)| kinds.intersects(listed)) {
                subjects.entry(subject).or_default().push((referrer.order, referrer.digest.clone()));
            }
        })
        .await?;
        let in_order = |(subject, mut referrers): (_, Vec<(Order, Digest)>)| {
            referrers.sort();
            (subject, referrers.into_iter().map(|(_, digest)| digest).collect())
        };
        Ok(subjects.into_iter().map(in_order).collect())
    }

    fn fail(&self, what: String, reason: &dyn Display) {
        self.findings().failed.insert(Reason { what, reason: reason.to_string() });
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> Report {
        let told = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { done, subjects, written, added, corrected, tagged, absent, .. } = &self.counts;
        Report {
            repositories: told(done),
            subjects: told(subjects),
            written: told(written),
            added: told(added),
            corrected: told(corrected),
            tagged: told(tagged),
            absent: told(absent),
            findings: self.findings().clone(),
        }
    }
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}
