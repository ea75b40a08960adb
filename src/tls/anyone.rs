//! TLS towards the hosts that redirects of the registry lead to.

use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;

use super::{TlsError, pem, provider};
use crate::config::UpstreamTls;

/// A connector to any host, resolved by `resolver`. Certificates are verified with the platform's authorities and the
/// upstream's `ca`, even if `insecure_skip_verify` is set for the upstream: it is not a statement about other hosts.
/// No client certificate is sent.
///
/// # Errors
/// The file of the upstream's authorities, or the platform's root certificates, cannot be read.
pub fn connector_to_anyone<R>(
    settings: &UpstreamTls,
    connect_limit: Duration,
    resolver: R,
) -> Result<HttpsConnector<HttpConnector<R>>, TlsError> {
    let mut roots = match &settings.ca {
        Some(file) => pem::authorities(file)?,
        None => rustls::RootCertStore::empty(),
    };
    let platform = rustls_native_certs::load_native_certs();
    let (_added, _ignored) = roots.add_parsable_certificates(platform.certs);
    if let (true, Some(error)) = (roots.is_empty(), platform.errors.into_iter().next()) {
        return Err(TlsError::PlatformRoots(std::io::Error::other(error)));
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(connect_limit));
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp))
}
