//! What the commands have in common that go through a whole registry: which one, with which index, how fast, and how
//! their progress is shown. Each needs the data directory to itself.

use std::io::{self, IsTerminal as _};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use glob::Pattern;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use super::connection::Connection;
use super::copy::at_least_one;
use super::output::tell;
use crate::client::{Client, Error, ErrorKind, Options, Pace, Result};
use crate::config::{CommandLine, Config, UpstreamConfig};
use crate::index::{Index, IndexSettings};
use crate::oci::RepositoryName;
use crate::tls;

/// How often progress is told where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
const BAR_EVERY: Duration = Duration::from_millis(200);

/// Which registry, which of its repositories, and how fast.
#[derive(Debug, Args)]
pub(super) struct Work {
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
    /// How much is worked on at a time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub(super) jobs: usize,
    /// How many requests are sent a second at most.
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    #[command(flatten)]
    pub(super) connection: Connection,
}

/// What a command works with.
pub(super) struct Opened {
    pub(super) config: Config,
    pub(super) upstream: UpstreamConfig,
    pub(super) client: Client,
    pub(super) index: Index,
}

/// How far a command is.
pub(super) struct Progress {
    pub(super) done: u64,
    pub(super) all: u64,
    /// What of it is shown besides the repositories.
    pub(super) text: String,
}

impl Opened {
    /// The registry, `host` or `host:port`.
    pub(super) fn host(&self) -> String {
        self.upstream.url.authority().to_string()
    }
}

impl Work {
    /// Opens the index. `asked` says in words what is to be done with it.
    pub(super) async fn open(&self, asked: &'static str) -> Result<Opened> {
        let config = self.configuration(asked)?;
        let upstream = self.upstream_of(&config, asked)?.clone();
        let client = Client::new(self.options(&upstream)?);
        let index = Index::open(IndexSettings::of(&config)).map_err(|error| {
            let advice = "a refshim that serves from this directory has to be stopped first";
            Error::failed(asked, error.to_string()).advise(advice)
        })?;
        // Until then it is not known how much there is, and whether it can be read at all.
        index.opened().await;
        if let Some(failure) = index.write_failure() {
            return Err(Error::failed(asked, failure));
        }
        Ok(Opened { config, upstream, client, index })
    }

    /// Those whose names are asked for.
    pub(super) fn chosen(&self, all: Vec<RepositoryName>) -> Vec<RepositoryName> {
        let is_wanted = |name: &RepositoryName| {
            self.repository.is_empty() || self.repository.iter().any(|glob| glob.matches(name.as_str()))
        };
        all.into_iter().filter(is_wanted).collect()
    }

    fn configuration(&self, asked: &str) -> Result<Config> {
        let given = CommandLine {
            // With a file, it is a name.
            upstream: self.upstream.clone().filter(|_| self.config.is_none()),
            data_dir: self.data_dir.clone(),
            config: self.config.clone(),
            ..CommandLine::default()
        };
        let config = Config::load_and_check(&given, std::env::vars_os(), &tls::checks());
        config.map_err(|mistakes| usage(asked, mistakes.to_string()))
    }

    fn upstream_of<'c>(&self, config: &'c Config, asked: &str) -> Result<&'c UpstreamConfig> {
        let Some(name) = self.upstream.as_ref().filter(|_| self.config.is_some()) else {
            return Ok(&config.upstream);
        };
        let mut all = std::iter::once(&config.upstream).chain(&config.further_upstreams);
        let found = all.find(|upstream| upstream.name.as_str() == name);
        found.ok_or_else(|| usage(asked, format!("there is no upstream {name:?} in the configuration")))
    }

    /// How the registry is reached: as refshim reaches it, except for what is said on the command line.
    fn options(&self, upstream: &UpstreamConfig) -> Result<Options> {
        let options = self.connection.options(Some(upstream.url.authority().as_str()))?;
        let pace = Some(Arc::new(Pace::new(self.rate)));
        Options { pace, ..options }.towards(upstream)
    }

    /// A run, with its progress on standard error: a bar on a terminal, else a line now and then.
    pub(super) async fn watched<R>(&self, run: impl Future<Output = R>, shown: impl Fn() -> Progress) -> R {
        let is_shown = self.connection.tells();
        let is_bar = is_shown && io::stderr().is_terminal();
        let bar = if is_bar { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos} of {len} repositories, {msg} {eta:>4}")
        {
            bar.set_style(style);
        }
        let mut ticks = interval(if is_bar { BAR_EVERY } else { LINE_EVERY });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // The first comes at once.
        ticks.tick().await;
        tokio::pin!(run);
        loop {
            tokio::select! {
                biased;
                ended = &mut run => {
                    bar.finish_and_clear();
                    return ended;
                }
                _ = ticks.tick() => {}
            }
            let Progress { done, all, text } = shown();
            bar.set_length(all);
            bar.set_position(done);
            bar.set_message(text.clone());
            if is_shown && !is_bar {
                tell(&format!("{done} of {all} repositories, {text}"));
            }
        }
    }
}

pub(super) fn usage(asked: &str, answer: String) -> Error {
    Error::new(ErrorKind::Usage, asked, answer)
}
