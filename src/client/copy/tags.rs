//! Copies every tag of a repository with what refers to it, one tag after the other, so that only one graph is held at
//! a time. Two tags at once would often send the layers that they share twice.
//!
//! What fails is told, and all else is copied. Since a tag comes last, and nothing is sent that is there, the same copy
//! once more goes on where one ended.
//!
//! Tags that only say what refers to what are copied after what they are about: cosign's as the manifests that they
//! lead to, and lists of referrers as lists. A list that the destination has already gets what it lacks, so that its
//! own entries stay.

use serde::Serialize;

use super::{Copy, Report};
use crate::client::{Manifest, Node, Result, walk};
use crate::oci::{Digest, Tag, TagOrDigest, TagScheme};

/// A copy of tags.
pub struct CopyTags<'a> {
    /// From where to where.
    pub copy: Copy<'a>,
    /// How many links far what refers to a tagged manifest is copied.
    pub depth: usize,
    /// Meets each graph before it is copied.
    pub meet: &'a (dyn Fn(&Node) + Sync),
}

/// What a copy of tags did.
#[derive(Debug, Default, Serialize)]
pub struct TagsReport {
    /// The tags that are there now.
    pub images: Vec<CopiedTag>,
    /// How many of them were not, or lacked something.
    pub copied: usize,
    /// How many were there with all that belongs to them.
    pub skipped: usize,
    /// Those that could not be copied.
    pub failed: Vec<FailedTag>,
    /// What was sent.
    #[serde(flatten)]
    pub report: Report,
}

/// A tag that is there.
#[derive(Debug, Serialize)]
pub struct CopiedTag {
    /// The digest of its manifest.
    pub digest: Digest,
    /// The tag.
    pub tag: String,
}

/// A tag that could not be copied.
#[derive(Debug, Serialize)]
pub struct FailedTag {
    /// The tag.
    pub tag: String,
    /// Why.
    pub reason: String,
}

impl std::fmt::Debug for CopyTags<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyTags")
            .field("copy", &self.copy)
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

impl CopyTags<'_> {
    /// Copies these tags.
    pub async fn run(&self, mut tags: Vec<Tag>) -> TagsReport {
        tags.sort_by_cached_key(|tag| (rank(tag), tag.to_string()));
        let steps = self.copy.progress.steps(tags.len(), "tags");
        let mut told = TagsReport::default();
        for tag in tags {
            match self.tag(&tag).await {
                Ok((digest, report)) => {
                    if report.is_change() {
                        told.copied += 1;
                    } else {
                        told.skipped += 1;
                    }
                    told.report.add(&report);
                    told.images.push(CopiedTag { digest, tag: tag.to_string() });
                }
                Err(error) => {
                    told.failed.push(FailedTag { tag: tag.to_string(), reason: error.to_string() });
                }
            }
            steps.step();
        }
        // Also what was sent for tags that failed then.
        told.report.bytes = self.copy.progress.sent();
        told
    }

    async fn tag(&self, tag: &Tag) -> Result<(Digest, Report)> {
        let named = TagOrDigest::Tag(tag.clone());
        let manifest = self.copy.from.manifest(&named).await?;
        let digest = manifest.digest.clone();
        let is_list = tag.scheme() == Some(TagScheme::Referrers) && manifest.is_index();
        let there = if self.depth == 0 || is_list { self.copy.to.digest(&named).await? } else { None };
        // A tag is set last. What refers to it may be newer, though, and is looked for, if it is wanted.
        let report = if there.as_ref() == Some(&digest) {
            Report { manifests_already: 1, ..Report::default() }
        } else if is_list {
            self.list(tag, manifest, there.is_some()).await?
        } else {
            let node = walk(self.copy.from, manifest, self.depth).await?;
            (self.meet)(&node);
            self.copy.run(&[(node, Some(tag.clone()))]).await?
        };
        Ok((digest, report))
    }

    /// Copies a list of referrers with what it lists, as far as that is there.
    async fn list(&self, tag: &Tag, list: Manifest, is_there: bool) -> Result<Report> {
        let Copy { from, to, .. } = &self.copy;
        let (mut nodes, mut is_whole) = (Vec::new(), !is_there);
        for part in list.children() {
            let listed = TagOrDigest::Digest(part.descriptor.digest.clone());
            match from.find_manifest(&listed).await? {
                Some(manifest) => nodes.push((walk(from, manifest, self.depth).await?, None)),
                // Registries refuse a list of what is not there.
                None => is_whole = false,
            }
        }
        let mut report = self.copy.run(&nodes).await?;
        // Looked at again: copying what it lists may have taken long, and a list that others began stays.
        let named = TagOrDigest::Tag(tag.clone());
        is_whole &= to.digest_for_sure(&named).await?.is_none();
        if is_whole {
            to.put_manifest(&TagOrDigest::Tag(tag.clone()), &list).await?;
            report.tags += 1;
        } else {
            let listed: Vec<Manifest> = nodes.into_iter().map(|(node, _)| node.manifest).collect();
            to.ensure_listed(&listed).await?;
        }
        Ok(report)
    }
}

/// What a tag says nothing about comes before what says something about it.
fn rank(tag: &Tag) -> u8 {
    match tag.scheme() {
        None => 0,
        Some(TagScheme::Cosign(_)) => 1,
        Some(TagScheme::Referrers) => 2,
    }
}
