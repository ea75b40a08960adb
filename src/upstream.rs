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
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::body::{Body, BodyError, Progress};
use crate::config::{self, Http2, RegistryUrl};
use crate::limits::Load;
use crate::oci::{Digest, RepositoryName, TagOrDigest};
use crate::telemetry::Metrics;
use crate::tls::{Connector, Protocols, Reload as _, TlsError};

/// How much of a body is read from a connection at once, at most.
pub const BUFFER_BYTES: usize = MAX_HEAD_BYTES as usize;

/// How long a client that expects `100 Continue` waits for the upstream's before its body is read
/// all the same.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// HTTP/2 flow control: how much of one body may be on its way unread. What a slow client leaves unread
/// must not stop the other requests on the connection, whose own window is therefore without a limit.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// How much of one body may be unread: in HTTP/1.1 by one read, in HTTP/2 by the stream's window.
#[derive(Clone, Copy)]
struct Buffers {
    read: usize,
    window: u32,
}

/// For throughput.
const LARGE: Buffers = Buffers { read: BUFFER_BYTES, window: 1 << 20 };
/// Still as long as the head of an answer may be, which has to fit in.
const SMALL: Buffers = Buffers { read: 128 * 1024, window: 128 * 1024 };

/// One upstream registry.
#[derive(Debug)]
pub struct Upstream {
    number: u32,
    name: config::UpstreamName,
    client: Client<Connector, Body>,
    /// With small buffers, for times of many requests: what a client leaves unread stays in them.
    thrifty: Client<Connector, Body>,
    load: Load,
    /// For what HTTP/2 cannot carry, where `client` speaks it.
    http1: Option<Client<Connector, Body>>,
    connectors: Vec<Connector>,
    scheme: Scheme,
    url: RegistryUrl,
    /// The Host of each request; in HTTP/2 it is part of the URI.
    host: Option<HeaderValue>,
    rewrites_realm: bool,
    silence_limit: Duration,
    body_idle: Duration,
    metrics: Arc<Metrics>,
    started: Instant,
    /// Milliseconds from `started` to the latest answer, plus one; zero before the first.
    answered: AtomicU64,
}

/// All upstreams, in the order of the configuration: the default one first.
#[derive(Clone, Debug)]
pub struct Upstreams {
    /// The one that takes what no rule gives to another.
    pub default: Arc<Upstream>,
    /// The further ones.
    pub further: Vec<Arc<Upstream>>,
}

impl Upstreams {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        std::iter::once(&self.default).chain(&self.further)
    }
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
    /// Path and query cannot be those of a request to the upstream.
    #[error("the path cannot be asked of the registry")]
    Target,
}

impl Upstream {
    /// A pool towards this registry; nothing is connected yet.
    ///
    /// # Errors
    /// TLS towards it cannot be set up.
    pub fn new(settings: &config::Upstream, metrics: Arc<Metrics>) -> Result<Self, TlsError> {
        let protocols = match settings.http2 {
            Http2::Never => Protocols::Http1,
            Http2::Auto => Protocols::Either,
            Http2::Always => Protocols::Http2,
        };
        let connector = Connector::new(settings, protocols)?;
        let http1 = match protocols {
            Protocols::Http1 => None,
            Protocols::Either | Protocols::Http2 => Some(Connector::new(settings, Protocols::Http1)?),
        };
        let url = settings.url.clone();
        let pool = |connector, protocols, buffers| pool(&settings.timeouts, connector, protocols, buffers);
        Ok(Self {
            number: settings.number(),
            name: settings.name.clone(),
            client: pool(connector.clone(), protocols, LARGE),
            thrifty: pool(connector.clone(), protocols, SMALL),
            load: Load::default(),
            http1: http1.clone().map(|connector| pool(connector, Protocols::Http1, LARGE)),
            connectors: std::iter::once(connector).chain(http1).collect(),
            scheme: if url.is_https() { Scheme::HTTPS } else { Scheme::HTTP },
            host: match protocols {
                Protocols::Http1 => HeaderValue::from_str(url.authority().as_str()).ok(),
                Protocols::Either | Protocols::Http2 => None,
            },
            url,
            rewrites_realm: settings.rewrite_realm,
            silence_limit: settings.timeouts.response,
            body_idle: settings.timeouts.body_idle,
            metrics,
            started: Instant::now(),
            answered: AtomicU64::new(0),
        })
    }

    /// The same, with small buffers while this load is high.
    #[must_use]
    pub fn under(self, load: Load) -> Self {
        Self { load, ..self }
    }

    /// Its number in the index.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What the operator calls it.
    #[must_use]
    pub fn name(&self) -> &config::UpstreamName {
        &self.name
    }

    /// Host and port, as in the upstream's URL.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        self.url.authority()
    }

    /// What stands before `/v2/` in the upstream's paths, or nothing.
    #[must_use]
    pub fn base_path(&self) -> &str {
        self.url.path()
    }

    /// Whether a challenge's realm at the upstream is to lead through refshim.
    #[must_use]
    pub fn rewrites_realm(&self) -> bool {
        self.rewrites_realm
    }

    /// Reads the files of its TLS again if they changed. Blocks on the disk.
    pub fn reload(&self) {
        self.connectors.iter().for_each(Connector::reload);
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
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        let client = if self.load.is_high() { &self.thrifty } else { &self.client };
        self.send_by(client, request).await
    }

    /// [`Upstream::send`] for what only HTTP/1.1 can carry.
    pub async fn send_http1(&self, request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        self.send_by(self.http1.as_ref().unwrap_or(&self.client), request).await
    }

    async fn send_by(
        &self,
        client: &Client<Connector, Body>,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        *request.uri_mut() = self.target(request.uri())?;
        match &self.host {
            Some(host) => request.headers_mut().insert(HOST, host.clone()),
            None => request.headers_mut().remove(HOST),
        };
        if request.headers().contains_key(EXPECT) {
            hold_body_until_continue(&mut request);
        }
        let again = without_consequences(&request).then(|| head_of(&request));
        match (self.attempt(client, request).await, again) {
            (Err(UpstreamError::Broken(_)), Some(again)) => Box::pin(self.attempt(client, again)).await,
            (outcome, _) => outcome,
        }
    }

    /// The limit on silence counts from when the upstream has all it needs to answer, or last took
    /// something of the body.
    async fn attempt(
        &self,
        client: &Client<Connector, Body>,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let began = Instant::now();
        let progress = request.body_mut().watch();
        let mut response = pin!(client.request(request));
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

    /// The same path and query at the upstream, where the API stands below its base path.
    fn target(&self, uri: &Uri) -> Result<Uri, UpstreamError> {
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let path = if !self.base_path().is_empty() && is_api(path.path()) {
            PathAndQuery::try_from([self.base_path(), path.as_str()].concat())
                .map_err(|_| UpstreamError::Target)?
        } else {
            path
        };
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority().clone());
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).map_err(|_| UpstreamError::Target)
    }
}

fn pool(
    timeouts: &config::Timeouts,
    connector: Connector,
    protocols: Protocols,
    Buffers { read, window }: Buffers,
) -> Client<Connector, Body> {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .pool_idle_timeout(timeouts.pool_idle)
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http1_max_buf_size(read)
        .http1_max_headers(MAX_HEADERS)
        .http2_only(protocols == Protocols::Http2)
        .http2_initial_stream_window_size(window)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEAD_BYTES)
        .http2_keep_alive_interval(timeouts.pool_idle)
        .http2_keep_alive_timeout(timeouts.body_idle);
    builder.build(connector)
}

/// Whether a path is one of the registry's API, which is what stands below an upstream's base path.
#[must_use]
pub fn is_api(path: &str) -> bool {
    path.strip_prefix("/v2").is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
}

/// More than any client sends, and than either side of the proxy refuses.
pub const MAX_HEADERS: usize = 512;
/// How long a header may be, at most, on either side.
pub const MAX_HEAD_BYTES: u32 = 512 * 1024;

impl From<hyper_util::client::legacy::Error> for UpstreamError {
    fn from(error: hyper_util::client::legacy::Error) -> Self {
        if error.is_connect() {
            return Self::Unreachable(error);
        }
        let mut source = error.source();
        while let Some(cause) = source {
            match cause.downcast_ref::<BodyError>() {
                Some(BodyError::Idle(_)) => return Self::RequestBodyIdle,
                Some(broken @ (BodyError::Broken(_) | BodyError::Slow(_) | BodyError::Limit(_))) => {
                    return Self::RequestBody(broken.to_string());
                }
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
