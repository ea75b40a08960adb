//! TLS, the only room that names rustls: today towards the upstream, with the platform's roots.

use std::io;
use std::sync::Arc;

use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, RootCertStore};

/// Speaks TLS where a URL says https, and HTTP/1.1 in any case.
///
/// # Errors
/// The upstream needs TLS and the platform's root certificates cannot be read.
pub fn connector(mut tcp: HttpConnector, https: bool) -> io::Result<HttpsConnector<HttpConnector>> {
    tcp.enforce_http(false);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let roots = if https {
        versions.with_native_roots()?
    } else {
        versions.with_root_certificates(RootCertStore::empty())
    };
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(roots.with_no_client_auth())
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp))
}
