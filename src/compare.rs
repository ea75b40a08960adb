//! The comparison: what refshim knows of referrers, beside what the registry's own referrers API and the referrers tag
//! list. Before clients are answered, it shows what they would miss, and what they would gain.
//!
//! - refshim's side is the index, whatever the mode of the upstream: what it knows without asking. In mode `full` a
//!   query merges the other two into it.
//! - Whatever not all of them list is read: an entry whose manifest is gone, or is about something else, is on a list
//!   without right. It is told, and nobody misses it.
//! - Nothing is changed, neither in the index nor in the registry.

mod sample;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::backfill::Reason;
use crate::client::{Client, Location, ReferrersApi, Repository as Place, Result};
use crate::export::{Verdict, verdict};
use crate::index::{Entry, Index, ReadError, Repository, Scan};
use crate::oci::{Digest, LinkKind, LinkKinds, ReferrersList, RepositoryName};

pub use sample::sample;

/// Entries that are read from the index at a time.
const PAGE: usize = 1_000;

/// The kinds of link that `/referrers` lists by default.
const LISTED: [LinkKind; 2] = [LinkKind::Subject, LinkKind::Fallback];

/// The subjects of a comparison.
pub type Subjects = BTreeMap<RepositoryName, BTreeSet<Digest>>;

/// Where it is compared.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The upstream's number in the index.
    pub upstream: u32,
    /// `host` or `host:port` of the registry.
    pub host: String,
    /// How many subjects are worked on at a time.
    pub jobs: usize,
}

/// One run.
#[derive(Debug)]
pub struct Comparison {
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
    /// Subjects compared.
    pub subjects: AtomicU64,
    /// Referrers on which all lists agree.
    pub agreed: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct Findings {
    differences: BTreeSet<Difference>,
    failed: BTreeSet<Reason>,
}

/// A referrer that is not on all lists, or has no right to be on one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// `repository@digest` of the subject.
    pub subject: String,
    /// The digest of the referrer.
    pub referrer: Digest,
    /// Whether refshim knows it.
    pub refshim: bool,
    /// Whether the registry's referrers API lists it; `None` if there is no API.
    pub api: Option<bool>,
    /// Whether the referrers tag lists it.
    pub tag: bool,
    /// Why it is listed without right, or why that could not be found out.
    pub note: Option<String>,
    /// Whether refshim would have to list it.
    pub is_missing: bool,
}

/// What a run found.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// See [`Counts`].
    pub subjects: u64,
    /// See [`Counts`].
    pub agreed: u64,
    /// Referrers that the registry lists, rightly, and refshim does not know.
    pub missing: u64,
    /// What is not on all lists.
    pub differences: BTreeSet<Difference>,
    /// What could not be compared, and why.
    pub failed: BTreeSet<Reason>,
}

/// The lists of one subject.
struct Lists {
    /// Whether the referrer is only claimed or doubted.
    refshim: BTreeMap<Digest, bool>,
    api: Option<HashSet<Digest>>,
    tag: HashSet<Digest>,
}

impl Comparison {
    /// A run that compares what `index` knows with the registry.
    #[must_use]
    pub fn new(plan: Plan, client: Client, index: Index) -> Self {
        let turns = Semaphore::new(plan.jobs);
        Self { plan, client, index, turns, counts: Counts::default(), findings: Mutex::default() }
    }

    /// Compares the lists of these subjects.
    pub async fn run(&self, subjects: Subjects) -> Report {
        self.counts.repositories.store(subjects.len() as u64, Ordering::Relaxed);
        let all = stream::iter(subjects).map(|(name, subjects)| self.repository(name, subjects));
        all.buffer_unordered(self.plan.jobs).for_each(async |()| add(&self.counts.done, 1)).await;
        let Findings { differences, failed } = self.findings().clone();
        Report {
            subjects: self.counts.subjects.load(Ordering::Relaxed),
            agreed: self.counts.agreed.load(Ordering::Relaxed),
            missing: differences.iter().filter(|it| it.is_missing).count() as u64,
            differences,
            failed,
        }
    }

    async fn repository(&self, name: RepositoryName, subjects: BTreeSet<Digest>) {
        let location = Location::Registry { host: self.plan.host.clone(), name: name.clone() };
        let place = match self.client.open(&location) {
            Ok(place) => place,
            Err(error) => return self.fail(name.to_string(), &error),
        };
        let (place, api) = (&place, &ReferrersApi::default());
        let repository = &Repository { upstream: self.plan.upstream, name };
        let all = stream::iter(subjects).map(|subject| async move {
            let what = format!("{}@{subject}", repository.name);
            let lists = {
                let _turn = self.turns.acquire().await.ok();
                self.lists(place, api, repository, &subject).await
            };
            match lists {
                Ok(lists) => self.compare(place, what, &subject, lists).await,
                Err(reason) => self.fail(what, &reason),
            }
            add(&self.counts.subjects, 1);
        });
        all.buffer_unordered(self.plan.jobs).count().await;
    }

    async fn lists(
        &self,
        place: &Place,
        api: &ReferrersApi,
        repository: &Repository,
        subject: &Digest,
    ) -> std::result::Result<Lists, String> {
        let refshim = self.known(repository, subject).await.map_err(|error| error.to_string())?;
        let asked = async {
            let tag = place.tagged_list(subject).await?;
            let tag =
                tag.iter().flat_map(ReferrersList::descriptors).map(|entry| entry.digest.clone()).collect();
            Result::Ok((api.listed(place, subject).await?, tag))
        };
        let (api, tag) = asked.await.map_err(|error| error.to_string())?;
        Ok(Lists { refshim, api: api.map(HashSet::from_iter), tag })
    }

    /// What the index knows to refer to a subject.
    async fn known(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> std::result::Result<BTreeMap<Digest, bool>, ReadError> {
        let listed: LinkKinds = LISTED.into_iter().collect();
        let (mut known, mut after) = (BTreeMap::new(), None);
        loop {
            let scan = Scan {
                after,
                max_entries: PAGE,
                max_bytes: usize::MAX,
                max_claims: PAGE,
                accepts: Box::new(move |entry: &Entry| entry.kinds.intersects(listed)),
            };
            let page = self.index.referrers(repository.clone(), subject.clone(), scan).await?;
            after = page.entries.last().map(|entry| entry.order).or(after);
            known.extend(page.entries.into_iter().map(|entry| (entry.digest, entry.pending)));
            if !page.more {
                return Ok(known);
            }
        }
    }

    async fn compare(&self, place: &Place, what: String, subject: &Digest, lists: Lists) {
        let all: BTreeSet<&Digest> =
            lists.refshim.keys().chain(lists.api.iter().flatten()).chain(&lists.tag).collect();
        let (agreed, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|digest| lists.agree(digest));
        add(&self.counts.agreed, agreed.len() as u64);
        let (what, lists) = (&what, &lists);
        let reads = others.into_iter().map(|digest| async move {
            let _turn = self.turns.acquire().await.ok();
            let verdict = verdict(place, subject, digest).await;
            let difference = self.difference(what, lists, digest, verdict);
            self.findings().differences.extend(difference);
        });
        let reads: Vec<_> = reads.collect();
        stream::iter(reads).buffer_unordered(self.plan.jobs).count().await;
    }

    fn difference(
        &self,
        what: &str,
        lists: &Lists,
        referrer: &Digest,
        verdict: Verdict,
    ) -> Option<Difference> {
        let (refshim, is_listed) = (lists.refshim.contains_key(referrer), lists.is_everywhere(referrer));
        let note = match verdict {
            Verdict::About(_) if is_listed => {
                add(&self.counts.agreed, 1);
                return None;
            }
            Verdict::About(_) => None,
            Verdict::Not(reason) => Some(reason.to_owned()),
            Verdict::Unread(reason) => {
                // It may be missing, or not.
                if !refshim {
                    self.fail(format!("{what}: {referrer}"), &reason);
                }
                Some(reason)
            }
        };
        Some(Difference {
            subject: what.to_owned(),
            referrer: referrer.clone(),
            refshim,
            api: lists.api.as_ref().map(|listed| listed.contains(referrer)),
            tag: lists.tag.contains(referrer),
            is_missing: !refshim && note.is_none(),
            note,
        })
    }

    fn fail(&self, what: String, reason: &dyn Display) {
        self.findings().failed.insert(Reason { what, reason: reason.to_string() });
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lists {
    fn is_everywhere(&self, digest: &Digest) -> bool {
        let at_api = self.api.as_ref().is_none_or(|listed| listed.contains(digest));
        // Where there is an API, nobody needs the tag; but what is there, others read.
        let at_tag = self.tag.contains(digest) || (self.api.is_some() && self.tag.is_empty());
        at_api && at_tag && self.refshim.contains_key(digest)
    }

    /// Whether all list it, and refshim needs not ask for it first.
    fn agree(&self, digest: &Digest) -> bool {
        self.is_everywhere(digest) && self.refshim.get(digest) == Some(&false)
    }
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}
