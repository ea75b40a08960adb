//! Manifests on their way to the upstream: the links of a PUT are recorded before it, and confirmed
//! by the upstream's answer; a DELETE removes what its manifest referred to. The bytes go on as they
//! came. Once a manifest was read whole, a client that goes away stops nothing.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, EXPECT, TRAILER};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use crate::access::{Access, content_digest};
use crate::body::{Body, Read, read_up_to};
use crate::config;
use crate::error::Error;
use crate::forward::{self, Origin};
use crate::index::{Index, PutInFlight, Referrer, Repository, Version};
use crate::oci::{Algorithm, Descriptor, Digest, LinkKind, ManifestLinks, TagOrDigest, links_of};
use crate::telemetry::{LinkOutcome, Metrics, Unrecorded};
use crate::upstream::{Upstream, UpstreamError};

/// Longer manifests are read for links where blocking is allowed.
const READ_IN_PLACE_BYTES: usize = 64 * 1024;

/// Records what passes.
#[derive(Clone, Debug)]
pub struct Manifests {
    upstream: Arc<Upstream>,
    access: Arc<Access>,
    index: Index,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    max_bytes: usize,
    max_links_bytes: usize,
}

/// One PUT whose manifest carries links.
struct Recording {
    repository: Repository,
    referrer: Referrer,
    origin: Origin,
    request: Request<Body>,
}

impl Manifests {
    /// Tasks that outlive their client run on `tasks`.
    #[must_use]
    pub fn new(
        upstream: Arc<Upstream>,
        access: Arc<Access>,
        index: Index,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        settings: &config::Manifests,
    ) -> Self {
        let config::Manifests { max_bytes, max_links_bytes } = *settings;
        Self { upstream, access, index, metrics, tasks, max_bytes, max_links_bytes }
    }

    /// `PUT /v2/<name>/manifests/<ref>`.
    pub async fn put(
        &self,
        repository: Repository,
        manifest: TagOrDigest,
        origin: Origin,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Error> {
        let (mut head, body) = request.into_parts();
        self.access.forget(&repository);
        let read = read_up_to(body, self.max_bytes, self.upstream.body_idle()).await;
        let bytes = match read.map_err(Error::RequestBody)? {
            Read::Whole(bytes) => bytes,
            Read::Longer(body) => {
                tracing::warn!(repository = %repository.name, manifest = %manifest, limit = self.max_bytes,
                    "a manifest is longer than the limit, its links are not recorded");
                self.metrics.unrecorded(Unrecorded::TooLong, 1);
                return forward::send(&self.upstream, &origin, Request::from_parts(head, body)).await;
            }
        };
        head.headers.remove(EXPECT);
        head.headers.remove(TRAILER);
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let found = if bytes.len() <= READ_IN_PLACE_BYTES {
            links_of(&bytes, content_type)
        } else {
            let (bytes, content_type) = (bytes.clone(), content_type.map(str::to_owned));
            let reading = tokio::task::spawn_blocking(move || links_of(&bytes, content_type.as_deref()));
            reading.await.map_err(|_| Error::Handler)?
        };
        self.tell_refusals(&repository, &manifest, &found);
        let digest = Digest::of(algorithm_of(&manifest), &bytes);
        let request = Request::from_parts(head, Body::whole(bytes.clone()));
        match self.referrer(&repository, digest, bytes.len(), found)? {
            None => forward::send(&self.upstream, &origin, request).await,
            Some(referrer) => {
                let recording = Recording { repository, referrer, origin, request };
                let manifests = self.clone();
                let task = self.tasks.spawn(async move { manifests.record(recording).await });
                task.await.map_err(|_| Error::Handler)?
            }
        }
    }

    /// `DELETE /v2/<name>/manifests/<digest>`: what the manifest referred to goes with it, what
    /// refers to it stays.
    pub async fn delete(
        &self,
        repository: Repository,
        digest: Digest,
        origin: Origin,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Error> {
        self.access.forget(&repository);
        let manifests = self.clone();
        let task = self.tasks.spawn(async move {
            // What could not be looked up, or is not known yet, is settled by the next query.
            let seen = manifests.index.version(&repository, &digest).await.ok().flatten();
            let idle = manifests.upstream.body_idle();
            let request = request.map(|body| Body::from_client(body, idle));
            let response = forward::send(&manifests.upstream, &origin, request).await?;
            if response.status().is_success() {
                let name = repository.name.clone();
                let seen = seen.unwrap_or(Version::UNKNOWN);
                if let Err(error) = manifests.index.remove(repository, digest.clone(), seen).await {
                    tracing::error!(repository = %name, %digest, %error,
                        "a manifest was deleted, but its links could not be removed from the index");
                }
            }
            Ok(response)
        });
        task.await.map_err(|_| Error::Handler)?
    }

    async fn record(&self, recording: Recording) -> Result<Response<Body>, Error> {
        let Recording { repository, referrer, origin, request } = recording;
        let kinds: Vec<LinkKind> = referrer.links.iter().map(|link| link.kind).collect();
        let put = self.index.begin(repository.clone(), referrer.clone()).await.map_err(Error::Record)?;
        let answer = forward::send(&self.upstream, &origin, request).await;
        let outcome = match &answer {
            Ok(response) if response.status().is_success() => {
                let digest = content_digest(response.headers());
                self.confirm(put, &repository, referrer, digest).await?;
                LinkOutcome::Recorded
            }
            Ok(response) if response.status().is_client_error() => refuse(put, &repository, &referrer).await,
            Err(Error::Upstream(UpstreamError::Unreachable(_))) => refuse(put, &repository, &referrer).await,
            Ok(_) | Err(_) => {
                tracing::warn!(repository = %repository.name, digest = %referrer.digest,
                    "the registry did not say whether it took a manifest, its links stay pending");
                LinkOutcome::Pending
            }
        };
        self.metrics.links(kinds, outcome);
        self.access.forget(&repository);
        answer
    }

    /// Under the digest that the upstream gives the manifest, should it differ from ours.
    async fn confirm(
        &self,
        put: PutInFlight,
        repository: &Repository,
        referrer: Referrer,
        upstreams: Option<Digest>,
    ) -> Result<(), Error> {
        let count = referrer.links.len();
        let digest = match upstreams.filter(|digest| *digest != referrer.digest) {
            None => {
                put.confirm().await.map_err(Error::Record)?;
                referrer.digest
            }
            Some(digest) => {
                let renamed = Referrer {
                    descriptor: with_digest(&referrer.descriptor, &digest),
                    digest: digest.clone(),
                    links: referrer.links,
                };
                let again = self.index.begin(repository.clone(), renamed).await.map_err(Error::Record)?;
                again.confirm().await.map_err(Error::Record)?;
                put.refuse().await.map_err(Error::Record)?;
                digest
            }
        };
        tracing::info!(repository = %repository.name, %digest, links = count, "recorded a manifest's links");
        Ok(())
    }

    /// The manifest as a referrer, if it carries links that can be recorded.
    fn referrer(
        &self,
        repository: &Repository,
        digest: Digest,
        size: usize,
        found: ManifestLinks,
    ) -> Result<Option<Referrer>, Error> {
        let ManifestLinks { links, media_type, artifact_type, annotations, .. } = found;
        if links.is_empty() {
            return Ok(None);
        }
        let descriptor = Descriptor {
            media_type,
            digest: digest.clone(),
            size: size as u64,
            artifact_type,
            annotations,
            data: None,
        };
        let descriptor = serde_json::to_string(&descriptor).map_err(|_| Error::Handler)?;
        if links.len().saturating_mul(descriptor.len()) > self.max_links_bytes {
            tracing::warn!(repository = %repository.name, %digest, links = links.len(),
                descriptor_bytes = descriptor.len(), limit = self.max_links_bytes,
                "a manifest has too many links for so long a descriptor, they are not recorded");
            self.metrics.unrecorded(Unrecorded::TooMany, links.len());
            return Ok(None);
        }
        Ok(Some(Referrer { digest, descriptor, links }))
    }

    fn tell_refusals(&self, repository: &Repository, manifest: &TagOrDigest, found: &ManifestLinks) {
        if found.refused == 0 {
            return;
        }
        self.metrics.unrecorded(Unrecorded::Malformed, found.refused);
        let told: Vec<String> = found.refusals.iter().map(ToString::to_string).collect();
        tracing::warn!(repository = %repository.name, manifest = %manifest, refused = found.refused,
            reasons = %told.join("; "), "malformed links of a manifest are not recorded");
    }
}

async fn refuse(put: PutInFlight, repository: &Repository, referrer: &Referrer) -> LinkOutcome {
    match put.refuse().await {
        Ok(()) => LinkOutcome::Refused,
        Err(error) => {
            tracing::warn!(repository = %repository.name, digest = %referrer.digest, %error,
                "the links of a refused manifest stay pending");
            LinkOutcome::Pending
        }
    }
}

fn algorithm_of(manifest: &TagOrDigest) -> Algorithm {
    match manifest {
        TagOrDigest::Tag(_) => Algorithm::Sha256,
        TagOrDigest::Digest(digest) => digest.algorithm(),
    }
}

fn with_digest(descriptor: &str, digest: &Digest) -> String {
    let renamed = serde_json::from_str::<Descriptor>(descriptor).and_then(|mut descriptor| {
        descriptor.digest = digest.clone();
        serde_json::to_string(&descriptor)
    });
    renamed.unwrap_or_else(|_| descriptor.to_owned())
}
