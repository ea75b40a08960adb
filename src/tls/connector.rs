//! TLS towards an upstream: authorities, client certificate, and HTTP/2 by ALPN.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_rustls::{
    ConfigBuilderExt as _, FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream,
};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower::Service;
use tower::util::MapResponse;

use super::mixed_up::MixedUp;
use super::patient::Patient;
use super::reloading::{Reload, Reloading};
use super::trust::{AnyCertificate, Trust};
use super::{TlsError, pem, provider};
use crate::config::{UpstreamConfig, UpstreamTls};

/// Connects without TLS.
pub(super) type TcpConnector = MapResponse<HttpConnector, fn(TokioIo<TcpStream>) -> TokioIo<Patient>>;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which versions of HTTP a connection may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocols {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 if ALPN selects it, else HTTP/1.1.
    Either,
    /// HTTP/2.
    Http2,
}

/// Connects to an upstream, with TLS if its URL is https. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    made: Arc<Reloading<HttpsConnector<TcpConnector>>>,
    limit: Duration,
}

impl Connector {
    /// Loads the files, without connecting.
    ///
    /// # Errors
    /// The upstream needs TLS and a file, or the platform's root certificates, cannot be read.
    pub fn new(upstream: &UpstreamConfig, protocols: Protocols) -> Result<Self, TlsError> {
        let files: Vec<PathBuf> = upstream
            .tls
            .ca
            .iter()
            .chain(&upstream.tls.certificate)
            .chain(&upstream.tls.key)
            .cloned()
            .collect();
        let what = format!("towards the upstream {}", upstream.name);
        let limit = upstream.timeouts.connect;
        let upstream = upstream.clone();
        let made = Reloading::new(what, files, move || https_connector(&upstream, protocols))?;
        Ok(Self { made: Arc::new(made), limit })
    }
}

impl Reload for Connector {
    fn reload(&self) {
        self.made.reload();
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<Patient>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut made = HttpsConnector::clone(&self.made.current());
        let (url, limit) = (origin(&uri), self.limit);
        Box::pin(async move { within(limit, made.call(uri)).await.map_err(|error| explained(&url, error)) })
    }
}

/// The connection, or an error after `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    connecting: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}")).into())
    })
}

/// Why this URL cannot be connected to: the same error, unless TLS and plain HTTP were mixed up.
pub(super) fn explained(url: &str, error: BoxError) -> BoxError {
    match MixedUp::of(url, &*error) {
        Some(mixed_up) => mixed_up.into(),
        None => error,
    }
}

/// Scheme, host and port of a URI.
pub(super) fn origin(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", http::uri::Authority::as_str);
    format!("{}://{authority}", uri.scheme_str().unwrap_or_default())
}

/// Connects to any address, and makes of the connection what `of_stream` does.
pub(super) fn tcp_connector(
    limit: Duration,
    of_stream: fn(TokioIo<TcpStream>) -> TokioIo<Patient>,
) -> TcpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(limit));
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    TcpConnector::new(tcp, of_stream)
}

fn https_connector(
    upstream: &UpstreamConfig,
    protocols: Protocols,
) -> Result<HttpsConnector<TcpConnector>, TlsError> {
    let tcp =
        tcp_connector(upstream.timeouts.connect, |stream| TokioIo::new(Patient::new(stream.into_inner())));
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(client_config(&upstream.tls, upstream.url.is_https())?)
        .https_or_http();
    let builder = match &upstream.tls.server_name {
        None => builder,
        Some(name) => {
            let invalid = |_| TlsError::ServerName(name.clone());
            let name = ServerName::try_from(name.clone()).map_err(invalid)?;
            builder.with_server_name_resolver(FixedServerNameResolver::new(name))
        }
    };
    Ok(match protocols {
        Protocols::Http1 => builder.enable_http1().wrap_connector(tcp),
        Protocols::Either => builder.enable_http1().enable_http2().wrap_connector(tcp),
        Protocols::Http2 => builder.enable_http2().wrap_connector(tcp),
    })
}

fn client_config(settings: &UpstreamTls, https: bool) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = if settings.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate::new()))
    } else if let Some(file) = &settings.ca {
        let trust = Trust::new(pem::certificates(file)?, RootCertStore::empty())?;
        builder.dangerous().with_custom_certificate_verifier(Arc::new(trust))
    } else if https {
        builder.with_native_roots().map_err(TlsError::PlatformRoots)?
    } else {
        builder.with_root_certificates(RootCertStore::empty())
    };
    Ok(match (&settings.certificate, &settings.key) {
        (Some(certificate), Some(key)) => {
            builder.with_client_auth_cert(pem::certificates(certificate)?, pem::key(key)?)?
        }
        (None | Some(_), None | Some(_)) => builder.with_no_client_auth(),
    })
}
