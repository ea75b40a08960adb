//! TLS of the client commands, with additional authorities.

use rustls::{ClientConfig, RootCertStore};

use super::trust::Trust;
use super::{TlsError, pem, provider};

/// Trusts the platform's authorities and additional certificates.
#[derive(Clone, Debug)]
pub struct ClientTls(ClientConfig);

impl ClientTls {
    /// Also trusts these certificates, in PEM: authorities, or certificates of servers themselves.
    ///
    /// # Errors
    /// It contains no certificate, or one that cannot be used.
    pub fn trusting(pem: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        // Platform certificates that cannot be read are skipped: the server's may need none of them.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let trust = Trust::new(pem::certificates_of(pem)?, roots)?;
        let builder =
            ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = builder.dangerous().with_custom_certificate_verifier(std::sync::Arc::new(trust));
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(config))
    }

    /// As the HTTP client takes it.
    #[must_use]
    pub fn config(&self) -> ClientConfig {
        self.0.clone()
    }
}
