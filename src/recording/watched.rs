//! Pushes that are recorded while nothing about them changes (`upstreams.<name>.mode = "learn"`).
//!
//! The manifest streams to the registry as it comes, and is copied on the way. Once the registry has accepted it, its
//! links are recorded, and only then the client gets the registry's answer: what a client was told is stored is
//! recorded as well. If the registry may have stored it, but did not say so, they are recorded as claims, and a query
//! asks. If they cannot be recorded, the client gets the answer all the same, and the coverage of the registry begins
//! anew: lists say from then on that they may miss something.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use crate::http::body::Body;
use crate::http::limits::RequestGuard;
use crate::index::{Index, Repository, UpstreamRead};
use crate::oci::TagOrDigest;
use crate::proxy::error::Error;
use crate::proxy::forward::{self, Origin};
use crate::recording::learnt::{Learnt, learn};
use crate::recording::write::{Writing, is_taken, was_refused};
use crate::registry::reader::ManifestReader;
use crate::registry::{Registry, content_digest};
use crate::telemetry::{Audit, Audited, LinkOutcome, Metrics, Unrecorded, within_this_request};

/// Passes pushes on as they come, and records them from copies.
#[derive(Clone, Debug)]
pub struct PushWatcher {
    registry: Arc<Registry>,
    index: Index,
    reader: ManifestReader,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    budget: Arc<Semaphore>,
    budget_bytes: usize,
    audit: Audit,
}

/// A push on its way.
struct Push {
    repository: Repository,
    manifest: TagOrDigest,
    content_type: Option<HeaderValue>,
    watch: UpstreamRead,
    /// For the audit log, if there is one: the head and the address of the client.
    head: Option<(HeaderMap, IpAddr)>,
}

/// The copy of a push's manifest.
enum Copy {
    /// There is no body.
    Nothing,
    Coming(oneshot::Receiver<Bytes>, OwnedSemaphorePermit),
    TooLong,
    NoRoom,
}

impl PushWatcher {
    /// A watcher that holds at most `budget` bytes of manifests at a time.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        index: Index,
        reader: ManifestReader,
        metrics: Arc<Metrics>,
        (tasks, audit): (TaskTracker, Audit),
        budget: usize,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(budget.min(Semaphore::MAX_PERMITS)));
        Self { registry, index, reader, metrics, tasks, budget: permits, budget_bytes: budget, audit }
    }

    /// Goes on from `before`, the same under an earlier configuration. With another budget, what is held already does
    /// not count in the new one.
    #[must_use]
    pub fn following(self, before: &Self) -> Self {
        let is_same = self.budget_bytes == before.budget_bytes;
        Self { budget: if is_same { Arc::clone(&before.budget) } else { self.budget }, ..self }
    }

    /// `PUT /v2/<name>/manifests/<ref>`.
    pub async fn put(
        &self,
        repository: Repository,
        manifest: TagOrDigest,
        origin: Origin,
        request: Box<Request<Incoming>>,
        in_progress: RequestGuard,
    ) -> Result<Response<Body>, Error> {
        let watcher = self.clone();
        // A client that goes away once it has sent the manifest does not stop what records it.
        let task = async move { watcher.pass(repository, manifest, &origin, request, in_progress).await };
        self.tasks.spawn(within_this_request(task)).await.map_err(|_| Error::Handler)?
    }

    async fn pass(
        &self,
        repository: Repository,
        manifest: TagOrDigest,
        origin: &Origin,
        request: Box<Request<Incoming>>,
        in_progress: RequestGuard,
    ) -> Result<Response<Body>, Error> {
        let upstream = self.registry.upstream();
        // Before the request is sent: a DELETE that overtakes this push makes what it recorded pending.
        let watch = self.index.begin_read(repository.clone()).await;
        let content_type = request.headers().get(CONTENT_TYPE).cloned();
        let mut request = forward::from_client(request, &upstream, &in_progress);
        // Its body counts from here on, and no longer than until the registry has it.
        drop(in_progress);
        let copy = self.copy(request.body_mut());
        let place = repository.clone();
        let write = Writing::begin(&self.registry, &place);
        let head = self.audit.is_on().then(|| (request.headers().clone(), origin.client()));
        let push = Push { repository, manifest, content_type, watch, head };
        let answer = forward::send(&upstream, origin, request).await;
        if !was_refused(&answer)
            && let Err(reason) = self.record(&push, copy, answer.as_ref().ok()).await
        {
            self.missed(&push, &reason).await;
        }
        write.ends(&answer);
        answer
    }

    fn copy(&self, body: &mut Body) -> Copy {
        let most = self.reader.max_bytes();
        let length =
            body.size_hint().upper().map_or(most, |upper| usize::try_from(upper).unwrap_or(usize::MAX));
        if length > most {
            return Copy::TooLong;
        }
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&self.budget).try_acquire_many_owned(length) else { return Copy::NoRoom };
        body.copy(most).map_or(Copy::Nothing, |copy| Copy::Coming(copy, permit))
    }

    /// Records the links of a push that was not refused.
    ///
    /// # Errors
    /// They could not be recorded, for this reason.
    async fn record(&self, push: &Push, copy: Copy, response: Option<&Response<Body>>) -> Result<(), String> {
        let Push { repository, manifest, content_type, watch, head } = push;
        let too_long = || Err(self.reader.too_long(repository, manifest));
        let is_success = response.is_some_and(|response| response.status().is_success());
        let (bytes, _permit) = match copy {
            Copy::Nothing => return Ok(()),
            Copy::TooLong => return too_long(),
            Copy::NoRoom => return Err("limits.manifest_bytes leaves no room for a copy of it".to_owned()),
            // Not waited for: who has accepted a manifest has read all of it.
            Copy::Coming(mut copy, permit) => match copy.try_recv() {
                Ok(bytes) => (bytes, permit),
                // Then the registry did not get all of it, either.
                Err(_) if !is_success => return Ok(()),
                Err(TryRecvError::Closed) => return too_long(),
                Err(TryRecvError::Empty) => {
                    return Err("the registry answered before it had read it".to_owned());
                }
            },
        };
        let content_type = content_type.as_ref().and_then(|value| value.to_str().ok());
        let algorithm = manifest.algorithm();
        let read = self.reader.read(repository, manifest, algorithm, &bytes, content_type).await;
        let read = read.map_err(|error| error.to_string())?;
        if read.referrer.links.is_empty() && read.claims.is_empty() {
            return Ok(());
        }
        let taken = response.filter(|response| is_taken(response, &read.referrer.digest));
        let named = taken.and_then(|response| content_digest(response.headers()));
        if named.is_some_and(|named| named != read.referrer.digest) {
            return Err("the registry named another digest than that of what was pushed".to_owned());
        }
        let outcome = if taken.is_some() { LinkOutcome::Recorded } else { LinkOutcome::Pending };
        let learnt = learn(&self.reader, &self.index, repository, read, taken.is_none()).await;
        let (kinds, Learnt { digest, observations, is_full, warning, .. }) = (learnt.kinds(), learnt);
        if is_full {
            return Err(warning.unwrap_or_default());
        }
        let upstream = self.registry.upstream();
        let mut entry = head.as_ref().and_then(|(headers, client)| {
            let audited = Audited { headers, client: *client, upstream: upstream.name(), repository };
            self.audit.push(audited, &digest, observations.iter().map(|it| &it.referrer))
        });
        if let (Some(entry), Some(response)) = (&mut entry, response) {
            entry.answered(response.status());
        }
        self.index.observe(watch, observations).await.map_err(|error| error.to_string())?;
        tracing::info!(repository = %repository.name, %digest, links = kinds.len(), "recorded a manifest's links");
        if let Some(mut entry) = entry {
            entry.recorded(outcome);
        }
        self.metrics.links(kinds, outcome);
        Ok(())
    }

    /// What was pushed until now is not all recorded.
    async fn missed(&self, push: &Push, reason: &str) {
        let Push { repository, manifest, .. } = push;
        tracing::warn!(repository = %repository.name, %manifest, reason,
            "a push passed, but could not be recorded: lists say that they may miss links pushed before now, until \
             the next backfill");
        self.metrics.unrecorded(Unrecorded::Missed, 1);
        self.index.restart_coverage(repository.upstream).await;
    }
}
