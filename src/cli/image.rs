//! The image that a command is about.

use clap::Args;

use super::connection::Connection;
use crate::client::{ImageName, Manifest, Platform, Repository, Result};

#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    /// host/name[:tag][@digest] or oci:directory[:tag][@digest].
    #[arg(value_name = "IMAGE")]
    pub(super) image: ImageName,
    /// Of an index, the image for this platform.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
}

impl ImageArgs {
    /// The image, and the repository that it is in.
    pub(super) async fn open(&self, connection: &Connection) -> Result<(Repository, Manifest)> {
        let ImageName { location, target } = &self.image;
        let repository = connection.client(location)?.open(location)?;
        let image = repository.image(target, self.platform.as_ref()).await?;
        Ok((repository, image))
    }
}
