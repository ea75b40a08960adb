//! What hangs together with an image: the children of an index, what refers to each, and what refers to that.

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};

use super::{Manifest, Part, Platform, Referrer, Referrers, Repository, Result, Wanted};
use crate::oci::{Digest, LinkKind, LinkKinds, Tag, TagOrDigest};

/// How many branches are followed at a time.
const CONCURRENCY: usize = 8;

/// A manifest and what hangs on it.
#[derive(Debug)]
pub struct Node {
    /// The manifest.
    pub manifest: Manifest,
    /// What it runs on, if it is a child of an index that says so.
    pub platform: Option<Platform>,
    /// How it refers to the one that it hangs on; nothing for the first one and for children.
    pub kinds: LinkKinds,
    /// The tag that makes it refer.
    pub tag: Option<Tag>,
    /// The manifests that an index lists, without those that are about another of them.
    pub children: Vec<Node>,
    /// What an index lists and the place does not have: of the children of this one, or of the attestations about
    /// this one.
    pub missing: Vec<Part>,
    /// What refers to it.
    pub referrers: Vec<Node>,
    /// What is listed as referring to it and is not there any more.
    pub vanished: Vec<Digest>,
}

impl Node {
    fn of(manifest: Manifest) -> Self {
        Self {
            manifest,
            platform: None,
            kinds: LinkKinds::default(),
            tag: None,
            children: Vec::new(),
            missing: Vec::new(),
            referrers: Vec::new(),
            vanished: Vec::new(),
        }
    }

    /// It and everything that hangs on it.
    pub fn all(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        let below = self.children.iter().chain(&self.referrers).flat_map(Self::all);
        Box::new(std::iter::once(self).chain(below))
    }
}

/// What hangs on a manifest. Referrers are followed `depth` links far.
pub async fn walk(repository: &Repository, manifest: Manifest, depth: usize) -> Result<Node> {
    Walk { repository, wanted: Wanted::attached() }
        .node(Node::of(manifest), depth, Vec::new(), Vec::new())
        .await
}

struct Walk<'a> {
    repository: &'a Repository,
    wanted: Wanted,
}

impl Walk<'_> {
    /// Fills in what hangs on a node. `attested` are attestations that the index above it tells of, `above` what
    /// the node itself hangs on: tags can make a circle of links, digests cannot.
    fn node(
        &self,
        mut node: Node,
        depth: usize,
        attested: Vec<Part>,
        above: Vec<Digest>,
    ) -> BoxFuture<'_, Result<Node>> {
        async move {
            let mut above = above;
            above.push(node.manifest.digest.clone());
            (node.children, node.missing) = self.children(&node.manifest, depth, &above).await?;
            if depth > 0 {
                let (found, missing) = self.referrers(&node.manifest.digest, attested, &above).await?;
                node.missing.extend(missing);
                node.vanished = found.vanished;
                node.referrers = self.nodes_of(found.found, depth - 1, &above).await?;
            }
            Ok(node)
        }
        .boxed()
    }

    async fn children(
        &self,
        index: &Manifest,
        depth: usize,
        above: &[Digest],
    ) -> Result<(Vec<Node>, Vec<Part>)> {
        let attestations = index.links(None).attestations;
        let lists = |digest: &Digest| index.children().iter().any(|part| part.descriptor.digest == *digest);
        let is_attestation =
            |digest: &Digest| attestations.iter().any(|told| told.referrer.digest == *digest);
        let about = |digest: &Digest| -> Vec<Part> {
            let told = attestations.iter().filter(|told| told.subject == *digest && lists(digest));
            told.map(|told| told.referrer.clone().into()).collect()
        };
        // An attestation hangs on what it is about if that is a child. Where referrers are not followed, it is a
        // child like any other.
        let hangs_on_child = |digest: &Digest| {
            let mut subjects = attestations.iter().filter(|told| told.referrer.digest == *digest);
            subjects.any(|told| lists(&told.subject) && !is_attestation(&told.subject))
        };
        let children =
            index.children().iter().filter(|part| depth == 0 || !hangs_on_child(&part.descriptor.digest));
        let children: Vec<_> = children
            .map(|part| self.child(part.clone(), depth, about(&part.descriptor.digest), above.to_vec()))
            .collect();
        let found: Vec<_> = stream::iter(children).buffered(CONCURRENCY).try_collect().await?;
        let (mut children, mut missing) = (Vec::new(), Vec::new());
        for found in found {
            match found {
                Ok(child) => children.push(child),
                Err(part) => missing.push(part),
            }
        }
        Ok((children, missing))
    }

    async fn child(
        &self,
        part: Part,
        depth: usize,
        attested: Vec<Part>,
        above: Vec<Digest>,
    ) -> Result<std::result::Result<Node, Part>> {
        let named = TagOrDigest::Digest(part.descriptor.digest.clone());
        let Some(manifest) = self.repository.find_manifest(&named).await? else { return Ok(Err(part)) };
        let node = Node { platform: part.platform, ..Node::of(manifest) };
        self.node(node, depth, attested, above).await.map(Ok)
    }

    /// What refers to a manifest, and which of the attestations about it are not there.
    async fn referrers(
        &self,
        subject: &Digest,
        attested: Vec<Part>,
        above: &[Digest],
    ) -> Result<(Referrers, Vec<Part>)> {
        let mut referrers = self.repository.referrers(subject, &self.wanted).await?;
        let mut missing = Vec::new();
        for part in attested {
            let digest = &part.descriptor.digest;
            if referrers.found.iter().any(|referrer| referrer.manifest.digest == *digest) {
                continue;
            }
            referrers.vanished.retain(|vanished| vanished != digest);
            match self.repository.find_manifest(&TagOrDigest::Digest(digest.clone())).await? {
                Some(manifest) => {
                    let kinds = LinkKind::Attestation.into();
                    referrers.found.push(Referrer { manifest, kinds, tag: None });
                }
                None => missing.push(part),
            }
        }
        referrers.found.retain(|referrer| !above.contains(&referrer.manifest.digest));
        // The same order at every place, whatever order these were put there in.
        referrers.found.sort_by_cached_key(|referrer| {
            let manifest = &referrer.manifest;
            (
                manifest.created().map(str::to_owned),
                manifest.artifact_type().map(str::to_owned),
                manifest.digest.clone(),
            )
        });
        Ok((referrers, missing))
    }

    async fn nodes_of(&self, referrers: Vec<Referrer>, depth: usize, above: &[Digest]) -> Result<Vec<Node>> {
        let nodes: Vec<_> = referrers
            .into_iter()
            .map(|Referrer { manifest, kinds, tag }| {
                let node = Node { kinds, tag, ..Node::of(manifest) };
                self.node(node, depth, Vec::new(), above.to_vec())
            })
            .collect();
        stream::iter(nodes).buffered(CONCURRENCY).try_collect().await
    }
}
