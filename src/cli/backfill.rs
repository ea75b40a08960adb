//! `refshim backfill`: records what a registry held before refshim came.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use indicatif::DecimalBytes;

use super::names::listed;
use super::output::{print, print_json, tell};
use super::work::{Opened, Progress, Work};
use crate::backfill::{Backfill, Plan, Reason, Report};
use crate::client::{Error, Result};
use crate::oci::RepositoryName;
use crate::registry::reader::ManifestReader;
use crate::telemetry::Metrics;

const ASKED: &str = "backfilling";

/// Records the links of everything that a registry holds already: walks its repositories and tags, and reads each
/// manifest that was not read before. What is interrupted goes on where it was. Not while refshim serves from the same
/// data directory.
#[derive(Debug, Args)]
pub(super) struct BackfillCommand {
    /// Repositories in place of the registry's catalog, one a line; - is standard input.
    #[arg(long, value_name = "FILE")]
    repositories_from: Option<PathBuf>,
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
        let opened = self.work.open(ASKED).await?;
        let plan = Plan {
            upstream: opened.upstream.number(),
            host: opened.host(),
            jobs: self.work.jobs,
            is_dry: self.dry_run,
            again: self.again,
        };
        let Opened { config, upstream, client, index } = opened;
        let reader = ManifestReader::of(&config, &upstream, Arc::new(Metrics::new()));
        let backfill = Backfill::new(plan, client, index.clone(), reader, &config.data_dir);
        let backfill = backfill.map_err(|error| Error::failed(ASKED, error.to_string()))?;
        let repositories = self.repositories(&backfill).await?;
        let shown = || {
            let counts = &backfill.counts;
            let told = |count: &AtomicU64| count.load(Ordering::Relaxed);
            let text = format!("{} manifests read, {} known", told(&counts.read), told(&counts.known));
            Progress { done: told(&counts.walked), all: told(&counts.repositories), text }
        };
        let report = self.work.watched(backfill.run(repositories), shown).await;
        index.close().await;
        self.report(&report)
    }

    async fn repositories(&self, backfill: &Backfill) -> Result<Vec<RepositoryName>> {
        let all = match &self.repositories_from {
            Some(file) => listed(file)?,
            None => backfill.catalog().await?,
        };
        Ok(self.work.chosen(all))
    }

    fn report(&self, report: &Report) -> Result<()> {
        if self.work.connection.output.json {
            print_json(report)?;
        } else {
            let Report { repositories, tags, read, bytes, known, links, missing, gaps: _ } = report;
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
