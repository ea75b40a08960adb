//! `refshim copy`: copies an image, with its referrers if wanted, to another repository or layout.

use clap::Args;
use indicatif::DecimalBytes;
use serde::Serialize;

use super::connection::Connection;
use super::output::{print, print_json, tell};
use crate::client::{
    CopiedTag, Copy, CopyTags, Error, ErrorKind, FailedTag, ImageName, Node, Platform, Progress, Report,
    Repository, Result, TagsReport, Target, walk,
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
    /// Everything that has a tag, one tag after the other. What fails is told at the end, and makes the exit code 1;
    /// all else is copied. The same command again does the rest.
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
    images: [CopiedImage<'a>; 1],
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
        let progress = self.connection.progress();
        let copy = Copy { from: &from, to: &to, jobs: self.jobs, progress: &progress };
        if self.all_tags {
            let report = self.every_tag(copy).await?;
            return self.report_tags(&progress, &report);
        }
        let image = self.image(&from).await?;
        self.connection.warn_of_vanished(&image.0);
        let image = [image];
        let report = copy.run(&image).await?;
        // Before the result: a bar would be drawn over it.
        progress.finish();
        let [(node, tag)] = image;
        self.report(&node, tag.as_ref(), report)
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

    async fn every_tag(&self, copy: Copy<'_>) -> Result<TagsReport> {
        if (&self.source.target, &self.destination.target) != (&Target::Unnamed, &Target::Unnamed) {
            let answer = "--all-tags goes with names without a tag";
            return Err(Error::new(ErrorKind::Usage, format!("copying {}", self.source), answer));
        }
        let tags = copy.from.tags().await?;
        let meet = |node: &Node| self.connection.warn_of_vanished(node);
        let depth = self.references.unwrap_or_default();
        Ok(CopyTags { copy, depth, meet: &meet }.run(tags).await)
    }

    fn report(&self, node: &Node, tag: Option<&Tag>, report: Report) -> Result<()> {
        let digest = &node.manifest.digest;
        if self.connection.output.json {
            let image = CopiedImage { digest, tag: tag.map(ToString::to_string) };
            return print_json(&Copied { images: [image], report });
        }
        self.connection.tell(&sent(&report));
        print(&digest.to_string())
    }

    fn report_tags(&self, progress: &Progress, told: &TagsReport) -> Result<()> {
        progress.finish();
        let TagsReport { images, copied, skipped, failed, report } = told;
        if self.connection.output.json {
            print_json(told)?;
        } else {
            let tags = format!("{copied} tags copied, {skipped} were there, {} failed", failed.len());
            self.connection.tell(&format!("{tags}; {}", sent(report)));
            for CopiedTag { digest, tag } in images {
                print(&format!("{digest} {tag}"))?;
            }
        }
        for FailedTag { tag, reason } in failed {
            tell(&format!("{tag}: {reason}"));
        }
        if failed.is_empty() {
            return Ok(());
        }
        let answer = format!("{} tags failed; all else is copied", failed.len());
        Err(Error::failed(format!("copying {}", self.source), answer)
            .advise("the same command again does the rest, and only that"))
    }
}

fn sent(report: &Report) -> String {
    let Report { manifests, manifests_already, blobs, blobs_mounted, blobs_already, bytes, .. } = report;
    format!(
        "sent {blobs} blobs ({}) and {manifests} manifests; mounted {blobs_mounted} blobs; already there: \
         {blobs_already} blobs, {manifests_already} manifests",
        DecimalBytes(*bytes)
    )
}
