//! Attaching with one request: `POST /v2/<name>/manifests/<ref>/references` with any body makes an ordinary artifact of
//! it, which refshim pushes with the client's own rights. Every client can copy it, and every registry keep it. `GET` and
//! `DELETE` of one reference are here, too (`one`).
//!
//! # The steps
//! 1. **The request's head** is parsed whole: what is wrong with it is told before anything is asked.
//! 2. **The subject** is fetched, by tag or digest.
//! 3. **The registry begins an upload.** Up to here nothing of the body was read: a client that expects `100 Continue`
//!    gets it after the registry has let it push, or the registry's refusal in its place. Who may not read gets the
//!    challenge of the upload, which names both rights, so that one login does.
//! 4. **The body** streams to the registry, as one file or as the parts of a form (`files`, `upload`).
//! 5. **The manifest** is pushed as any client's push is ([`PushRecorder`]): nothing is acknowledged before it is recorded.
//!    It is the last, so that nothing is listed that is not whole.
//!
//! The work runs in a task of its own, so that a client that goes away leaves no upload open. Each request to the registry
//! has the client's credentials and no others; refshim's own are never used.
//!
//! # The same twice
//! A time of creation would make another artifact of each repetition, and clients repeat what they got no answer to. So,
//! unless the client gives a time (`annotation=org.opencontainers.image.created=…`): if a referrer is known that is, to the
//! byte, what this request makes with that referrer's time, its time is taken, and the push makes the same manifest again.
//! Nothing has to be fetched for that: the bytes with the time of each known referrer of the same length are made, and
//! their digest compared with its.

mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod one;
mod query;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT, LOCATION, WARNING};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use crate::http::body::Body;
use crate::http::header::{DOCKER_CONTENT_DIGEST, OCI_SUBJECT};
use crate::http::limits::RequestGuard;
use crate::http::route;
use crate::index::{Index, Repository, Scan};
use crate::oci::artifact::{
    CREATED, EMPTY_CONFIG, SubjectMember, artifact_manifest, created_now, empty_config,
};
use crate::oci::{Algorithm, Descriptor, Digest, TagOrDigest, media_type};
use crate::proxy::error::{BadAttachment, Error};
use crate::proxy::forward::{Origin, question_headers};
use crate::proxy::upstream::Upstream;
use crate::recording::pushes::PushRecorder;
use crate::registry::{Answer, FetchedManifest, Registry, Visit};
use crate::telemetry::within_this_request;

use files::{Files, Form, is_unasked};
use query::AttachQuery;
use upload::{Stop, Upload, Uploader};

/// The media type of a descriptor (image-spec, `descriptor.md`).
const DESCRIPTOR: HeaderValue = HeaderValue::from_static("application/vnd.oci.descriptor.v1+json");

/// Attaches, finds and detaches single references.
#[derive(Clone, Debug)]
pub struct Attacher {
    upstream: Arc<Upstream>,
    registry: Arc<Registry>,
    pushes: PushRecorder,
    index: Index,
    tasks: TaskTracker,
}

/// What a manifest is made of, but for the time of its creation.
struct Making {
    artifact_type: String,
    layers: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
    subject: Descriptor,
}

impl Attacher {
    /// Attaches by way of these pushes. Work that was begun goes on in `tasks` when a client goes away.
    #[must_use]
    pub fn new(registry: Arc<Registry>, pushes: PushRecorder, index: Index, tasks: TaskTracker) -> Self {
        Self { upstream: registry.upstream(), registry, pushes, index, tasks }
    }

    /// `POST /v2/<name>/manifests/<ref>/references`
    pub async fn attach(
        &self,
        visit: Visit,
        manifest: TagOrDigest,
        origin: Origin,
        request: Request<Incoming>,
        in_progress: RequestGuard,
    ) -> Result<Response<Body>, Error> {
        let attacher = self.clone();
        let task = async move { attacher.attach_whole(visit, manifest, origin, request, in_progress).await };
        self.tasks.spawn(within_this_request(task)).await.map_err(|_| Error::Handler)?
    }

    async fn attach_whole(
        &self,
        visit: Visit,
        manifest: TagOrDigest,
        origin: Origin,
        request: Request<Incoming>,
        in_progress: RequestGuard,
    ) -> Result<Response<Body>, Error> {
        let (head, incoming) = request.into_parts();
        let body = Body::from_client(incoming, self.upstream.body_idle(), in_progress.clone());
        let uploader = Uploader {
            upstream: Arc::clone(&self.upstream),
            headers: question_headers(&head.headers, &origin),
            origin,
            name: visit.repository.name.clone(),
        };
        let begun = async {
            if is_unasked(&head.headers) {
                return Err(BadAttachment::OtherSite.into());
            }
            let query = AttachQuery::parse(head.uri.query().unwrap_or_default())?;
            let form = Form::of(&head.headers, &query)?;
            if body.is_end_stream() {
                return Err(BadAttachment::Empty.into());
            }
            let subject = self.subject(&visit, &manifest, &uploader).await?;
            // Before the body: that is never sent to a registry that has not said yes.
            let upload = uploader.begin().await?;
            Ok::<_, Stop>((query, form, subject, upload))
        };
        let (query, form, subject, upload) = match begun.await {
            Ok(begun) => begun,
            Err(stop) => {
                // A body that is dropped is read a little further, since many clients read no answer before they have sent
                // all. Not so for one that waits to be asked: to read would ask for it (RFC 9110, section 10.1.1).
                if head.headers.contains_key(EXPECT) {
                    body.leave_unread();
                }
                return stop.into_result();
            }
        };
        let files = Files::of(form, &query, body);
        let layers = match store(files, query.digest.as_ref(), &uploader, upload).await {
            Ok(layers) => layers,
            Err(stop) => return stop.into_result(),
        };
        let AttachQuery { artifact_type, annotations, manifest: expected, .. } = query;
        let made = self.manifest(&visit, Making { artifact_type, layers, annotations, subject }).await;
        let found = &made.1.digest;
        if let Some(expected) = expected.filter(|expected| expected != found) {
            let (expected, found) = (expected.to_string(), found.to_string());
            return Err(BadAttachment::OtherManifest { expected, found }.into());
        }
        self.push_manifest(visit.repository, made, &uploader, in_progress).await
    }

    /// The subject's descriptor, as the registry serves it to this client.
    async fn subject(
        &self,
        visit: &Visit,
        manifest: &TagOrDigest,
        uploader: &Uploader,
    ) -> Result<Descriptor, Stop> {
        let error = match self.describe(visit, manifest).await {
            Ok(subject) => return Ok(subject),
            Err(error) => error,
        };
        if error.rejected() != Some(StatusCode::UNAUTHORIZED) {
            return Err(error.into());
        }
        // The challenge of the upload asks for the right to push as well.
        Err(match uploader.begin().await {
            Err(stop) => stop,
            Ok(upload) => {
                upload.cancel().await;
                error.into()
            }
        })
    }

    async fn describe(&self, visit: &Visit, manifest: &TagOrDigest) -> Result<Descriptor, Error> {
        let digest = self.resolve(visit, manifest).await?;
        let fetched = self.registry.fetch(visit, &TagOrDigest::Digest(digest.clone())).await?;
        let FetchedManifest { bytes, content_type } = present(fetched)?;
        let media_type = content_type.ok_or(Error::Undecided(StatusCode::OK))?;
        let (size, annotations) = (bytes.len() as u64, BTreeMap::new());
        Ok(Descriptor { media_type, digest, size, artifact_type: None, annotations, data: None })
    }

    /// The digest of a manifest, which need not exist if it is one.
    async fn resolve(&self, visit: &Visit, manifest: &TagOrDigest) -> Result<Digest, Error> {
        match manifest {
            TagOrDigest::Digest(digest) => Ok(digest.clone()),
            tag @ TagOrDigest::Tag(_) => Ok(present(self.registry.find(visit, tag).await?)?.digest),
        }
    }

    /// The manifest to push: one that is known already but for its time, or a new one.
    async fn manifest(&self, visit: &Visit, making: Making) -> (Bytes, Descriptor) {
        let making = Arc::new(making);
        let new = making.at(&created_now());
        // With a time that the client gives, there is no other.
        if making.annotations.contains_key(CREATED) {
            return new;
        }
        let (made, size) = (Arc::clone(&making), new.1.size);
        let scan = Scan {
            after: None,
            max_entries: 1,
            max_bytes: 0,
            max_claims: usize::MAX,
            accepts: Box::new(move |entry| {
                // By its length first, which costs less than its digest.
                let known = known_at(&entry.descriptor).filter(|known| known.size == size);
                known.is_some_and(|known| made.at(&known.created).1.digest == entry.digest)
            }),
        };
        // Where the index cannot be read, it is attached a second time at worst; that it can be written, the push shows.
        let subject = making.subject.digest.clone();
        let known = self.index.referrers(visit.repository.clone(), subject, scan).await;
        let same = known.ok().and_then(|page| known_at(&page.entries.first()?.descriptor));
        same.map_or(new, |known| making.at(&known.created))
    }

    /// Pushes the manifest as any client's.
    async fn push_manifest(
        &self,
        repository: Repository,
        (bytes, descriptor): (Bytes, Descriptor),
        uploader: &Uploader,
        in_progress: RequestGuard,
    ) -> Result<Response<Body>, Error> {
        let target = TagOrDigest::Digest(descriptor.digest.clone());
        let path = route::manifest_path(&uploader.name, &target);
        let mut request = uploader.request(Method::PUT, &path, Body::empty())?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type::IMAGE_MANIFEST));
        request.headers_mut().insert(CONTENT_LENGTH, bytes.len().into());
        let (head, _no_body) = request.into_parts();
        let origin = uploader.origin.clone();
        let pushed = self.pushes.put_whole((repository, target), origin, head, bytes, in_progress).await?;
        let has_link = pushed.headers().get(OCI_SUBJECT).cloned();
        match pushed.status() {
            StatusCode::CREATED => {}
            // Some say 200. Without the link it is something else that answered.
            status if status.is_success() && has_link.is_some() => {}
            status if status.is_client_error() || status.is_server_error() => return Ok(pushed),
            status => return Err(Error::Undecided(status)),
        }
        let text =
            |value: &dyn ToString| HeaderValue::try_from(value.to_string()).map_err(|_| Error::Handler);
        let json = serde_json::to_vec(&descriptor).map_err(|_| Error::Handler)?;
        let mut response = Response::new(Body::whole(json));
        *response.status_mut() = StatusCode::CREATED;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, DESCRIPTOR);
        headers.insert(LOCATION, text(&path)?);
        headers.insert(DOCKER_CONTENT_DIGEST, text(&descriptor.digest)?);
        headers.extend(has_link.map(|subject| (OCI_SUBJECT, subject)));
        // That a link was not recorded, and why.
        for warning in pushed.headers().get_all(WARNING) {
            headers.append(WARNING, warning.clone());
        }
        Ok(response)
    }
}

/// What the registry has, or an error.
fn present<T>(answer: Answer<T>) -> Result<T, Error> {
    match answer {
        Answer::Present(there) => Ok(there),
        Answer::Absent => Err(BadAttachment::NoSubject.into()),
        Answer::Odd(status) => Err(Error::Undecided(status)),
    }
}

/// Stores the files and the empty config; gives the files' descriptors. The upload is for the first file.
async fn store(
    mut files: Files,
    expected: Option<&Digest>,
    uploader: &Uploader,
    upload: Upload<'_>,
) -> Result<Vec<Descriptor>, Stop> {
    let (mut begun, mut layers) = (Some(upload), Vec::new());
    let stored = async {
        while let Some(file) = files.next().await? {
            let upload = match begun.take() {
                Some(upload) => upload,
                None => uploader.begin().await?,
            };
            layers.push(upload.store(file, expected).await?);
        }
        if layers.is_empty() {
            return Err(BadAttachment::Empty.into());
        }
        uploader.store(&empty_config().digest, EMPTY_CONFIG).await
    };
    let stored = stored.await;
    // One that no file came for.
    if let Some(upload) = begun {
        upload.cancel().await;
    }
    stored.map(|()| layers)
}

impl Making {
    /// The manifest with this time of creation, if the client gave none, and its descriptor.
    fn at(&self, created: &str) -> (Bytes, Descriptor) {
        let Self { artifact_type, layers, annotations, subject } = self;
        let mut annotations = annotations.clone();
        annotations.entry(CREATED.to_owned()).or_insert_with(|| created.to_owned());
        let bytes = artifact_manifest(artifact_type, layers, &annotations, (subject, SubjectMember::Both));
        let descriptor = Descriptor {
            media_type: media_type::IMAGE_MANIFEST.to_owned(),
            digest: Digest::of(Algorithm::Sha256, &bytes),
            size: bytes.len() as u64,
            artifact_type: Some(artifact_type.clone()),
            annotations,
            data: None,
        };
        (Bytes::from(bytes), descriptor)
    }
}

/// What is compared of a known referrer.
struct Known {
    size: u64,
    created: String,
}

/// Size and time of a descriptor that has both.
fn known_at(descriptor: &str) -> Option<Known> {
    let mut descriptor: Descriptor = serde_json::from_str(descriptor).ok()?;
    Some(Known { size: descriptor.size, created: descriptor.annotations.remove(CREATED)? })
}
