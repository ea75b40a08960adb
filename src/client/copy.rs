//! Copies an image, with everything that refers to it, to another repository or layout. All bytes and
//! therefore all digests stay the same, so the links hold there.
//!
//! The order is blobs, then each manifest after those that it names, then the tags: whoever sees a tag finds
//! everything. Nothing that is there already is sent, so a copy that broke off resumes when it is repeated.

mod tags;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::repository::Arrival;
use super::{Error, ErrorKind, Manifest, Node, Part, Progress, Repository, Result};
use crate::oci::{Digest, Tag, TagOrDigest};

pub use tags::{CopiedTag, CopyTags, FailedTag, TagsReport};

/// A copy: from where to where, and how.
#[derive(Debug)]
pub struct Copy<'a> {
    /// The source.
    pub from: &'a Repository,
    /// The destination.
    pub to: &'a Repository,
    /// How many blobs, or manifests, are transferred at a time.
    pub jobs: usize,
    /// Shows the bytes transferred.
    pub progress: &'a Progress,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Manifests that were pushed.
    pub manifests: usize,
    /// Manifests that were there already.
    pub manifests_already: usize,
    /// Blobs that were sent.
    pub blobs: usize,
    /// Blobs that the registry mounted from another of its repositories.
    pub blobs_mounted: usize,
    /// Blobs that were there already.
    pub blobs_already: usize,
    /// Bytes of blobs that were sent.
    pub bytes: u64,
    /// Tags that were set.
    pub tags: usize,
}

impl Report {
    /// Whether anything was done.
    fn is_change(&self) -> bool {
        self.manifests + self.blobs + self.blobs_mounted + self.tags > 0
    }

    /// Counts what another one counted, but for the bytes, which are counted for all.
    fn add(&mut self, other: &Self) {
        self.manifests += other.manifests;
        self.manifests_already += other.manifests_already;
        self.blobs += other.blobs;
        self.blobs_mounted += other.blobs_mounted;
        self.blobs_already += other.blobs_already;
        self.tags += other.tags;
    }
}

impl Copy<'_> {
    /// Copies these images with everything below them, and then sets the tags.
    pub async fn run(&self, images: &[(Node, Option<Tag>)]) -> Result<Report> {
        let nodes = || images.iter().flat_map(|(node, _)| node.all());
        // Before anything is sent: a registry refuses an incomplete index only after all its blobs are there.
        self.refuse_incomplete(nodes())?;
        let mut report = self.blobs(nodes()).await?;
        for manifests in ranks(nodes().map(|node| &node.manifest)) {
            let puts: Vec<_> = manifests.iter().map(|manifest| self.manifest(manifest)).collect();
            // All of one rank before the next, whose manifests name them.
            let put: Vec<bool> = stream::iter(puts).buffer_unordered(self.jobs).try_collect().await?;
            report.manifests += put.iter().filter(|put| **put).count();
            report.manifests_already += put.iter().filter(|put| !**put).count();
        }
        let referrers: Vec<Manifest> =
            nodes().filter(|node| !node.kinds.is_empty()).map(|node| node.manifest.clone()).collect();
        self.to.ensure_listed(&referrers).await?;
        // Cosign's tags before the image's own, so that whoever pulls the new tag finds the signature, too.
        let tags = nodes().filter_map(|node| Some((&node.manifest, node.tag.as_ref()?)));
        for (manifest, tag) in
            tags.chain(images.iter().filter_map(|(node, tag)| Some((&node.manifest, tag.as_ref()?))))
        {
            report.tags += usize::from(self.tag(manifest, tag).await?);
        }
        Ok(report)
    }

    /// What [`Copy::run`] would do, without doing it. A blob that the registry would mount counts as sent: only trying
    /// shows that.
    pub async fn rehearse(&self, images: &[(Node, Option<Tag>)]) -> Result<Report> {
        let nodes = || images.iter().flat_map(|(node, _)| node.all());
        self.refuse_incomplete(nodes())?;
        let mut report = Report::default();
        for part in parts(nodes()).into_values() {
            if self.to.has_blob(&part.descriptor.digest).await? {
                report.blobs_already += 1;
            } else {
                report.blobs += 1;
                report.bytes += part.descriptor.size;
            }
        }
        let digests: BTreeSet<&Digest> = nodes().map(|node| &node.manifest.digest).collect();
        for digest in digests {
            let is_there = self.to.has_manifest(digest).await?;
            report.manifests_already += usize::from(is_there);
            report.manifests += usize::from(!is_there);
        }
        let tags = nodes().map(|node| (&node.manifest, &node.tag));
        for (manifest, tag) in tags.chain(images.iter().map(|(node, tag)| (&node.manifest, tag))) {
            if let Some(tag) = tag {
                report.tags += usize::from(!self.leads_to(tag, manifest).await?);
            }
        }
        Ok(report)
    }

    /// Copies the blobs of these manifests, without the manifests themselves.
    pub async fn blobs<'n>(&self, nodes: impl Iterator<Item = &'n Node>) -> Result<Report> {
        let parts = parts(nodes);
        self.progress.expect(parts.values().map(|part| part.descriptor.size).sum());
        let copies: Vec<_> = parts.into_values().map(|part| self.blob(part)).collect();
        let arrivals: Vec<Arrival> = stream::iter(copies).buffer_unordered(self.jobs).try_collect().await?;
        let count = |sought: Arrival| arrivals.iter().filter(|arrival| **arrival == sought).count();
        Ok(Report {
            blobs: count(Arrival::Sent),
            blobs_mounted: count(Arrival::Mounted),
            blobs_already: count(Arrival::Already),
            bytes: self.progress.sent(),
            ..Report::default()
        })
    }

    /// Refuses an index that lists manifests which are not there.
    pub fn refuse_incomplete<'n>(&self, nodes: impl Iterator<Item = &'n Node>) -> Result<()> {
        let missing: BTreeSet<String> =
            nodes.flat_map(|node| &node.missing).map(|part| part.descriptor.digest.to_string()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<String> = missing.into_iter().collect();
        let asked = format!("copying from {}", self.from.name());
        let answer = format!("an index lists what is not there: {}", missing.join(", "));
        Err(Error::new(ErrorKind::NotFound, asked, answer)
            .advise("copy the platforms that are there, with --platform"))
    }

    async fn blob(&self, part: &Part) -> Result<Arrival> {
        let arrival = self.to.take_blob(part, self.from, self.progress).await?;
        match arrival {
            Arrival::Sent => {}
            Arrival::Already | Arrival::Mounted => self.progress.spare(part.descriptor.size),
        }
        Ok(arrival)
    }

    /// Whether it had to be pushed.
    async fn manifest(&self, manifest: &Manifest) -> Result<bool> {
        if self.to.has_manifest(&manifest.digest).await? {
            return Ok(false);
        }
        self.to.put_manifest(&TagOrDigest::Digest(manifest.digest.clone()), manifest).await?;
        Ok(true)
    }

    /// Sets a tag; whether it had to be set.
    pub async fn tag(&self, manifest: &Manifest, tag: &Tag) -> Result<bool> {
        if self.leads_to(tag, manifest).await? {
            return Ok(false);
        }
        self.to.put_manifest(&TagOrDigest::Tag(tag.clone()), manifest).await.map(|()| true)
    }

    /// Whether a tag at the destination is set like this already.
    pub async fn leads_to(&self, tag: &Tag, manifest: &Manifest) -> Result<bool> {
        let found = self.to.digest(&TagOrDigest::Tag(tag.clone())).await?;
        Ok(found.as_ref() == Some(&manifest.digest))
    }
}

/// The blobs of these manifests. Each once: images share layers, and two uploads of one blob at the same time would both
/// be sent.
fn parts<'n>(nodes: impl Iterator<Item = &'n Node>) -> BTreeMap<&'n Digest, &'n Part> {
    nodes.flat_map(|node| node.manifest.blobs()).map(|part| (&part.descriptor.digest, part)).collect()
}

/// The manifests in the order in which they can be pushed: each after those that it names. Those of one rank
/// do not name each other. Digests cannot form a cycle, so the order follows from the manifests alone, and
/// not from how one was found from another (a cosign tag can form one).
fn ranks<'m>(manifests: impl Iterator<Item = &'m Manifest>) -> Vec<Vec<&'m Manifest>> {
    let mut left: BTreeMap<Digest, (&Manifest, BTreeSet<Digest>)> =
        manifests.map(|manifest| (manifest.digest.clone(), (manifest, manifest.needs()))).collect();
    let mut ranks = Vec::new();
    while !left.is_empty() {
        let waits: BTreeSet<Digest> = left.keys().cloned().collect();
        let (next, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|(digest, (_, needs))| {
            needs.iter().all(|need| need == digest || !waits.contains(need))
        });
        left = rest.into_iter().collect();
        // With digests of two algorithms a cycle is conceivable; the loop must end in any case.
        let next = if next.is_empty() { std::mem::take(&mut left).into_iter().collect() } else { next };
        ranks.push(next.into_iter().map(|(_, (manifest, _))| manifest).collect());
    }
    ranks
}
