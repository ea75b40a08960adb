//! TLS, the only room that names rustls: towards clients and towards the upstreams. What is made of
//! files is made again when they change; connections that are open go on as they are.

mod acceptor;
mod anyone;
mod checks;
mod client_connector;
mod client_tls;
mod connector;
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
pub use mixed_up::MixedUp;
pub use peeked::Peeked;
pub use pem::{PemError, PemProblem};
pub use reloading::Reload;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// What was given as PEM is not what it should be.
    #[error(transparent)]
    PemText(#[from] PemProblem),
    /// The platform's root certificates cannot be read.
    #[error("the platform's root certificates cannot be read: {0}")]
    PlatformRoots(#[source] std::io::Error),
    /// The other side's certificate is to be checked, and cannot be.
    #[error("cannot use these authorities: {0}")]
    Authorities(#[from] rustls::client::VerifierBuilderError),
    /// The configured name of the upstream is none.
    #[error("not a server name: {0:?}")]
    ServerName(String),
    /// Anything else that rustls refuses.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
