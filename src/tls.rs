//! TLS towards clients and upstreams. The only room that uses rustls.
//!
//! Certificates and keys are reloaded when their files change; open connections keep what they began with. Files that
//! cannot be loaded are an error at the start, and later are logged while the previous ones stay in use.

mod acceptor;
mod anyone;
mod checks;
mod client_connector;
mod client_tls;
mod connector;
mod database;
mod expiry;
mod mixed_up;
mod patient;
mod peeked;
mod pem;
mod reloading;
mod trust;

pub use acceptor::{Acceptor, ClientStream};
pub use anyone::connector_to_anyone;
pub use checks::checks;
pub use client_connector::{ClientConnector, ProxyError};
pub use client_tls::ClientTls;
pub use connector::{Connector, Protocols};
pub use database::DatabaseConnector;
pub use expiry::ServedCertificate;
pub use mixed_up::MixedUp;
pub use peeked::Peeked;
pub use pem::{PemError, PemProblem};
pub use reloading::Reload;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be used.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A PEM text cannot be used.
    #[error(transparent)]
    PemText(#[from] PemProblem),
    /// The platform's root certificates cannot be read.
    #[error("the platform's root certificates cannot be read: {0}")]
    PlatformRoots(#[source] std::io::Error),
    /// The authorities that the other side's certificate is verified with cannot be used.
    #[error("cannot use these certificate authorities (tls.client_ca, or the upstream's ca): {0}")]
    Authorities(#[from] rustls::client::VerifierBuilderError),
    /// The configured `server_name` is not a DNS name or IP address.
    #[error("not a server name: {0:?}")]
    ServerName(String),
    /// Any other error of rustls.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
