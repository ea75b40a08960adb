//! TLS towards clients: certificates selected by server name (SNI), client certificates, HTTP/2 by ALPN.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::ring::Ticketer;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::expiry::ServedCertificate;
use super::peeked::Peeked;
use super::reloading::{Reload, Reloading};
use super::{TlsError, pem, provider};
use crate::config::{ClientAuth, TlsConfig};
use crate::oci::{ErrorBody, ErrorCode};

/// How much of a plain request is read before the connection is closed.
const PLAIN_BYTES: u64 = 64 << 10;

/// A client's connection after the TLS handshake.
pub type ClientStream<S> = tokio_rustls::server::TlsStream<Peeked<S>>;

/// Accepts TLS connections of clients.
#[derive(Debug)]
pub struct Acceptor(Reloading<Served>);

/// What the files give.
#[derive(Debug)]
struct Served {
    config: Arc<ServerConfig>,
    certificates: Vec<ServedCertificate>,
}

impl Acceptor {
    /// Loads the certificates and keys.
    ///
    /// # Errors
    /// A file is missing or cannot be used.
    pub fn new(settings: &TlsConfig) -> Result<Self, TlsError> {
        let files: Vec<PathBuf> =
            settings.certificates.iter().chain(&settings.keys).chain(&settings.client_ca).cloned().collect();
        let settings = settings.clone();
        let make = move || served(&settings);
        Ok(Self(Reloading::new("towards clients".to_owned(), files, make)?))
    }

    /// Does the TLS handshake with a client, without a time-out of its own. A plain HTTP request is answered with 400
    /// in plain HTTP, since its client could not read a TLS alert.
    ///
    /// # Errors
    /// The connection broke, or the handshake failed.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<ClientStream<S>> {
        let stream = Peeked::new(stream).await?;
        // TLS begins with 0x16, every method of HTTP with a letter.
        if stream.first().is_some_and(|first| first.is_ascii_alphabetic()) {
            refuse_plain(stream).await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP on a port that speaks TLS"));
        }
        TlsAcceptor::from(Arc::clone(&self.0.current().config)).accept(stream).await
    }

    /// The certificates that clients are shown now.
    #[must_use]
    pub fn certificates(&self) -> Vec<ServedCertificate> {
        self.0.current().certificates.clone()
    }
}

/// Answers a plain HTTP request, whatever it is, and reads the rest of it: closing a connection with unread bytes
/// makes the system reset it, and the client would lose the answer.
async fn refuse_plain<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
    let message = "this port speaks TLS: use https://";
    let body = ErrorBody::new(ErrorCode::Unsupported, message).to_json();
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_ref()].concat()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(PLAIN_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

impl Reload for Acceptor {
    fn reload(&self) {
        self.0.reload();
    }
}

fn served(settings: &TlsConfig) -> Result<Served, TlsError> {
    let pairs = settings.certificates.iter().zip(&settings.keys);
    let certificates = pairs
        .map(|(certificate, key)| pem::certified_key(certificate, key).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    let files = settings.certificates.iter().zip(&certificates);
    let told = files.filter_map(|(file, certified)| ServedCertificate::of(file, certified)).collect();
    Ok(Served { config: Arc::new(server_config(settings, certificates)?), certificates: told })
}

fn server_config(
    settings: &TlsConfig,
    certificates: Vec<Arc<CertifiedKey>>,
) -> Result<ServerConfig, TlsError> {
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

/// Certificates by server name: the first that is valid for the name in the client's hello, else the first of all.
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
