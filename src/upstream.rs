//! The registry behind refshim, and the only HTTP client: a pool of connections, time-outs for
//! silence, and one way to send. Nothing but a GET or HEAD without a body is ever sent twice.

use std::error::Error as _;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::{EXPECT, HOST};
use http::uri::{Authority, InvalidUri, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::body::{Body, BodyError, Progress};
use crate::config::{Timeouts, UpstreamUrl};
use crate::oci::{Digest, RepositoryName, TagOrDigest};
use crate::telemetry::Metrics;
use crate::tls;

/// How much of a body is read from a connection at once, at most.
pub const BUFFER_BYTES: usize = 512 * 1024;

/// How long a client that expects `100 Continue` waits for the upstream's before its body is read
/// all the same.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// One upstream registry.
#[derive(Debug)]
pub struct Upstream {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
    silence_limit: Duration,
    body_idle: Duration,
    metrics: Arc<Metrics>,
    started: Instant,
    /// Milliseconds from `started` to the latest answer, plus one; zero before the first.
    answered: AtomicU64,
}

/// Why there is no answer of the upstream.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection could be made.
    #[error("the registry cannot be reached")]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    /// The connection broke before an answer.
    #[error("the registry broke the connection off")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It accepted the request and said nothing.
    #[error("the registry did not answer within {0:?}")]
    Silent(Duration),
    /// The client's body ended early, so that the request could not be completed.
    #[error("the request's body broke off: {0}")]
    RequestBody(String),
    /// The client paused for too long within its body.
    #[error("the request's body paused for too long")]
    RequestBodyIdle,
}

impl Upstream {
    /// A pool towards the registry at `url`; nothing is connected yet.
    ///
    /// # Errors
    /// The platform's root certificates cannot be read.
    pub fn new(url: &UpstreamUrl, timeouts: &Timeouts, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeouts.connect));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(timeouts.pool_idle)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http1_max_buf_size(BUFFER_BYTES)
            .http1_max_headers(MAX_HEADERS)
            .build(tls::connector(tcp, url.is_https())?);
        Ok(Self {
            client,
            scheme: if url.is_https() { Scheme::HTTPS } else { Scheme::HTTP },
            host: HeaderValue::from_str(url.authority().as_str()).map_err(std::io::Error::other)?,
            authority: url.authority().clone(),
            silence_limit: timeouts.response,
            body_idle: timeouts.body_idle,
            metrics,
            started: Instant::now(),
            answered: AtomicU64::new(0),
        })
    }

    /// Host and port, as in the upstream's URL.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Whether the upstream's URL says https.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// The longest pause within a body.
    #[must_use]
    pub fn body_idle(&self) -> Duration {
        self.body_idle
    }

    /// How long ago the upstream last answered anything.
    #[must_use]
    pub fn answered_ago(&self) -> Option<Duration> {
        let answered = self.answered.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(answered)))
    }

    /// Sends a request, whose URI may be in any form, to this upstream. A GET or HEAD is sent once
    /// more if the connection breaks: the upstream may have closed it for having been idle.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        *request.uri_mut() = self.target(request.uri());
        request.headers_mut().insert(HOST, self.host.clone());
        if request.headers().contains_key(EXPECT) {
            hold_body_until_continue(&mut request);
        }
        let again = without_consequences(&request).then(|| head_of(&request));
        match (self.attempt(request).await, again) {
            (Err(UpstreamError::Broken(_)), Some(again)) => Box::pin(self.attempt(again)).await,
            (outcome, _) => outcome,
        }
    }

    /// The limit on silence counts from when the upstream has all it needs to answer, or last took
    /// something of the body.
    async fn attempt(&self, mut request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        let began = Instant::now();
        let progress = request.body_mut().watch();
        let mut response = pin!(self.client.request(request));
        let mut limit = began + self.silence_limit;
        let answer = loop {
            let fired = tokio::select! {
                biased;
                answer = &mut response => break answer,
                () = sleep_until(limit) => limit,
            };
            limit = self.silent_until(progress.as_deref(), began, fired);
            if limit <= fired {
                return Err(UpstreamError::Silent(self.silence_limit));
            }
        };
        match answer {
            Ok(response) => {
                let now = Instant::now();
                self.metrics.upstream_seconds.observe((now - began).as_secs_f64());
                let millis = u64::try_from((now - self.started).as_millis()).unwrap_or(0);
                self.answered.store(millis + 1, Ordering::Relaxed);
                Ok(response)
            }
            Err(error) => Err(UpstreamError::from(error)),
        }
    }

    /// Until when silence is allowed, seen at `now`.
    fn silent_until(&self, progress: Option<&Progress>, began: Instant, now: Instant) -> Instant {
        match progress {
            None => began + self.silence_limit,
            Some(progress) => progress.receiver_since().unwrap_or(now) + self.silence_limit,
        }
    }

    fn target(&self, uri: &Uri) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query =
            Some(uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
        Uri::from_parts(parts).unwrap_or_default()
    }
}

/// More than any client sends, and than either side of the proxy refuses.
pub const MAX_HEADERS: usize = 512;

impl From<hyper_util::client::legacy::Error> for UpstreamError {
    fn from(error: hyper_util::client::legacy::Error) -> Self {
        if error.is_connect() {
            return Self::Unreachable(error);
        }
        let mut source = error.source();
        while let Some(cause) = source {
            match cause.downcast_ref::<BodyError>() {
                Some(BodyError::Idle(_)) => return Self::RequestBodyIdle,
                Some(broken @ BodyError::Broken(_)) => return Self::RequestBody(broken.to_string()),
                None => source = cause.source(),
            }
        }
        Self::Broken(Box::new(error))
    }
}

/// Whether it makes no difference if the upstream sees the request twice.
fn without_consequences(request: &Request<Body>) -> bool {
    (*request.method() == Method::GET || *request.method() == Method::HEAD) && request.body().is_end_stream()
}

fn head_of(request: &Request<Body>) -> Request<Body> {
    let mut head = question(request.method().clone(), request.uri().clone());
    *head.version_mut() = request.version();
    head.headers_mut().clone_from(request.headers());
    head
}

/// The body is asked of the client only once the upstream wants it, so that an early refusal comes
/// before the body, as it does without a proxy.
fn hold_body_until_continue(request: &mut Request<Body>) {
    let (open, gate) = oneshot::channel();
    let open = Mutex::new(Some(open));
    request.body_mut().wait_for(gate, CONTINUE_WAIT);
    hyper::ext::on_informational(request, move |informational| {
        if informational.status() == http::StatusCode::CONTINUE
            && let Ok(mut open) = open.lock()
        {
            drop(open.take());
        }
    });
}

/// The URI of a manifest in the upstream, for refshim's own questions. Never another one instead: the
/// answer to it decides who may see what.
///
/// # Errors
/// Name and manifest make no URI, which their grammars rule out.
pub fn manifest_uri(repository: &RepositoryName, manifest: &TagOrDigest) -> Result<Uri, InvalidUri> {
    Uri::try_from(format!("/v2/{repository}/manifests/{manifest}"))
}

/// The URI of the upstream's own referrers API for a subject.
///
/// # Errors
/// Name and digest make no URI, which their grammars rule out.
pub fn referrers_uri(repository: &RepositoryName, subject: &Digest) -> Result<Uri, InvalidUri> {
    Uri::try_from(format!("/v2/{repository}/referrers/{subject}"))
}

/// A request of refshim's own, without a body.
#[must_use]
pub fn question(method: Method, uri: Uri) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    request
}
