//! `refshim references`: lists the referrers of an image.

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;

use super::connection::Connection;
use super::output::{print, print_json};
use super::table::{age, aligned, kinds, size};
use crate::client::{ImageName, Platform, Referrer, Referrers, Result, Wanted};
use crate::oci::{AnnotationFilter, Descriptor, LinkKind};

/// Lists what refers to an image, oldest first: from refshim's references query where there is one, else from
/// the registry's referrers API, the referrers tag and cosign's tags.
#[derive(Debug, Args)]
pub(super) struct References {
    /// host/name[:tag][@digest] or oci:directory[:tag][@digest].
    image: ImageName,
    /// Only links of this kind: reference, subject, parent, attestation, cosign or fallback (repeatable).
    #[arg(long, value_name = "KIND")]
    kind: Vec<LinkKind>,
    /// Only artifacts of this type, as the table calls it: a media type, image or index (repeatable).
    #[arg(long, value_name = "TYPE")]
    artifact_type: Vec<String>,
    /// Only what has this annotation (repeatable).
    #[arg(long, value_name = "KEY[=VALUE]")]
    annotation: Vec<AnnotationFilter>,
    /// Of an index, the image for this platform.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// How the list is printed.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Digest,
}

#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    descriptor: Descriptor,
    kinds: Vec<LinkKind>,
}

impl References {
    pub(super) async fn run(self) -> Result<()> {
        let repository = self.connection.client(&self.image.location)?.open(&self.image.location)?;
        let image = repository.image(&self.image.target, self.platform.as_ref()).await?;
        let wanted =
            Wanted { kinds: self.kind, artifact_types: self.artifact_type, annotations: self.annotation };
        let Referrers { found: referrers, vanished } = repository.referrers(&image.digest, &wanted).await?;
        self.connection.warn_that_vanished(&vanished);
        match self.format {
            Format::Table if !self.connection.output.json => print_table(&referrers),
            Format::Table | Format::Json => print_json(&referrers.iter().map(entry).collect::<Vec<_>>()),
            Format::Digest => {
                referrers.iter().try_for_each(|referrer| print(&referrer.manifest.digest.to_string()))
            }
        }
    }
}

fn entry(referrer: &Referrer) -> Entry {
    Entry { descriptor: referrer.manifest.descriptor(), kinds: referrer.kinds.iter().collect() }
}

fn print_table(referrers: &[Referrer]) -> Result<()> {
    let now = Timestamp::now();
    let head = ["KIND", "TYPE", "SIZE", "AGE", "DIGEST"].map(str::to_owned);
    let rows = referrers.iter().map(|Referrer { manifest, kinds: of, .. }| {
        [
            kinds(*of),
            manifest.type_name().to_owned(),
            size(manifest.content_size()),
            age(manifest, now),
            manifest.digest.to_string(),
        ]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    aligned(&rows).iter().try_for_each(|row| print(row.join("  ").trim_end()))
}
