//! Protects the subject's own tag from being moved by accident.

use clap::Args;

use crate::client::{Error, ErrorKind, Repository, Result};
use crate::oci::{Digest, Tag, TagOrDigest};

/// Whether a tag may be moved away from the image that the command is about.
#[derive(Debug, Args)]
pub(super) struct Tagging {
    /// Move the tag even if it is the subject's own, which then has one name less. Any other tag that exists is moved
    /// as by every push.
    #[arg(long)]
    force: bool,
}

impl Tagging {
    /// Rejects a tag that leads to the subject, or to the index that lists it: whoever pulls it would get the
    /// referrer in place of the image.
    pub(super) async fn check(&self, at: &Repository, tag: &Tag, subject: &Digest) -> Result<()> {
        if self.force {
            return Ok(());
        }
        let Some(there) = at.find_manifest(&TagOrDigest::Tag(tag.clone())).await? else { return Ok(()) };
        let lists = there.children().iter().any(|child| child.descriptor.digest == *subject);
        if there.digest != *subject && !lists {
            return Ok(());
        }
        let asked = format!("tagging {tag} in {}", at.name());
        let answer = format!(
            "the tag leads to the subject itself ({}), and would be moved away from it",
            there.digest
        );
        Err(Error::new(ErrorKind::Usage, asked, answer)
            .advise("choose another tag, or move this one with --force"))
    }
}
