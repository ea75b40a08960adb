//! `refshim compare`: what refshim knows, beside what the registry lists by itself.

use std::path::PathBuf;

use clap::Args;

use super::copy::at_least_one;
use super::names::images;
use super::output::{print, print_json, tell};
use super::table::aligned;
use super::work::Work;
use crate::backfill::Reason;
use crate::client::{Error, Result};
use crate::compare::{Difference, Report};
use crate::jobs::Task;

const ASKED: &str = "comparing";

/// Compares what refshim lists with what the registry lists.
///
/// Prints what is not on all of these lists: refshim's, that of the registry's own referrers API, and the referrers tags.
/// The exit code is 1 if the registry lists what refshim does not know, or if something could not be compared. Nothing is
/// changed.
#[derive(Debug, Args)]
pub(super) struct CompareCommand {
    /// The images, repository@digest a line; - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "sample")]
    subjects: Option<PathBuf>,
    /// Without --subjects: how many of the images that refshim knows to be referred to; half of them those that were
    /// last referred to, the others at random.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least_one)]
    sample: usize,
    #[command(flatten)]
    work: Work,
}

impl CompareCommand {
    pub(super) async fn run(self) -> Result<()> {
        if self.work.stop {
            return self.work.end().await;
        }
        let listed = self.subjects.as_deref().map(images).transpose()?;
        let report: Report = self.work.carry_out(Task::Compare { listed, sample: self.sample }).await?;
        self.report(&report)
    }

    fn report(&self, report: &Report) -> Result<()> {
        let Report { subjects, agreed, missing, differences, failed } = report;
        if self.work.connection.output.json {
            print_json(report)?;
        } else {
            for line in aligned(&rows(differences)) {
                print(line.join("  ").trim_end())?;
            }
            print(&format!(
                "{subjects} subjects, {agreed} referrers on all lists, {} not; refshim misses {missing}",
                differences.len()
            ))?;
        }
        for Reason { what, reason } in failed {
            tell(&format!("{what}: {reason}"));
        }
        if !failed.is_empty() {
            return Err(Error::failed(ASKED, format!("{} could not be compared", failed.len())));
        }
        if *missing > 0 {
            let answer = format!("the registry lists {missing} referrers that refshim does not know");
            return Err(
                Error::failed(ASKED, answer).advise("refshim backfill records what the registry holds")
            );
        }
        Ok(())
    }
}

fn rows<'a>(differences: impl IntoIterator<Item = &'a Difference>) -> Vec<[String; 6]> {
    let lists = |lists: bool| if lists { "yes" } else { "no" }.to_owned();
    let row = |it: &Difference| {
        let note = it.note.clone().or_else(|| it.is_missing.then(|| "refshim misses it".to_owned()));
        [
            it.subject.clone(),
            it.referrer.to_string(),
            lists(it.refshim),
            it.api.map_or_else(|| "-".to_owned(), lists),
            lists(it.tag),
            note.unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = differences.into_iter().map(row).collect();
    let head = ["SUBJECT", "REFERRER", "REFSHIM", "API", "TAG", ""].map(str::to_owned);
    if rows.is_empty() { rows } else { std::iter::once(head).chain(rows).collect() }
}
