//! TLS connections of a test's own: whom they ask for, what they show, and what they were shown.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Authority, Identity, RawAnswer, exchange};

/// What a client brings along to a handshake.
#[derive(Clone, Debug)]
pub(crate) struct TlsClient {
    roots: Arc<RootCertStore>,
    shown: Option<Identity>,
    protocols: Vec<&'static [u8]>,
    versions: &'static [&'static SupportedProtocolVersion],
}

/// A connection after the handshake.
pub(crate) struct TlsConnection(pub(crate) TlsStream<TcpStream>);

impl TlsClient {
    pub(crate) fn trusting(authority: &Authority) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&authority.certificate())).unwrap();
        Self { roots: roots.into(), shown: None, protocols: Vec::new(), versions: rustls::ALL_VERSIONS }
    }

    /// With a certificate of its own.
    pub(crate) fn showing(self, identity: &Identity) -> Self {
        Self { shown: Some(identity.clone()), ..self }
    }

    /// Offering these to ALPN.
    pub(crate) fn offering(self, protocols: &[&'static [u8]]) -> Self {
        Self { protocols: protocols.to_vec(), ..self }
    }

    /// With these versions of TLS alone.
    pub(crate) fn speaking(self, versions: &'static [&'static SupportedProtocolVersion]) -> Self {
        Self { versions, ..self }
    }

    /// Asks for a host by its name; an address is not told in a handshake. Nothing is kept from
    /// connections before.
    pub(crate) async fn connect(&self, address: SocketAddr, host: &str) -> io::Result<TlsConnection> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_protocol_versions(self.versions).unwrap();
        let config = config.with_root_certificates(Arc::clone(&self.roots));
        let mut config = match &self.shown {
            None => config.with_no_client_auth(),
            Some(Identity { certificate: file, key }) => {
                let key = PrivateKeyDer::from_pem_file(key).unwrap();
                config.with_client_auth_cert(vec![certificate(file)], key).unwrap()
            }
        };
        config.alpn_protocols = self.protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let stream = TcpStream::connect(address).await?;
        let host = ServerName::try_from(host.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(host, stream).await.map(TlsConnection)
    }

    /// Connects and asks for `/v2/` in HTTP/1.1.
    pub(crate) async fn get(&self, address: SocketAddr, host: &str) -> io::Result<RawAnswer> {
        self.connect(address, host).await?.get().await
    }
}

impl TlsConnection {
    /// Asks for `/v2/` in HTTP/1.1; the connection can be used again.
    pub(crate) async fn get(&mut self) -> io::Result<RawAnswer> {
        exchange(&mut self.0, "GET /v2/ HTTP/1.1\r\nhost: refshim\r\n\r\n").await
    }

    /// The server's certificate.
    pub(crate) fn shown(&self) -> CertificateDer<'static> {
        self.0.get_ref().1.peer_certificates().unwrap()[0].clone()
    }

    /// What ALPN agreed on.
    pub(crate) fn protocol(&self) -> Option<&[u8]> {
        self.0.get_ref().1.alpn_protocol()
    }
}

impl Identity {
    /// What a server with this identity shows.
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        certificate(&self.certificate)
    }
}

fn certificate(file: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file).unwrap()
}
