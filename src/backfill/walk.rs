//! The walk of one repository.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt as _, stream};

use super::{Add as _, Backfill, Failed, Mode};
use crate::client::{ErrorKind, Manifest, ReferrersApi, Repository as Place, Result};
use crate::index::Repository;
use crate::oci::{Digest, Tag, TagOrDigest};
use crate::recording::found::{Found, Recorded, record};

/// How deep indexes may lie in each other, and referrers of referrers follow. Nothing real is deeper than four.
const DEEPEST: usize = 16;

pub(super) struct Walk<'a> {
    pub(super) run: &'a Backfill,
    pub(super) place: Place,
    pub(super) repository: Repository,
    /// Whether the registry served anything of this repository.
    pub(super) has_shown: AtomicBool,
    /// What this run has come by. Whoever came first reads it; until it has, it counts as read.
    met: Mutex<HashMap<Item, Outcome>>,
    api: ReferrersApi,
}

/// A manifest to read. With its tag, if that says what the manifest is about: at a cosign tag it has a link that its
/// bytes do not tell, and an index at a referrers tag is no parent of what it lists.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Item {
    pub(super) digest: Digest,
    pub(super) tag: Option<Tag>,
}

/// What came of a manifest and all that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// All is read.
    Whole,
    /// Something is not there, or failed elsewhere: it is to be looked for again.
    Lacking,
    /// Something could not be read.
    Failed,
}

/// What a manifest holds.
struct Contents {
    children: Vec<Digest>,
    is_referrer: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(run: &'a Backfill, place: Place, repository: Repository) -> Self {
        let (has_shown, met, api) = (AtomicBool::new(false), Mutex::default(), ReferrersApi::default());
        Self { run, place, repository, has_shown, met, api }
    }

    /// Everything that the tags lead to; whether all of it could be read.
    pub(super) async fn tags(&self, is_catalogued: bool) -> bool {
        let tags = match self.asking(self.place.tags()).await {
            Ok(tags) => tags,
            // distribution says so of a repository in which nothing has a tag, or nothing is left.
            Err(error) if is_catalogued && error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let _told = self.run.fail(self.repository.name.to_string(), &error);
                return false;
            }
        };
        let tags = stream::iter(tags).map(|tag| self.tag(tag)).buffer_unordered(self.run.plan.jobs);
        tags.fold(true, async |all, is_complete| all && is_complete).await
    }

    async fn tag(&self, tag: Tag) -> bool {
        self.run.counts.tags.add(1);
        match self.asking(self.place.digest_for_sure(&TagOrDigest::Tag(tag.clone()))).await {
            Ok(Some(digest)) => {
                self.has_shown.store(true, Ordering::Relaxed);
                let is_telling = tag.scheme().is_some();
                let item = Item { digest, tag: is_telling.then_some(tag) };
                self.manifest(item, 0).await != Outcome::Failed
            }
            // It was deleted since it was listed.
            Ok(None) => true,
            Err(error) => {
                let _told = self.run.fail(format!("{}:{tag}", self.repository.name), &error);
                false
            }
        }
    }

    /// Reads a manifest and what it leads to.
    async fn manifest(&self, item: Item, depth: usize) -> Outcome {
        match self.met().entry(item.clone()) {
            // Told where it failed. What led there now is left out of the ledger, too.
            Entry::Occupied(met) if *met.get() == Outcome::Failed => return Outcome::Lacking,
            Entry::Occupied(met) => return *met.get(),
            Entry::Vacant(entry) => entry.insert(Outcome::Whole),
        };
        let outcome = self.manifest_once(&item, depth).await;
        self.met().insert(item, outcome);
        outcome
    }

    async fn manifest_once(&self, item: &Item, depth: usize) -> Outcome {
        if depth > DEEPEST {
            let _told = self.fail(item, format!("is more than {DEEPEST} levels below a tag"));
            return Outcome::Failed;
        }
        let is_dry = self.run.plan.mode == Mode::DryRun;
        let (mut next, mut is_referrer) = (Vec::new(), false);
        let is_known = self.is_known(item).await;
        if is_known {
            self.run.counts.known.add(1);
        } else if is_dry {
            self.run.counts.read.add(1);
        } else {
            match self.read(item).await {
                Ok(Some(read)) => {
                    next.extend(read.children);
                    is_referrer = read.is_referrer;
                }
                // Usual for an index of which only some platforms were copied; if it comes, it was not read.
                Ok(None) => {
                    self.run.counts.missing.add(1);
                    return Outcome::Lacking;
                }
                Err(Failed) => return Outcome::Failed,
            }
        }
        // Also of what is known: nothing else leads to a referrer that came later and has no tag.
        let mut outcome = match self.native_referrers(item).await {
            Ok(referrers) => {
                next.extend(referrers);
                Outcome::Whole
            }
            Err(Failed) => Outcome::Failed,
        };
        for digest in next {
            // Boxed: it is the same future once more.
            outcome = outcome.max(Box::pin(self.manifest(Item { digest, tag: None }, depth + 1)).await);
        }
        if outcome == Outcome::Whole
            && !is_known
            && !is_dry
            && let Err(error) = self.run.ledger.add(&self.repository.name, item, is_referrer)
        {
            let _told = self.fail(item, error);
        }
        outcome
    }

    /// Whether it was read, and the index still has what came of it.
    async fn is_known(&self, item: &Item) -> bool {
        match self.run.ledger.read(&self.repository.name, item) {
            None => false,
            Some(false) => true,
            Some(true) => {
                matches!(self.run.index.version(&self.repository, &item.digest).await, Ok(Some(_)))
            }
        }
    }

    fn met(&self) -> MutexGuard<'_, HashMap<Item, Outcome>> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches a manifest and records its links; gives what it holds, or nothing if it is not there.
    async fn read(&self, item: &Item) -> std::result::Result<Option<Contents>, Failed> {
        // Before it is fetched: a deletion that comes in between must not be overlooked.
        let watch = self.run.index.begin_read(self.repository.clone()).await;
        // By its digest also where a tag led to it: the bytes are verified, and the ledger says that these were read.
        let digest = TagOrDigest::Digest(item.digest.clone());
        let manifest = match self.asking(self.place.find_manifest(&digest)).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.fail(item, error)),
        };
        let counts = &self.run.counts;
        counts.read.add(1);
        counts.bytes.add(manifest.bytes.len() as u64);
        let target = item.tag.clone().map_or(digest, TagOrDigest::Tag);
        let is_referrer = self.record(item, &target, &watch, &manifest).await?;
        let children = manifest.children().iter().map(|child| child.descriptor.digest.clone()).collect();
        Ok(Some(Contents { children, is_referrer }))
    }

    async fn record(
        &self,
        item: &Item,
        target: &TagOrDigest,
        watch: &crate::index::UpstreamRead,
        manifest: &Manifest,
    ) -> std::result::Result<bool, Failed> {
        let Backfill { reader, index, counts, .. } = self.run;
        let found = Found {
            repository: &self.repository,
            target,
            algorithm: manifest.digest.algorithm(),
            bytes: &manifest.bytes,
            media_type: &manifest.media_type,
        };
        let recorded = record(reader, index, watch, found).await;
        let recorded = recorded.map_err(|error| self.fail(item, error))?;
        let Recorded { kinds, is_referrer, warning, is_full } = recorded;
        counts.links.add(kinds.len() as u64);
        match warning {
            // The limit may be raised, and then it is to be read again.
            Some(warning) if is_full => return Err(self.fail(item, warning)),
            Some(warning) => self.run.warn(self.told(item), warning),
            None => {}
        }
        Ok(is_referrer)
    }

    /// What the registry's own API lists, if it has one.
    async fn native_referrers(&self, item: &Item) -> std::result::Result<Vec<Digest>, Failed> {
        match self.asking(self.api.listed(&self.place, &item.digest)).await {
            Ok(referrers) => Ok(referrers.unwrap_or_default()),
            Err(error) => Err(self.fail(item, error)),
        }
    }

    /// Waits for its turn among all requests of the run.
    pub(super) async fn asking<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        // Never closed.
        let _permit = self.run.requests.acquire().await.ok();
        request.await
    }

    fn fail(&self, item: &Item, reason: impl std::fmt::Display) -> Failed {
        self.run.fail(self.told(item), &reason)
    }

    fn told(&self, Item { digest, tag }: &Item) -> String {
        let name = &self.repository.name;
        tag.as_ref().map_or_else(|| format!("{name}@{digest}"), |tag| format!("{name}:{tag}"))
    }
}
