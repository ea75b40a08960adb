//! The graph around an image: the children of an index, the referrers of each, and the referrers of those.

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};

use super::{Manifest, Part, Platform, Referrer, Referrers, Repository, Result, Wanted};
use crate::oci::{Digest, LinkKind, LinkKinds, Tag, TagOrDigest};

/// How many branches of one node are followed at a time.
const CONCURRENCY: usize = 8;

/// A manifest, with its children and referrers.
#[derive(Debug)]
pub struct Node {
    /// The manifest.
    pub manifest: Manifest,
    /// Its platform, if the index above it states one.
    pub platform: Option<Platform>,
    /// The kinds of its links to the node above; none for the root and for children.
    pub kinds: LinkKinds,
    /// The tag that makes it a referrer, as cosign's do.
    pub tag: Option<Tag>,
    /// The manifests that an index lists, without the attestations about other ones of them.
    pub children: Vec<Node>,
    /// Entries of an index that do not exist: children of this node, or attestations about it.
    pub missing: Vec<Part>,
    /// Its referrers.
    pub referrers: Vec<Node>,
    /// Referrers that are listed but no longer exist.
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

    /// The node and everything below it.
    pub fn all(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        let below = self.children.iter().chain(&self.referrers).flat_map(Self::all);
        Box::new(std::iter::once(self).chain(below))
    }
}

/// Reads the graph below a manifest, with referrers up to `depth` links away.
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
    /// Fills in the children and referrers of a node. `attested` are attestations about it that the index
    /// above lists, `above` is the path to it: links by digest cannot form a cycle, but links by tag can.
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
        // An attestation about another child is that child's referrer. One about anything else has no such
        // place, and without referrers (depth 0) none has: it stays a child, or a copy of the index would
        // lack it.
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

    /// The referrers of a manifest, and those attestations about it that do not exist.
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
            // An index lists it, so it is missing, which fails a copy, and not just a referrer that vanished.
            referrers.vanished.retain(|vanished| vanished != digest);
            match self.repository.find_manifest(&TagOrDigest::Digest(digest.clone())).await? {
                Some(manifest) => {
                    let kinds = LinkKind::Attestation.into();
                    referrers.found.push(Referrer { manifest, kinds, tag: None });
                }
                None => missing.push(part),
            }
        }
        // Two images whose cosign tags name each other would be followed without end.
        referrers.found.retain(|referrer| !above.contains(&referrer.manifest.digest));
        // Each store lists in the order of its own pushes; sorted, the trees of source and copy are the same.
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
