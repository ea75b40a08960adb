//! PushRecorder on their way to the upstream: the links of a PUT are recorded before it, and confirmed
//! by the upstream's answer; a DELETE removes what its manifest referred to. The bytes go on as they
//! came. Once a manifest was read whole, a client that goes away stops nothing.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, EXPECT, TRAILER, WARNING};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::http::body::{Body, Held};
use crate::http::header::OCI_SUBJECT;
use crate::http::limits::RequestGuard;
use crate::index::{Index, Learnt, PutInFlight, Referrer, Repository, Version, Watch};
use crate::oci::{Algorithm, Descriptor, Digest, LinkKind, TagOrDigest, is_buildkit_attestation};
use crate::proxy::error::Error;
use crate::proxy::forward::{self, Origin};
use crate::proxy::upstream::{Upstream, UpstreamError};
use crate::recording::pulls::PullRecorder;
use crate::registry::reader::{ManifestReader, ReadManifest};
use crate::registry::{Registry, content_digest};
use crate::telemetry::{LinkOutcome, Metrics};

/// Records what passes.
#[derive(Clone, Debug)]
pub struct PushRecorder {
    upstream: Arc<Upstream>,
    registry: Arc<Registry>,
    pulls: Arc<PullRecorder>,
    index: Index,
    reader: ManifestReader,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
}

/// A write on its way. What is remembered of the repository is forgotten at its end, also where nobody waits for
/// that any more. A refused write changed nothing: whoever may not write must not make refshim ask everything anew.
struct Writing<'a> {
    registry: &'a Registry,
    repository: &'a Repository,
    was_refused: bool,
}

impl Writing<'_> {
    fn ends(mut self, answer: &Result<Response<Body>, Error>) {
        self.was_refused = match answer {
            Ok(response) => is_refusal(response.status()),
            Err(Error::Upstream(UpstreamError::Unreachable(_))) => true,
            Err(_) => false,
        };
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.was_refused {
            self.registry.forget(self.repository);
        }
    }
}

/// Whether a write was not done, be it that it is to be tried elsewhere: redirects lead to login pages.
fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() || status.is_redirection()
}

/// Whether an answer says that a manifest was taken: 201 (distribution-spec, "Pushing manifests"), or another 2xx
/// with the digest, as Quay answered for years. A login page with 200 says nothing.
fn is_taken(response: &Response<Body>, pushed: &Digest) -> bool {
    let is_named = || content_digest(response.headers()).as_ref() == Some(pushed);
    response.status() == StatusCode::CREATED || (response.status().is_success() && is_named())
}

/// Whether an answer says that a manifest was deleted: 202 (distribution-spec, "Deleting manifests") or, as some
/// have it, 204. A login page with 200 says nothing.
fn is_deleted(status: StatusCode) -> bool {
    matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT)
}

/// One PUT whose manifest carries links.
struct Recording {
    repository: Repository,
    manifest: ReadManifest,
    origin: Origin,
    request: Request<Body>,
    bytes: Bytes,
    in_progress: RequestGuard,
}

impl PushRecorder {
    /// Tasks that outlive their client run on `tasks`.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        pulls: Arc<PullRecorder>,
        index: Index,
        reader: ManifestReader,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Self {
        Self { upstream: registry.upstream(), registry, pulls, index, reader, metrics, tasks }
    }

    /// `PUT /v2/<name>/manifests/<ref>`.
    pub async fn put(
        &self,
        repository: Repository,
        manifest: TagOrDigest,
        origin: Origin,
        request: Request<Incoming>,
        in_progress: RequestGuard,
    ) -> Result<Response<Body>, Error> {
        let (mut head, body) = request.into_parts();
        let read = self.reader.pushed(body, in_progress.clone()).await;
        let bytes = match read.map_err(Error::request_body)? {
            Held::Whole(bytes) => bytes,
            Held::Longer(body) => {
                let warning = self.reader.too_long(&repository, &manifest);
                let request = Request::from_parts(head, body);
                return Ok(warned(self.send(&repository, &origin, request).await?, Some(&warning)));
            }
        };
        head.headers.remove(EXPECT);
        head.headers.remove(TRAILER);
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let algorithm = algorithm_of(&manifest);
        let read = self.reader.read(&repository, &manifest, algorithm, &bytes, content_type).await?;
        let has_room = read.referrer.links.is_empty() || self.index.has_room(&repository).await;
        let read = self.reader.within(&repository, read, has_room);
        let warning = read.warning.clone();
        let request = Request::from_parts(head, Body::whole(bytes.clone()));
        let response = if read.referrer.links.is_empty() {
            self.send(&repository, &origin, request).await?
        } else {
            let recording = Recording { repository, manifest: read, origin, request, bytes, in_progress };
            let manifests = self.clone();
            let task = async move { manifests.record(recording).await };
            let task = self.tasks.spawn(task.in_current_span());
            task.await.map_err(|_| Error::Handler)??
        };
        Ok(warned(response, warning.as_deref()))
    }

    /// Sends a PUT of which nothing is recorded.
    async fn send(
        &self,
        repository: &Repository,
        origin: &Origin,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let write = Writing { registry: &self.registry, repository, was_refused: false };
        let answer = forward::send(&self.upstream, origin, request).await;
        write.ends(&answer);
        answer
    }

    /// `DELETE /v2/<name>/manifests/<ref>`: what a manifest referred to goes with it, what refers to it stays.
    pub async fn delete(
        &self,
        repository: Repository,
        manifest: TagOrDigest,
        origin: Origin,
        request: Request<Incoming>,
        in_progress: RequestGuard,
    ) -> Result<Response<Body>, Error> {
        let manifests = self.clone();
        let task = async move {
            let idle = manifests.upstream.body_idle();
            let request = request.map(|body| Body::from_client(body, idle, in_progress.clone()));
            match manifest {
                TagOrDigest::Tag(_) => manifests.send(&repository, &origin, request).await,
                TagOrDigest::Digest(digest) => {
                    manifests.delete_digest(repository, digest, &origin, request).await
                }
            }
        };
        self.tasks.spawn(task.in_current_span()).await.map_err(|_| Error::Handler)?
    }

    async fn delete_digest(
        &self,
        repository: Repository,
        digest: Digest,
        origin: &Origin,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        // What could not be looked up, or is not known yet, is settled by the next query.
        let seen = self.index.version(&repository, &digest).await.ok().flatten();
        let answer = self.send(&repository, origin, request).await;
        let seen = match answer {
            Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                return self.pulls.heard(&repository, &TagOrDigest::Digest(digest), response).await;
            }
            Ok(ref response) if response.status().is_client_error() => return answer,
            Ok(ref response) if is_deleted(response.status()) => seen.unwrap_or(Version::UNKNOWN),
            Err(Error::Upstream(UpstreamError::Unreachable(_))) => return answer,
            // Whether it was deleted is settled by the next query too.
            Ok(_) | Err(_) => Version::UNKNOWN,
        };
        self.pulls.forget(&repository, &digest);
        let name = repository.name.clone();
        if let Err(error) = self.index.remove(repository, digest.clone(), seen).await {
            tracing::error!(repository = %name, %digest, %error,
                "a manifest was deleted, but its links could not be removed from the index");
        }
        answer
    }

    async fn record(&self, recording: Recording) -> Result<Response<Body>, Error> {
        // The client may be gone, and could begin another: the work counts as its request until it is done.
        let Recording { repository, manifest, origin, request, bytes, in_progress: _in_progress } = recording;
        let ReadManifest { referrer, claims, subject, .. } = manifest;
        let kinds: Vec<LinkKind> = referrer.links.iter().map(|link| link.kind).collect();
        let watch = self.index.watch(repository.clone());
        let write = Writing { registry: &self.registry, repository: &repository, was_refused: false };
        let put = self.index.begin(repository.clone(), referrer.clone()).await.map_err(Error::Record)?;
        let mut answer = forward::send(&self.upstream, &origin, request).await;
        let outcome = match &mut answer {
            Ok(response) if is_taken(response, &referrer.digest) => {
                let digest = content_digest(response.headers());
                self.confirm(put, &repository, referrer, digest).await?;
                self.claim(&watch, claims).await?;
                if let Some(subject) = subject {
                    let value = HeaderValue::try_from(subject.to_string()).map_err(|_| Error::Handler)?;
                    response.headers_mut().insert(OCI_SUBJECT, value);
                }
                LinkOutcome::Recorded
            }
            Ok(response) if is_refusal(response.status()) => {
                if let Some(subject) = &subject {
                    self.tell_way_out(&repository, &referrer.digest, subject, response.status(), &bytes);
                }
                refuse(put, &repository, &referrer).await
            }
            Err(Error::Upstream(UpstreamError::Unreachable(_))) => refuse(put, &repository, &referrer).await,
            Ok(_) | Err(_) => {
                tracing::warn!(repository = %repository.name, digest = %referrer.digest,
                    "the registry did not say whether it took a manifest, its links stay pending");
                LinkOutcome::Pending
            }
        };
        self.metrics.links(kinds, outcome);
        write.ends(&answer);
        answer
    }

    /// BuildKit pushes an attestation before the image that it is about. Registries that want a subject to be
    /// there refuse it, GitLab's and ECR among them; the answer is theirs, how to push all the same is not in it.
    fn tell_way_out(
        &self,
        repository: &Repository,
        digest: &Digest,
        subject: &Digest,
        status: StatusCode,
        bytes: &[u8],
    ) {
        let is_about_content = matches!(
            status,
            StatusCode::BAD_REQUEST
                | StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::CONFLICT
                | StatusCode::UNPROCESSABLE_ENTITY
        );
        if !is_about_content || !is_buildkit_attestation(bytes) {
            return;
        }
        self.metrics.attestation_refused();
        tracing::warn!(repository = %repository.name, %digest, %subject, status = status.as_u16(),
            "the registry refused an attestation whose subject it may not have yet; if BuildKit pushed it, build \
             with the exporter option oci-artifact=false");
    }

    /// What an index says of its entries counts once the registry has the index. Whether it has the entries
    /// as well, the next query asks.
    async fn claim(&self, watch: &Watch, claims: Vec<Learnt>) -> Result<(), Error> {
        if claims.is_empty() {
            return Ok(());
        }
        let kinds: Vec<LinkKind> =
            claims.iter().flat_map(|claim| &claim.referrer.links).map(|link| link.kind).collect();
        self.index.learn(watch, claims).await.map_err(Error::Record)?;
        self.metrics.links(kinds, LinkOutcome::Pending);
        Ok(())
    }

    /// Should the upstream give the manifest another digest than ours, both stay pending: the next query asks
    /// which of them it has.
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
                drop((put, again));
                digest
            }
        };
        tracing::info!(repository = %repository.name, %digest, links = count, "recorded a manifest's links");
        Ok(())
    }
}

/// Tells the one who pushed a manifest which links of it are not recorded (RFC 9111, section 5.5 of its
/// predecessor RFC 7234).
fn warned(mut response: Response<Body>, warning: Option<&str>) -> Response<Body> {
    if let Some(warning) = warning.filter(|_| response.status().is_success())
        && let Ok(value) = HeaderValue::try_from(format!("299 - \"refshim: {warning}\""))
    {
        response.headers_mut().append(WARNING, value);
    }
    response
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
