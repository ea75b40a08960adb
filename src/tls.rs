//! TLS, the only room that names rustls: towards clients and towards the upstreams. What is made of
//! files is made again when they change; connections that are open go on as they are.

mod acceptor;
mod connector;
mod patient;
mod pem;
mod reloading;

pub use acceptor::{Acceptor, ClientStream};
pub use connector::{Connector, Protocols};
pub use pem::PemError;
pub use reloading::Reload;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// The platform's root certificates cannot be read.
    #[error("the platform's root certificates cannot be read: {0}")]
    PlatformRoots(#[source] std::io::Error),
    /// A client certificate is to be checked, and cannot be.
    #[error("the authorities for client certificates do not do: {0}")]
    ClientAuthorities(#[from] rustls::client::VerifierBuilderError),
    /// The configured name of the upstream is none.
    #[error("not a server name: {0:?}")]
    ServerName(String),
    /// Anything else that rustls refuses.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// Makes ring the cryptography of clients that are not told which to use.
pub fn use_ring() {
    // Where there is a choice already, it is the same.
    let _chosen = rustls::crypto::ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
