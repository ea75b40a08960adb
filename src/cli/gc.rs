//! `refshim gc`: finds referrers whose subjects are gone, and deletes them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use indicatif::DecimalBytes;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde::Serialize;

use super::names::listed;
use super::output::{agreed, print, print_json, tell};
use super::table::{aligned, length, size};
use super::work::{Opened, Progress, Work};
use crate::backfill::Reason;
use crate::client::{Error, Result};
use crate::export::repositories;
use crate::garbage::{Collection, Garbage, Plan};
use crate::oci::RepositoryName;

const ASKED: &str = "collecting garbage";

/// Finds signatures, SBOMs and the like whose images are gone, and what refers to those. Prints them, and deletes them
/// with --delete. What has a tag is kept. Not while refshim serves from the same data directory.
#[derive(Debug, Args)]
pub(super) struct Gc {
    /// Delete them, after asking.
    #[arg(long, conflicts_with = "dry_run")]
    delete: bool,
    /// Do not ask.
    #[arg(long, short, requires = "delete")]
    yes: bool,
    /// Print them and delete nothing, as without --delete.
    #[arg(long)]
    dry_run: bool,
    /// Only what is older, `30d` or `12h`: since it was created, if it says so, else since refshim first knew of it.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    older_than: Option<SignedDuration>,
    /// All repositories of the registry in place of its catalog, one a line; - is standard input. An image may be in another
    /// one than what refers to it.
    #[arg(long, value_name = "FILE")]
    repositories_from: Option<PathBuf>,
    #[command(flatten)]
    work: Work,
}

#[derive(Serialize)]
struct Report {
    garbage: Vec<Garbage>,
    size: u64,
    deleted: u64,
    failed: BTreeSet<Reason>,
}

fn duration(text: &str) -> std::result::Result<SignedDuration, String> {
    let span: Span = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    // Months and years have no length.
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|error| error.to_string())?;
    if length.is_negative() { Err("it is negative".to_owned()) } else { Ok(length) }
}

impl Gc {
    pub(super) async fn run(self) -> Result<()> {
        let opened = self.work.open(ASKED).await?;
        let all = self.all_repositories(&opened).await?;
        let plan = Plan {
            upstream: opened.upstream.number(),
            host: opened.host(),
            jobs: self.work.jobs,
            older_than: self.older_than,
            all,
        };
        let Opened { client, index, .. } = opened;
        let repositories = repositories(&index, plan.upstream).await;
        let repositories = repositories.map_err(|error| Error::failed(ASKED, error.to_string()))?;
        let repositories = self.work.chosen(repositories);
        let collection = Collection::new(plan, client, index.clone());
        let found = self.find(&collection, repositories.clone()).await;
        if self.delete && !found.is_empty() {
            self.delete(&collection, &found, repositories).await?;
        }
        index.close().await;
        self.report(&collection, found)
    }

    async fn all_repositories(&self, opened: &Opened) -> Result<Vec<RepositoryName>> {
        if let Some(file) = &self.repositories_from {
            return listed(file);
        }
        let names = opened.client.catalog(&opened.host()).await?;
        // What is no name of a repository holds nothing that could be asked for.
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    async fn find(&self, collection: &Collection, repositories: Vec<RepositoryName>) -> Vec<Garbage> {
        let shown = || {
            let told = |count: &AtomicU64| count.load(Ordering::Relaxed);
            let counts = &collection.counts;
            let text = format!("{} subjects, {} found", told(&counts.subjects), told(&counts.found));
            Progress { done: told(&counts.done), all: told(&counts.repositories), text }
        };
        self.work.watched(collection.find(repositories), shown).await
    }

    async fn delete(
        &self,
        collection: &Collection,
        found: &[Garbage],
        repositories: Vec<RepositoryName>,
    ) -> Result<()> {
        let mut garbage = found.to_vec();
        if !self.yes {
            for line in aligned(&rows(found)) {
                tell(line.join("  ").trim_end());
            }
            let question = format!("Delete these {} manifests ({})?", found.len(), bytes(found));
            if !agreed(&question, || ASKED.to_owned())? {
                return Err(Error::failed(ASKED, "not agreed to; nothing was deleted"));
            }
            // An answer may take long. What was tagged meanwhile is kept.
            let still = self.find(collection, repositories).await;
            let still: BTreeSet<_> = still.iter().map(|it| (&it.repository, &it.digest)).collect();
            garbage.retain(|it| still.contains(&(&it.repository, &it.digest)));
        }
        collection.delete(garbage).await;
        Ok(())
    }

    fn report(&self, collection: &Collection, garbage: Vec<Garbage>) -> Result<()> {
        let (failed, deleted) = (collection.failed(), collection.counts.deleted.load(Ordering::Relaxed));
        for Reason { what, reason } in &failed {
            tell(&format!("{what}: {reason}"));
        }
        let count = failed.len();
        if self.work.connection.output.json {
            let size = garbage.iter().map(|garbage| garbage.size).sum();
            print_json(&Report { garbage, size, deleted, failed })?;
        } else {
            for line in aligned(&rows(&garbage)) {
                print(line.join("  ").trim_end())?;
            }
            self.work.connection.tell(&if self.delete {
                format!("{deleted} of {} manifests deleted", garbage.len())
            } else {
                format!("{} manifests whose subjects are gone, {}", garbage.len(), bytes(&garbage))
            });
        }
        match count {
            0 => Ok(()),
            count => {
                Err(Error::failed(ASKED, format!("{count} failed or could not be read; those are kept"))
                    .advise("the same command again tries them once more"))
            }
        }
    }
}

fn bytes(garbage: &[Garbage]) -> DecimalBytes {
    DecimalBytes(garbage.iter().map(|garbage| garbage.size).sum())
}

fn rows(garbage: &[Garbage]) -> Vec<[String; 4]> {
    let now = Timestamp::now();
    let row = |it: &Garbage| {
        let name = format!("{}@{}", it.repository, it.digest);
        [it.r#type.clone(), size(it.size), length(it.age(now)), name]
    };
    let head = ["TYPE", "SIZE", "AGE", "MANIFEST"].map(str::to_owned);
    if garbage.is_empty() {
        Vec::new()
    } else {
        std::iter::once(head).chain(garbage.iter().map(row)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_given_as_people_say_it() {
        assert_eq!(duration("30d"), Ok(SignedDuration::from_hours(30 * 24)));
        assert_eq!(duration("2w"), Ok(SignedDuration::from_hours(14 * 24)));
        assert_eq!(duration("12h"), Ok(SignedDuration::from_hours(12)));
        assert_eq!(duration("0s"), Ok(SignedDuration::ZERO));
        for text in ["", "30", "1mo", "-1d", "soon"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
