//! The registry behind refshim, and the only HTTP client: a pool of connections, time-outs for
//! silence, and one way to send. Nothing but a GET or HEAD without a body is ever sent twice, unless the
//! upstream did not process it for certain.

mod framing;
mod redirect;
mod resending;

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::{EXPECT, HOST};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::{self, Http2, RegistryUrl};
use crate::http::body::{Body, Progress};
use crate::http::limits::Load;
use crate::http::route::is_api;
use crate::telemetry::Metrics;
use crate::tls::{Connector, MixedUp, Protocols, Reload as _, TlsError};
use redirect::Redirects;

pub use framing::InvalidFraming;
use resending::{Again, RESENDS, pause_before};

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

/// What a question says that follows a redirect (RFC 9110, section 7.6.3), so that refshim knows its own should
/// they lead back to it.
pub const VIA_REFSHIM: HeaderValue = HeaderValue::from_static("1.1 refshim");

/// One upstream registry.
#[derive(Debug)]
pub struct Upstream {
    number: u32,
    name: config::UpstreamName,
    settings: config::UpstreamConfig,
    client: Client<Connector, Body>,
    /// With small buffers, for times of many requests: what a client leaves unread stays in them.
    thrifty: Client<Connector, Body>,
    load: Load,
    /// For what HTTP/2 cannot carry, where `client` speaks it.
    http1: Option<Client<Connector, Body>>,
    connectors: Vec<Connector>,
    redirects: Redirects,
    scheme: Scheme,
    url: RegistryUrl,
    /// The Host of each request; in HTTP/2 it is part of the URI.
    host: Option<HeaderValue>,
    is_always_http2: bool,
    rewrites_realm: bool,
    silence_limit: Duration,
    body_idle: Duration,
    metrics: Metrics,
    started: Instant,
    /// Milliseconds from `started` to the latest answer of a registry, plus one; zero before the first.
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
    /// It did not process the request, and said so, or the connection broke before the request was sent.
    #[error("the registry did not take the request")]
    Unprocessed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Where its answer ends is not clear.
    #[error(transparent)]
    Framing(#[from] InvalidFraming),
    /// It accepted the request and said nothing.
    #[error("the registry did not answer within {0:?}")]
    Silent(Duration),
    /// The client's body ended early, so that the request could not be completed.
    #[error("the request's body broke off: {0}")]
    RequestBody(String),
    /// The client paused for too long within its body.
    #[error("the request's body paused for too long")]
    RequestBodyIdle,
    /// A redirect in answer to a question of refshim's own leads where it must not be followed to.
    #[error("the registry redirects to where refshim does not follow")]
    Redirect,
    /// Path and query cannot be those of a request to the upstream.
    #[error("the path cannot be asked of the registry")]
    Target,
}

impl Upstream {
    /// A pool towards this registry; nothing is connected yet.
    ///
    /// # Errors
    /// TLS towards it cannot be set up.
    pub fn new(settings: &config::UpstreamConfig, metrics: &Metrics) -> Result<Self, TlsError> {
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
            settings: settings.clone(),
            redirects: Redirects::default(),
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
            is_always_http2: protocols == Protocols::Http2,
            rewrites_realm: settings.rewrite_realm,
            silence_limit: settings.timeouts.response,
            body_idle: settings.timeouts.body_idle,
            metrics: metrics.of_upstream(&settings.name),
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

    /// The values of `ns=` by which it is chosen.
    #[must_use]
    pub fn namespaces(&self) -> &[String] {
        &self.settings.namespaces
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

    /// How long it may stay silent before its answer begins.
    #[must_use]
    pub fn silence_limit(&self) -> Duration {
        self.silence_limit
    }

    /// Scheme, host and port.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.url.authority())
    }

    /// How long ago the upstream last answered as registries do.
    #[must_use]
    pub fn answered_ago(&self) -> Option<Duration> {
        let answered = self.answered.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(answered)))
    }

    /// Sends a request, whose URI may be in any form, to this upstream. A GET or HEAD is sent once
    /// more if the connection breaks: the upstream may have closed it for having been idle. What the upstream
    /// did not process is sent again, as far as its body can be had back.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        let client = if self.load.is_high() { &self.thrifty } else { &self.client };
        self.send_by(client, request).await
    }

    /// [`Upstream::send`] for what only HTTP/1.1 can carry.
    pub async fn send_http1(&self, request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        self.send_by(self.http1.as_ref().unwrap_or(&self.client), request).await
    }

    /// Asks what a redirect from `from`, an absolute URI, names in answer to a question with these fields.
    ///
    /// # Errors
    /// The redirect must not be followed, or there is no answer.
    pub async fn follow(
        &self,
        from: &Uri,
        location: Uri,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let is_same_host = redirect::target(from, &location)?;
        let mut request = question(Method::GET, location);
        if is_same_host && request.uri().authority() == Some(self.authority()) {
            request.headers_mut().clone_from(headers);
            return self.send_to_target(&self.client, request).await;
        }
        *request.headers_mut() = redirect::without_credentials(headers);
        // Only the upstream itself may lead to private addresses: whom it leads to might be anybody.
        let reach = if from.authority() == Some(self.authority()) {
            let port = if self.url.is_https() { 443 } else { 80 };
            let own =
                redirect::reach_of(self.authority().host(), self.authority().port_u16().unwrap_or(port));
            timeout(self.settings.timeouts.connect, own).await.unwrap_or(redirect::Reach::Public)
        } else {
            redirect::Reach::Public
        };
        self.redirects.send(&self.settings, reach, request).await
    }

    /// The absolute URI at which the upstream is asked for `uri`.
    ///
    /// # Errors
    /// Path and query make none.
    pub fn absolute(&self, uri: &Uri) -> Result<Uri, UpstreamError> {
        self.target(uri)
    }

    async fn send_by(
        &self,
        client: &Client<Connector, Body>,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        *request.uri_mut() = self.target(request.uri())?;
        // Boxed: each of the futures around it has room for the request, and would have for this one too.
        Box::pin(self.send_to_target(client, request)).await
    }

    /// Sends a request whose URI is the upstream's own.
    async fn send_to_target(
        &self,
        client: &Client<Connector, Body>,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        match &self.host {
            Some(host) => request.headers_mut().insert(HOST, host.clone()),
            None => request.headers_mut().remove(HOST),
        };
        let mut sent = 0;
        loop {
            let again = Again::of(&mut request);
            if request.headers().contains_key(EXPECT) {
                hold_body_until_continue(&mut request);
            }
            let error = match self.attempt(client, request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            sent += 1;
            let is_unprocessed = matches!(error, UpstreamError::Unprocessed(_)) && sent <= RESENDS;
            let is_broken = matches!(error, UpstreamError::Broken(_)) && sent == 1;
            if !(is_unprocessed || (is_broken && again.is_without_consequences())) {
                return Err(error);
            }
            let again = Box::pin(timeout(self.silence_limit, again.request())).await;
            let Some(again) = again.ok().flatten() else { return Err(error) };
            tracing::debug!(upstream = %self.name, sent, %error, "a request is sent again");
            Box::pin(sleep(pause_before(sent))).await;
            request = again;
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
        let is_done_by_its_head = resending::is_done_by_its_head(&request);
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
            Ok(mut response) => {
                framing::unify(response.headers_mut())?;
                let now = Instant::now();
                self.metrics.upstream_answered(now - began);
                if is_of_registry(&response) {
                    let millis = u64::try_from((now - self.started).as_millis()).unwrap_or(0);
                    self.answered.store(millis + 1, Ordering::Relaxed);
                }
                Ok(response)
            }
            Err(error) => {
                let error = resending::classify(error, self.is_always_http2, is_done_by_its_head);
                Err(self.explained(error))
            }
        }
    }

    /// The same error, with what it comes from if plain HTTP was spoken to a port that speaks TLS.
    fn explained(&self, error: UpstreamError) -> UpstreamError {
        let UpstreamError::Broken(source) = error else { return error };
        match MixedUp::of(&self.origin(), &*source) {
            Some(mixed_up) => UpstreamError::Broken(mixed_up.into()),
            None => UpstreamError::Broken(source),
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
    timeouts: &config::TimeoutsConfig,
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

/// More than any client sends, and than either side of the proxy refuses.
pub const MAX_HEADERS: usize = 512;
/// How long a header may be, at most, on either side.
pub const MAX_HEAD_BYTES: u32 = 512 * 1024;

/// The header in which registries name their API.
pub const API_VERSION: &str = "docker-distribution-api-version";

/// Whether an answer shows that a registry gave it, and not a web server or a proxy in its place: those that add the
/// header to their own errors add it to 400 and 5xx.
fn is_of_registry(response: &Response<Incoming>) -> bool {
    let status = response.status();
    let names_api = response.headers().contains_key(API_VERSION);
    let gives_manifest = status.is_success() && response.headers().contains_key("docker-content-digest");
    gives_manifest || (names_api && !status.is_server_error() && status != http::StatusCode::BAD_REQUEST)
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

/// A request of refshim's own, without a body.
#[must_use]
pub fn question(method: Method, uri: Uri) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    request
}
