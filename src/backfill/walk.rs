//! The walk of one repository.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

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
    /// What this run has come by. Whoever came first reads it, and leaves what led there out of the ledger until then.
    met: Mutex<HashSet<Item>>,
    api: ReferrersApi,
}

/// A manifest to read. With its tag, if that says what the manifest is about: at a cosign tag it has a link that its
/// bytes do not tell, and an index at a referrers tag is no parent of what it lists.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Item {
    pub(super) digest: Digest,
    pub(super) tag: Option<Tag>,
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
        match self.asking(self.place.digest(&TagOrDigest::Tag(tag.clone()))).await {
            Ok(Some(digest)) => {
                self.has_shown.store(true, Ordering::Relaxed);
                let is_telling = tag.scheme().is_some();
                self.manifest(Item { digest, tag: is_telling.then_some(tag) }, 0).await
            }
            // It was deleted since it was listed.
            Ok(None) => true,
            Err(error) => {
                let _told = self.run.fail(format!("{}:{tag}", self.repository.name), &error);
                false
            }
        }
    }

    /// Reads a manifest and what it leads to; false if not all of that could be read.
    async fn manifest(&self, item: Item, depth: usize) -> bool {
        if !self.met.lock().unwrap_or_else(PoisonError::into_inner).insert(item.clone()) {
            return true;
        }
        if depth > DEEPEST {
            let _told = self.fail(&item, format!("is more than {DEEPEST} levels below a tag"));
            return false;
        }
        let is_dry = self.run.plan.mode == Mode::DryRun;
        let is_known = self.run.ledger.has(&self.repository.name, &item);
        let mut next = Vec::new();
        if is_known {
            self.run.counts.known.add(1);
        } else if is_dry {
            self.run.counts.read.add(1);
        } else {
            match self.read(&item).await {
                Ok(Some(children)) => next.extend(children),
                // Usual for an index of which only some platforms were copied; if it comes, it was not read.
                Ok(None) => {
                    self.run.counts.missing.add(1);
                    return true;
                }
                Err(Failed) => return false,
            }
        }
        // Also of what is known: nothing else leads to a referrer that came later and has no tag.
        let mut is_complete = match self.native_referrers(&item).await {
            Ok(referrers) => {
                next.extend(referrers);
                true
            }
            Err(Failed) => false,
        };
        for digest in next {
            // Boxed: it is the same future once more.
            is_complete &= Box::pin(self.manifest(Item { digest, tag: None }, depth + 1)).await;
        }
        if is_complete
            && !is_known
            && !is_dry
            && let Err(error) = self.run.ledger.add(&self.repository.name, &item)
        {
            let _told = self.fail(&item, error);
        }
        is_complete
    }

    /// Fetches a manifest and records its links; gives the manifests that it lists, or nothing if it is not there.
    async fn read(&self, item: &Item) -> std::result::Result<Option<Vec<Digest>>, Failed> {
        // Before it is fetched: a deletion that comes in between must not be overlooked.
        let watch = self.run.index.begin_read(self.repository.clone());
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
        self.record(item, &target, &watch, &manifest).await?;
        let children = manifest.children().iter();
        Ok(Some(children.map(|child| child.descriptor.digest.clone()).collect()))
    }

    async fn record(
        &self,
        item: &Item,
        target: &TagOrDigest,
        watch: &crate::index::UpstreamRead,
        manifest: &Manifest,
    ) -> std::result::Result<(), Failed> {
        let Backfill { reader, index, counts, .. } = self.run;
        let found = Found {
            repository: &self.repository,
            target,
            algorithm: manifest.digest.algorithm(),
            bytes: &manifest.bytes,
            media_type: &manifest.media_type,
        };
        let recorded = record(reader, index, watch, found).await;
        let Recorded { kinds, warning, is_full } = recorded.map_err(|error| self.fail(item, error))?;
        counts.links.add(kinds.len() as u64);
        match warning {
            // The limit may be raised, and then it is to be read again.
            Some(warning) if is_full => return Err(self.fail(item, warning)),
            Some(warning) => self.run.warn(self.told(item), warning),
            None => {}
        }
        Ok(())
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
