//! `refshim tags`: lists the tags of a repository.

use clap::Args;
use serde::Serialize;

use super::connection::Connection;
use super::output::{print, print_json};
use crate::client::{Error, ErrorKind, ImageName, Result, Target};

/// Lists the tags of a repository or layout.
#[derive(Debug, Args)]
pub(super) struct Tags {
    /// host/name or oci:directory.
    repository: ImageName,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct Tagged {
    reference: String,
    tag: String,
}

impl Tags {
    pub(super) async fn run(self) -> Result<()> {
        let location = &self.repository.location;
        if self.repository.target != Target::Unnamed {
            let asked = format!("listing the tags of {}", self.repository);
            return Err(Error::new(
                ErrorKind::Usage,
                asked,
                "name the repository alone, without a tag or digest",
            ));
        }
        let tags = self.connection.client(location)?.open(location)?.tags().await?;
        if self.connection.output.json {
            let tagged = tags
                .iter()
                .map(|tag| Tagged { reference: format!("{location}:{tag}"), tag: tag.to_string() });
            return print_json(&tagged.collect::<Vec<_>>());
        }
        tags.iter().try_for_each(|tag| print(&tag.to_string()))
    }
}
