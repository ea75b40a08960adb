//! The graph around an image: the children of an index, the referrers of each, and the referrers of those.

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};

use super::{
    ListScope, ListedReferrer, Manifest, Part, Platform, Referrer, Referrers, Repository, Result, Wanted,
};
use crate::oci::{Digest, LinkKind, LinkKinds, RepositoryName, Tag, TagOrDigest};

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
    /// The repository that it is in, if that is not the root's.
    pub repository: Option<RepositoryName>,
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
            repository: None,
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
    walk_in(ListScope::Repository, repository, manifest, depth).await
}

/// The same with referrers from wherever the scope says.
pub async fn walk_in(
    scope: ListScope,
    repository: &Repository,
    manifest: Manifest,
    depth: usize,
) -> Result<Node> {
    Walk { repository, wanted: Wanted::attached(), scope }
        .node(Node::of(manifest), depth, Vec::new(), Vec::new())
        .await
}

struct Walk<'a> {
    /// That of the root.
    repository: &'a Repository,
    wanted: Wanted,
    scope: ListScope,
}

impl Walk<'_> {
    /// The repository that a node is in.
    fn at(&self, node: &Node) -> Repository {
        match &node.repository {
            Some(name) => self.repository.beside(name),
            None => self.repository.clone(),
        }
    }

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
            (node.children, node.missing) = self.children(&node, depth, &above).await?;
            if depth > 0 {
                let (found, vanished, missing) = self.referrers(&node, attested, &above).await?;
                node.missing.extend(missing);
                node.vanished = vanished;
                node.referrers = self.nodes_of(found, depth - 1, &above).await?;
            }
            Ok(node)
        }
        .boxed()
    }

    async fn children(
        &self,
        parent: &Node,
        depth: usize,
        above: &[Digest],
    ) -> Result<(Vec<Node>, Vec<Part>)> {
        let index = &parent.manifest;
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
            .map(|part| {
                self.child(parent, part.clone(), depth, about(&part.descriptor.digest), above.to_vec())
            })
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
        parent: &Node,
        part: Part,
        depth: usize,
        attested: Vec<Part>,
        above: Vec<Digest>,
    ) -> Result<std::result::Result<Node, Part>> {
        let named = TagOrDigest::Digest(part.descriptor.digest.clone());
        let Some(manifest) = self.at(parent).find_manifest(&named).await? else { return Ok(Err(part)) };
        let repository = parent.repository.clone();
        let node = Node { platform: part.platform, repository, ..Node::of(manifest) };
        self.node(node, depth, attested, above).await.map(Ok)
    }

    /// The referrers of a node, those of them that no longer exist, and those attestations about it that do not exist.
    async fn referrers(
        &self,
        node: &Node,
        attested: Vec<Part>,
        above: &[Digest],
    ) -> Result<(Vec<Node>, Vec<Digest>, Vec<Part>)> {
        let (mut found, mut vanished) = self.listed(node).await?;
        let mut missing = Vec::new();
        for part in attested {
            let digest = &part.descriptor.digest;
            if found.iter().any(|referrer| referrer.manifest.digest == *digest) {
                continue;
            }
            // An index lists it, so it is missing, which fails a copy, and not just a referrer that vanished.
            vanished.retain(|vanished| vanished != digest);
            match self.at(node).find_manifest(&TagOrDigest::Digest(digest.clone())).await? {
                Some(manifest) => {
                    let (kinds, repository) = (LinkKind::Attestation.into(), node.repository.clone());
                    found.push(Node { kinds, repository, ..Node::of(manifest) });
                }
                None => missing.push(part),
            }
        }
        // Two images whose cosign tags name each other would be followed without end.
        found.retain(|referrer| !above.contains(&referrer.manifest.digest));
        // Each store lists in the order of its own pushes; sorted, the trees of source and copy are the same.
        found.sort_by_cached_key(|referrer| {
            let Node { manifest, repository, .. } = referrer;
            (
                manifest.created().map(str::to_owned),
                manifest.artifact_type().map(str::to_owned),
                manifest.digest.clone(),
                repository.as_ref().map(ToString::to_string),
            )
        });
        Ok((found, vanished, missing))
    }

    /// What is listed as a referrer of a node: what exists, and what does not.
    async fn listed(&self, node: &Node) -> Result<(Vec<Node>, Vec<Digest>)> {
        let (at, subject) = (self.at(node), &node.manifest.digest);
        if self.scope == ListScope::Repository {
            let Referrers { found, vanished } = at.referrers(subject, &self.wanted).await?;
            let nodes = found.into_iter().map(|Referrer { manifest, kinds, tag }| Node {
                kinds,
                tag,
                ..Node::of(manifest)
            });
            return Ok((nodes.collect(), vanished));
        }
        let list = at.referrer_list(subject, &self.wanted, self.scope).await?;
        let reads =
            list.found.into_iter().map(async |ListedReferrer { descriptor, kinds, repository, .. }| {
                // What has no repository on the list is beside its subject.
                let repository = repository.or_else(|| node.repository.clone());
                let place = repository
                    .as_ref()
                    .map_or_else(|| self.repository.clone(), |name| self.repository.beside(name));
                let read = place.find_manifest(&TagOrDigest::Digest(descriptor.digest.clone())).await?;
                Ok(match read {
                    Some(manifest) => Ok(Node { kinds, repository, ..Node::of(manifest) }),
                    None => Err(descriptor.digest),
                })
            });
        let reads: Vec<_> = reads.collect();
        let read: Vec<std::result::Result<Node, Digest>> =
            stream::iter(reads).buffered(CONCURRENCY).try_collect().await?;
        let (mut found, mut vanished) = (Vec::new(), list.vanished);
        for read in read {
            match read {
                Ok(node) => found.push(node),
                Err(digest) => vanished.push(digest),
            }
        }
        Ok((found, vanished))
    }

    async fn nodes_of(&self, referrers: Vec<Node>, depth: usize, above: &[Digest]) -> Result<Vec<Node>> {
        let nodes: Vec<_> =
            referrers.into_iter().map(|node| self.node(node, depth, Vec::new(), above.to_vec())).collect();
        stream::iter(nodes).buffered(CONCURRENCY).try_collect().await
    }
}
