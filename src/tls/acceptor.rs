//! TLS towards clients: several certificates chosen by server name, client certificates, HTTP/2 by ALPN.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::ring::Ticketer;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::reloading::{Reload, Reloading};
use super::{TlsError, pem, provider};
use crate::config::{ClientAuth, Tls};

/// A client's connection once both sides agreed on its keys.
pub type ClientStream<S> = tokio_rustls::server::TlsStream<S>;

/// Takes clients' connections.
#[derive(Debug)]
pub struct Acceptor(Reloading<ServerConfig>);

impl Acceptor {
    /// Reads the files.
    ///
    /// # Errors
    /// One of them is missing, or does not fit.
    pub fn new(settings: &Tls) -> Result<Self, TlsError> {
        let files: Vec<PathBuf> =
            settings.certificates.iter().chain(&settings.keys).chain(&settings.client_ca).cloned().collect();
        let settings = settings.clone();
        let make = move || server_config(&settings);
        Ok(Self(Reloading::new("towards clients".to_owned(), files, make)?))
    }

    /// The handshake with one client; takes as long as the client lets it.
    ///
    /// # Errors
    /// The client broke off, or the two do not agree.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<ClientStream<S>> {
        TlsAcceptor::from(self.0.current()).accept(stream).await
    }
}

impl Reload for Acceptor {
    fn reload(&self) {
        self.0.reload();
    }
}

fn server_config(settings: &Tls) -> Result<ServerConfig, TlsError> {
    let pairs = settings.certificates.iter().zip(&settings.keys);
    let certificates = pairs
        .map(|(certificate, key)| pem::certified_key(certificate, key).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let roots = Arc::new(pem::authorities(file)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = match settings.client_auth {
                ClientAuth::Required => verifier,
                ClientAuth::Optional => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(Certificates(certificates)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Ticketer::new()?;
    Ok(config)
}

/// The first one whose names have the client's server name among them, else the first.
#[derive(Debug)]
struct Certificates(Vec<Arc<CertifiedKey>>);

impl Certificates {
    fn chosen(&self, server_name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let wanted = server_name.and_then(|name| ServerName::try_from(name).ok());
        let is_for = |name: &ServerName<'_>, certificate: &CertifiedKey| {
            let parsed = certificate.end_entity_cert().and_then(ParsedCertificate::try_from);
            parsed.is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok())
        };
        let by_name = wanted.and_then(|name| self.0.iter().find(|certificate| is_for(&name, certificate)));
        by_name.or(self.0.first())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.chosen(hello.server_name()).cloned()
    }
}
