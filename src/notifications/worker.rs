//! Works off the events of one upstream: looks what the registry has, and records it.

mod retry;

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::NotificationsError;
use super::event::{Action, Event};
use crate::client::{Client, ErrorKind, Location, Pace, Repository as Place};
use crate::config::{Config, UpstreamConfig, UpstreamName};
use crate::index::{Covered, Index, Repository};
use crate::oci::{Digest, LinkKind, Tag, TagOrDigest, TagScheme};
use crate::queue::{Job, Place as QueuePlace, Queue};
use crate::recording::found::{Found, NotRecorded, record};
use crate::registry::reader::ManifestReader;
use crate::telemetry::{EventFailure, LinkOutcome, Metrics};
use crate::tls::Reload;

/// Events of one upstream that are worked off at a time.
const JOBS: usize = 8;
/// How deep indexes may lie in each other, and how many manifests one event may lead to. The rest is told of by events
/// of its own.
const DEEPEST: usize = 16;
const MOST_MANIFESTS: usize = 1_000;

#[derive(Debug)]
pub(super) struct Worker {
    upstream: UpstreamName,
    number: u32,
    host: String,
    queue: Queue<Event>,
    client: Client,
    index: Index,
    reader: ManifestReader,
    metrics: Arc<Metrics>,
    give_up_after: Duration,
}

/// Why an event could not be worked off.
#[derive(Debug)]
struct Failure {
    reason: EventFailure,
    told: String,
}

/// What came of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worked {
    Whole,
    /// What is there is recorded, but its tag, which says what it is about, is not where the event says. distribution
    /// sends the event of a push before it moves the tag.
    BeforeItsTag,
}

/// A manifest to read. With its tag, if that says what the manifest is about.
struct Item {
    digest: Digest,
    tag: Option<Tag>,
    depth: usize,
}

impl Worker {
    pub(super) fn new(
        config: &Config,
        upstream: &UpstreamConfig,
        index: &Index,
        metrics: &Metrics,
    ) -> Result<Self, NotificationsError> {
        let directory = config.data_dir.join("notifications").join(upstream.name.as_str());
        let place = QueuePlace::of(index, &format!("notifications/{}", upstream.name), directory.clone());
        let queue = Queue::open(place, config.notifications.queue)
            .map_err(|source| NotificationsError::Queue { directory, source })?;
        let rate = u32::try_from(config.notifications.rate).ok().and_then(NonZeroU32::new);
        let client = Client::of_upstream(upstream, Some(Arc::new(Pace::new(rate))));
        let client = client.map_err(|error| NotificationsError::Client(upstream.name.clone(), error))?;
        let metrics = Arc::new(metrics.of_upstream(&upstream.name));
        Ok(Self {
            upstream: upstream.name.clone(),
            number: upstream.number(),
            host: upstream.url.authority().to_string(),
            queue,
            client,
            index: index.clone(),
            reader: ManifestReader::of(config, upstream, Arc::clone(&metrics)),
            metrics,
            give_up_after: config.notifications.give_up_after,
        })
    }

    pub(super) fn upstream(&self) -> &UpstreamName {
        &self.upstream
    }

    pub(super) fn queue(&self) -> &Queue<Event> {
        &self.queue
    }

    pub(super) fn measure(&self) {
        let (count, oldest) = self.queue.measure();
        self.metrics.events_waiting(count, oldest.map(age).unwrap_or_default());
    }

    pub(super) async fn run(self: Arc<Self>, ending: CancellationToken) {
        self.queue.work_off(JOBS, &ending, |job| self.work(job)).await;
    }

    async fn work(&self, job: Job<Event>) {
        let repository = Repository { upstream: self.number, name: job.event.repository.clone() };
        let worked = match job.event.action {
            Action::Push => self.push(&repository, &job.event).await,
            Action::Delete => self.delete(&repository, &job.event).await.map(|()| Worked::Whole),
        };
        let Failure { reason, told } = match worked {
            Ok(Worked::Whole) => {
                let notified = Some(Timestamp::now());
                let name = Some(&repository.name);
                let covered = Covered { notified, ..Covered::default() };
                if let Err(error) = self.index.cover(self.number, name, covered).await {
                    // Only tells when the registry was last heard of.
                    tracing::debug!(%error, "the time of a notification could not be recorded");
                }
                return self.queue.done(job).await;
            }
            Ok(Worked::BeforeItsTag) => {
                return match retry::pause_for_tag(job.tried, age(job.received)) {
                    Some(pause) => self.queue.again(job, pause),
                    // The tag has moved on, and an event of its own told where to.
                    None => self.queue.done(job).await,
                };
            }
            Err(failure) => failure,
        };
        let pause = retry::pause(reason, job.tried, age(job.received), self.give_up_after);
        self.metrics.event_failed(reason, pause.is_none());
        let (upstream, event) = (&self.upstream, &job.event);
        let (digest, tag) = (event.digest.as_ref().map(tracing::field::display), event.tag.as_ref());
        let tag = tag.map(tracing::field::display);
        if let Some(pause) = pause {
            tracing::debug!(%upstream, repository = %event.repository, digest, tag, reason = told, ?pause,
                "an event is tried again later");
            self.queue.again(job, pause);
        } else {
            tracing::warn!(%upstream, repository = %event.repository, digest, tag, reason = told,
                "an event of a notification is given up");
            self.queue.done(job).await;
        }
    }

    async fn delete(&self, repository: &Repository, event: &Event) -> Result<(), Failure> {
        let Some(digest) = &event.digest else { return Ok(()) };
        // Not removed: an event proves nothing, and one that is late may tell of what is there again.
        let doubted = self.index.doubt(repository.clone(), digest.clone()).await;
        doubted.map_err(|error| Failure { reason: EventFailure::Index, told: error.to_string() })
    }

    async fn push(&self, repository: &Repository, event: &Event) -> Result<Worked, Failure> {
        let location = Location::Registry { host: self.host.clone(), name: repository.name.clone() };
        let place = self.client.open(&location)?;
        let (mut items, worked) = self.items(&place, event).await?;
        let is_nowhere = items.is_empty() && worked == Worked::Whole;
        let (mut seen, mut kinds, mut is_missing) = (HashSet::new(), Vec::new(), is_nowhere);
        while let Some(Item { digest, tag, depth }) = items.pop() {
            if !seen.insert((digest.clone(), tag.is_some())) || seen.len() > MOST_MANIFESTS {
                continue;
            }
            let Some((found, children)) = self.read(&place, repository, &digest, tag).await? else {
                // Of an index, only some platforms may have been copied.
                is_missing |= depth == 0;
                continue;
            };
            kinds.extend(found);
            if depth < DEEPEST {
                items.extend(children.into_iter().map(|digest| Item { digest, tag: None, depth: depth + 1 }));
            }
        }
        tracing::debug!(repository = %repository.name, manifests = seen.len(), links = kinds.len(),
            "recorded what a notification told of");
        self.metrics.links(kinds, LinkOutcome::Learnt);
        // Registries lag behind their own events.
        let missing = "the registry does not have it".to_owned();
        if is_missing { Err(Failure { reason: EventFailure::Missing, told: missing }) } else { Ok(worked) }
    }

    /// The manifests that an event tells of, and whether its tag is where it says.
    async fn items(&self, place: &Place, event: &Event) -> Result<(Vec<Item>, Worked), Failure> {
        let item = |digest: &Digest, tag| Item { digest: digest.clone(), tag, depth: 0 };
        let scheme = event.tag.as_ref().and_then(Tag::scheme);
        let tag = event.tag.as_ref().filter(|_| scheme.is_some() || event.digest.is_none());
        let Some(tag) = tag else {
            return Ok((event.digest.iter().map(|digest| item(digest, None)).collect(), Worked::Whole));
        };
        // Where the tag is now, not where the event says: it may be late, or early.
        let current = place.digest(&TagOrDigest::Tag(tag.clone())).await?;
        let is_there = event.digest.is_none() || event.digest == current;
        let mut items: Vec<Item> =
            current.iter().map(|digest| item(digest, scheme.is_some().then(|| tag.clone()))).collect();
        // An index that was at a referrers tag is no parent of what it lists, and says nothing else.
        if !is_there && scheme != Some(TagScheme::Referrers) {
            items.extend(event.digest.iter().map(|digest| item(digest, None)));
        }
        Ok((items, if is_there { Worked::Whole } else { Worked::BeforeItsTag }))
    }

    /// Fetches a manifest and records its links; gives their kinds and what it lists, or nothing if it is not there.
    async fn read(
        &self,
        place: &Place,
        repository: &Repository,
        digest: &Digest,
        tag: Option<Tag>,
    ) -> Result<Option<(Vec<LinkKind>, Vec<Digest>)>, Failure> {
        // Before it is fetched: a deletion that comes in between must not be overlooked.
        let watch = self.index.begin_read(repository.clone()).await;
        let by_digest = TagOrDigest::Digest(digest.clone());
        let Some(manifest) = place.find_manifest(&by_digest).await? else { return Ok(None) };
        let target = tag.map_or(by_digest, TagOrDigest::Tag);
        let found = Found {
            repository,
            target: &target,
            algorithm: digest.algorithm(),
            bytes: &manifest.bytes,
            media_type: &manifest.media_type,
        };
        let recorded = record(&self.reader, &self.index, &watch, found).await?;
        if let (true, Some(told)) = (recorded.is_full, recorded.warning) {
            return Err(Failure { reason: EventFailure::Index, told });
        }
        let children = manifest.children().iter().map(|child| child.descriptor.digest.clone());
        Ok(Some((recorded.kinds, children.collect())))
    }
}

impl Reload for Worker {
    fn reload(&self) {
        self.client.reload();
    }
}

impl From<crate::client::Error> for Failure {
    fn from(error: crate::client::Error) -> Self {
        let reason = match error.kind() {
            ErrorKind::Denied => EventFailure::Denied,
            ErrorKind::NotFound => EventFailure::Missing,
            ErrorKind::Malformed => EventFailure::Unreadable,
            ErrorKind::Failed | ErrorKind::Usage => EventFailure::Failed,
        };
        let advice = match reason {
            EventFailure::Denied => " (upstreams.NAME.service has the credentials for it)",
            EventFailure::Missing | EventFailure::Failed | EventFailure::Unreadable | EventFailure::Index => {
                ""
            }
        };
        Self { reason, told: format!("{error}{advice}") }
    }
}

impl From<NotRecorded> for Failure {
    fn from(error: NotRecorded) -> Self {
        let reason = match &error {
            NotRecorded::TooLong(_) | NotRecorded::Unread(_) => EventFailure::Unreadable,
            NotRecorded::Index(_) => EventFailure::Index,
        };
        Self { reason, told: error.to_string() }
    }
}

/// How long ago; nothing for a time to come, of a clock that was set back.
fn age(received: SystemTime) -> Duration {
    received.elapsed().unwrap_or_default()
}
