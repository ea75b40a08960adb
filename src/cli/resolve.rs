//! `refshim resolve`: the digest of an image.

use clap::Args;

use super::connection::Connection;
use super::entry::Entry;
use super::format::FormatArgs;
use super::image::ImageArgs;
use super::output::print;
use crate::client::Result;
use crate::oci::LinkKinds;

/// Prints the digest of an image, whole: that of a tag, or the one that begins like this.
#[derive(Debug, Args)]
pub(super) struct Resolve {
    #[command(flatten)]
    subject: ImageArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl Resolve {
    pub(super) async fn run(self) -> Result<()> {
        let (_repository, image) = self.subject.open(&self.connection).await?;
        let entry = Entry::of(&image, LinkKinds::default(), &self.subject.image.location);
        let digest = image.digest.to_string();
        self.format.of(&self.connection.output).print(&[entry], Entry::digest, || print(&digest))
    }
}
