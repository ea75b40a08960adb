//! Which certificates of servers the client commands accept.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use super::trust::{AnyCertificate, Trust};
use super::{TlsError, pem, provider};

/// TLS of the client commands, HTTP/2 by ALPN included.
#[derive(Clone, Debug)]
pub struct ClientTls(ClientConfig);

impl ClientTls {
    /// Accepts the certificates of the platform's authorities.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn platform() -> Result<Self, TlsError> {
        let builder =
            ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        Ok(Self::with_alpn(builder.with_root_certificates(platform_roots()).with_no_client_auth()))
    }

    /// Accepts these as well, in PEM: authorities, or certificates that servers show.
    ///
    /// # Errors
    /// It contains no certificate, or one that cannot be used.
    pub fn trusting(pem: &[u8]) -> Result<Self, TlsError> {
        let trust = Trust::new(pem::certificates_of(pem)?, platform_roots())?;
        let builder =
            ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(trust));
        Ok(Self::with_alpn(builder.with_no_client_auth()))
    }

    /// Accepts any certificate.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn insecure() -> Result<Self, TlsError> {
        let builder =
            ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate::new()));
        Ok(Self::with_alpn(builder.with_no_client_auth()))
    }

    fn with_alpn(mut config: ClientConfig) -> Self {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self(config)
    }

    pub(super) fn config(&self) -> ClientConfig {
        self.0.clone()
    }
}

/// The authorities of the platform, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
fn platform_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // A certificate that cannot be read is missed when a server needs it: a command may well need none.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}
