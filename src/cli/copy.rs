//! `refshim copy`: copies an image, with its referrers if wanted, to another repository or layout.

use clap::Args;
use indicatif::DecimalBytes;
use serde::Serialize;

use super::connection::Connection;
use super::output::{print, print_json};
use crate::client::{
    Copy, Error, ErrorKind, ImageName, Node, Platform, Report, Repository, Result, Target, walk,
};
use crate::oci::{Digest, Tag, TagOrDigest};

/// How many blobs are transferred at a time.
pub(super) const JOBS: usize = 4;

/// Copies an image or index to another repository, registry or OCI layout; nothing is sent that is there already.
/// Digests stay, so the links of what is attached hold at the other end; where the registry there lists no
/// referrers, their referrers tags are written.
#[derive(Debug, Args)]
pub(super) struct CopyImage {
    /// host/name[:tag][@digest] or oci:directory[:tag][@digest].
    source: ImageName,
    /// The same; without a tag, that of the source.
    destination: ImageName,
    /// With everything that refers to it, and to that, so many links far.
    #[arg(long, value_name = "DEPTH", num_args = 0..=1, require_equals = true, default_missing_value = UNLIMITED)]
    references: Option<usize>,
    /// Of an index, the image for this platform alone.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", conflicts_with = "all_tags")]
    platform: Option<Platform>,
    /// Everything that has a tag.
    #[arg(long)]
    all_tags: bool,
    /// How many blobs are under way at a time.
    #[arg(long, value_name = "N", default_value_t = JOBS, value_parser = at_least_one)]
    jobs: usize,
    #[command(flatten)]
    connection: Connection,
}

/// A depth that no graph reaches, and that fits a `usize` of 32 bits.
const UNLIMITED: &str = "4294967295";

#[derive(Serialize)]
struct Copied<'a> {
    images: Vec<CopiedImage<'a>>,
    #[serde(flatten)]
    report: Report,
}

#[derive(Serialize)]
struct CopiedImage<'a> {
    digest: &'a Digest,
    tag: Option<String>,
}

pub(super) fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one is needed".to_owned()),
        Ok(jobs) => Ok(jobs),
        Err(error) => Err(format!("{error}")),
    }
}

impl CopyImage {
    pub(super) async fn run(self) -> Result<()> {
        let client = self.connection.client(&self.destination.location)?;
        let (from, to) = (client.open(&self.source.location)?, client.open(&self.destination.location)?);
        let images =
            if self.all_tags { self.every_tag(&from).await? } else { vec![self.image(&from).await?] };
        for (node, _) in &images {
            self.connection.warn_of_vanished(node);
        }
        let progress = self.connection.progress();
        let copy = Copy { from: &from, to: &to, jobs: self.jobs, progress: &progress };
        let report = copy.run(&images).await?;
        // Before the result: a bar would be drawn over it.
        progress.finish();
        self.report(&images, report)
    }

    async fn image(&self, from: &Repository) -> Result<(Node, Option<Tag>)> {
        let image = from.image(&self.source.target, self.platform.as_ref()).await?;
        let tag = match (&self.destination.target, &self.source.target) {
            // A digest at the destination can only confirm the source's: a copy never changes it.
            (Target::Named(TagOrDigest::Digest(digest)), _) if *digest != image.digest => {
                let asked = format!("copying to {}", self.destination);
                return Err(Error::new(ErrorKind::Usage, asked, format!("the source is {}", image.digest)));
            }
            (Target::Named(TagOrDigest::Digest(_)), _)
            | (Target::Unnamed, Target::Named(TagOrDigest::Digest(_))) => None,
            (Target::Named(TagOrDigest::Tag(tag)), _)
            | (Target::Unnamed, Target::Named(TagOrDigest::Tag(tag))) => Some(tag.clone()),
            (Target::Unnamed, Target::Unnamed) => Some(Tag::latest()),
        };
        Ok((walk(from, image, self.references.unwrap_or_default()).await?, tag))
    }

    async fn every_tag(&self, from: &Repository) -> Result<Vec<(Node, Option<Tag>)>> {
        if (&self.source.target, &self.destination.target) != (&Target::Unnamed, &Target::Unnamed) {
            let answer = "--all-tags goes with names without a tag";
            return Err(Error::new(ErrorKind::Usage, format!("copying {}", self.source), answer));
        }
        let mut images = Vec::new();
        for tag in from.tags().await? {
            let image = from.manifest(&TagOrDigest::Tag(tag.clone())).await?;
            images.push((walk(from, image, self.references.unwrap_or_default()).await?, Some(tag)));
        }
        Ok(images)
    }

    fn report(&self, images: &[(Node, Option<Tag>)], report: Report) -> Result<()> {
        let copied = images.iter().map(|(node, tag)| CopiedImage {
            digest: &node.manifest.digest,
            tag: tag.as_ref().map(ToString::to_string),
        });
        if self.connection.output.json {
            return print_json(&Copied { images: copied.collect(), report });
        }
        let Report { manifests, manifests_already, blobs, blobs_mounted, blobs_already, bytes } = report;
        self.connection.tell(&format!(
            "sent {blobs} blobs ({}) and {manifests} manifests; mounted {blobs_mounted} blobs; already there: \
             {blobs_already} blobs, {manifests_already} manifests",
            DecimalBytes(bytes)
        ));
        for CopiedImage { digest, tag } in copied {
            match tag.filter(|_| self.all_tags) {
                Some(tag) => print(&format!("{digest} {tag}"))?,
                None => print(&digest.to_string())?,
            }
        }
        Ok(())
    }
}
