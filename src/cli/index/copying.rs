//! `refshim index copy`.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::super::output::tell;
use super::super::progress::watched;
use super::super::{CONFIGURATION_ERROR, fail};
use super::printed;
use crate::config::{CommandLine, Config, IndexPlace, Mistakes};
use crate::index::maintenance::{Changes, Copied, CopyPlace, CopyProgress, MaintenanceError, copy};
use crate::jobs::Progress;
use crate::tls;

/// Copy an index: from a data directory to a database or back, or between two of a kind, also while the source is
/// served. What was interrupted goes on where it was, and a second copy changes only what changed since. Ends with a
/// comparison; exit code 1 if the two differ.
#[derive(Debug, Args)]
pub(super) struct Copy {
    /// The index that is copied: a data directory, or the URL of a database.
    #[arg(long, value_name = "DIRECTORY|URL")]
    from: String,
    /// Where it is copied to: a data directory that nobody serves from, or the URL of a database. Of a database, the
    /// schema is made first.
    #[arg(long, value_name = "DIRECTORY|URL")]
    to: String,
    /// Go on with what changes, until SIGINT (Ctrl-C) or SIGTERM; then once more, to the end.
    #[arg(long)]
    follow: bool,
    /// Print the result only.
    #[arg(long, short)]
    quiet: bool,
}

impl Copy {
    pub(super) fn run(self, config: Option<PathBuf>) -> ExitCode {
        let places = place(&self.from, config.clone()).and_then(|from| Ok((from, place(&self.to, config)?)));
        match places {
            Ok((from, to)) => self.between(&from, &to).unwrap_or_else(|error| fail(1, &error.to_string())),
            Err(mistakes) => fail(CONFIGURATION_ERROR, &mistakes.to_string()),
        }
    }

    fn between(&self, from: &CopyPlace, to: &CopyPlace) -> Result<ExitCode, MaintenanceError> {
        let failed = |source| MaintenanceError::Io { what: "starting", source };
        let runtime = Runtime::new().map_err(failed)?;
        let copied = runtime.block_on(async {
            let progress = CopyProgress::default();
            let follow = if self.follow { Some(until_signalled().map_err(failed)?) } else { None };
            watched(!self.quiet, Box::pin(copy(from, to, follow, &progress)), || shown(&progress)).await
        });
        // A blocking read of the disk may never end.
        runtime.shutdown_background();
        self.report(&copied?)
    }

    fn report(&self, copied: &Copied) -> Result<ExitCode, MaintenanceError> {
        let Copied { passes, changes, last, kept, source, target } = copied;
        let Changes { added, changed, removed, doubted, .. } = changes;
        let verdict = match kept {
            _ if source == target => "equal".to_owned(),
            0 => "they differ: the target is written to by others".to_owned(),
            kept => format!("they differ: {kept} referrers were changed in the target itself, and stay"),
        };
        let text = format!(
            "in {passes} passes: {added} referrers added, {changed} changed, {removed} removed, {doubted} doubted\n\
             source: {source}\ntarget: {target}\n{verdict}\n"
        );
        io::stdout().write_all(text.as_bytes()).map_err(printed)?;
        if last.sum() > 0 && !self.quiet {
            tell("the source changes all the time: copy once more when nothing is pushed, or with --follow");
        }
        Ok(if source == target { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn place(text: &str, config: Option<PathBuf>) -> Result<CopyPlace, Mistakes> {
    if !text.contains("://") {
        return Ok(CopyPlace::Directory(PathBuf::from(text)));
    }
    let given = CommandLine { index_url: Some(text.to_owned()), config, ..CommandLine::default() };
    Ok(match Config::index_place(&given, std::env::vars_os(), &tls::checks())? {
        IndexPlace::Directory(data_dir) => CopyPlace::Directory(data_dir),
        IndexPlace::Database(database) => CopyPlace::Database(database),
    })
}

fn shown(progress: &CopyProgress) -> Progress {
    let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let text = match number(&progress.pass) {
        0 => "reading the source".to_owned(),
        pass => format!(
            "pass {pass}: {} referrers, {} changes",
            number(&progress.referrers),
            number(&progress.changes)
        ),
    };
    Progress { done: number(&progress.repositories_done), all: number(&progress.repositories), text }
}

/// Becomes true with the first SIGINT or SIGTERM.
fn until_signalled() -> io::Result<watch::Receiver<bool>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.send_replace(true);
    });
    Ok(stopped)
}
