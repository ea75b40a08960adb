//! `refshim ref`: the command of the 2021 proposal.

use clap::Args;

use super::connection::Connection;
use super::copy::JOBS;
use super::entry::Entry;
use super::output::{print, print_json};
use super::tagging::Tagging;
use crate::client::{Copy, Error, ErrorKind, ImageName, Platform, Result, Target, referring_copy, walk};
use crate::oci::{LinkKind, Tag, TagOrDigest};

/// Pushes a copy of an image that refers to it, by the member `reference`.
///
/// Prints the copy's digest.
#[derive(Debug, Args)]
pub(super) struct Ref {
    /// What is referred to: host/name[:tag][@digest] or oci:directory[:tag][@digest].
    subject: ImageName,
    /// Where the copy goes: host/name[:tag] or oci:directory[:tag].
    at: ImageName,
    /// Push a copy of this image instead.
    #[arg(long, value_name = "IMAGE")]
    from: Option<ImageName>,
    #[command(flatten)]
    tagging: Tagging,
    /// Of an index, the image for this platform.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    #[command(flatten)]
    connection: Connection,
}

impl Ref {
    pub(super) async fn run(self) -> Result<()> {
        // Before anything is asked of a registry.
        let tag = self.tag()?;
        let client = self.connection.client(&self.at.location)?;
        let platform = self.platform.as_ref();
        let subject = client.open(&self.subject.location)?.image(&self.subject.target, platform).await?;
        let from = self.from.as_ref().unwrap_or(&self.subject);
        let (source, at) = (client.open(&from.location)?, client.open(&self.at.location)?);
        self.tagging.check(&at, &tag, &subject.digest).await?;
        self.connection.tell(&format!("creating a reference to image {} at {}", self.subject, self.at));
        let image = source.image(&from.target, platform).await?;
        let mut described = subject.as_subject();
        described.platform.clone_from(&self.platform);
        let referring = referring_copy(&image, &described)?;

        let progress = self.connection.progress();
        let copy = Copy { from: &source, to: &at, jobs: JOBS, progress: &progress };
        // Without its referrers: they refer to the image, whose digest the copy does not have.
        let node = walk(&source, image, 0).await?;
        // Here, since the copies below see only parts of it: a layout takes an incomplete index.
        copy.refuse_incomplete(node.all())?;
        copy.blobs(std::iter::once(&node)).await?;
        let children: Vec<_> = node.children.into_iter().map(|child| (child, None)).collect();
        // The original itself is not copied, only what it consists of; the changed manifest follows.
        copy.run(&children).await?;
        at.put_manifest(&TagOrDigest::Tag(tag), &referring).await?;
        progress.finish();
        if self.connection.output.json {
            print_json(&Entry::of(&referring, LinkKind::Reference.into(), &self.at.location))
        } else {
            print(&referring.digest.to_string())
        }
    }

    fn tag(&self) -> Result<Tag> {
        match &self.at.target {
            Target::Unnamed => Ok(Tag::latest()),
            Target::Named(TagOrDigest::Tag(tag)) => Ok(tag.clone()),
            Target::Named(TagOrDigest::Digest(_)) | Target::Abbreviated { .. } => {
                let answer = "the digest of what is made here cannot be known before: name a tag";
                Err(Error::new(ErrorKind::Usage, format!("pushing to {}", self.at), answer))
            }
        }
    }
}
