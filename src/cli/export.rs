//! `refshim export`: writes what refshim knows into the registry, so that it can be taken away.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;

use super::output::{print, print_json, tell};
use super::work::{Opened, Progress, Work};
use crate::backfill::Reason;
use crate::client::{Error, Result};
use crate::export::{self, Export, Findings, Mode, Plan, Report};
use crate::index::{Index, Repository};
use crate::oci::RepositoryName;

const ASKED: &str = "exporting";

/// Writes the referrers of every subject into the registry, at OCI's referrers tag, by which clients find them without
/// refshim. Entries of others stay. In a registry that has the referrers API, writes nothing and says what that lacks.
/// Not while refshim serves from the same data directory.
#[derive(Debug, Args)]
pub(super) struct ExportCommand {
    /// Say what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Write nothing, and say which referrers the registry does not list; the exit code is 1 if there are any.
    #[arg(long, conflicts_with = "dry_run")]
    check: bool,
    /// Give each referrer a tag of its own too, <digest>.referrer: for a garbage collection of untagged manifests that
    /// does not look into lists, as that of distribution before version 3.
    #[arg(long, conflicts_with_all = ["dry_run", "check", "keep_list"])]
    tag_referrers: bool,
    /// Ask the registry nothing, and print what a cleaner of untagged manifests has to keep, repository@digest a line.
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = "-",
        conflicts_with_all = ["dry_run", "check", "json"]
    )]
    keep_list: Option<PathBuf>,
    #[command(flatten)]
    work: Work,
}

impl ExportCommand {
    pub(super) async fn run(self) -> Result<()> {
        let opened = self.work.open(ASKED).await?;
        let plan = Plan {
            upstream: opened.upstream.number(),
            host: opened.host(),
            jobs: self.work.jobs,
            mode: self.mode(),
            tags_each: self.tag_referrers,
        };
        let Opened { client, index, .. } = opened;
        let repositories = export::repositories(&index, plan.upstream).await;
        let repositories = repositories.map_err(|error| Error::failed(ASKED, error.to_string()))?;
        let repositories = self.work.chosen(repositories);
        if let Some(file) = &self.keep_list {
            let written = write_keep_list(file, &index, plan.upstream, repositories).await;
            index.close().await;
            return written;
        }
        let export = Export::new(plan, client, index.clone());
        let shown = || {
            let told = |count: &AtomicU64| count.load(Ordering::Relaxed);
            let counts = &export.counts;
            let text =
                format!("{} subjects, {} lists written", told(&counts.subjects), told(&counts.written));
            Progress { done: told(&counts.done), all: told(&counts.repositories), text }
        };
        let report = self.work.watched(export.run(repositories), shown).await;
        index.close().await;
        self.report(&report)
    }

    fn mode(&self) -> Mode {
        match (self.dry_run, self.check) {
            (true, _) => Mode::DryRun,
            (false, true) => Mode::Check,
            (false, false) => Mode::Write,
        }
    }

    fn report(&self, report: &Report) -> Result<()> {
        let Report { repositories, subjects, written, added, corrected, tagged, absent, findings } = report;
        let Findings { failed, missing, removed, would_write } = findings;
        if self.work.connection.output.json {
            print_json(report)?;
        } else {
            for Reason { what, reason } in would_write {
                print(&format!("{what}: {reason}"))?;
            }
            let went_through = format!(
                "{repositories} repositories, {subjects} subjects, {absent} known referrers that are not there"
            );
            let (added, corrected) = (format!("{added} entries added"), format!("{corrected} corrected"));
            let removed = format!("{} removed, {tagged} referrers tagged", removed.len());
            print(&match self.mode() {
                Mode::Check => format!("{went_through}: {} referrers are not listed", missing.len()),
                Mode::DryRun => {
                    format!("{went_through}: {written} lists to write: {added}, {corrected}, {removed}")
                }
                Mode::Write => {
                    format!("{went_through}: {written} lists written: {added}, {corrected}, {removed}")
                }
            })?;
        }
        for Reason { what, reason } in removed.iter().chain(missing).chain(failed) {
            tell(&format!("{what}: {reason}"));
        }
        if !failed.is_empty() {
            let answer = format!("{} failed; all else is done", failed.len());
            return Err(
                Error::failed(ASKED, answer).advise("the same command again does the rest, and only that")
            );
        }
        if !missing.is_empty() {
            let answer = format!("the registry does not list {} referrers that it has", missing.len());
            return Err(Error::failed(ASKED, answer));
        }
        Ok(())
    }
}

/// Writes the list, whole or not at all.
async fn write_keep_list(
    file: &Path,
    index: &Index,
    upstream: u32,
    repositories: Vec<RepositoryName>,
) -> Result<()> {
    let writing = |error: &io::Error| Error::io(format!("writing {}", file.display()), error);
    if file == Path::new("-") {
        return print_kept(&mut io::stdout().lock(), index, upstream, repositories).await;
    }
    // Beside it: a file can be renamed within a file system only.
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let new = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")));
    let mut new = new.map_err(|error| writing(&error))?;
    print_kept(&mut new, index, upstream, repositories).await?;
    new.as_file().sync_all().map_err(|error| writing(&error))?;
    new.persist(file).map_err(|error| writing(&error.error))?;
    Ok(())
}

async fn print_kept(
    to: &mut impl Write,
    index: &Index,
    upstream: u32,
    repositories: Vec<RepositoryName>,
) -> Result<()> {
    for name in repositories {
        let repository = Repository { upstream, name };
        let kept = export::kept(index, &repository).await;
        let kept = kept.map_err(|error| Error::failed("reading the index", error.to_string()))?;
        let mut lines = kept.iter().map(|digest| writeln!(to, "{}@{digest}", repository.name));
        lines.try_for_each(|line| line).map_err(|error| Error::io("writing the list", &error))?;
    }
    to.flush().map_err(|error| Error::io("writing the list", &error))
}
