//! What the commands have in common that go through a whole registry: which one, how fast, who does it (the refshim
//! that serves, or the command by itself, with the data directory to itself), and how their progress is shown.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use glob::Pattern;
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::sleep;

use super::connection::Connection;
use super::copy::at_least_one;
use super::progress::watched;
use super::reach::{NO_BODY, Reach, opened, usage};
use crate::client::{Client, Error, Options, Pace, Result};
use crate::config::UpstreamConfig;
use crate::jobs::{Job, JobSpec, Place, Progress, State, Task};
use crate::registry::reader::ManifestReader;
use crate::telemetry::Metrics;

/// Between two looks at what another process does.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const JOBS: &str = "/jobs";

/// Which registry, which of its repositories, and how fast. The work is done by the refshim that serves, unless
/// --config, --data-dir or the URL of a registry says that the command is to do it by itself.
#[derive(Debug, Args)]
pub(super) struct Work {
    #[command(flatten)]
    reach: Reach,
    /// Only repositories with such names, `team/*`; repeatable.
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    repository: Vec<String>,
    /// How much is worked on at a time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    jobs: usize,
    /// How many requests are sent a second at most.
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// End what the refshim that serves is doing for such a command. Ctrl-C only ends the command.
    #[arg(long)]
    pub(super) stop: bool,
    #[command(flatten)]
    pub(super) connection: Connection,
}

/// A glob, checked.
fn glob(text: &str) -> std::result::Result<String, String> {
    Pattern::new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl Work {
    /// Has a job done; gives its report.
    pub(super) async fn carry_out<R: DeserializeOwned>(&self, task: Task) -> Result<R> {
        let asked = task.words();
        let spec = JobSpec {
            upstream: self.reach.upstream.clone(),
            repositories: self.repository.clone(),
            jobs: self.jobs,
            rate: self.rate,
            task,
        };
        let report = if self.reach.is_alone() {
            self.do_alone(asked, spec).await?
        } else {
            self.have_done(asked, spec).await?
        };
        serde_json::from_value(report).map_err(|error| Error::failed(asked, error.to_string()))
    }

    /// Ends the job of a refshim that serves.
    pub(super) async fn end(&self) -> Result<()> {
        const ASKED: &str = "ending the job";
        if self.reach.is_alone() {
            return Err(usage(ASKED, "only a refshim that serves has jobs to end".to_owned()));
        }
        let was_there: bool =
            self.reach.admin()?.ask(ASKED, Method::DELETE, &self.reach.path(JOBS), NO_BODY).await?;
        self.connection.tell(if was_there { "ended; what was done stays" } else { "there was none" });
        Ok(())
    }

    /// Watches a refshim that serves do it.
    async fn have_done(&self, asked: &'static str, spec: JobSpec) -> Result<Value> {
        if self.connection.is_given() {
            let answer = "the refshim that serves reaches the registry with its own settings".to_owned();
            return Err(usage(asked, answer)
                .advise("set upstreams.<name>.service in its configuration, or say --config FILE"));
        }
        let (admin, path) = (self.reach.admin()?, self.reach.path(JOBS));
        let begun: State = admin.ask(asked, Method::POST, JOBS, Some(&spec)).await?;
        let last = Mutex::new(begun.clone());
        let lock = || last.lock().unwrap_or_else(PoisonError::into_inner);
        let watching = async {
            let mut state = begun.clone();
            let mut pause = FIRST_PAUSE;
            loop {
                if state.id != begun.id {
                    return Err(Error::failed(asked, "another job took its place"));
                }
                if let Some(outcome) = state.outcome.clone() {
                    return outcome;
                }
                *lock() = state;
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                let now: Option<State> = admin.ask(asked, Method::GET, &path, NO_BODY).await?;
                state = now.ok_or_else(|| Error::failed(asked, "refshim was started anew meanwhile"))?;
            }
        };
        self.watched(watching, || lock().progress.clone()).await
    }

    /// Does it in this process.
    async fn do_alone(&self, asked: &'static str, spec: JobSpec) -> Result<Value> {
        let job = Job::new(spec)?;
        let config = self.reach.configuration(asked)?;
        let upstream = self.reach.upstream_of(&config, asked)?.clone();
        let client = Client::new(self.options(&upstream)?);
        let index = opened(&config, asked).await?;
        let reader = ManifestReader::of(&config, &upstream, Arc::new(Metrics::new()));
        let place = Place { upstream, client, index: index.clone(), reader, data_dir: config.data_dir };
        let outcome = self.watched(Box::pin(job.run(place)), || job.progress()).await;
        index.close().await;
        outcome
    }

    /// How the registry is reached: as refshim reaches it, except for what is said on the command line.
    fn options(&self, upstream: &UpstreamConfig) -> Result<Options> {
        let options = self.connection.options(Some(upstream.url.authority().as_str()))?;
        let pace = Some(Arc::new(Pace::new(self.rate)));
        Options { pace, ..options }.towards(upstream)
    }

    /// A run, with its progress on standard error: a bar on a terminal, else a line now and then.
    pub(super) async fn watched<R>(&self, run: impl Future<Output = R>, shown: impl Fn() -> Progress) -> R {
        watched(self.connection.tells(), run, shown).await
    }
}
