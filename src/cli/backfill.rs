//! `refshim backfill`: records what a registry held before refshim came.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Read as _};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use glob::Pattern;
use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use super::connection::Connection;
use super::copy::at_least_one;
use super::output::{print, print_json, tell};
use crate::backfill::{Backfill, Plan, Reason, Report};
use crate::client::{Client, Error, ErrorKind, Options, Pace, Result};
use crate::config::{CommandLine, Config, UpstreamConfig};
use crate::index::{Index, IndexSettings};
use crate::oci::RepositoryName;
use crate::registry::reader::ManifestReader;
use crate::telemetry::Metrics;
use crate::tls;

const ASKED: &str = "backfilling";
/// How often progress is told where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
const BAR_EVERY: Duration = Duration::from_millis(200);

/// Records the links of everything that a registry holds already: walks its repositories and tags, and reads each
/// manifest that was not read before. What is interrupted goes on where it was. Not while refshim serves from the same
/// data directory.
#[derive(Debug, Args)]
pub(super) struct BackfillCommand {
    /// The registry, `http://host:port` or `https://host`; with --config, the name of an upstream there
    /// [default: the default one].
    #[arg(long, value_name = "URL|NAME", required_unless_present = "config")]
    upstream: Option<String>,
    /// Where the index is kept [default: ./refshim-data].
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// The TOML file that refshim is served with.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only repositories with such names, `team/*`; repeatable.
    #[arg(long, value_name = "GLOB")]
    repository: Vec<Pattern>,
    /// Repositories in place of the registry's catalog, one a line; - is standard input.
    #[arg(long, value_name = "FILE")]
    repositories_from: Option<PathBuf>,
    /// How many requests are under way at a time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    jobs: usize,
    /// How many requests are sent a second at most.
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// Read everything again, also what was read before: after an older dump was loaded.
    #[arg(long)]
    again: bool,
    /// Look how much there is to read, and read nothing.
    #[arg(long, conflicts_with = "again")]
    dry_run: bool,
    #[command(flatten)]
    connection: Connection,
}

impl BackfillCommand {
    pub(super) async fn run(self) -> Result<()> {
        let config = self.configuration()?;
        let upstream = self.upstream_of(&config)?;
        let options = self.options(upstream)?;
        let plan = Plan {
            upstream: upstream.number(),
            host: upstream.url.authority().to_string(),
            jobs: self.jobs,
            is_dry: self.dry_run,
            again: self.again,
        };
        let index = Index::open(IndexSettings::of(&config)).map_err(|error| {
            let advice = "a refshim that serves from this directory has to be stopped first";
            Error::failed(ASKED, error.to_string()).advise(advice)
        })?;
        // Until then it is not known how much there is, and whether it can be read at all.
        index.opened().await;
        if let Some(failure) = index.write_failure() {
            return Err(Error::failed(ASKED, failure));
        }
        let reader = ManifestReader::of(&config, upstream, Arc::new(Metrics::new()));
        let client = Client::new(options);
        let backfill = Backfill::new(plan, client, index.clone(), reader, &config.data_dir);
        let backfill = backfill.map_err(|error| Error::failed(ASKED, error.to_string()))?;
        let repositories = self.repositories(&backfill).await?;
        let report = self.watched(&backfill, repositories).await;
        index.close().await;
        self.report(&report)
    }

    fn configuration(&self) -> Result<Config> {
        let given = CommandLine {
            // With a file, it is a name.
            upstream: self.upstream.clone().filter(|_| self.config.is_none()),
            data_dir: self.data_dir.clone(),
            config: self.config.clone(),
            ..CommandLine::default()
        };
        let config = Config::load_and_check(&given, std::env::vars_os(), &tls::checks());
        config.map_err(|mistakes| usage(mistakes.to_string()))
    }

    fn upstream_of<'c>(&self, config: &'c Config) -> Result<&'c UpstreamConfig> {
        let Some(name) = self.upstream.as_ref().filter(|_| self.config.is_some()) else {
            return Ok(&config.upstream);
        };
        let mut all = std::iter::once(&config.upstream).chain(&config.further_upstreams);
        let found = all.find(|upstream| upstream.name.as_str() == name);
        found.ok_or_else(|| usage(format!("there is no upstream {name:?} in the configuration")))
    }

    /// How the registry is reached: as refshim reaches it, except for what is said on the command line.
    fn options(&self, upstream: &UpstreamConfig) -> Result<Options> {
        let options = self.connection.options(Some(upstream.url.authority().as_str()))?;
        let pace = Some(Arc::new(Pace::new(self.rate)));
        Options { pace, ..options }.towards(upstream)
    }

    async fn repositories(&self, backfill: &Backfill) -> Result<Vec<RepositoryName>> {
        let all = match &self.repositories_from {
            Some(file) => listed(file)?,
            None => backfill.catalog().await?,
        };
        let is_wanted = |name: &RepositoryName| {
            self.repository.is_empty() || self.repository.iter().any(|glob| glob.matches(name.as_str()))
        };
        Ok(all.into_iter().filter(is_wanted).collect())
    }

    /// The run, with its progress on standard error: a bar on a terminal, else a line now and then.
    async fn watched(&self, backfill: &Backfill, repositories: Vec<RepositoryName>) -> Report {
        let is_shown = self.connection.tells();
        let is_bar = is_shown && io::stderr().is_terminal();
        let bar = if is_bar { ProgressBar::new(repositories.len() as u64) } else { ProgressBar::hidden() };
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos} of {len} repositories, {msg} {eta:>4}")
        {
            bar.set_style(style);
        }
        let mut ticks = interval(if is_bar { BAR_EVERY } else { LINE_EVERY });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // The first comes at once.
        ticks.tick().await;
        let run = backfill.run(repositories);
        tokio::pin!(run);
        loop {
            tokio::select! {
                biased;
                report = &mut run => {
                    bar.finish_and_clear();
                    return report;
                }
                _ = ticks.tick() => {}
            }
            let counts = &backfill.counts;
            let told = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
            let manifests = format!("{} manifests read, {} known", told(&counts.read), told(&counts.known));
            bar.set_position(told(&counts.walked));
            bar.set_message(manifests.clone());
            if is_shown && !is_bar {
                let (walked, all) = (told(&counts.walked), told(&counts.repositories));
                tell(&format!("{walked} of {all} repositories, {manifests}"));
            }
        }
    }

    fn report(&self, report: &Report) -> Result<()> {
        if self.connection.output.json {
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

/// The names in a file, each once. Empty lines and `#` comments are skipped.
fn listed(file: &Path) -> Result<Vec<RepositoryName>> {
    let reading = || format!("reading {}", file.display());
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|error| Error::io(reading(), &error))?;
    let mut names = BTreeSet::new();
    for (number, line) in text.lines().enumerate() {
        let name = line.split('#').next().unwrap_or_default().trim();
        if name.is_empty() {
            continue;
        }
        let name: RepositoryName = name.parse().map_err(|error| {
            Error::new(ErrorKind::Usage, reading(), format!("line {}: {name:?}: {error}", number + 1))
        })?;
        names.insert(name);
    }
    Ok(names.into_iter().collect())
}

fn usage(answer: String) -> Error {
    Error::new(ErrorKind::Usage, ASKED, answer)
}
