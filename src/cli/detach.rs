//! `refshim detach`: deletes what is attached to an image.

use clap::Args;

use super::connection::Connection;
use super::entry::Entry;
use super::image::ImageArgs;
use super::output::{agreed, print, print_json};
use crate::client::{Error, ErrorKind, Referrer, Result, Wanted};
use crate::oci::DigestPrefix;

/// Deletes something that is attached to an image, after asking.
///
/// Prints its digest.
#[derive(Debug, Args)]
pub(super) struct Detach {
    #[command(flatten)]
    subject: ImageArgs,
    /// What is to go: a digest as refshim references prints it, or its beginning as refshim tree does.
    digest: DigestPrefix,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Detach {
    pub(super) async fn run(self) -> Result<()> {
        let (repository, image) = self.subject.open(&self.connection).await?;
        let referrers = repository.referrers(&image.digest, &Wanted::attached()).await?.found;
        // Only a referrer of this image: a mistyped digest must not delete another image.
        let mut found =
            referrers.into_iter().filter(|referrer| self.digest.matches(&referrer.manifest.digest));
        let asked = || format!("detaching {} from {}", self.digest, self.subject.image);
        let Some(Referrer { manifest, kinds, .. }) = found.next() else {
            return Err(Error::new(ErrorKind::NotFound, asked(), "it does not refer to that image"));
        };
        if found.next().is_some() {
            return Err(Error::new(ErrorKind::Usage, asked(), "several digests begin like this"));
        }
        let (what, digest) = (manifest.description(kinds).label(), &manifest.digest);
        if !self.yes && !agreed(&format!("Delete {what} {digest} of {}?", repository.name()), asked)? {
            return Err(Error::failed(asked(), "not agreed to; nothing was deleted"));
        }
        repository.delete_manifest(digest).await?;
        // Then its entry: if this fails, a list names what is gone, which the commands leave out with a
        // warning. The other way round, the manifest would be there and in no list, and no command would find
        // it again.
        repository.unlist(&manifest).await?;
        if self.connection.output.json {
            print_json(&Entry::of(&manifest, kinds, &self.subject.image.location))
        } else {
            print(&digest.to_string())
        }
    }
}
