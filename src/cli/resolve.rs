//! `refshim resolve`: the digest of an image.

use clap::Args;

use super::connection::Connection;
use super::entry::Entry;
use super::format::FormatArgs;
use super::output::print;
use crate::client::{ImageName, Platform, Result};
use crate::oci::LinkKinds;

/// Prints the digest of an image, whole: that of a tag, or the one that begins like this.
#[derive(Debug, Args)]
pub(super) struct Resolve {
    /// host/name[:tag][@digest] or oci:directory[:tag][@digest].
    image: ImageName,
    /// Of an index, the image for this platform.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl Resolve {
    pub(super) async fn run(self) -> Result<()> {
        let repository = self.connection.client(&self.image.location)?.open(&self.image.location)?;
        let image = repository.image(&self.image.target, self.platform.as_ref()).await?;
        let entry = Entry::of(&image, LinkKinds::default(), &self.image.location);
        let digest = image.digest.to_string();
        self.format.of(&self.connection.output).print(&[entry], Entry::digest, || print(&digest))
    }
}
