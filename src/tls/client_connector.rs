//! Connections of the client commands to any registry, through the proxies that the environment names.

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header::USER_AGENT;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Uri};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tower::Service;

use super::connector::{BoxError, TcpConnector, explained, origin, tcp_connector, within};
use super::patient::Patient;
use super::{ClientTls, Connector};

/// The inner one is that to a proxy, in whose tunnel TLS is spoken to the registry.
type Stream = MaybeHttpsStream<MaybeHttpsStream<TokioIo<Patient>>>;

/// Makes connections to any host. `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are honoured as curl
/// does, in capitals or not. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClientConnector {
    direct: HttpsConnector<TcpConnector>,
    to_proxy: HttpsConnector<TcpConnector>,
    tls: Arc<ClientConfig>,
    /// A host, with its port, that has settings of its own.
    own: Option<(Arc<str>, Connector)>,
    proxies: Arc<Matcher>,
    user_agent: HeaderValue,
    limit: Duration,
}

/// No connection through a proxy.
#[derive(Debug, thiserror::Error)]
#[error("through the proxy {proxy}")]
pub struct ProxyError {
    proxy: Uri,
    source: BoxError,
}

impl ClientConnector {
    /// A connection, with TLS if need be, must come about within `limit`. Proxies are told the `user_agent`.
    #[must_use]
    pub fn new(tls: &ClientTls, user_agent: HeaderValue, limit: Duration) -> Self {
        let config = tls.config();
        let mut to_proxy = config.clone();
        // CONNECT and absolute-form are spoken in HTTP/1.1, also inside TLS to the proxy itself.
        to_proxy.alpn_protocols = Vec::new();
        let config = Arc::new(config);
        Self {
            direct: (
                tcp_connector(limit, |stream| TokioIo::new(Patient::new(stream.into_inner()))),
                Arc::clone(&config),
            )
                .into(),
            to_proxy: (
                tcp_connector(limit, |stream| TokioIo::new(Patient::to_proxy(stream.into_inner()))),
                to_proxy,
            )
                .into(),
            tls: config,
            own: None,
            proxies: Arc::new(Matcher::from_env()),
            user_agent,
            limit,
        }
    }

    /// The same, but this host is connected to by a connector of its own, unless a proxy leads there.
    #[must_use]
    pub fn with_own(self, host: &str, connector: Connector) -> Self {
        Self { own: Some((host.to_ascii_lowercase().into(), connector)), ..self }
    }

    /// The same, whatever proxies the environment names.
    #[must_use]
    pub fn without_proxies(self) -> Self {
        Self { proxies: Arc::new(Matcher::builder().build()), ..self }
    }

    /// What a request must show to the proxy that forwards it. A tunnel's proxy was shown it with the CONNECT, and
    /// the registry at its end must not see it.
    #[must_use]
    pub fn proxy_authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        let proxy = self.proxies.intercept(uri).filter(|_| uri.scheme() == Some(&Scheme::HTTP))?;
        proxy.basic_auth().cloned()
    }

    async fn connect(mut self, uri: Uri) -> Result<Stream, BoxError> {
        let Some(proxy) = self.proxies.intercept(&uri) else {
            let is_own = |(host, _): &(Arc<str>, _)| {
                uri.authority().is_some_and(|to| to.as_str().eq_ignore_ascii_case(host))
            };
            let connected = match self.own.filter(is_own) {
                Some((_, mut own)) => own.call(uri).await,
                None => within(self.limit, self.direct.call(uri)).await,
            };
            return connected.map(MaybeHttpsStream::Http);
        };
        let address = proxy.uri().clone();
        let connected = within(self.limit, self.connect_through(&proxy, uri)).await;
        connected.map_err(|source| ProxyError { proxy: address, source }.into())
    }

    async fn connect_through(mut self, proxy: &Intercept, uri: Uri) -> Result<Stream, BoxError> {
        let address = proxy.uri().clone();
        if address.scheme() != Some(&Scheme::HTTP) && address.scheme() != Some(&Scheme::HTTPS) {
            return Err(io::Error::other("only proxies at http:// and https:// are supported").into());
        }
        let connected = self.to_proxy.call(address.clone()).await;
        // Named here: what follows would call it a mistake of the registry.
        let connected = connected.map_err(|error| explained(&origin(&address), error))?;
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Ok(MaybeHttpsStream::Http(connected));
        }
        let mut connected = Some(connected);
        let once = tower::service_fn(move |_: Uri| {
            ready(
                connected
                    .take()
                    .ok_or_else(|| io::Error::other("the connection to the proxy was used before")),
            )
        });
        let user_agent = HeaderMap::from_iter([(USER_AGENT, self.user_agent)]);
        let mut tunnel = Tunnel::new(address, once).with_headers(user_agent);
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        HttpsConnector::from((tunnel, self.tls)).call(uri).await
    }
}

impl Service<Uri> for ClientConnector {
    type Response = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Stream, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}
