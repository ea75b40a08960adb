//! What keeps a manifest although its subjects are gone: a tag, or an index that lists it.

use std::collections::{BTreeSet, HashMap};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::Collection;
use crate::client::{Error, ErrorKind, Manifest, Repository as Place, Result};
use crate::oci::{Digest, Tag, TagOrDigest, TagScheme, media_type};

/// How deep indexes may lie in each other.
const DEEPEST: usize = 16;

/// The tags of a repository by what they keep.
#[derive(Debug, Default)]
pub(super) struct Keepers {
    tags: HashMap<Digest, Vec<Tag>>,
}

impl Keepers {
    /// Whether a tag keeps a manifest, itself or through an index, that refers to these subjects.
    pub(super) fn keep(&self, digest: &Digest, subjects: &BTreeSet<Digest>) -> bool {
        let is_link = |tag: &Tag| match tag.scheme() {
            Some(TagScheme::Cosign(subject)) => subjects.contains(&subject),
            Some(TagScheme::Referrers) => subjects.iter().any(|subject| Tag::of_referrers(subject) == *tag),
            None => *tag == Tag::of_kept(digest),
        };
        self.tags.get(digest).is_some_and(|tags| !tags.iter().all(is_link))
    }

    fn add(&mut self, tag: &Tag, kept: BTreeSet<Digest>) {
        for digest in kept {
            self.tags.entry(digest).or_default().push(tag.clone());
        }
    }
}

impl Collection {
    /// Reads all tags of a repository, and the indexes at them.
    pub(super) async fn keepers(&self, place: &Place) -> Result<Keepers> {
        let tags = {
            let _turn = self.turns.acquire().await.ok();
            match place.tags().await {
                // So docker-registry says where nothing was ever tagged. The candidates were shown to the same user.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Keepers::default()),
                tags => tags?,
            }
        };
        let reads: Vec<_> = tags
            .into_iter()
            .map(|tag| async move { self.kept_by(place, &tag).await.map(|kept| (tag, kept)) })
            .collect();
        let mut keepers = Keepers::default();
        let mut kept = stream::iter(reads).buffer_unordered(self.plan.jobs);
        while let Some((tag, digests)) = kept.try_next().await? {
            keepers.add(&tag, digests);
        }
        Ok(keepers)
    }

    /// The manifest at a tag, and all below it.
    async fn kept_by(&self, place: &Place, tag: &Tag) -> Result<BTreeSet<Digest>> {
        let mut kept = BTreeSet::new();
        let mut level = vec![TagOrDigest::Tag(tag.clone())];
        for _ in 0..DEEPEST {
            let mut below = Vec::new();
            for named in level {
                let _turn = self.turns.acquire().await.ok();
                let manifest = match place.find_manifest(&named).await? {
                    Some(manifest) => manifest,
                    // Deleted since it was listed, or shown late: what it keeps is not known.
                    None if matches!(named, TagOrDigest::Tag(_)) => {
                        let asked = format!("reading {named}, which is listed");
                        return Err(Error::failed(asked, "it is not there"));
                    }
                    // A platform that was not copied.
                    None => continue,
                };
                below.extend(indexes_in(&manifest));
                kept.extend(manifest.children().iter().map(|part| part.descriptor.digest.clone()));
                kept.insert(manifest.digest);
            }
            level = below;
        }
        Ok(kept)
    }
}

fn indexes_in(manifest: &Manifest) -> impl Iterator<Item = TagOrDigest> {
    let indexes = manifest.children().iter().filter(|part| media_type::is_index(&part.descriptor.media_type));
    indexes.map(|part| TagOrDigest::Digest(part.descriptor.digest.clone()))
}
