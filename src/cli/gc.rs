//! `refshim gc`: finds referrers whose subjects are gone, and deletes them.

use std::path::PathBuf;

use clap::Args;
use indicatif::DecimalBytes;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde::Serialize;

use super::names::listed;
use super::output::{agreed, print, print_json, tell};
use super::table::{aligned, length, size};
use super::work::Work;
use crate::backfill::Reason;
use crate::client::{Error, Result};
use crate::garbage::Found;
use crate::jobs::{Collected, Task};

const ASKED: &str = "collecting garbage";

/// Finds signatures, SBOMs and the like whose images are gone, and what refers to those.
///
/// Prints them, and deletes them with --delete. What has a tag is kept.
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
    /// All repositories of the registry in place of its catalog, one a line; - is standard input. An image may be in
    /// another one than what refers to it.
    #[arg(long, value_name = "FILE")]
    repositories_from: Option<PathBuf>,
    #[command(flatten)]
    work: Work,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    collected: Collected,
    size: u64,
}

fn duration(text: &str) -> std::result::Result<SignedDuration, String> {
    let span: Span = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    // Months and years have no length.
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|error| error.to_string())?;
    if length.is_negative() { Err("it is negative".to_owned()) } else { Ok(length) }
}

impl Gc {
    pub(super) async fn run(self) -> Result<()> {
        if self.work.stop {
            return self.work.end().await;
        }
        let listed = self.repositories_from.as_deref().map(listed).transpose()?;
        let collect = |delete| Task::Collect { older_than: self.older_than, listed: listed.clone(), delete };
        let mut collected: Collected = self.work.carry_out(collect(None)).await?;
        if self.delete && !collected.garbage.is_empty() {
            self.ask(&collected.garbage)?;
            // An answer may take long. What was tagged meanwhile is kept.
            let all = collected.garbage.iter().map(|it| (it.repository.clone(), it.digest.clone())).collect();
            collected = self.work.carry_out(collect(Some(all))).await?;
        }
        self.report(collected)
    }

    /// Asks whether to delete these, unless the answer was given.
    fn ask(&self, garbage: &[Found]) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        for line in aligned(&rows(garbage)) {
            tell(line.join("  ").trim_end());
        }
        let question = format!("Delete these {} manifests ({})?", garbage.len(), bytes(garbage));
        if agreed(&question, || ASKED.to_owned())? {
            return Ok(());
        }
        Err(Error::failed(ASKED, "not agreed to; nothing was deleted"))
    }

    fn report(&self, collected: Collected) -> Result<()> {
        let Collected { garbage, deleted, failed } = &collected;
        for Reason { what, reason } in failed {
            tell(&format!("{what}: {reason}"));
        }
        let count = failed.len();
        if self.work.connection.output.json {
            let size = garbage.iter().map(|garbage| garbage.size).sum();
            print_json(&Report { collected, size })?;
        } else {
            for line in aligned(&rows(garbage)) {
                print(line.join("  ").trim_end())?;
            }
            self.work.connection.tell(&if self.delete {
                format!("{deleted} of {} manifests deleted", garbage.len())
            } else {
                format!("{} manifests whose subjects are gone, {}", garbage.len(), bytes(garbage))
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

fn bytes(garbage: &[Found]) -> DecimalBytes {
    DecimalBytes(garbage.iter().map(|garbage| garbage.size).sum())
}

fn rows(garbage: &[Found]) -> Vec<[String; 4]> {
    let now = Timestamp::now();
    let row = |it: &Found| {
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
