//! `refshim references`: lists the referrers of an image.

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::connection::Connection;
use super::entry::{Entry, located};
use super::format::{Format, FormatArgs};
use super::image::ImageArgs;
use super::names::link_kind;
use super::output::{NOTHING, print};
use super::selection::{ScopeArgs, Selection};
use super::table::{age, aligned, kinds, size};
use crate::client::{ListScope, ListedReferrer, Location, ReferrerList, Result, Wanted};
use crate::oci::{AnnotationFilter, LinkKind};

/// Lists what refers to an image, oldest first.
///
/// From refshim's references query where there is one, else from the registry's referrers API, the referrers tag and
/// cosign's tags. What a list says is believed, but for the referrers tag, which clients write; refshim
/// verify-references reads everything. The size is that of the manifest, the age by its annotation
/// org.opencontainers.image.created.
#[derive(Debug, Args)]
pub(super) struct References {
    #[command(flatten)]
    subject: ImageArgs,
    /// Only links of this kind (repeatable).
    #[arg(long, value_name = "KIND", value_parser = link_kind())]
    kind: Vec<LinkKind>,
    /// Only artifacts of this type: a media type, or a word for what it is: signature, sbom, provenance,
    /// vulnerabilities, vex, attestation, image, index, chart, wasm (repeatable).
    #[arg(long, value_name = "TYPE")]
    artifact_type: Vec<String>,
    /// Only what has this annotation (repeatable).
    #[arg(long, value_name = "KEY[=VALUE]")]
    annotation: Vec<AnnotationFilter>,
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    table: TableArgs,
    /// End with the exit code 5 if nothing is found.
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
struct TableArgs {
    /// In the table, also the artifact type (or media type) that it states.
    #[arg(long)]
    wide: bool,
    /// In the table, also the annotations.
    #[arg(long)]
    annotations: bool,
    /// The table without the names of its columns.
    #[arg(long)]
    no_headers: bool,
}

impl References {
    pub(super) async fn run(self) -> Result<ExitCode> {
        let (repository, image) = self.subject.open(&self.connection).await?;
        let scope = self.scope.scope();
        let wanted = Wanted {
            kinds: self.kind.clone(),
            artifact_types: self.artifact_type.clone(),
            annotations: self.annotation.clone(),
        };
        let ReferrerList { found, vanished } =
            repository.referrer_list(&image.digest, &wanted, scope).await?;
        self.connection.warn_that_vanished(&vanished, self.format.errors(&self.connection.output));
        let found = self.selection.of(found);
        let format = self.format.of(&self.connection.output);
        let entries: Vec<Entry> =
            found.iter().map(|referrer| Entry::of_listed(referrer, &self.subject.image.location)).collect();
        format.print(&entries, Entry::digest, || self.print_table(&found))?;
        if !found.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        if format != Format::Json {
            let is_narrowed =
                !(self.kind.is_empty() && self.artifact_type.is_empty() && self.annotation.is_empty());
            let which = if is_narrowed { " that was asked for" } else { "" };
            self.connection.tell(&format!("nothing refers to {}{which}", self.subject.image));
        }
        Ok(if self.exit_code { ExitCode::from(NOTHING) } else { ExitCode::SUCCESS })
    }

    fn print_table(&self, found: &[ListedReferrer]) -> Result<()> {
        if found.is_empty() {
            return Ok(());
        }
        let columns = [
            ("KIND", true),
            ("TYPE", true),
            ("ARTIFACT TYPE", self.table.wide),
            ("SIZE", true),
            ("AGE", true),
            ("REPOSITORY", self.scope.scope() == ListScope::Registry),
            ("DIGEST", true),
            ("ANNOTATIONS", self.table.annotations),
        ];
        let now = Timestamp::now();
        let row = |referrer: &ListedReferrer| {
            let ListedReferrer { descriptor, kinds: of, what, .. } = referrer;
            [
                kinds(*of),
                what.label(),
                what.raw_type.clone(),
                size(descriptor.size),
                age(referrer.created(), now),
                match located(referrer.repository.as_ref(), &self.subject.image.location) {
                    Location::Registry { name, .. } => name.to_string(),
                    Location::Layout(_) => "-".to_owned(),
                },
                descriptor.digest.to_string(),
                descriptor
                    .annotations
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect::<Vec<_>>()
                    .join(", "),
            ]
        };
        let head = columns.map(|(name, _)| name.to_owned());
        let head = Some(head).filter(|_| !self.table.no_headers);
        let rows: Vec<_> = head.into_iter().chain(found.iter().map(row)).collect();
        aligned(&rows).iter().try_for_each(|row| {
            let shown =
                row.iter().zip(columns).filter(|(_, (_, is_shown))| *is_shown).map(|(cell, _)| cell.as_str());
            print(shown.collect::<Vec<_>>().join("  ").trim_end())
        })
    }
}
