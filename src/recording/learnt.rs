//! What the index learns from a manifest that the registry serves, whoever fetched it.

use crate::index::{Index, Observation, Repository};
use crate::oci::{Digest, LinkKind};
use crate::registry::reader::{ManifestReader, ReadManifest};

/// What is to be observed of a manifest.
#[derive(Debug)]
pub struct Learnt {
    /// Its digest.
    pub digest: Digest,
    /// Its own links, and those that it states of others.
    pub observations: Vec<Observation>,
    /// Why links are left out.
    pub warning: Option<String>,
    /// Whether they are left out because the repository is full.
    pub is_full: bool,
}

impl Learnt {
    /// The kinds of all links.
    #[must_use]
    pub fn kinds(&self) -> Vec<LinkKind> {
        self.observations.iter().flat_map(|learnt| &learnt.referrer.links).map(|link| link.kind).collect()
    }
}

/// Makes observations of a manifest, if its repository has room for them. `claimed` if it need not exist for everybody:
/// then it is checked before it is listed.
pub async fn learn(
    reader: &ManifestReader,
    index: &Index,
    repository: &Repository,
    mut read: ReadManifest,
    claimed: bool,
) -> Learnt {
    let has_room = read.referrer.links.is_empty() || index.has_room(repository).await;
    let has_links = !(read.referrer.links.is_empty() && read.claims.is_empty());
    let is_full = has_links && !has_room;
    reader.keep_within(repository, &mut read, has_room);
    let ReadManifest { referrer, claims, warning, .. } = read;
    let digest = referrer.digest.clone();
    let own = Observation { referrer, claimed };
    Learnt { digest, observations: std::iter::once(own).chain(claims).collect(), warning, is_full }
}
