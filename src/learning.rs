//! Learning from pulls: a manifest that passes through a GET is copied on its way, and once it has passed
//! its links are recorded. Not a byte waits for that; when there is too much at once, some is not learnt.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use moka::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::access::{content_digest, content_type};
use crate::body::Body;
use crate::error::Error;
use crate::forward::{self, Origin};
use crate::index::{Index, Learnt, Repository, State, Watch};
use crate::limits::RequestGuard;
use crate::oci::{Digest, LinkKind, TagOrDigest, TagScheme};
use crate::reading::{ReadManifest, Reading};
use crate::telemetry::{LinkOutcome, Metrics};
use crate::upstream::Upstream;

/// How many manifests are remembered as read, and for how long.
const READ_REMEMBERED: u64 = 100_000;
const READ_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// Reads manifests that pass.
#[derive(Clone, Debug)]
pub struct Learning {
    upstream: Arc<Upstream>,
    index: Index,
    reading: Reading,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    budget: Arc<Semaphore>,
    is_on: bool,
    read: Cache<Pulled, ()>,
}

/// What was pulled: the same manifest says more at a tag that says what it is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pulled {
    repository: Repository,
    digest: Digest,
    at_telling_tag: bool,
}

/// A manifest on its way to the client.
struct Passing {
    pulled: Pulled,
    manifest: TagOrDigest,
    content_type: Option<String>,
    watch: Watch,
    permit: OwnedSemaphorePermit,
}

impl Learning {
    /// Holds at most `budget` bytes of manifests at a time; with none it only passes on.
    #[must_use]
    pub fn new(
        upstream: Arc<Upstream>,
        index: Index,
        reading: Reading,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        budget: usize,
    ) -> Self {
        let read = Cache::builder().max_capacity(READ_REMEMBERED).time_to_live(READ_LIFETIME).build();
        let is_on = budget > 0;
        let budget = Arc::new(Semaphore::new(budget.min(Semaphore::MAX_PERMITS)));
        Self { upstream, index, reading, metrics, tasks, budget, is_on, read }
    }

    /// `GET /v2/<name>/manifests/<ref>`, passed on and read on the way.
    pub async fn get(
        &self,
        repository: Repository,
        manifest: TagOrDigest,
        origin: Origin,
        request: Request<Incoming>,
        in_progress: &RequestGuard,
    ) -> Result<Response<Body>, Error> {
        if !self.is_on || self.is_known(&repository, &manifest) {
            return forward::pass(&self.upstream, &origin, &self.tasks, request, in_progress).await;
        }
        let watch = self.index.watch(repository.clone());
        let mut response = forward::pass(&self.upstream, &origin, &self.tasks, request, in_progress).await?;
        if let Some(passing) = self.passing(repository, manifest, watch, &response)
            && let Some(copy) = response.body_mut().copy(self.reading.max_bytes())
        {
            self.read.insert(passing.pulled.clone(), ());
            let learning = self.clone();
            self.tasks.spawn(async move {
                let pulled = passing.pulled.clone();
                // A body that broke off is none that can be read.
                let learnt = match copy.await {
                    Ok(bytes) => learning.learn(passing, &bytes).await,
                    Err(_) => false,
                };
                if !learnt {
                    learning.read.invalidate(&pulled);
                }
            });
        }
        Ok(response)
    }

    /// Reads a manifest again should it come by again, since it was deleted.
    pub fn forget(&self, repository: &Repository, digest: &Digest) {
        for at_telling_tag in [false, true] {
            let (repository, digest) = (repository.clone(), digest.clone());
            self.read.invalidate(&Pulled { repository, digest, at_telling_tag });
        }
    }

    fn is_known(&self, repository: &Repository, manifest: &TagOrDigest) -> bool {
        match manifest {
            TagOrDigest::Tag(tag) => tag.scheme() == Some(TagScheme::Referrers),
            TagOrDigest::Digest(digest) => {
                let (repository, digest) = (repository.clone(), digest.clone());
                self.read.contains_key(&Pulled { repository, digest, at_telling_tag: false })
            }
        }
    }

    /// What is worth being read of an answer, as far as there is room for it.
    fn passing(
        &self,
        repository: Repository,
        manifest: TagOrDigest,
        watch: Watch,
        response: &Response<Body>,
    ) -> Option<Passing> {
        let headers = response.headers();
        if response.status() != StatusCode::OK || headers.contains_key(CONTENT_ENCODING) {
            return None;
        }
        let (digest, at_telling_tag) = match &manifest {
            TagOrDigest::Tag(tag) => (content_digest(headers)?, tag.scheme().is_some()),
            TagOrDigest::Digest(digest) => (digest.clone(), false),
        };
        let pulled = Pulled { repository, digest, at_telling_tag };
        if self.read.contains_key(&pulled) || self.index.state() != State::Ready {
            return None;
        }
        let length = response.body().size_hint().upper();
        let length =
            length.map_or(self.reading.max_bytes(), |length| usize::try_from(length).unwrap_or(usize::MAX));
        if length > self.reading.max_bytes() {
            return None;
        }
        let permit = Arc::clone(&self.budget).try_acquire_many_owned(u32::try_from(length).ok()?).ok()?;
        let content_type = content_type(headers).map(str::to_owned);
        Some(Passing { pulled, manifest, content_type, watch, permit })
    }

    /// Records the links of a manifest that passed. Tells whether it need not be read again.
    async fn learn(&self, passing: Passing, bytes: &Bytes) -> bool {
        let Passing { pulled: Pulled { repository, digest, .. }, manifest, content_type, watch, permit } =
            passing;
        let algorithm = digest.algorithm();
        let read = self.reading.read(&repository, &manifest, algorithm, bytes, content_type.as_deref()).await;
        let ReadManifest { referrer, claims, .. } = match read {
            Ok(read) if read.referrer.digest == digest => {
                let has_room = read.referrer.links.is_empty() || self.index.has_room(&repository).await;
                self.reading.within(&repository, read, has_room)
            }
            Ok(_) => {
                tracing::warn!(repository = %repository.name, %digest,
                    "a manifest from the registry is not what its digest says; nothing is learnt from it");
                return true;
            }
            Err(error) => {
                tracing::warn!(repository = %repository.name, %digest, %error, "a manifest could not be read");
                return false;
            }
        };
        let count = referrer.links.len() + claims.len();
        let mut learnt = vec![Learnt { referrer, claimed: false }];
        learnt.extend(claims);
        let links = learnt.iter().flat_map(|learnt| &learnt.referrer.links);
        let kinds: Vec<LinkKind> = links.map(|link| link.kind).collect();
        if let Err(error) = self.index.learn(&watch, learnt).await {
            tracing::warn!(repository = %repository.name, %digest, %error,
                "the links of a manifest that was pulled could not be recorded");
            return false;
        }
        drop(permit);
        self.metrics.links(kinds, LinkOutcome::Learnt);
        tracing::debug!(repository = %repository.name, %digest, links = count, "read a manifest that was pulled");
        true
    }
}
