//! The registry behind refshim, and the server's only HTTP client: connection pools, response time-outs, and retries.
//!
//! - A request is retried only if it cannot do harm: a GET or HEAD without a body once, when the connection broke
//!   (the upstream may have closed it for being idle); any request that the upstream certainly did not process, as
//!   long as its body can be had back. Repeating a half-sent PATCH would append to an upload at the wrong offset
//!   (distribution #2634). See `resending`.
//! - The response time-out counts from when the upstream has everything it needs, not from the start: an upload may
//!   take hours. See `exchange`.
//! - Redirects are passed to the client, which follows them itself; following them here would send its credentials to
//!   object storage. Only refshim's own questions follow redirects, under the rules in `redirect`.
//! - There is a pool for each size in which answers are read, by the load, and as many for HTTP/1.1 alone where those use
//!   HTTP/2, which cannot carry `Upgrade`. See `pool`.
//! - A connection by HTTP/1.1 has no task of its own: the request that uses it moves it on. See `http1`.

mod connection;
mod error;
mod exchange;
mod http1;
mod pool;
mod redirect;
mod resending;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::config::{self, Http2, Mode, RegistryUrl};
use crate::http::body::{Body, Received};
use crate::http::limits::{Load, ReadSize};
use crate::http::route::is_api;
use crate::telemetry::{Metrics, Traces};
use crate::tls::{Connector, Protocols, Reload as _, TlsError};
use pool::{Pool, Pools};
use redirect::Redirects;

pub use connection::{BUFFER_BYTES, MAX_HEAD_BYTES, MAX_HEADERS};
pub use error::{SharedError, UpstreamError};

/// The `Via` of a question that follows a redirect (RFC 9110, section 7.6.3), by which refshim recognises its own
/// requests if a redirect leads back to it.
pub const VIA_REFSHIM: HeaderValue = HeaderValue::from_static("1.1 refshim");

/// One upstream registry.
#[derive(Clone, Debug)]
pub struct Upstream {
    number: u32,
    name: config::UpstreamName,
    settings: config::UpstreamConfig,
    pools: Pools,
    load: Load,
    /// Uses HTTP/1.1 for `Upgrade`; present where `pools` may use HTTP/2.
    http1: Option<Pools>,
    connectors: Vec<Connector>,
    redirects: Arc<Redirects>,
    scheme: Scheme,
    url: RegistryUrl,
    /// The `Host` of each request; in HTTP/2 the URI has it.
    host: Option<HeaderValue>,
    rewrites_realm: bool,
    silence_limit: Duration,
    body_idle: Duration,
    metrics: Metrics,
    traces: Traces,
    answered: Arc<Answered>,
}

/// When a registry last answered.
#[derive(Debug)]
struct Answered {
    started: Instant,
    /// In milliseconds since `started`, plus one; zero before the first answer.
    last: AtomicU64,
    /// Of each failure.
    failed: Notify,
}

/// All upstreams, in the order of the configuration: the default one first.
#[derive(Clone, Debug)]
pub struct Upstreams {
    /// The upstream of all requests that no rule sends elsewhere.
    pub default: Arc<Upstream>,
    /// The others.
    pub further: Vec<Arc<Upstream>>,
}

impl Upstreams {
    /// All upstreams, the default one first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        std::iter::once(&self.default).chain(&self.further)
    }
}

impl Upstream {
    /// Sets up the client for this registry, without connecting.
    ///
    /// # Errors
    /// TLS cannot be set up.
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
        Ok(Self {
            number: settings.number(),
            name: settings.name.clone(),
            settings: settings.clone(),
            redirects: Arc::default(),
            pools: Pools::new(&settings.timeouts, &connector, protocols),
            load: Load::default(),
            http1: http1.as_ref().map(|it| Pools::new(&settings.timeouts, it, Protocols::Http1)),
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
            metrics: metrics.of_upstream(&settings.name),
            traces: Traces::default(),
            answered: Arc::new(Answered {
                started: Instant::now(),
                last: AtomicU64::new(0),
                failed: Notify::new(),
            }),
        })
    }

    /// This upstream under other settings. The connections are kept if nothing changed that they are made by; else
    /// there are new ones, and those in use end with their requests.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn with_settings(
        &self,
        settings: &config::UpstreamConfig,
        metrics: &Metrics,
    ) -> Result<Self, TlsError> {
        let made_by = |it: &config::UpstreamConfig| {
            let config::UpstreamConfig { url, tls, http2, timeouts, .. } = it.clone();
            (url, tls, http2, [timeouts.connect, timeouts.body_idle, timeouts.pool_idle])
        };
        let kept = if made_by(settings) == made_by(&self.settings) {
            Self {
                settings: settings.clone(),
                rewrites_realm: settings.rewrite_realm,
                silence_limit: settings.timeouts.response,
                ..self.clone()
            }
        } else {
            Self::new(settings, metrics)?.under(self.load.clone()).traced(self.traces.clone())
        };
        Ok(Self { answered: Arc::clone(&self.answered), ..kept })
    }

    /// Reads the less at once the higher this load is.
    #[must_use]
    pub fn under(self, load: Load) -> Self {
        Self { load, ..self }
    }

    /// Makes a span for each request.
    #[must_use]
    pub fn traced(self, traces: Traces) -> Self {
        Self { traces, ..self }
    }

    /// Its number in the index.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &config::UpstreamName {
        &self.name
    }

    /// What refshim does with the requests for it.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.settings.mode
    }

    /// The values of `ns=` that select it.
    #[must_use]
    pub fn namespaces(&self) -> &[String] {
        &self.settings.namespaces
    }

    /// Host and port, as in the upstream's URL.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        self.url.authority()
    }

    /// The path before `/v2/` in the upstream's URL (Nexus has one), or empty.
    #[must_use]
    pub fn base_path(&self) -> &str {
        self.url.path()
    }

    /// Whether the realm of a challenge is rewritten to lead through refshim.
    #[must_use]
    pub fn rewrites_realm(&self) -> bool {
        self.rewrites_realm
    }

    /// Reloads its TLS files if they changed. Blocks on the disk.
    pub fn reload(&self) {
        self.connectors.iter().for_each(Connector::reload);
    }

    /// The idle time-out of bodies.
    #[must_use]
    pub fn body_idle(&self) -> Duration {
        self.body_idle
    }

    /// The time-out for the head of an answer.
    #[must_use]
    pub fn silence_limit(&self) -> Duration {
        self.silence_limit
    }

    /// Scheme, host and port.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.url.authority())
    }

    /// The time since a registry last answered; `None` if none has yet.
    #[must_use]
    pub fn answered_ago(&self) -> Option<Duration> {
        let answered = self.answered.last.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.answered.started.elapsed().saturating_sub(Duration::from_millis(answered)))
    }

    /// Waits until the connection failed, or there was no answer in time; at once if that was so since the last time.
    pub async fn failed(&self) {
        self.answered.failed.notified().await;
    }

    /// Sends a request to this upstream, whatever scheme and host its URI has. It is retried as the module says.
    ///
    /// The request is boxed: each future on its way would have room for it twice, and copy it.
    ///
    /// If the caller drops the future, an HTTP/1.1 connection is closed and an HTTP/2 stream is reset; the upstream
    /// may still have processed the request.
    pub fn send(
        &self,
        request: impl Into<Box<Request<Body>>>,
    ) -> impl Future<Output = Result<Response<Received>, UpstreamError>> + Send {
        self.send_by(self.pools.of(self.load.read_size()), request.into())
    }

    /// [`Upstream::send`] by HTTP/1.1, for `Upgrade`.
    pub fn send_http1(
        &self,
        request: Box<Request<Body>>,
    ) -> impl Future<Output = Result<Response<Received>, UpstreamError>> + Send {
        self.send_by(self.http1.as_ref().unwrap_or(&self.pools).of(self.load.read_size()), request)
    }

    /// Follows a redirect from `from` (an absolute URI) for a question with these header fields.
    ///
    /// # Errors
    /// The redirect is not allowed, or there is no answer.
    pub async fn follow(
        &self,
        from: &Uri,
        location: Uri,
        headers: &HeaderMap,
    ) -> Result<Response<Received>, UpstreamError> {
        let is_same_host = redirect::target(from, &location)?;
        let mut request = question(Method::GET, location);
        if is_same_host && request.uri().authority() == Some(self.authority()) {
            request.headers_mut().clone_from(headers);
            return self.send_to_target(self.pools.of(ReadSize::Large), Box::new(request)).await;
        }
        *request.headers_mut() = redirect::without_credentials(headers);
        // Only the upstream itself may redirect to private addresses, at which its own storage may be. The next host
        // in a chain of redirects may be anybody's, who could use refshim to reach the internal network (SSRF).
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

    /// The absolute URI of `uri` at this upstream.
    ///
    /// # Errors
    /// Path and query are not valid there.
    pub fn absolute(&self, uri: &Uri) -> Result<Uri, UpstreamError> {
        self.target(uri)
    }

    async fn send_by(
        &self,
        pool: &Pool,
        mut request: Box<Request<Body>>,
    ) -> Result<Response<Received>, UpstreamError> {
        *request.uri_mut() = self.target(request.uri())?;
        let mut span = self.traces.send(&mut request, &self.name);
        // Boxed, or each future around it would have this one's size.
        let answered = Box::pin(self.send_to_target(pool, request)).await;
        if let Some(span) = &mut span {
            match &answered {
                Ok(answer) => span.answered(answer.status()),
                Err(error) => span.failed(error),
            }
        }
        answered
    }

    /// The same path and query at the upstream, with its base path before `/v2/`.
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

/// A request of refshim's own, without a body.
#[must_use]
pub fn question(method: Method, uri: Uri) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    request
}
