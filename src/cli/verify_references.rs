//! `refshim verify-references`: reads everything that refers to an image.

use std::process::ExitCode;

use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::connection::Connection;
use super::entry::Entry;
use super::format::{Format, FormatArgs};
use super::image::ImageArgs;
use super::output::{UNVERIFIED, print};
use super::table::{aligned, kinds};
use crate::client::{ErrorKind, ListedReferrer, Repository, Result};
use crate::oci::{Digest, TagOrDigest};

/// How many manifests are read at a time.
const CONCURRENCY: usize = 8;

/// Checks that everything on the list of what refers to an image is there and refers to it.
///
/// Each listed manifest is read, and its digest, its size and what it refers to are compared. Signatures are not
/// verified: that takes cosign or notation, and whom to trust.
#[derive(Debug, Args)]
pub(super) struct VerifyReferences {
    #[command(flatten)]
    subject: ImageArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct Verified {
    #[serde(flatten)]
    entry: Entry,
    /// What is wrong with it.
    problem: Option<String>,
}

impl VerifyReferences {
    pub(super) async fn run(self) -> Result<ExitCode> {
        let (repository, image) = self.subject.open(&self.connection).await?;
        let listed = repository.claimed_referrers(&image.digest).await?;
        let problems = listed.iter().map(|referrer| problem(&repository, &image.digest, referrer));
        let problems: Vec<_> = problems.collect();
        let problems: Vec<Option<String>> =
            stream::iter(problems).buffered(CONCURRENCY).try_collect().await?;
        let wrong = problems.iter().flatten().count();
        let entry = |referrer| Entry::of_listed(referrer, &self.subject.image.location);
        let verified = listed
            .iter()
            .zip(problems)
            .map(|(referrer, problem)| Verified { entry: entry(referrer), problem });
        let verified: Vec<Verified> = verified.collect();
        let format = self.format.of(&self.connection.output);
        format.print(&verified, |verified| verified.entry.digest(), || print_table(&listed, &verified))?;
        if format != Format::Json {
            self.connection.tell(&match (listed.len(), wrong) {
                (0, _) => format!("nothing refers to {}", self.subject.image),
                (all, 0) => format!("{all} listed, all of them as they should be"),
                (all, wrong) => format!("{all} listed, {wrong} of them not as they should be"),
            });
        }
        Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::from(UNVERIFIED) })
    }
}

/// What is wrong with a referrer that a list names.
async fn problem(repository: &Repository, image: &Digest, listed: &ListedReferrer) -> Result<Option<String>> {
    let descriptor = &listed.descriptor;
    let read = repository.find_manifest(&TagOrDigest::Digest(descriptor.digest.clone())).await;
    Ok(match read {
        // Then nothing can be said of any of them.
        Err(error) if error.kind() == ErrorKind::Denied => return Err(error),
        // A digest that does not match among them.
        Err(error) => Some(error.to_string()),
        Ok(None) => Some("it is not there".to_owned()),
        Ok(Some(manifest)) if manifest.size() != descriptor.size => {
            Some(format!("it has {} bytes, and is listed with {}", manifest.size(), descriptor.size))
        }
        Ok(Some(manifest)) if !manifest.is_about(image, listed.kinds) => {
            Some("it does not refer to the image".to_owned())
        }
        Ok(Some(_)) => None,
    })
}

fn print_table(listed: &[ListedReferrer], verified: &[Verified]) -> Result<()> {
    let row = |(referrer, verified): (&ListedReferrer, &Verified)| {
        let ListedReferrer { descriptor, what, kinds: links, .. } = referrer;
        let problem = verified.problem.clone().unwrap_or_else(|| "ok".to_owned());
        [kinds(*links), what.label(), descriptor.digest.to_string(), problem]
    };
    let rows: Vec<_> = listed.iter().zip(verified).map(row).collect();
    aligned(&rows).iter().try_for_each(|row| print(row.join("  ").trim_end()))
}
