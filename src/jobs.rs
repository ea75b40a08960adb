//! What goes through a whole registry: the backfill, the export, the collection of garbage, the comparison. A job is
//! the same whether a command does it by itself, with the data directory to itself, or a serving refshim does it for
//! the command.

mod coverage;
mod desk;
mod sweeper;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use glob::Pattern;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backfill::{self, Backfill, Repositories};
use crate::client::{Client, Error, ErrorKind, Result};
use crate::compare::{self, Comparison};
use crate::config::UpstreamConfig;
use crate::export::{self, Export};
use crate::garbage::{self, Collection, Garbage};
use crate::index::{Index, Repository};
use crate::oci::{Digest, RepositoryName};
use crate::registry::reader::ManifestReader;

pub use coverage::{Known, UpstreamCoverage, coverage};
pub use desk::{Desk, Refused, State};
pub use sweeper::sweep;

/// The longest list of what is to be kept that a serving refshim makes, in lines.
const KEEP_LIST_LINES: usize = 500_000;

/// The most that is worked on at a time.
const MOST_AT_A_TIME: usize = 1_000;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The upstream's name; without one, the default upstream.
    pub upstream: Option<String>,
    /// Globs of the names of repositories; without any, all.
    pub repositories: Vec<String>,
    /// How much is worked on at a time.
    pub jobs: usize,
    /// How many requests are sent a second at most.
    pub rate: Option<NonZeroU32>,
    /// What it is.
    pub task: Task,
}

/// The kinds of jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// See [`Backfill`].
    Backfill {
        /// Repositories in place of the catalog.
        listed: Option<Vec<RepositoryName>>,
        /// Leaves out what was read whole since then.
        since: Option<Timestamp>,
        /// What is done.
        mode: backfill::Mode,
    },
    /// See [`Export`].
    Export {
        /// What is done about a list that is not as it should be.
        mode: export::Mode,
        /// Whether each referrer gets a tag of its own as well.
        tags_each: bool,
    },
    /// Lists what a cleaner of untagged manifests has to keep: `repository@digest`.
    KeepList,
    /// See [`Collection`].
    Collect {
        /// Only what is older.
        older_than: Option<SignedDuration>,
        /// All repositories of the registry, in place of the catalog.
        listed: Option<Vec<RepositoryName>>,
        /// What of it to delete.
        delete: Option<BTreeSet<(RepositoryName, Digest)>>,
    },
    /// See [`Comparison`].
    Compare {
        /// The subjects.
        listed: Option<BTreeSet<(RepositoryName, Digest)>>,
        /// Without them, how many of the index.
        sample: usize,
    },
}

/// Where a job works, and with what.
#[derive(Debug)]
pub struct Place {
    /// The upstream.
    pub upstream: UpstreamConfig,
    /// Speaks to it.
    pub client: Client,
    /// Where links are kept.
    pub index: Index,
    /// Parses manifests.
    pub reader: ManifestReader,
    /// Where it is written down what was done.
    pub data_dir: PathBuf,
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Repositories done.
    pub done: u64,
    /// All repositories.
    pub all: u64,
    /// What else is worth telling.
    pub text: String,
}

/// What a collection found and did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Collected {
    /// Referrers whose subjects are gone.
    pub garbage: Vec<garbage::Found>,
    /// How many of them were deleted.
    pub deleted: u64,
    /// What failed, with the reasons.
    pub failed: BTreeSet<backfill::Reason>,
}

/// A job.
#[derive(Debug)]
pub struct Job {
    spec: JobSpec,
    globs: Vec<Pattern>,
    doing: OnceLock<Doing>,
}

/// What there is to watch.
#[derive(Debug)]
enum Doing {
    Backfill(Arc<Backfill>),
    Export(Arc<Export>),
    Collect(Arc<Collection>),
    Compare(Arc<Comparison>),
}

impl Job {
    /// A job that is not begun.
    ///
    /// # Errors
    /// A glob is malformed.
    pub fn new(spec: JobSpec) -> Result<Self> {
        let glob = |text: &String| {
            Pattern::new(text)
                .map_err(|error| spec.task.error(ErrorKind::Usage, format!("{text:?}: {error}")))
        };
        let globs = spec.repositories.iter().map(glob).collect::<Result<_>>()?;
        if !(1..=MOST_AT_A_TIME).contains(&spec.jobs) {
            let answer = format!("{} at a time: write 1 to {MOST_AT_A_TIME} (--jobs)", spec.jobs);
            return Err(spec.task.error(ErrorKind::Usage, answer));
        }
        Ok(Self { spec, globs, doing: OnceLock::new() })
    }

    /// Does it, once; gives a report of its kind.
    ///
    /// # Errors
    /// It could not be begun. What failed on the way is in the report.
    pub async fn run(&self, place: Place) -> Result<Value> {
        let report = match &self.spec.task {
            Task::Backfill { listed, since, mode } => {
                serde_json::to_value(self.backfill(place, listed.as_deref(), *since, *mode).await?)
            }
            Task::Export { mode, tags_each } => {
                serde_json::to_value(self.export(place, *mode, *tags_each).await?)
            }
            Task::KeepList => serde_json::to_value(self.keep_list(&place).await?),
            Task::Collect { older_than, listed, delete } => {
                let collected = self.collect(place, *older_than, listed.as_deref(), delete.as_ref());
                serde_json::to_value(collected.await?)
            }
            Task::Compare { listed, sample } => {
                serde_json::to_value(Box::pin(self.compare(place, listed.as_ref(), *sample)).await?)
            }
        };
        report.map_err(|error| self.failed(&error))
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let told = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (done, all, text) = match self.doing.get() {
            None => return Progress::default(),
            Some(Doing::Backfill(run)) => {
                let backfill::Counts { walked, repositories, read, known, .. } = &run.counts;
                (walked, repositories, format!("{} manifests read, {} known", told(read), told(known)))
            }
            Some(Doing::Export(run)) => {
                let export::Counts { done, repositories, subjects, written, .. } = &run.counts;
                (done, repositories, format!("{} subjects, {} lists written", told(subjects), told(written)))
            }
            Some(Doing::Collect(run)) => {
                let garbage::Counts { done, repositories, subjects, found, .. } = &run.counts;
                (done, repositories, format!("{} subjects, {} found", told(subjects), told(found)))
            }
            Some(Doing::Compare(run)) => {
                let compare::Counts { done, repositories, subjects, .. } = &run.counts;
                (done, repositories, format!("{} subjects compared", told(subjects)))
            }
        };
        Progress { done: told(done), all: told(all), text }
    }

    async fn backfill(
        &self,
        place: Place,
        listed: Option<&[RepositoryName]>,
        since: Option<Timestamp>,
        mode: backfill::Mode,
    ) -> Result<backfill::Report> {
        let Place { upstream, index, .. } = &place;
        let plan =
            backfill::Plan { upstream: upstream.number(), host: host(&place), jobs: self.spec.jobs, mode };
        let (number, index, data_dir) = (upstream.number(), index.clone(), place.data_dir);
        // What was read before counts for one journal only.
        index.opened().await;
        if let Some(failure) = index.write_failure() {
            return Err(self.failed(&failure));
        }
        let began = index.time().await.map_err(|error| self.failed(&error))?;
        let run = Backfill::new(plan, place.client, (index.clone(), began), place.reader, &data_dir);
        let run = Arc::new(run.map_err(|error| self.failed(&error))?);
        self.shows(Doing::Backfill(Arc::clone(&run)));
        let are_catalogued = listed.is_none();
        let names = match listed {
            Some(listed) => listed.to_vec(),
            None => run.catalog().await?,
        };
        // A catalog may be of what this user sees, or empty: it is not of all if it lacks what is known.
        let known = export::repositories(&index, number).await;
        let known = known.map_err(|error| self.failed(&error))?;
        let catalog: BTreeSet<&RepositoryName> = names.iter().collect();
        let is_whole = !names.is_empty() && known.iter().all(|name| catalog.contains(name));
        let are_all = are_catalogued && self.globs.is_empty() && is_whole;
        let covered = index.covered(number).await.map_err(|error| self.failed(&error))?;
        let covered = covered.map(|(_, covered)| covered).unwrap_or_default();
        let was_read = |name: &RepositoryName| {
            let covered = covered.get(&Some(name.clone())).copied().unwrap_or_default();
            let last = covered.backfilled.max(covered.swept);
            since.is_some_and(|since| last >= Some(since))
        };
        let names = names.into_iter().filter(|name| self.is_wanted(name) && !was_read(name)).collect();
        Ok(run.run(Repositories { names, are_catalogued, are_all }).await)
    }

    async fn export(&self, place: Place, mode: export::Mode, tags_each: bool) -> Result<export::Report> {
        let names = self.referring(&place).await?;
        let (upstream, host, jobs) = (place.upstream.number(), host(&place), self.spec.jobs);
        let plan = export::Plan { upstream, host, jobs, mode, tags_each };
        let export = Arc::new(Export::new(plan, place.client, place.index));
        self.shows(Doing::Export(Arc::clone(&export)));
        Ok(export.run(names).await)
    }

    async fn collect(
        &self,
        place: Place,
        older_than: Option<SignedDuration>,
        listed: Option<&[RepositoryName]>,
        delete: Option<&BTreeSet<(RepositoryName, Digest)>>,
    ) -> Result<Collected> {
        let host = host(&place);
        let all = match listed {
            Some(listed) => listed.to_vec(),
            // What is no name of a repository holds nothing that could be asked for.
            None => place.client.catalog(&host).await?.iter().filter_map(|name| name.parse().ok()).collect(),
        };
        let names = self.referring(&place).await?;
        let catalog: BTreeSet<&RepositoryName> = all.iter().collect();
        if let Some(unseen) = names.iter().find(|name| !catalog.contains(name)) {
            let answer = format!("the registry's catalog lacks {unseen}, so it is not of all repositories");
            let advice = "an image may be in another repository than its signatures: let refshim's user see all of \
                          them, or name them with --repositories-from";
            return Err(self.failed(&answer).advise(advice));
        }
        let plan =
            garbage::Plan { upstream: place.upstream.number(), host, jobs: self.spec.jobs, older_than, all };
        let collection = Arc::new(Collection::new(plan, place.client, place.index));
        self.shows(Doing::Collect(Arc::clone(&collection)));
        let mut garbage = collection.find(names).await;
        let mut kept = BTreeSet::new();
        if let Some(delete) = delete {
            // Found again: what was tagged since somebody was asked is kept, or whose subject came back.
            garbage.retain(|it| delete.contains(&it.key()));
            let still: BTreeSet<_> = garbage.iter().map(Garbage::key).collect();
            kept.extend(delete.difference(&still).map(|(name, digest)| backfill::Reason {
                what: format!("{name}@{digest}"),
                reason: "is tagged, or about something that is there, by now; it is kept".to_owned(),
            }));
            collection.delete(garbage.clone()).await;
        }
        let deleted = collection.counts.deleted.load(Ordering::Relaxed);
        let garbage = garbage.into_iter().map(|it| it.found).collect();
        kept.extend(collection.failed());
        Ok(Collected { garbage, deleted, failed: kept })
    }

    async fn compare(
        &self,
        place: Place,
        listed: Option<&BTreeSet<(RepositoryName, Digest)>>,
        sample: usize,
    ) -> Result<compare::Report> {
        let number = place.upstream.number();
        let mut subjects = compare::Subjects::new();
        if let Some(listed) = listed {
            for (name, subject) in listed.iter().filter(|(name, _)| self.is_wanted(name)) {
                subjects.entry(name.clone()).or_default().insert(subject.clone());
            }
        } else {
            let names = self.referring(&place).await?;
            let chosen = compare::sample(&place.index, number, names, sample).await;
            subjects = chosen.map_err(|error| self.failed(&error))?;
        }
        let plan = compare::Plan { upstream: number, host: host(&place), jobs: self.spec.jobs };
        let comparison = Arc::new(Comparison::new(plan, place.client, place.index));
        self.shows(Doing::Compare(Arc::clone(&comparison)));
        Ok(comparison.run(subjects).await)
    }

    async fn keep_list(&self, place: &Place) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for name in self.referring(place).await? {
            let repository = Repository { upstream: place.upstream.number(), name };
            let kept = export::kept(&place.index, &repository).await;
            let kept = kept.map_err(|error| self.failed(&error))?;
            lines.extend(kept.iter().map(|digest| format!("{}@{digest}", repository.name)));
            if lines.len() > KEEP_LIST_LINES {
                let answer = format!("there are more than {KEEP_LIST_LINES} lines");
                let advice = "take some of the repositories at a time (--repository)";
                return Err(self.failed(&answer).advise(advice));
            }
        }
        Ok(lines)
    }

    /// The repositories with referrers, of those that are wanted.
    async fn referring(&self, place: &Place) -> Result<Vec<RepositoryName>> {
        let names = export::repositories(&place.index, place.upstream.number()).await;
        let names = names.map_err(|error| self.failed(&error))?;
        Ok(names.into_iter().filter(|name| self.is_wanted(name)).collect())
    }

    fn is_wanted(&self, name: &RepositoryName) -> bool {
        self.globs.is_empty() || self.globs.iter().any(|glob| glob.matches(name.as_str()))
    }

    /// From now on, this is what there is to watch.
    fn shows(&self, doing: Doing) {
        // A job is done once.
        let _shown_before = self.doing.set(doing);
    }

    fn failed(&self, answer: &dyn std::fmt::Display) -> Error {
        self.spec.task.error(ErrorKind::Failed, answer.to_string())
    }
}

impl Task {
    /// What is being done, in words.
    #[must_use]
    pub fn words(&self) -> &'static str {
        match self {
            Self::Backfill { mode: backfill::Mode::Sweep, .. } => "sweeping",
            Self::Backfill { .. } => "backfilling",
            Self::Export { .. } | Self::KeepList => "exporting",
            Self::Collect { .. } => "collecting garbage",
            Self::Compare { .. } => "comparing",
        }
    }

    fn error(&self, kind: ErrorKind, answer: impl Into<String>) -> Error {
        Error::new(kind, self.words(), answer)
    }
}

fn host(place: &Place) -> String {
    place.upstream.url.authority().to_string()
}
