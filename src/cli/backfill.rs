//! `refshim backfill`: records what a registry held before refshim came.

use std::path::PathBuf;

use clap::Args;
use indicatif::DecimalBytes;
use jiff::Timestamp;

use super::names::listed;
use super::output::{print, print_json, tell};
use super::work::Work;
use crate::backfill::{Mode, Reason, Report};
use crate::client::{Error, Result};
use crate::jobs::Task;

const ASKED: &str = "backfilling";

/// Records the links of everything that a registry holds already.
///
/// Walks its repositories and tags, and reads each manifest that was not read before. What is interrupted goes on where it
/// was.
#[derive(Debug, Args)]
pub(super) struct BackfillCommand {
    /// Repositories in place of the registry's catalog, one a line; - is standard input.
    #[arg(long, value_name = "FILE")]
    repositories_from: Option<PathBuf>,
    /// Leave out repositories that were read whole since then: a date, `2026-01-31T12:00:00Z`.
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Read everything again, also what was read before: after an older dump was loaded.
    #[arg(long)]
    again: bool,
    /// Look how much there is to read, and read nothing.
    #[arg(long, conflicts_with = "again")]
    dry_run: bool,
    #[command(flatten)]
    work: Work,
}

impl BackfillCommand {
    pub(super) async fn run(self) -> Result<()> {
        if self.work.stop {
            return self.work.end().await;
        }
        let listed = self.repositories_from.as_deref().map(listed).transpose()?;
        let mode = match (self.dry_run, self.again) {
            (true, _) => Mode::DryRun,
            (false, true) => Mode::ReadAgain,
            (false, false) => Mode::Read,
        };
        let report: Report = self.work.carry_out(Task::Backfill { listed, since: self.since, mode }).await?;
        self.report(&report)
    }

    fn report(&self, report: &Report) -> Result<()> {
        if self.work.connection.output.json {
            print_json(report)?;
        } else {
            let Report { repositories, tags, read, bytes, known, links, missing, gaps: _, .. } = report;
            let bytes = DecimalBytes(*bytes);
            print(&if self.dry_run {
                format!(
                    "{repositories} repositories, {tags} tags: at least {read} manifests to read, {known} known"
                )
            } else {
                format!(
                    "{repositories} repositories, {tags} tags: {read} manifests read ({bytes}) with {links} links, \
                     {known} known, {missing} missing"
                )
            })?;
        }
        for Reason { what, reason } in report.gaps.malformed.iter().chain(&report.gaps.unreadable) {
            tell(&format!("{what}: {reason}"));
        }
        match report.gaps.unreadable.len() {
            0 => Ok(()),
            count => Err(Error::failed(ASKED, format!("{count} could not be read; all else is recorded"))
                .advise("the same command again reads them, and only them")),
        }
    }
}
