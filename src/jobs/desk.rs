//! The jobs that a serving refshim does: for each upstream one at a time. The last one's result is kept until the next.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::{Job, JobSpec, Place, Progress};
use crate::backfill::Mode;
use crate::client::{Client, Error, Pace, Result};
use crate::config::{Config, UpstreamConfig};
use crate::index::Index;
use crate::jobs::Task;
use crate::registry::reader::ManifestReader;
use crate::telemetry::Metrics;

/// Gives out jobs, and tells of them.
#[derive(Debug)]
pub struct Desk {
    upstreams: Vec<(UpstreamConfig, ManifestReader)>,
    index: Index,
    data_dir: PathBuf,
    begun: AtomicU64,
    jobs: Mutex<BTreeMap<Slot, Given>>,
}

/// An upstream's number in the index, and whether it is for sweeps: one of those must not take the place of a job that
/// a command has not yet seen the end of.
type Slot = (u32, bool);

/// The last job of its kind of an upstream.
#[derive(Debug)]
struct Given {
    id: u64,
    spec: JobSpec,
    /// Gone when it has ended, with all that it held.
    job: Weak<Job>,
    ended: Arc<Mutex<Option<Ended>>>,
    task: JoinHandle<()>,
}

/// What is left of a job.
type Ended = (Progress, Result<Value>);

/// How it stands with a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its number since the start.
    pub id: u64,
    /// What it does, in words.
    pub doing: String,
    /// How far it is.
    pub progress: Progress,
    /// What came of it: a report, or why there is none. `None` while it goes on.
    pub outcome: Option<Result<Value>>,
}

/// Why a job is not begun.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such upstream.
    #[error("there is no upstream {0:?} in the configuration")]
    Upstream(String),
    /// Another job is being done.
    #[error("this upstream is already busy {0}: wait for its end, or end it with --stop")]
    Busy(&'static str),
    /// It cannot be begun.
    #[error("{0}")]
    Failed(#[from] Error),
}

impl Desk {
    /// For all upstreams of a configuration.
    #[must_use]
    pub fn new(config: &Config, index: &Index, metrics: &Metrics) -> Self {
        let with_reader = |upstream: &UpstreamConfig| {
            let metrics = Arc::new(metrics.of_upstream(&upstream.name));
            (upstream.clone(), ManifestReader::of(config, upstream, metrics))
        };
        Self {
            upstreams: config.upstreams().map(with_reader).collect(),
            index: index.clone(),
            data_dir: config.data_dir.clone(),
            begun: AtomicU64::new(0),
            jobs: Mutex::default(),
        }
    }

    /// The upstreams.
    pub fn upstreams(&self) -> impl Iterator<Item = &UpstreamConfig> {
        self.upstreams.iter().map(|(upstream, _)| upstream)
    }

    /// Begins a job. One that is being done already is not begun again; a sweep makes way for any other.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn begin(&self, spec: JobSpec) -> std::result::Result<State, Refused> {
        let (upstream, reader) = self.upstream(spec.upstream.as_deref())?;
        let mut jobs = self.lock();
        let slot = (upstream.number(), is_sweep(&spec));
        for is_sweep in [false, true] {
            let going_on = jobs.get(&(upstream.number(), is_sweep)).filter(|given| given.is_going_on());
            match going_on {
                Some(given) if given.spec == spec => return Ok(given.state()),
                Some(sweep) if is_sweep && !slot.1 => sweep.task.abort(),
                Some(given) => return Err(Refused::Busy(given.spec.task.words())),
                None => {}
            }
        }
        let place = Place {
            client: Client::of_upstream(upstream, Some(Arc::new(Pace::new(spec.rate))))?,
            upstream: upstream.clone(),
            index: self.index.clone(),
            reader: reader.clone(),
            data_dir: self.data_dir.clone(),
        };
        let doing = Arc::new(Job::new(spec.clone())?);
        let (job, ended) = (Arc::downgrade(&doing), Arc::default());
        let left = Arc::clone(&ended);
        let task = tokio::spawn(async move {
            let outcome = doing.run(place).await;
            let left: &Mutex<Option<Ended>> = &left;
            *left.lock().unwrap_or_else(PoisonError::into_inner) = Some((doing.progress(), outcome));
        });
        let id = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let given = Given { id, spec, job, ended, task };
        let state = given.state();
        jobs.insert(slot, given);
        Ok(state)
    }

    /// The last job of an upstream that a command began.
    ///
    /// # Errors
    /// There is no such upstream.
    pub fn state(&self, upstream: Option<&str>) -> std::result::Result<Option<State>, Refused> {
        let number = self.upstream(upstream)?.0.number();
        Ok(self.lock().get(&(number, false)).map(Given::state))
    }

    /// The last sweep of an upstream, unless it was stopped.
    pub(super) fn sweep(&self, upstream: &UpstreamConfig) -> Option<State> {
        let jobs = self.lock();
        jobs.get(&(upstream.number(), true)).filter(|sweep| !sweep.was_stopped()).map(Given::state)
    }

    /// Ends the sweep of an upstream.
    pub(super) fn end_sweep(&self, upstream: &UpstreamConfig) {
        if let Some(sweep) = self.lock().get(&(upstream.number(), true)) {
            sweep.task.abort();
        }
    }

    /// Ends the job of an upstream; whether there was one. What it did stays done.
    ///
    /// # Errors
    /// There is no such upstream.
    pub fn stop(&self, upstream: Option<&str>) -> std::result::Result<bool, Refused> {
        let number = self.upstream(upstream)?.0.number();
        let jobs = self.lock();
        let mut all = [false, true].into_iter().filter_map(|is_sweep| jobs.get(&(number, is_sweep)));
        Ok(all.find(|given| given.is_going_on()).map(|given| given.task.abort()).is_some())
    }

    /// Ends all jobs.
    pub fn stop_all(&self) {
        self.lock().values().for_each(|given| given.task.abort());
    }

    fn upstream(
        &self,
        name: Option<&str>,
    ) -> std::result::Result<&(UpstreamConfig, ManifestReader), Refused> {
        let is_meant = |upstream: &UpstreamConfig| match name {
            Some(name) => upstream.name.as_str() == name,
            None => upstream.name.is_default(),
        };
        let found = self.upstreams.iter().find(|(upstream, _)| is_meant(upstream));
        found.ok_or_else(|| Refused::Upstream(name.unwrap_or("default").to_owned()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Slot, Given>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Given {
    fn is_going_on(&self) -> bool {
        !self.task.is_finished()
    }

    fn was_stopped(&self) -> bool {
        // In this order: what came of it is kept before the task has ended.
        !self.is_going_on() && self.ended.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn state(&self) -> State {
        // Before the outcome: a job that ends in between is asked for once more.
        let has_ended = !self.is_going_on();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (progress, outcome) = match ended {
            Some((progress, outcome)) => (progress, Some(outcome)),
            None => (self.job.upgrade().map(|job| job.progress()).unwrap_or_default(), None),
        };
        let stopped = || has_ended.then(|| Err(Error::failed(self.spec.task.words(), "it was stopped")));
        State {
            id: self.id,
            doing: self.spec.task.words().to_owned(),
            progress,
            outcome: outcome.or_else(stopped),
        }
    }
}

fn is_sweep(spec: &JobSpec) -> bool {
    matches!(spec.task, Task::Backfill { mode: Mode::Sweep, .. })
}
