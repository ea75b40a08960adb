//! Gathers what a page shows, by the visitor's own questions: the manifest, the parts of an index, what refers to each,
//! and what refers to that, within a budget. What is not asked for says so; it is never shown as "nothing".

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::item::{Below, Item, Relation, Signed};
use super::respond::Failure;
use super::site::Asked;
use super::visitor::Visitor;
use super::{Web, WebRegistry};
use crate::client::Manifest;
use crate::index::{Coverage, Covered, Entry, Order};
use crate::oci::{ArtifactKind, Descriptor, Digest, LinkKind, LinkKinds, RepositoryName, TagOrDigest};
use crate::proxy::error::Error;
use crate::queries::pages::{PageRequest, QueryScope};
use crate::registry::{Answer, Visit};

/// Lists so long are looked below: each entry costs a question to the index, and up to two to the registry.
const LOOKED_BELOW: usize = 32;
/// How far below the image it is looked.
const DEPTH: usize = 3;
/// Parts of an index that are shown.
const PARTS: usize = 100;
/// Entries of a list below another entry.
const BELOW: usize = 20;
/// How many entries of such lists are looked below in turn, on one page.
const LOOKS: usize = 64;
/// Manifests that are fetched for one page to tell what they are.
const CLEARED_UP: usize = 64;
/// Entries that are looked at to find a signature.
const CANDIDATES: usize = 16;
/// Indexes that list the image.
const PARENTS: usize = 20;
/// Questions of one page at the same time.
const CONCURRENCY: usize = 8;

/// What is known around a manifest.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) digest: Digest,
    /// Not if the registry does not have it (any more).
    pub(super) manifest: Option<Manifest>,
    pub(super) children: Vec<Item>,
    /// How many others there are.
    pub(super) more_children: usize,
    pub(super) attached: Vec<Item>,
    /// The last of the list, if it goes on behind.
    pub(super) next: Option<Order>,
    pub(super) parents: Vec<Item>,
    /// Whether there are others.
    pub(super) more_parents: bool,
    pub(super) signed: Signed,
    /// What was pushed before may be missing.
    pub(super) since: Option<Timestamp>,
}

/// Which part of a list is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) after: Option<Order>,
    pub(super) count: usize,
    pub(super) kind: Option<ArtifactKind>,
}

/// A part of a list.
struct Listed {
    items: Vec<Item>,
    next: Option<Order>,
}

/// What is read of a list as clients get it.
#[derive(Deserialize)]
struct ListedManifests {
    manifests: Vec<Descriptor>,
}

/// Reads on behalf of one visitor, in one repository.
pub(super) struct Reader<'a> {
    web: &'a Web,
    at: &'a WebRegistry,
    visit: Visit,
    pub(super) digest: Digest,
    /// Whether the registry showed the manifest to the visitor.
    is_there: bool,
    /// Whether that proves that the visitor may read the repository: something in front of a registry may answer a page
    /// of its own to anybody.
    is_proof: bool,
    /// What is left of [`LOOKS`] and of [`CLEARED_UP`].
    looks: Budget,
    fetches: Budget,
    /// One for each list that is being asked for, at all levels together.
    lists: Semaphore,
}

/// How often something may still be done.
struct Budget(AtomicUsize);

impl Budget {
    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl<'a> Reader<'a> {
    /// A reader of this image, once the registry has shown it to the visitor, or has answered that there is none of
    /// this digest.
    pub(super) async fn open(web: &'a Web, asked: &Asked<'a>, visitor: &Visitor) -> Result<Self, Failure> {
        let (visit, answer) = visitor.find(asked.at, &asked.name, &asked.target).await?;
        let (digest, is_there, is_proof) = match (answer, &asked.target) {
            (Answer::Present(found), _) => (found.digest, true, found.is_proof),
            (Answer::Absent, TagOrDigest::Digest(digest)) => (digest.clone(), false, false),
            (Answer::Absent, TagOrDigest::Tag(_)) => return Err(Failure::NothingKnown),
            (Answer::Odd(status), _) => return Err(Error::Undecided(status).into()),
        };
        let (looks, fetches) = (Budget(LOOKS.into()), Budget(CLEARED_UP.into()));
        let lists = Semaphore::new(CONCURRENCY);
        Ok(Self { web, at: asked.at, visit, digest, is_there, is_proof, looks, fetches, lists })
    }

    /// The manifest, if the registry has it.
    pub(super) async fn manifest(&self) -> Result<Option<Manifest>, Failure> {
        if self.is_there { Ok(self.fetch(&self.digest).await?) } else { Ok(None) }
    }

    /// What is known around the manifest; a failure if that is nothing at all.
    pub(super) async fn surroundings(&self, part: Part) -> Result<Surroundings, Failure> {
        let manifest = self.manifest().await?;
        let Listed { items, next } = self.attached(&self.digest, part, true).await?;
        // For a visitor who was shown nothing, both are empty: neither says whether there are links.
        if manifest.is_none() && items.is_empty() {
            return Err(Failure::NothingKnown);
        }
        let (parents, more_parents) = self.parents().await?;
        let (children, more_children) = manifest.as_ref().map(children_of).unwrap_or_default();
        let is_whole = next.is_none() && part.after.is_none() && part.kind.is_none();
        let mut signed = Signed::by(&items, is_whole);
        if signed == Signed::NotAsked {
            signed = self.signed().await?;
        }
        let (children, attached) = if children.len() + items.len() <= LOOKED_BELOW {
            (self.below_all(children, DEPTH - 1).await, self.below_all(items, DEPTH - 1).await)
        } else {
            (children, items)
        };
        let since = self.since().await?;
        let digest = self.digest.clone();
        Ok(Surroundings {
            digest,
            manifest,
            children,
            more_children,
            attached,
            next,
            parents,
            more_parents,
            signed,
            since,
        })
    }

    /// The time before which pushes may be missing; none if the repository is known as a whole.
    pub(super) async fn since(&self) -> Result<Option<Timestamp>, Failure> {
        let coverage = self.web.index.coverage(&self.visit.repository).await.map_err(Error::LookUp)?;
        Ok(match coverage {
            Coverage::Complete => None,
            Coverage::Since(since) => Some(since),
        })
    }

    /// When the repository, or all of the registry, was last read or told of.
    pub(super) async fn covered(&self) -> Result<Covered, Failure> {
        let covered = self.web.index.covered(self.visit.repository.upstream).await.map_err(Error::LookUp)?;
        let Some((_, covered)) = covered else { return Ok(Covered::default()) };
        let of = |name: Option<RepositoryName>| covered.get(&name).copied().unwrap_or_default();
        Ok(of(None).and(of(Some(self.visit.repository.name.clone()))))
    }

    /// Whether the visitor was proved to be allowed to read the repository.
    pub(super) fn may_read(&self) -> bool {
        self.is_proof
    }

    async fn fetch(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        let target = TagOrDigest::Digest(digest.clone());
        match self.at.registry.fetch(&self.visit, &target).await? {
            // What is no manifest, or not this one, is not shown as one.
            Answer::Present(fetched) => {
                Ok(Manifest::verified(digest, fetched.bytes, fetched.content_type.as_deref()).ok())
            }
            Answer::Absent => Ok(None),
            Answer::Odd(status) => Err(Error::Undecided(status)),
        }
    }

    /// A part of what is attached to a manifest. `merges` has the registry asked for its own list first.
    async fn attached(&self, subject: &Digest, part: Part, merges: bool) -> Result<Listed, Error> {
        let attached: LinkKinds = LinkKind::ATTACHED.into_iter().collect();
        let accepts = move |entry: &Entry| {
            entry.kinds.intersects(attached) && part.kind.is_none_or(|kind| kind_of(entry) == Some(kind))
        };
        self.list(subject, part, merges, Arc::new(accepts)).await
    }

    async fn list(
        &self,
        subject: &Digest,
        part: Part,
        gathers: bool,
        accepts: Arc<dyn Fn(&Entry) -> bool + Send + Sync>,
    ) -> Result<Listed, Error> {
        let wanted = PageRequest {
            after: part.after,
            count: Some(part.count),
            accepts,
            inline: false,
            gathers,
            scope: QueryScope::Repository,
            name: None,
        };
        let subject = TagOrDigest::Digest(subject.clone());
        // Never closed.
        let one = self.lists.acquire().await.ok();
        let page = self.at.pages.page(self.visit.clone(), subject, &wanted).await?;
        drop(one);
        // An error and not a shorter list, should one of them be malformed.
        let listed: ListedManifests =
            serde_json::from_slice(&page.image_index).map_err(|_| Error::Handler)?;
        let described = listed.manifests.into_iter().zip(&*page.kinds);
        let items = described.map(|(descriptor, kinds)| Item::of(descriptor, Relation::Referrer(*kinds)));
        let items = self.cleared_up(items.collect()).await;
        Ok(Listed { items, next: page.next.and_then(|next| next.after) })
    }

    /// Fetches those whose descriptor does not tell what they are.
    async fn cleared_up(&self, mut items: Vec<Item>) -> Vec<Item> {
        let vague = items.iter_mut().filter(|item| item.is_vague() && self.fetches.take());
        let fetches = vague.map(|item| async move {
            // Left as it is where that fails: it is there, whatever it is.
            if let Ok(Some(manifest)) = self.fetch(&item.digest).await {
                item.clear_up(&manifest);
            }
        });
        let fetches: Vec<_> = fetches.collect();
        stream::iter(fetches).buffer_unordered(CONCURRENCY).collect::<Vec<()>>().await;
        items
    }

    /// The indexes that list the manifest, and whether there are others.
    async fn parents(&self) -> Result<(Vec<Item>, bool), Error> {
        let accepts = |entry: &Entry| entry.kinds.intersects(LinkKind::Parent.into());
        let part = Part { after: None, count: PARENTS, kind: None };
        let Listed { items, next } = self.list(&self.digest, part, false, Arc::new(accepts)).await?;
        let parents = items.into_iter().map(|item| Item { relation: Relation::Parent, ..item });
        Ok((parents.collect(), next.is_some()))
    }

    /// Whether a signature is among all that is attached, also on other pages.
    async fn signed(&self) -> Result<Signed, Error> {
        let accepts = |entry: &Entry| match kind_of(entry) {
            Some(ArtifactKind::Signature) => true,
            // It may be one at a tag of cosign.
            Some(ArtifactKind::Image) => entry.kinds.intersects(LinkKind::Cosign.into()),
            Some(_) | None => false,
        };
        let part = Part { after: None, count: CANDIDATES, kind: None };
        let Listed { items, next } = self.list(&self.digest, part, false, Arc::new(accepts)).await?;
        Ok(Signed::by(&items, next.is_none()))
    }

    /// The items with what is attached to each, so many levels further down.
    fn below_all(&self, items: Vec<Item>, levels: usize) -> BoxFuture<'_, Vec<Item>> {
        async move {
            if levels == 0 || items.len() > LOOKED_BELOW {
                return items;
            }
            let looks: Vec<_> = items.into_iter().map(|item| self.below(item, levels)).collect();
            stream::iter(looks).buffered(CONCURRENCY).collect().await
        }
        .boxed()
    }

    async fn below(&self, item: Item, levels: usize) -> Item {
        // The image's own list first: what is on it is looked below whatever else there is.
        if levels < DEPTH - 1 && !self.looks.take() {
            return item;
        }
        let part = Part { after: None, count: BELOW, kind: None };
        let Ok(Listed { items: found, next }) = self.attached(&item.digest, part, true).await else {
            return item;
        };
        // Those of the index first, which are there already.
        let mut items = item.items_below().to_vec();
        let is_new = |found: &Item| !item.items_below().iter().any(|known| known.digest == found.digest);
        items.extend(found.into_iter().filter(is_new));
        let items = self.cleared_up(items).await;
        let items = self.below_all(items, levels - 1).await;
        Item { below: Below::Listed { items, more: next.is_some() }, ..item }
    }
}

/// The parts of an index, each once and with the attestations about it that the index lists; and how many others are left
/// out. Whoever can push writes the index: what is made of it is bounded before it is made, and takes no longer than
/// reading it did.
fn children_of(manifest: &Manifest) -> (Vec<Item>, usize) {
    let attestations = manifest.links(None).attestations;
    let listed: HashSet<&Digest> = manifest.children().iter().map(|part| &part.descriptor.digest).collect();
    // Not below another part only if that is in the index as well: else it would not be shown at all.
    let hangs_below: HashSet<&Digest> = attestations
        .iter()
        .filter(|told| told.subject != told.referrer.digest && listed.contains(&told.subject))
        .map(|told| &told.referrer.digest)
        .collect();
    let mut about: HashMap<&Digest, Vec<&Descriptor>> = HashMap::new();
    for told in &attestations {
        let known = about.entry(&told.subject).or_default();
        // One more than is shown, to know that there are others.
        if known.len() <= BELOW && !known.iter().any(|known| known.digest == told.referrer.digest) {
            known.push(&told.referrer);
        }
    }
    let mut seen = HashSet::new();
    let mut parts: Vec<_> = manifest
        .children()
        .iter()
        .filter(|part| !hangs_below.contains(&part.descriptor.digest) && seen.insert(&part.descriptor.digest))
        .collect();
    let left_out = parts.len().saturating_sub(PARTS);
    parts.truncate(PARTS);
    let child = |part| {
        let child = Item::of_child(part);
        let about = about.get(&child.digest).into_iter().flatten().take(BELOW);
        let items: Vec<Item> = about
            .map(|referrer| Item::of((*referrer).clone(), Relation::Referrer(LinkKind::Attestation.into())))
            .collect();
        // The index lists no more than this; what else there is, is asked for.
        let below = if items.is_empty() { Below::NotAsked } else { Below::Listed { items, more: true } };
        Item { below, ..child }
    };
    (parts.into_iter().map(child).collect(), left_out)
}

fn kind_of(entry: &Entry) -> Option<ArtifactKind> {
    let descriptor: Descriptor = serde_json::from_str(&entry.descriptor).ok()?;
    Some(ArtifactKind::of(
        &descriptor.media_type,
        descriptor.artifact_type.as_deref(),
        &descriptor.annotations,
    ))
}
