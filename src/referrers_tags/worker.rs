//! Works off the subjects of one upstream.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use moka::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ReferrersTagsError;
use crate::client::{Client, ErrorKind, Location, Pace, ReferrersApi};
use crate::config::{Config, UpstreamConfig, UpstreamName};
use crate::export::{Level, NotLevel, bring_level};
use crate::index::{Index, Repository};
use crate::oci::RepositoryName;
use crate::queue::{Job, Place as QueuePlace, Queue, pause};
use crate::recording::unlisted::Unlisted;
use crate::telemetry::{Metrics, TagFailure};
use crate::tls::Reload;

/// Subjects that wait, at most.
const MOST: usize = 100_000;
/// Lists that are worked on at a time, and how many of them send requests at a time: for most of its time, a list that
/// was written waits to be read once more.
const LISTS: usize = 128;
const REQUESTS: usize = 8;
/// For how many repositories, and how long, it is remembered whether they have the referrers API.
const APIS: u64 = 10_000;
const API_TTL: Duration = Duration::from_secs(600);
/// How long the registry may not show what it took.
const MISSING_FOR: Duration = Duration::from_secs(120);
const FIRST_WHILE_MISSING: Duration = Duration::from_millis(250);
const LONGEST_WHILE_MISSING: Duration = Duration::from_secs(30);
/// How long a list is tried again. Whoever makes a registry read-only, or lets a password expire, has a week.
const TRIED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// How often a warning is logged at most, while one list after the other fails.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Worker {
    upstream: UpstreamName,
    number: u32,
    host: String,
    queue: Arc<Queue<Unlisted>>,
    client: Client,
    index: Index,
    apis: Cache<RepositoryName, Arc<ReferrersApi>>,
    turns: Semaphore,
    warned: Mutex<Option<Instant>>,
    metrics: Metrics,
}

/// Why a list is not level.
#[derive(Debug)]
struct Failure {
    reason: TagFailure,
    told: String,
}

impl Worker {
    pub(super) fn new(
        config: &Config,
        upstream: &UpstreamConfig,
        index: &Index,
        metrics: &Metrics,
    ) -> Result<Self, ReferrersTagsError> {
        let directory = config.data_dir.join("referrers-tags").join(upstream.name.as_str());
        let place = QueuePlace::of(index, &format!("referrers-tags/{}", upstream.name), directory.clone());
        let queue =
            Queue::open(place, MOST).map_err(|source| ReferrersTagsError::Queue { directory, source })?;
        let client = Client::of_upstream(upstream, Some(Arc::new(Pace::new(None))));
        let client = client.map_err(|error| ReferrersTagsError::Client(upstream.name.clone(), error))?;
        Ok(Self {
            upstream: upstream.name.clone(),
            number: upstream.number(),
            host: upstream.url.authority().to_string(),
            queue: Arc::new(queue),
            client,
            index: index.clone(),
            apis: Cache::builder().max_capacity(APIS).time_to_live(API_TTL).build(),
            turns: Semaphore::new(REQUESTS),
            warned: Mutex::default(),
            metrics: metrics.of_upstream(&upstream.name),
        })
    }

    pub(super) fn upstream(&self) -> &UpstreamName {
        &self.upstream
    }

    pub(super) fn queue(&self) -> Arc<Queue<Unlisted>> {
        Arc::clone(&self.queue)
    }

    pub(super) fn measure(&self) {
        let (count, oldest) = self.queue.measure();
        self.metrics.tags_waiting(count, oldest.map(age).unwrap_or_default());
    }

    pub(super) async fn run(self: Arc<Self>, ending: CancellationToken) {
        tokio::select! {
            () = ending.cancelled() => return,
            // What there was before the start is known only then.
            () = self.index.opened() => {}
        }
        self.queue.work_off(LISTS, &ending, |job| self.work(job)).await;
    }

    async fn work(&self, job: Job<Unlisted>) {
        let Err(Failure { reason, told }) = self.level(&job.event).await else {
            return self.queue.done(job).await;
        };
        let pause = pause_after(reason, job.tried, age(job.received));
        self.metrics.tag_failed(reason, pause.is_none());
        let (upstream, Unlisted { repository, subject }) = (&self.upstream, &job.event);
        if let Some(pause) = pause {
            if reason != TagFailure::Missing && self.warns() {
                tracing::warn!(%upstream, %repository, %subject, reason = told, ?pause,
                    "a referrers tag could not be written after a push; it is tried again");
            } else {
                tracing::debug!(%upstream, %repository, %subject, reason = told, ?pause,
                    "a referrers tag is tried again later");
            }
            self.queue.again(job, pause);
        } else {
            tracing::warn!(%upstream, %repository, %subject, reason = told,
                "a referrers tag is given up; `refshim export` writes it later");
            self.queue.done(job).await;
        }
    }

    async fn level(&self, Unlisted { repository: name, subject }: &Unlisted) -> Result<(), Failure> {
        let location = Location::Registry { host: self.host.clone(), name: name.clone() };
        let place = self.client.open(&location).map_err(NotLevel::from)?;
        let repository = Repository { upstream: self.number, name: name.clone() };
        let api = self.apis.get_with(name.clone(), Arc::default);
        let level = bring_level(&self.index, &repository, &place, &api, subject, &self.turns).await?;
        let Level { is_written, missing, unread } = level;
        if is_written {
            self.metrics.tag_written();
            tracing::debug!(upstream = %self.upstream, repository = %name, %subject, "wrote a referrers tag");
        }
        if let Some(told) = unread {
            return Err(Failure { reason: TagFailure::Failed, told });
        }
        if missing > 0 {
            let told = format!("the registry does not show {missing} manifests that it took");
            return Err(Failure { reason: TagFailure::Missing, told });
        }
        Ok(())
    }

    /// Whether it is time for a warning.
    fn warns(&self) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL);
        if is_due {
            *warned = Some(Instant::now());
        }
        is_due
    }
}

impl Reload for Worker {
    fn reload(&self) {
        self.client.reload();
    }
}

impl From<NotLevel> for Failure {
    fn from(error: NotLevel) -> Self {
        let (reason, advice) = match &error {
            NotLevel::Index(_) => (TagFailure::Index, ""),
            NotLevel::Registry(error) if error.kind() == ErrorKind::Denied => {
                let advice = ": upstreams.NAME.service needs credentials that may pull and push";
                (TagFailure::Denied, advice)
            }
            NotLevel::Registry(_) => (TagFailure::Failed, ""),
        };
        Self { reason, told: format!("{error}{advice}") }
    }
}

/// The pause until a list is tried again whose push was so long ago; nothing if it is given up.
fn pause_after(reason: TagFailure, tried: u32, age: Duration) -> Option<Duration> {
    let (first, longest, until) = match reason {
        TagFailure::Missing => (FIRST_WHILE_MISSING, LONGEST_WHILE_MISSING, MISSING_FOR),
        TagFailure::Denied
        | TagFailure::Failed
        | TagFailure::Index
        | TagFailure::Full
        | TagFailure::NotWritten => (FIRST, LONGEST, TRIED_FOR),
    };
    (age < until).then(|| pause(first, longest, tried))
}

/// How long ago; nothing for a time to come, of a clock that was set back.
fn age(received: SystemTime) -> Duration {
    received.elapsed().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reason: TagFailure, tried: u32, age: u64, expected: Option<u64>) {
        let found = pause_after(reason, tried, Duration::from_secs(age));
        assert_eq!(found, expected.map(Duration::from_millis), "{reason:?} {tried} {age}");
    }

    #[test]
    fn what_fails_is_tried_for_a_week_and_what_is_missing_for_two_minutes() {
        check(TagFailure::Missing, 0, 0, Some(250));
        check(TagFailure::Missing, 40, 119, Some(30_000));
        check(TagFailure::Missing, 1, 120, None);
        for reason in [TagFailure::Denied, TagFailure::Failed, TagFailure::Index] {
            check(reason, 0, 0, Some(1_000));
            check(reason, 4, 120, Some(16_000));
            check(reason, u32::MAX, 604_799, Some(300_000));
            check(reason, 0, 604_800, None);
        }
    }
}
