//! Uploads of blobs to the registry, with the client's own rights (distribution-spec, "Pushing blobs").
//!
//! A blob whose digest is not known yet goes by PATCH, as it comes, and a PUT closes the upload: as `docker push` does
//! it, so every registry knows it. An upload that does not come to its end is cancelled, where the registry can.
//!
//! The registry's refusals are its own words to the client: status, challenge and body are passed on.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::files::File;
use crate::http::body::{Body, Feed, Unread};
use crate::http::route;
use crate::oci::artifact::TITLE;
use crate::oci::{Algorithm, Descriptor, Digest, Hasher, RepositoryName};
use crate::proxy::error::{BadAttachment, Error};
use crate::proxy::forward::{self, Elsewhere, Origin};
use crate::proxy::upstream::Upstream;

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const NOTHING: HeaderValue = HeaderValue::from_static("0");

/// Why nothing came of it.
#[derive(Debug)]
pub(super) enum Stop {
    /// The registry's own answer, for the client.
    Answer(Box<Response<Body>>),
    Error(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Stop {
    pub(super) fn into_result(self) -> Result<Response<Body>, Error> {
        match self {
            Self::Answer(answer) => Ok(*answer),
            Self::Error(error) => Err(error),
        }
    }
}

/// A repository of the registry, as this client may write to it.
#[derive(Debug)]
pub(super) struct Uploader {
    pub(super) upstream: Arc<Upstream>,
    pub(super) origin: Origin,
    pub(super) name: RepositoryName,
    /// The client's own, but for what is about its request alone.
    pub(super) headers: HeaderMap,
}

/// An upload that the registry has begun.
#[derive(Debug)]
pub(super) struct Upload<'a> {
    at: &'a Uploader,
    location: PathAndQuery,
}

impl Uploader {
    /// A request to the registry with the client's credentials.
    pub(super) fn request(&self, method: Method, target: &str, body: Body) -> Result<Request<Body>, Error> {
        let mut request = Request::new(body);
        *request.uri_mut() = Uri::try_from(target).map_err(|_| Error::Handler)?;
        *request.method_mut() = method;
        request.headers_mut().clone_from(&self.headers);
        Ok(request)
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        forward::send(&self.upstream, &self.origin, Box::new(request)).await
    }

    /// Begins an upload, for which the registry has to say whether this client may push.
    pub(super) async fn begin(&self) -> Result<Upload<'_>, Stop> {
        let target = format!("{}{}/blobs/uploads/", route::API, self.name);
        let mut request = self.request(Method::POST, &target, Body::empty())?;
        request.headers_mut().insert(CONTENT_LENGTH, NOTHING);
        let answer = self.send(request).await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(refused(answer));
        }
        let location = self.location(&answer)?.ok_or(Error::UpstreamBody)?;
        Ok(Upload { at: self, location })
    }

    /// Where an answer says that an upload goes on; `None` if it does not say.
    fn location(&self, answer: &Response<Body>) -> Result<Option<PathAndQuery>, Error> {
        let location = forward::location(answer.headers(), &self.upstream, &self.origin);
        location.map_err(|Elsewhere| BadAttachment::Elsewhere.into())
    }

    /// Stores bytes that are in memory, unless they are there.
    pub(super) async fn store(&self, digest: &Digest, bytes: &'static [u8]) -> Result<(), Stop> {
        let target = route::blob_path(&self.name, digest);
        let found = self.send(self.request(Method::HEAD, &target, Body::empty())?).await;
        if found.is_ok_and(|found| found.status() == StatusCode::OK) {
            return Ok(());
        }
        let upload = self.begin().await?;
        let body = Body::whole(Bytes::from_static(bytes));
        upload.close(digest, body, bytes.len()).await
    }
}

impl Upload<'_> {
    /// Stores a file; gives its descriptor. If anything fails, the upload is cancelled.
    pub(super) async fn store(mut self, file: File, expected: Option<&Digest>) -> Result<Descriptor, Stop> {
        match self.take(file, expected).await {
            Ok(descriptor) => {
                self.close(&descriptor.digest, Body::empty(), 0).await?;
                Ok(descriptor)
            }
            Err(stop) => {
                self.cancel().await;
                Err(stop)
            }
        }
    }

    /// Sends the content, and describes it.
    async fn take(&mut self, file: File, expected: Option<&Digest>) -> Result<Descriptor, Stop> {
        let File { media_type, title, content } = file;
        // Twice the client's time, whose end is to be told by its own error and not by that of this request.
        let (feed, body) = Body::fed(2 * self.at.upstream.body_idle());
        let mut request = self.at.request(Method::PATCH, self.location.as_str(), body)?;
        request.headers_mut().insert(CONTENT_TYPE, OCTETS);
        let algorithm = expected.map_or(Algorithm::Sha256, Digest::algorithm);
        let (mut sent, mut filled) = (pin!(self.at.send(request)), pin!(fill(feed, content, algorithm)));
        let (answer, read) = tokio::select! {
            answer = &mut sent => {
                // A refusal ends it here: the client may go on sending for long.
                let answer = taken(answer?)?;
                (answer, filled.await)
            }
            read = &mut filled => (taken(sent.await?)?, read),
        };
        if let Some(location) = self.at.location(&answer)? {
            self.location = location;
        }
        // None if the registry said that it took all, although it did not read it.
        let (digest, size) = read?.ok_or(Error::UpstreamBody)?;
        if size == 0 {
            return Err(BadAttachment::Empty.into());
        }
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(BadAttachment::OtherDigest {
                expected: expected.to_string(),
                found: digest.to_string(),
            }
            .into());
        }
        let annotations: BTreeMap<String, String> =
            title.into_iter().map(|title| (TITLE.to_owned(), title)).collect();
        Ok(Descriptor { media_type, digest, size, artifact_type: None, annotations, data: None })
    }

    /// Closes the upload, with the last bytes of the blob.
    async fn close(self, digest: &Digest, rest: Body, length: usize) -> Result<(), Stop> {
        // Added to the query and not in place of it: the upload's state is in there (`_state` of distribution).
        let separator = if self.location.query().is_some() { '&' } else { '?' };
        let target = format!("{}{separator}digest={digest}", self.location);
        let mut request = self.at.request(Method::PUT, &target, rest)?;
        // Both, also without bytes (distribution-spec, "POST then PUT").
        request.headers_mut().insert(CONTENT_LENGTH, length.into());
        request.headers_mut().insert(CONTENT_TYPE, OCTETS);
        let stop = match self.at.send(request).await {
            Ok(answer) if answer.status() == StatusCode::CREATED => return Ok(()),
            Ok(answer) => refused(answer),
            Err(error) => error.into(),
        };
        self.cancel().await;
        Err(stop)
    }

    /// Has the registry forget what it has so far. It does so by itself in time, or by its operator.
    pub(super) async fn cancel(self) {
        let Ok(request) = self.at.request(Method::DELETE, self.location.as_str(), Body::empty()) else {
            return;
        };
        match self.at.send(request).await {
            Ok(answer) if answer.status().is_success() || answer.status() == StatusCode::NOT_FOUND => {}
            Ok(answer) => {
                tracing::debug!(status = answer.status().as_u16(), "the registry does not cancel an upload");
            }
            Err(error) => tracing::debug!(%error, "an upload could not be cancelled"),
        }
    }
}

/// Feeds a body with the content; its digest and length in bytes, or `None` if nobody read it to its end.
async fn fill(
    feed: Feed,
    mut content: impl Stream<Item = Result<Bytes, Error>> + Unpin,
    algorithm: Algorithm,
) -> Result<Option<(Digest, u64)>, Error> {
    let (mut hasher, mut size) = (Hasher::new(algorithm), 0);
    let broken = loop {
        match content.next().await {
            Some(Ok(bytes)) => {
                hasher.update(&bytes);
                size += bytes.len() as u64;
                if feed.add(bytes).await == Err(Unread) {
                    return Ok(None);
                }
            }
            Some(Err(error)) => break Some(error),
            None => break None,
        }
    };
    // Ended also where the content broke off: distribution does not cancel an upload whose PATCH broke off, since it does
    // not know any more how far that came. Nothing is closed, so nothing is kept of it.
    let read = feed.end().await;
    match broken {
        Some(error) => Err(error),
        None => Ok(read.is_ok().then(|| (hasher.finish(), size))),
    }
}

/// An answer by which the registry took what it was sent. The specification has 202 alone; some say 201 or 204.
fn taken(answer: Response<Body>) -> Result<Response<Body>, Stop> {
    match answer.status() {
        StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(answer),
        _ => Err(refused(answer)),
    }
}

fn refused(answer: Response<Body>) -> Stop {
    let status = answer.status();
    // A success that is none, or a redirect that nobody follows, must not pass for one of the whole.
    if status.is_client_error() || status.is_server_error() {
        Stop::Answer(Box::new(answer))
    } else {
        Error::Undecided(status).into()
    }
}
