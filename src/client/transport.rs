//! HTTP for the commands: the stack that the server uses towards its upstreams, plus what only a client does:
//! following redirects, and using the proxies of the environment.

use std::error::Error as _;
use std::mem;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
    PROXY_AUTHORIZATION, USER_AGENT,
};
use http::{Method, StatusCode, Uri};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout};
use url::{Position, Url};

use super::{BlobStream, Error, Result};
use crate::tls::{ClientConnector, ClientTls, Connector};

/// Time-out of connecting.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Idle time-out. There is none for a whole body: how long a blob takes depends on its size.
pub(super) const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long an unused connection is kept.
const IDLE_LIMIT: Duration = Duration::from_secs(90);
/// The longest answer that is held in memory, in bytes.
const ANSWER_LIMIT: usize = 64 << 20;
/// How many redirects are followed to an answer: as many as by Go's client, which most clients of registries
/// use.
const REDIRECTS: usize = 10;
/// How often a request is repeated that the registry says it did not process.
const RESENDS: usize = 2;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("refshim/", env!("CARGO_PKG_VERSION")));

/// All connections of one command. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    pool: legacy::Client<ClientConnector, SentBody>,
    connector: ClientConnector,
}

/// A body as hyper sends it.
type SentBody = UnsyncBoxBody<Bytes, Error>;

/// A request to be sent.
#[derive(Debug)]
pub(super) struct Request {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: RequestBody,
}

enum RequestBody {
    Whole(Bytes),
    /// Can be sent once.
    Streamed(BlobStream),
    /// Was streamed. Not an empty `Whole`, which could be sent again and would replace the content by
    /// nothing.
    Gone,
}

impl std::fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Whole(_) => "Whole",
            Self::Streamed(_) => "Streamed",
            Self::Gone => "Gone",
        })
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(super) struct Response {
    /// The URL that answered, after redirects.
    url: Url,
    status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
}

impl Request {
    /// Without a body.
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: RequestBody::Whole(Bytes::new()) }
    }

    /// The same with this body.
    pub(super) fn with_body(self, body: impl Into<Bytes>) -> Self {
        Self { body: RequestBody::Whole(body.into()), ..self }
    }

    /// The same with a body that is not held in memory. The caller sets its `Content-Length`.
    pub(super) fn with_stream(self, body: BlobStream) -> Self {
        Self { body: RequestBody::Streamed(body), ..self }
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    pub(super) fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    /// The same request once more, unless its body can be sent only once.
    pub(super) fn try_clone(&self) -> Option<Self> {
        let RequestBody::Whole(body) = &self.body else { return None };
        let body = RequestBody::Whole(body.clone());
        let (method, url, headers) = (self.method.clone(), self.url.clone(), self.headers.clone());
        Some(Self { method, url, headers, body })
    }

    /// Whether it may be sent twice (RFC 9110, section 9.2.1).
    pub(super) fn is_safe(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }

    fn is_streamed(&self) -> bool {
        !matches!(self.body, RequestBody::Whole(_))
    }

    /// The body, for sending: a stream is gone afterwards.
    fn take_body(&mut self) -> SentBody {
        let body = mem::replace(&mut self.body, RequestBody::Gone);
        let whole = match body {
            RequestBody::Streamed(stream) => {
                return StreamBody::new(stream.map(|part| part.map(Frame::data))).boxed_unsync();
            }
            RequestBody::Whole(bytes) => bytes,
            RequestBody::Gone => Bytes::new(),
        };
        self.body = RequestBody::Whole(whole.clone());
        Full::new(whole).map_err(|never| match never {}).boxed_unsync()
    }

    /// The request to send after a redirect (RFC 9110, section 15.4).
    fn redirected(mut self, asked: &str, response: &Response, location: &str) -> Result<Self> {
        let failed = |why: String| Error::failed(asked, why);
        let from = &response.url;
        let to =
            from.join(location).map_err(|error| failed(format!("redirected to {location:?}: {error}")))?;
        if !matches!(to.scheme(), "http" | "https") {
            return Err(failed(format!("redirected to {}:, which is not followed", to.scheme())));
        }
        // A blob over plain HTTP can be read by anyone on the way, although the user asked for TLS.
        if from.scheme() == "https" && to.scheme() == "http" {
            let to = to.origin().ascii_serialization();
            return Err(failed(format!("redirected to {to}, which is not encrypted"))
                .advise("have the registry redirect to https, or hand out blobs itself"));
        }
        // They are not restored by a redirect back to the registry: another host chose what that asks for.
        if from.origin() != to.origin() {
            self.headers.remove(AUTHORIZATION);
        }
        let becomes_get = match response.status {
            // A HEAD may stay one (RFC 9110, section 15.4.4), and its answer's head is all that is wanted.
            StatusCode::SEE_OTHER => self.method != Method::HEAD,
            // As browsers and Go's client do, which RFC 9110 allows for compatibility (sections 15.4.2 and
            // 15.4.3).
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => self.method == Method::POST,
            _ => false,
        };
        if becomes_get {
            self.method = Method::GET;
            self.headers.remove(CONTENT_TYPE);
            self.body = RequestBody::Whole(Bytes::new());
        }
        self.url = to;
        Ok(self)
    }
}

impl Response {
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Where the answer redirects to.
    fn location(&self) -> Option<&str> {
        let redirects = matches!(
            self.status,
            StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT
        );
        redirects.then(|| header(&self.headers, LOCATION.as_str())).flatten()
    }

    /// The next part of the body.
    pub(super) async fn chunk(&mut self, asked: &str) -> Result<Option<Bytes>> {
        loop {
            let frame = timeout(SILENCE_LIMIT, self.body.frame()).await.map_err(|_| silent(asked))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| Error::unreachable(asked, &self.url, &error))?;
            // A frame of trailers is skipped: it is not the end of the body yet.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The whole body of an answer that is no blob.
    pub(super) async fn read(mut self, asked: &str) -> Result<Bytes> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(asked).await? {
            if body.len() + chunk.len() > ANSWER_LIMIT {
                return Err(Error::failed(asked, "the answer is longer than 64 MiB"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }
}

impl Transport {
    /// Nothing is connected yet. The host `own` is connected to in a way of its own.
    pub(super) fn new(tls: &ClientTls, own: Option<(&str, Connector)>) -> Self {
        let connector = ClientConnector::new(tls, AGENT, CONNECT_LIMIT);
        let connector = match own {
            Some((host, own)) => connector.with_own(host, own),
            None => connector,
        };
        Self::by(connector)
    }

    /// The same without proxies, and without a host of its own.
    pub(super) fn direct(tls: &ClientTls) -> Self {
        Self::by(ClientConnector::new(tls, AGENT, CONNECT_LIMIT).without_proxies())
    }

    fn by(connector: ClientConnector) -> Self {
        let mut pool = legacy::Client::builder(TokioExecutor::new());
        pool.pool_idle_timeout(IDLE_LIMIT).pool_timer(TokioTimer::new());
        Self { pool: pool.build(connector.clone()), connector }
    }

    /// The answer after all redirects, whatever its status. A body that is a stream is sent once, and a
    /// redirect is then the answer.
    pub(super) async fn send(&self, asked: &str, request: Request) -> Result<Response> {
        if request.is_streamed() {
            // The time depends on the blob's size; whoever made the stream watches that it moves.
            self.follow(asked, request).await
        } else {
            timeout(SILENCE_LIMIT, self.follow(asked, request)).await.map_err(|_| silent(asked))?
        }
    }

    async fn follow(&self, asked: &str, mut request: Request) -> Result<Response> {
        for _ in 0..=REDIRECTS {
            let response = self.exchange(asked, &mut request).await?;
            match response.location() {
                // An upload that was sent is gone; its redirect is an answer like any other.
                Some(location) if !request.is_streamed() => {
                    request = request.redirected(asked, &response, location)?;
                }
                Some(_) | None => return Ok(response),
            }
        }
        Err(Error::failed(asked, format!("more than {REDIRECTS} redirects")))
    }

    async fn exchange(&self, asked: &str, request: &mut Request) -> Result<Response> {
        let mut sent = 0;
        loop {
            let outgoing = self.outgoing(asked, request)?;
            let began = Instant::now();
            let answered = self.pool.request(outgoing).await;
            tell(request, &answered, began.elapsed());
            let error = match answered {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let url = request.url.clone();
                    return Ok(Response { url, status: head.status, headers: head.headers, body });
                }
                Err(error) => error,
            };
            // Only what certainly was not processed: a PUT or POST that was must not be repeated. A body that
            // was begun cannot be had back.
            if request.is_streamed() || sent == RESENDS || !was_refused(&error) {
                return Err(Error::unreachable(asked, &request.url, &error));
            }
            sent += 1;
        }
    }

    fn outgoing(&self, asked: &str, request: &mut Request) -> Result<http::Request<SentBody>> {
        let mut url = request.url.clone();
        // A redirect or a `Location` may have a name and password in its URL, which must not be sent (RFC
        // 9110, section 4.2.4).
        let _has_no_host = url.set_username("").and_then(|()| url.set_password(None));
        let uri: Uri = url
            .as_str()
            .parse()
            .map_err(|error| Error::failed(asked, format!("asking for {url}: {error}")))?;
        let mut headers = request.headers.clone();
        headers.insert(USER_AGENT, AGENT);
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        if let Some(authorization) = self.connector.proxy_authorization(&uri) {
            headers.insert(PROXY_AUTHORIZATION, authorization);
        }
        if let RequestBody::Whole(body) = &request.body
            && matches!(request.method, Method::POST | Method::PUT)
        {
            // Also of an empty body: some registries refuse a POST without a length (411), and hyper leaves
            // it out.
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        let mut outgoing = http::Request::new(request.take_body());
        *outgoing.method_mut() = request.method.clone();
        *outgoing.uri_mut() = uri;
        *outgoing.headers_mut() = headers;
        Ok(outgoing)
    }
}

/// Tells of a request (`--verbose`). Not the query of its URL: a redirect's is often a right to read.
fn tell(
    request: &Request,
    answered: &std::result::Result<http::Response<Incoming>, legacy::Error>,
    took: Duration,
) {
    let (method, scheme) = (&request.method, request.url.scheme());
    let place = &request.url[Position::BeforeHost..Position::AfterPath];
    match answered {
        Ok(response) => tracing::debug!("{method} {scheme}://{place} {} in {took:.1?}", response.status()),
        Err(error) => tracing::debug!("{method} {scheme}://{place} failed in {took:.1?}: {error}"),
    }
}

/// Whether the registry says that it did not process a request: it ends the connection in good order, with a
/// GOAWAY that names only streams before this one (RFC 9113, section 6.8), or refuses the stream (section
/// 8.7).
fn was_refused(error: &legacy::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let goes_away = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            let refuses = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return error.is_remote() && (goes_away || refuses);
        }
        cause = error.source();
    }
    false
}

pub(super) fn silent(asked: &str) -> Error {
    Error::failed(asked, "no sign of life for 60 seconds")
        .advise("retry; what is there already is not sent twice")
}

/// A header of an answer, as text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
