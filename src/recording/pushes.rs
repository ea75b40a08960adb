//! Manifests that are pushed and deleted.
//!
//! # PUT
//! 1. The manifest is read up to `manifests.max_bytes`. A longer one, or one without links, is only passed on.
//! 2. Its links are written to the journal as pending, before the request goes to the registry. If that fails the
//!    client gets a 5xx and can repeat the push.
//! 3. The request goes to the registry, with the bytes as they came.
//! 4. 201 (or another 2xx with the digest): the links are confirmed, and only then the client gets the answer, with
//!    `OCI-Subject` if there is a subject; where refshim writes referrers tags, that of the subject is queued before
//!    it. 4xx, a redirect, or no connection: the links are dropped. Any other failure: they stay pending, since the
//!    registry may have stored the manifest.
//!
//! `OCI-Subject` is sent only after both the registry's 2xx and the write. Were the write to fail, a 201 without that
//! header would lose the link: crane and cosign ignore the header, see 200 from `/referrers`, and write no referrers
//! tag. So the client gets a 5xx instead.
//!
//! From step 2 on the work runs in a task of its own, which a client that goes away does not stop.
//!
//! # DELETE
//! A 202 or 204 removes the links of which the manifest is the referrer. Links to it as a subject stay: the
//! specification leaves them undefined, and a subject may be pushed again.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, EXPECT, TRAILER};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use crate::http::body::{Body, Held};
use crate::http::header::OCI_SUBJECT;
use crate::http::limits::RequestGuard;
use crate::index::{Index, Observation, PutInFlight, Referrer, Repository, UpstreamRead, Version};
use crate::oci::{Descriptor, Digest, LinkKind, TagOrDigest};
use crate::proxy::error::Error;
use crate::proxy::forward::{self, Origin};
use crate::proxy::upstream::{Upstream, UpstreamError};
use crate::recording::advice::{tell_way_out, warn, warned};
use crate::recording::pulls::PullRecorder;
use crate::recording::unlisted::UnlistedSubjects;
use crate::recording::write::{Writing, is_refusal, is_taken};
use crate::registry::reader::{ManifestReader, ReadManifest};
use crate::registry::{Registry, content_digest};
use crate::telemetry::{Audit, AuditEntry, Audited, LinkOutcome, Metrics, within_this_request};

/// Passes pushes and deletions on, and records them.
#[derive(Clone, Debug)]
pub struct PushRecorder {
    upstream: Arc<Upstream>,
    registry: Arc<Registry>,
    pulls: Arc<PullRecorder>,
    index: Index,
    reader: ManifestReader,
    unlisted: UnlistedSubjects,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    audit: Audit,
}

/// Whether the registry deleted a manifest: 202 (distribution-spec, "Deleting Manifests"), or 204 as some answer. A
/// 200 may be a login page.
fn is_deleted(status: StatusCode) -> bool {
    matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT)
}

/// A PUT whose manifest has links.
struct Recording {
    repository: Repository,
    manifest: ReadManifest,
    origin: Origin,
    request: Box<Request<Body>>,
    bytes: Bytes,
    in_progress: RequestGuard,
}

impl PushRecorder {
    /// A recorder whose work goes on in `tasks` when a client goes away.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        pulls: Arc<PullRecorder>,
        index: Index,
        reader: ManifestReader,
        unlisted: UnlistedSubjects,
        (tasks, audit): (TaskTracker, Audit),
    ) -> Self {
        let (upstream, metrics) = (registry.upstream(), unlisted.metrics());
        Self { upstream, registry, pulls, index, reader, unlisted, metrics, tasks, audit }
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
        let (head, body) = request.into_parts();
        let read = self.reader.pushed(body, in_progress.clone()).await;
        let bytes = match read.map_err(Error::request_body)? {
            Held::Whole(bytes) => bytes,
            Held::Longer(body) => {
                let warning = self.reader.too_long(&repository, &manifest);
                let request = Box::new(Request::from_parts(head, body));
                return Ok(warned(self.send(&repository, &origin, request).await?, Some(&warning)));
            }
        };
        self.put_whole((repository, manifest), origin, head, bytes, in_progress).await
    }

    /// The same of a manifest that is in memory, with the head of its request.
    pub async fn put_whole(
        &self,
        (repository, manifest): (Repository, TagOrDigest),
        origin: Origin,
        mut head: Parts,
        bytes: Bytes,
        in_progress: RequestGuard,
    ) -> Result<Response<Body>, Error> {
        // The body is here already: the registry is sent a Content-Length, no `100-continue` and no trailers.
        head.headers.remove(EXPECT);
        head.headers.remove(TRAILER);
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let algorithm = manifest.algorithm();
        let parsed = self.reader.parse(&repository, &manifest, algorithm, &bytes, content_type).await?;
        let request = Box::new(Request::from_parts(head, Body::whole(bytes.clone())));
        let is_list_of = self.unlisted.of_list(&manifest);
        if !parsed.has_links() && is_list_of.is_none() {
            let response = self.send(&repository, &origin, request).await?;
            return Ok(warned(response, parsed.warning()));
        }
        let manifest = self.reader.describe(&repository, parsed)?;
        // Boxed, or a push without links would have its size.
        let recording = Recording { repository, manifest, origin, request, bytes, in_progress };
        Box::pin(self.put_links(recording, is_list_of)).await
    }

    /// Passes on a PUT with links, or of the list of a subject's referrers.
    async fn put_links(
        &self,
        mut recording: Recording,
        is_list_of: Option<Digest>,
    ) -> Result<Response<Body>, Error> {
        let Recording { repository, manifest, .. } = &mut recording;
        let has_room = manifest.referrer.links.is_empty() || self.index.has_room(repository).await;
        self.reader.keep_within(repository, manifest, has_room);
        let warning = manifest.warning.clone();
        let response = if manifest.referrer.links.is_empty() && is_list_of.is_none() {
            self.send(&recording.repository, &recording.origin, recording.request).await?
        } else {
            let manifests = self.clone();
            let task = async move {
                match is_list_of {
                    Some(subject) => manifests.pass_list(recording, &subject).await,
                    None => manifests.record(recording).await,
                }
            };
            let task = self.tasks.spawn(within_this_request(task));
            task.await.map_err(|_| Error::Handler)??
        };
        Ok(warned(response, warning.as_deref()))
    }

    /// Passes on a write that is not recorded, as it comes.
    pub async fn pass(
        &self,
        repository: Repository,
        origin: &Origin,
        request: Box<Request<Incoming>>,
        in_progress: &RequestGuard,
    ) -> Result<Response<Body>, Error> {
        let request = forward::from_client(request, &self.upstream, in_progress);
        self.send(&repository, origin, request).await
    }

    /// Passes on a write of which nothing is recorded.
    async fn send(
        &self,
        repository: &Repository,
        origin: &Origin,
        request: Box<Request<Body>>,
    ) -> Result<Response<Body>, Error> {
        let write = Writing::begin(&self.registry, repository);
        let answer = forward::send(&self.upstream, origin, request).await;
        write.ends(&answer);
        answer
    }

    /// Passes on a client's own write of the list at a referrers tag, which is then looked at again.
    async fn pass_list(&self, recording: Recording, subject: &Digest) -> Result<Response<Body>, Error> {
        let repository = recording.repository.clone();
        let answer = if recording.manifest.referrer.links.is_empty() {
            let Recording { origin, request, in_progress: _in_progress, .. } = recording;
            self.send(&repository, &origin, request).await
        } else {
            self.record(recording).await
        };
        // Unless it certainly was not written.
        let response = match answer {
            Ok(response) if !is_refusal(response.status()) => response,
            Ok(_) => return answer,
            Err(error) => {
                // The failure is told anyway.
                self.unlisted.add(&repository, subject).await.ok();
                return Err(error);
            }
        };
        let warning = self.unlisted.add(&repository, subject).await.map_err(Error::Tag)?;
        Ok(warned(response, warning.as_deref()))
    }

    /// `DELETE /v2/<name>/manifests/<ref>`: removes the links of which the manifest is the referrer.
    pub async fn delete(
        &self,
        repository: Repository,
        manifest: TagOrDigest,
        origin: Origin,
        request: Box<Request<Incoming>>,
        in_progress: RequestGuard,
    ) -> Result<Response<Body>, Error> {
        let manifests = self.clone();
        let task = async move {
            let request = forward::from_client(request, &manifests.upstream, &in_progress);
            let audited = manifests.audited(&origin, &request, &repository);
            let mut entry = manifests.audit.deletion(audited, &manifest);
            let answer = match manifest {
                TagOrDigest::Tag(_) => manifests.send(&repository, &origin, request).await,
                TagOrDigest::Digest(digest) => {
                    manifests.delete_digest(repository, digest, &origin, request, entry.as_mut()).await
                }
            };
            answered(entry, answer)
        };
        self.tasks.spawn(within_this_request(task)).await.map_err(|_| Error::Handler)?
    }

    async fn delete_digest(
        &self,
        repository: Repository,
        digest: Digest,
        origin: &Origin,
        request: Box<Request<Body>>,
        entry: Option<&mut AuditEntry>,
    ) -> Result<Response<Body>, Error> {
        // The version before the DELETE: should a push record the manifest again meanwhile, the removal is stale and
        // only makes it pending. So it does if the version is unknown, and the next query asks the registry.
        let seen = self.index.version(&repository, &digest).await;
        if let (Some(entry), Ok(seen)) = (entry, &seen) {
            entry.was_referrer(seen.is_some());
        }
        let seen = seen.ok().flatten();
        let answer = self.send(&repository, origin, request).await;
        let seen = match answer {
            Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                self.pulls.forget(&repository, &digest);
                // More than a 404 to a read: an earlier DELETE may have been done whose answer was lost.
                if let Err(error) = self.index.disown(repository.clone(), digest.clone()).await {
                    tracing::warn!(repository = %repository.name, %digest, %error,
                        "a client deleted a manifest that is not there, but the index could not be \
                         written; a list may still have it");
                }
                return Ok(response);
            }
            Ok(ref response) if response.status().is_client_error() => return answer,
            Ok(ref response) if is_deleted(response.status()) => seen.unwrap_or(Version::UNKNOWN),
            Err(Error::Upstream(UpstreamError::Unreachable(_))) => return answer,
            // Unclear whether it was deleted: its links become pending, and the next query asks the registry.
            Ok(_) | Err(_) => Version::UNKNOWN,
        };
        self.pulls.forget(&repository, &digest);
        let name = repository.name.clone();
        if let Err(error) = self.index.remove(repository, digest.clone(), seen).await {
            tracing::error!(repository = %name, %digest, %error,
                "the registry deleted a manifest, but its links could not be removed from the \
                 index; the next query checks them");
        }
        answer
    }

    async fn record(&self, recording: Recording) -> Result<Response<Body>, Error> {
        // Counts as this client's request until it is done, or a client could evade its limit by hanging up.
        let Recording { repository, manifest, origin, request, bytes, in_progress: _in_progress } = recording;
        let ReadManifest { referrer, claims, subject, .. } = manifest;
        let kinds: Vec<LinkKind> = referrer.links.iter().map(|link| link.kind).collect();
        let all = std::iter::once(&referrer).chain(claims.iter().map(|claim| &claim.referrer));
        let mut entry = self.audit.push(self.audited(&origin, &request, &repository), &referrer.digest, all);
        let watch = self.index.begin_read(repository.clone()).await;
        let write = Writing::begin(&self.registry, &repository);
        // Durable before the request is sent: should the process die now, the next start finds the pending links.
        let put = self.index.begin(repository.clone(), referrer.clone()).await.map_err(Error::Record)?;
        let mut answer = forward::send(&self.upstream, &origin, request).await;
        if let (Some(entry), Ok(response)) = (&mut entry, &answer) {
            entry.answered(response.status());
        }
        let outcome = match &mut answer {
            Ok(response) if is_taken(response, &referrer.digest) => {
                let digest = content_digest(response.headers());
                self.confirm(put, &repository, referrer, digest, &watch).await?;
                self.claim(&watch, claims).await?;
                if let Some(subject) = subject {
                    let warning = self.unlisted.add(&repository, &subject).await.map_err(Error::Tag)?;
                    warn(response, warning.as_deref());
                    let value = HeaderValue::try_from(subject.to_string()).map_err(|_| Error::Handler)?;
                    response.headers_mut().insert(OCI_SUBJECT, value);
                }
                LinkOutcome::Recorded
            }
            Ok(response) if is_refusal(response.status()) => {
                if let Some(subject) = &subject {
                    let manifest = (&referrer.digest, &*bytes);
                    tell_way_out(&self.metrics, &repository, manifest, subject, response.status());
                }
                refuse(put, &repository, &referrer).await
            }
            // No connection: the registry certainly did not get the request.
            Err(Error::Upstream(UpstreamError::Unreachable(_))) => refuse(put, &repository, &referrer).await,
            Ok(_) | Err(_) => {
                tracing::warn!(repository = %repository.name, digest = %referrer.digest,
                    "the registry did not say whether it accepted a manifest; its links stay \
                     pending until a query checks them");
                if let Some(subject) = &subject {
                    // The client is told of the registry's failure, whatever becomes of this.
                    let _failed = self.unlisted.add(&repository, subject).await;
                }
                LinkOutcome::Pending
            }
        };
        if let Some(mut entry) = entry {
            entry.recorded(outcome);
        }
        self.metrics.links(kinds, outcome);
        write.ends(&answer);
        answer
    }

    fn audited<'a>(
        &'a self,
        origin: &Origin,
        request: &'a Request<Body>,
        repository: &'a Repository,
    ) -> Audited<'a> {
        let (headers, client, upstream) = (request.headers(), origin.client(), self.upstream.name());
        Audited { headers, client, upstream, repository }
    }

    /// Records the links that an index states of its entries, once the registry has the index. They are pending: the
    /// next query asks whether it has the entries as well.
    async fn claim(&self, watch: &UpstreamRead, claims: Vec<Observation>) -> Result<(), Error> {
        if claims.is_empty() {
            return Ok(());
        }
        let kinds: Vec<LinkKind> =
            claims.iter().flat_map(|claim| &claim.referrer.links).map(|link| link.kind).collect();
        self.index.observe(watch, claims).await.map_err(Error::Record)?;
        self.metrics.links(kinds, LinkOutcome::Pending);
        Ok(())
    }

    /// Confirms a push. If the registry answered with another digest than ours, the links of both stay pending, and
    /// the next query asks which of them it has.
    async fn confirm(
        &self,
        put: PutInFlight,
        repository: &Repository,
        referrer: Referrer,
        upstreams: Option<Digest>,
        watch: &UpstreamRead,
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
                // As a claim, with what only its tag says: that is recorded of a PUT when it is confirmed, and this
                // one is not.
                let claim = Observation { referrer: renamed, claimed: true };
                self.claim(watch, vec![claim]).await?;
                drop(put);
                digest
            }
        };
        tracing::info!(repository = %repository.name, %digest, links = count, "recorded a manifest's links");
        Ok(())
    }
}

/// Ends an entry of the audit log with what the client is answered.
fn answered(
    entry: Option<AuditEntry>,
    answer: Result<Response<Body>, Error>,
) -> Result<Response<Body>, Error> {
    if let (Some(mut entry), Ok(response)) = (entry, &answer) {
        entry.answered(response.status());
    }
    answer
}

async fn refuse(put: PutInFlight, repository: &Repository, referrer: &Referrer) -> LinkOutcome {
    match put.refuse().await {
        Ok(()) => LinkOutcome::Refused,
        Err(error) => {
            tracing::warn!(repository = %repository.name, digest = %referrer.digest, %error,
                "the registry rejected a manifest, but its links could not be dropped; they stay \
                 pending until a query checks them");
            LinkOutcome::Pending
        }
    }
}

fn with_digest(descriptor: &str, digest: &Digest) -> String {
    let renamed = serde_json::from_str::<Descriptor>(descriptor).and_then(|mut descriptor| {
        descriptor.digest = digest.clone();
        serde_json::to_string(&descriptor)
    });
    renamed.unwrap_or_else(|_| descriptor.to_owned())
}
