//! Referrers whose subjects are gone: signatures, SBOMs and attestations that nobody can find any more, and what refers
//! to those in turn. Finds them, and deletes them if it is told to.
//!
//! Deleting cannot be taken back, so whatever is in doubt is kept:
//! - A subject is gone if the registry answers 404 for it twice, with a pause between, and shows its referrer both
//!   times to the same user, and if it is in no other repository either. All subjects of a referrer must be gone, those
//!   that only its bytes name included.
//! - What has a tag is kept, and what is listed by an index that has one, or that is there. Only the tags that are
//!   links themselves (cosign's, the referrers tag, those of `refshim export`) keep nothing for their own subject's
//!   sake.
//! - What cannot be read is kept and told.

mod delete;
mod elsewhere;
mod find;
mod keepers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::backfill::Reason;
use crate::client::{Client, Location, Manifest, Repository as Place};
use crate::index::{Index, Repository, Version};
use crate::oci::{Digest, RepositoryName};

/// Where it is looked, and for what.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The upstream's number in the index.
    pub upstream: u32,
    /// `host` or `host:port` of the registry.
    pub host: String,
    /// How many requests are under way at a time.
    pub jobs: usize,
    /// Only what is older.
    pub older_than: Option<SignedDuration>,
    /// All repositories of the registry: in which a subject may be, if not in that of its referrer.
    pub all: Vec<RepositoryName>,
}

/// A look for garbage.
#[derive(Debug)]
pub struct Collection {
    plan: Plan,
    client: Client,
    index: Index,
    turns: Semaphore,
    /// What was done so far.
    pub counts: Counts,
    failed: Mutex<BTreeSet<Reason>>,
}

/// What was done so far, for whoever watches it.
#[derive(Debug, Default)]
pub struct Counts {
    /// Repositories to look through.
    pub repositories: AtomicU64,
    /// Repositories looked through.
    pub done: AtomicU64,
    /// Subjects that were asked for.
    pub subjects: AtomicU64,
    /// Referrers found whose subjects are gone.
    pub found: AtomicU64,
    /// Referrers deleted.
    pub deleted: AtomicU64,
}

/// A referrer whose subjects are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its repository.
    pub repository: RepositoryName,
    /// Its digest.
    pub digest: Digest,
    /// What it is: an artifact type, or a word for images and indexes.
    pub r#type: String,
    /// What it refers to.
    pub subjects: BTreeSet<Digest>,
    /// When it was created, by its own annotation.
    pub created: Option<Timestamp>,
    /// When refshim first knew of it.
    pub first_seen: Timestamp,
    /// Bytes of it and of its blobs, which may be in other manifests as well.
    pub size: u64,
}

/// A referrer whose subjects are gone, with what is needed to delete it.
#[derive(Clone, Debug)]
pub struct Garbage {
    /// What is told of it.
    pub found: Found,
    version: Version,
    manifest: Manifest,
}

impl Found {
    /// How old it is: since it was created, if it says so, else since refshim first knew of it.
    #[must_use]
    pub fn age(&self, now: Timestamp) -> SignedDuration {
        now.duration_since(self.created.unwrap_or(self.first_seen))
    }
}

impl Garbage {
    /// What it is known by.
    #[must_use]
    pub fn key(&self) -> (RepositoryName, Digest) {
        (self.found.repository.clone(), self.found.digest.clone())
    }
}

impl Collection {
    /// A look into what `index` knows.
    #[must_use]
    pub fn new(plan: Plan, client: Client, index: Index) -> Self {
        let turns = Semaphore::new(plan.jobs);
        Self { plan, client, index, turns, counts: Counts::default(), failed: Mutex::default() }
    }

    /// The garbage in these repositories.
    pub async fn find(&self, repositories: Vec<RepositoryName>) -> Vec<Garbage> {
        self.counts.repositories.store(repositories.len() as u64, Ordering::Relaxed);
        self.counts.done.store(0, Ordering::Relaxed);
        let looks = stream::iter(repositories).map(|name| async move {
            let found = self.find_in(name).await;
            add(&self.counts.found, found.len() as u64);
            add(&self.counts.done, 1);
            stream::iter(found)
        });
        let mut found: Vec<Garbage> = looks.buffer_unordered(self.plan.jobs).flatten().collect().await;
        found.sort_by_key(Garbage::key);
        found
    }

    /// Deletes garbage, as far as it is still garbage.
    pub async fn delete(&self, garbage: Vec<Garbage>) {
        let mut rest = garbage;
        while !rest.is_empty() {
            let left: BTreeSet<(RepositoryName, Digest)> = rest.iter().map(Garbage::key).collect();
            let waits = |garbage: &Garbage| {
                let name = &garbage.found.repository;
                garbage.found.subjects.iter().any(|subject| left.contains(&(name.clone(), subject.clone())))
            };
            // A subject before what refers to it: if it is kept after all, so is that.
            let (later, now): (Vec<_>, Vec<_>) = rest.into_iter().partition(waits);
            if now.is_empty() {
                for garbage in later {
                    let (name, digest) = garbage.key();
                    self.fail(format!("{name}@{digest}"), &"refers to itself in a circle; it is kept");
                }
                return;
            }
            let mut by_repository: BTreeMap<RepositoryName, Vec<Garbage>> = BTreeMap::new();
            for garbage in now {
                by_repository.entry(garbage.found.repository.clone()).or_default().push(garbage);
            }
            for (name, garbage) in by_repository {
                self.delete_in(&name, garbage).await;
            }
            rest = later;
        }
    }

    /// What failed so far, with the reasons.
    #[must_use]
    pub fn failed(&self) -> BTreeSet<Reason> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, what: String, reason: &dyn std::fmt::Display) {
        let reason = Reason { what, reason: reason.to_string() };
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(reason);
    }

    fn place(&self, name: &RepositoryName) -> crate::client::Result<Place> {
        self.client.open(&Location::Registry { host: self.plan.host.clone(), name: name.clone() })
    }

    fn repository(&self, name: RepositoryName) -> Repository {
        Repository { upstream: self.plan.upstream, name }
    }
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}
