//! Manifests that are pulled: a mirror that nobody pushes to builds up its index from them.
//!
//! A manifest is copied while it passes to the client, and its links are recorded afterwards. The client never waits
//! for that. The copies in memory are bounded (`manifests.learn_bytes`); beyond the bound, manifests pass unread, to
//! be recorded by a later pull. A manifest that the registry serves by redirect does not pass through, so refshim
//! requests it itself, with the client's rights.
//!
//! A 404 to a client is recorded too, as a doubt of the referrer: gh and others fail on a list that names a manifest
//! they were just told does not exist.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{LOCATION, VIA};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use moka::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::http::body::Body;
use crate::http::coding;
use crate::http::limits::RequestGuard;
use crate::index::{Index, IndexState, Repository, UpstreamRead};
use crate::oci::{Digest, TagOrDigest, TagScheme};
use crate::proxy::error::Error;
use crate::proxy::forward::{self, Origin};
use crate::proxy::upstream::{Upstream, VIA_REFSHIM};
use crate::recording::learnt::{Learnt, learn};
use crate::registry::reader::ManifestReader;
use crate::registry::{
    Answer, FetchedManifest, Registry, Visit, content_digest, content_type, is_manifest, unpacked,
};
use crate::telemetry::{LinkOutcome, Metrics, within_this_request};

/// Manifests that are remembered as recorded. Most pulls are of these, and cost nothing.
const READ_REMEMBERED: u64 = 100_000;
/// How long. A pull also proves that a doubted referrer exists, so it must not go unread for long.
const READ_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// Manifests served by redirect that refshim requested itself, and how long it does not repeat that.
const REDIRECTED_REMEMBERED: u64 = 10_000;
const REDIRECTED_LIFETIME: Duration = Duration::from_secs(60);

/// Passes pulls on and records the links of their manifests.
#[derive(Clone, Debug)]
pub struct PullRecorder {
    upstream: Arc<Upstream>,
    registry: Arc<Registry>,
    index: Index,
    reader: ManifestReader,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    budget: Arc<Semaphore>,
    budget_bytes: usize,
    read: Cache<Pulled, ()>,
    redirected: Cache<(Repository, TagOrDigest), ()>,
}

/// A pulled manifest. Pulled by a cosign tag or a referrers tag, the same bytes have more links.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pulled {
    repository: Repository,
    digest: Digest,
    at_telling_tag: bool,
}

/// A manifest that is being passed to the client.
struct Passing {
    repository: Repository,
    manifest: TagOrDigest,
    headers: HeaderMap,
    /// Whether it was pulled from another namespace (`ns=`) than the upstream's own.
    is_foreign: bool,
    watch: UpstreamRead,
    permit: OwnedSemaphorePermit,
}

impl PullRecorder {
    /// A recorder that holds at most `budget` bytes of manifests at a time; with 0 it records nothing.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        index: Index,
        reader: ManifestReader,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        budget: usize,
    ) -> Self {
        Self {
            upstream: registry.upstream(),
            registry,
            index,
            reader,
            metrics,
            tasks,
            budget: Arc::new(Semaphore::new(budget.min(Semaphore::MAX_PERMITS))),
            budget_bytes: budget,
            read: Cache::builder().max_capacity(READ_REMEMBERED).time_to_live(READ_LIFETIME).build(),
            redirected: Cache::builder()
                .max_capacity(REDIRECTED_REMEMBERED)
                .time_to_live(REDIRECTED_LIFETIME)
                .build(),
        }
    }

    /// Remembers together with `other`, which records the same registry: what was deleted through one is recorded
    /// anew by both.
    #[must_use]
    pub fn sharing(self, other: &Self) -> Self {
        Self { read: other.read.clone(), ..self }
    }

    /// Goes on from `before`, the same under an earlier configuration. With another budget, what is held already does
    /// not count in the new one.
    #[must_use]
    pub fn following(self, before: &Self) -> Self {
        let is_same = self.budget_bytes == before.budget_bytes;
        let budget = if is_same { Arc::clone(&before.budget) } else { self.budget };
        Self { budget, read: before.read.clone(), redirected: before.redirected.clone(), ..self }
    }

    /// `GET /v2/<name>/manifests/<ref>`: passes it on and records the manifest.
    pub async fn get(
        &self,
        repository: Repository,
        manifest: TagOrDigest,
        origin: Origin,
        request: Box<Request<Incoming>>,
        in_progress: &RequestGuard,
    ) -> Result<Response<Body>, Error> {
        if self.budget_bytes == 0 || self.is_known(&repository, &manifest) {
            let response = forward::pass(&self.upstream, &origin, &self.tasks, request, in_progress).await?;
            return self.heard(&repository, &manifest, response).await;
        }
        // Before the request is sent: a DELETE that overtakes this pull makes what it recorded pending.
        let watch = self.index.begin_read(repository.clone()).await;
        let is_foreign = self.registry.is_foreign(request.uri());
        let asked = (request.headers().clone(), request.uri().clone());
        // refshim's own request that a redirect led back here must not cause another one, or they would loop.
        let is_own = request.headers().get_all(VIA).iter().any(|via| *via == VIA_REFSHIM);
        let mut response = forward::pass(&self.upstream, &origin, &self.tasks, request, in_progress).await?;
        let is_redirect = response.status().is_redirection() && response.headers().contains_key(LOCATION);
        if is_redirect && !is_own {
            let (headers, uri) = asked;
            let caller = self.registry.caller(&headers, &uri, &origin);
            self.follow(self.registry.visit(&caller, repository), manifest, watch);
        } else if let Some(passing) = self.passing((&repository, is_foreign), &manifest, watch, &response)
            && let Some(copy) = response.body_mut().copy(self.reader.max_bytes())
        {
            let pulls = self.clone();
            let task = async move {
                // A body that broke off is not recorded.
                if let Ok(bytes) = copy.await {
                    pulls.read(passing, bytes).await;
                }
            };
            self.tasks.spawn(within_this_request(task));
        } else {
            return self.heard(&repository, &manifest, response).await;
        }
        Ok(response)
    }

    /// `HEAD /v2/<name>/manifests/<digest>`: passes it on and records a 404.
    pub async fn head(
        &self,
        repository: Repository,
        digest: Digest,
        origin: Origin,
        request: Box<Request<Incoming>>,
        in_progress: &RequestGuard,
    ) -> Result<Response<Body>, Error> {
        let response = forward::pass(&self.upstream, &origin, &self.tasks, request, in_progress).await?;
        self.heard(&repository, &TagOrDigest::Digest(digest), response).await
    }

    /// Passes an answer on, after a 404 is recorded: its client may request a list next, which must not have the
    /// manifest.
    pub async fn heard(
        &self,
        repository: &Repository,
        manifest: &TagOrDigest,
        response: Response<Body>,
    ) -> Result<Response<Body>, Error> {
        if let (StatusCode::NOT_FOUND, TagOrDigest::Digest(digest)) = (response.status(), manifest) {
            self.forget(repository, digest);
            if let Err(error) = self.index.doubt(repository.clone(), digest.clone()).await {
                tracing::warn!(repository = %repository.name, %digest, %error,
                    "a client got 404 for a manifest, but the index could not be written; a list \
                     may still have it");
            }
        }
        Ok(response)
    }

    /// Forgets that a manifest was recorded, because it was deleted: pushed and pulled again, it is recorded anew.
    pub fn forget(&self, repository: &Repository, digest: &Digest) {
        for at_telling_tag in [false, true] {
            let (repository, digest) = (repository.clone(), digest.clone());
            self.read.invalidate(&Pulled { repository, digest, at_telling_tag });
        }
    }

    fn is_known(&self, repository: &Repository, manifest: &TagOrDigest) -> bool {
        match manifest {
            TagOrDigest::Tag(tag) => tag.scheme() == Some(TagScheme::Referrers),
            TagOrDigest::Digest(digest) => self.read.contains_key(&pulled(repository, manifest, digest)),
        }
    }

    /// Requests a manifest that the client was redirected for, with the client's own rights.
    fn follow(&self, visit: Visit, manifest: TagOrDigest, watch: UpstreamRead) {
        let asked = (visit.repository.clone(), manifest.clone());
        let length = u32::try_from(self.reader.max_bytes()).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget).try_acquire_many_owned(length);
        let (false, Ok(permit)) = (self.redirected.contains_key(&asked), permit) else { return };
        self.redirected.insert(asked, ());
        let pulls = self.clone();
        self.tasks.spawn(async move {
            match pulls.registry.fetch(&visit, &manifest).await {
                Ok(Answer::Present(fetched)) => {
                    let place = (&visit.repository, visit.is_foreign);
                    pulls.learn(place, &manifest, fetched, &watch, permit).await;
                }
                Ok(Answer::Absent | Answer::Odd(_)) => {}
                Err(error) => tracing::debug!(repository = %visit.repository.name, %manifest, %error,
                    "a manifest that is served by redirect could not be requested"),
            }
        });
    }

    /// The manifest in an answer, if it is new and there is room for a copy.
    fn passing(
        &self,
        (repository, is_foreign): (&Repository, bool),
        manifest: &TagOrDigest,
        watch: UpstreamRead,
        response: &Response<Body>,
    ) -> Option<Passing> {
        if response.status() != StatusCode::OK || self.index.state() != IndexState::Ready {
            return None;
        }
        let told = match manifest {
            TagOrDigest::Tag(_) => content_digest(response.headers()),
            TagOrDigest::Digest(digest) => Some(digest.clone()),
        };
        if told.is_some_and(|digest| self.read.contains_key(&pulled(repository, manifest, &digest))) {
            return None;
        }
        let length = response.body().size_hint().upper();
        let length =
            length.map_or(self.reader.max_bytes(), |length| usize::try_from(length).unwrap_or(usize::MAX));
        if length > self.reader.max_bytes() {
            return None;
        }
        let permit = Arc::clone(&self.budget).try_acquire_many_owned(u32::try_from(length).ok()?).ok()?;
        let (repository, manifest) = (repository.clone(), manifest.clone());
        let headers = response.headers().clone();
        Some(Passing { repository, manifest, headers, is_foreign, watch, permit })
    }

    /// Checks a copied manifest, decodes it and records it.
    async fn read(&self, passing: Passing, bytes: Bytes) {
        let Passing { repository, manifest, headers, is_foreign, watch, permit } = passing;
        let limit = self.reader.max_bytes();
        let bytes = match &manifest {
            TagOrDigest::Digest(digest) => unpacked(digest, &headers, bytes, limit),
            TagOrDigest::Tag(_) => coding::decode(&headers, bytes, limit)
                .filter(|bytes| is_manifest(content_type(&headers), bytes).is_some()),
        };
        let Some(bytes) = bytes else {
            tracing::warn!(repository = %repository.name, %manifest,
                "what the registry served is not what was asked for; its links are not recorded");
            return;
        };
        let fetched = FetchedManifest::new(&headers, bytes);
        self.learn((&repository, is_foreign), &manifest, fetched, &watch, permit).await;
    }

    /// Records the links of a manifest. One from another namespace of a mirror stays a claim: it need not exist for
    /// everybody, and is checked before it is listed.
    async fn learn(
        &self,
        (repository, is_foreign): (&Repository, bool),
        manifest: &TagOrDigest,
        fetched: FetchedManifest,
        watch: &UpstreamRead,
        permit: OwnedSemaphorePermit,
    ) {
        let algorithm = manifest.algorithm();
        let (bytes, content_type) = (&fetched.bytes, fetched.content_type.as_deref());
        let read = match self.reader.read(repository, manifest, algorithm, bytes, content_type).await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(repository = %repository.name, %manifest, %error, "a manifest could \
                 not be read");
                return;
            }
        };
        let learnt = learn(&self.reader, &self.index, repository, read, is_foreign).await;
        let (kinds, Learnt { digest, observations, .. }) = (learnt.kinds(), learnt);
        if let Err(error) = self.index.observe(watch, observations).await {
            tracing::warn!(repository = %repository.name, %digest, %error,
                "the links of a pulled manifest could not be recorded; its next pull tries again");
            return;
        }
        drop(permit);
        self.read.insert(pulled(repository, manifest, &digest), ());
        tracing::debug!(repository = %repository.name, %digest, links = kinds.len(),
                "recorded the links of a pulled manifest");
        self.metrics.links(kinds, LinkOutcome::Learnt);
    }
}

fn pulled(repository: &Repository, manifest: &TagOrDigest, digest: &Digest) -> Pulled {
    let at_telling_tag = match manifest {
        TagOrDigest::Tag(tag) => tag.scheme().is_some(),
        TagOrDigest::Digest(_) => false,
    };
    Pulled { repository: repository.clone(), digest: digest.clone(), at_telling_tag }
}
