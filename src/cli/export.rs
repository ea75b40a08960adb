//! `refshim export`: writes what refshim knows into the registry, so that it can be taken away.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{print, print_json, tell};
use super::work::Work;
use crate::backfill::Reason;
use crate::client::{Error, Result};
use crate::export::{Findings, Mode, Report};
use crate::jobs::Task;

const ASKED: &str = "exporting";

/// Writes the referrers of every subject into the registry, at OCI's referrers tag.
///
/// By it, clients find them without refshim. Entries of others stay. In a registry that has the referrers API, writes
/// nothing and says what that lacks.
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
        if self.work.stop {
            return self.work.end().await;
        }
        if let Some(file) = &self.keep_list {
            let kept: Vec<String> = self.work.carry_out(Task::KeepList).await?;
            return write_keep_list(file, &kept);
        }
        let task = Task::Export { mode: self.mode(), tags_each: self.tag_referrers };
        let report: Report = self.work.carry_out(task).await?;
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
fn write_keep_list(file: &Path, kept: &[String]) -> Result<()> {
    let writing = |error: &io::Error| Error::io(format!("writing {}", file.display()), error);
    let mut text = kept.join("\n");
    if file == Path::new("-") {
        return if kept.is_empty() { Ok(()) } else { print(&text) };
    }
    text.extend((!kept.is_empty()).then_some('\n'));
    // Beside it: a file can be renamed within a file system only.
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let new = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")));
    let mut new = new.map_err(|error| writing(&error))?;
    let written = new.write_all(text.as_bytes()).and_then(|()| new.as_file().sync_all());
    written.map_err(|error| writing(&error))?;
    new.persist(file).map_err(|error| writing(&error.error))?;
    Ok(())
}
