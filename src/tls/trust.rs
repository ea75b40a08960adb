//! Verifies server certificates: those issued by known authorities, and pinned ones.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{TlsError, provider};

/// Accepts pinned certificates, and those issued by an authority.
///
/// Self-signed certificates of `openssl req -x509` are marked as an authority's, and webpki rejects those as a
/// server's. An operator who configures such a file means exactly this certificate, and curl accepts it too.
#[derive(Debug)]
pub(super) struct Trust {
    pinned: Vec<CertificateDer<'static>>,
    by_authority: Arc<WebPkiServerVerifier>,
}

impl Trust {
    /// `pinned` are accepted from servers and as authorities; `others` only as authorities.
    pub(super) fn new(pinned: Vec<CertificateDer<'static>>, others: RootCertStore) -> Result<Self, TlsError> {
        let mut roots = others;
        for certificate in &pinned {
            roots.add(certificate.clone())?;
        }
        let by_authority =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
        Ok(Self { pinned, by_authority })
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.pinned.iter().any(|pinned| pinned.as_ref() == end_entity.as_ref()) {
            return self.by_authority.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        }
        check_use(end_entity, now)?;
        check_name(end_entity, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}

/// Checks that a pinned certificate is valid now and may be used by a server. That it is an authority's, or that its
/// issuer is unknown, is accepted: webpki checks the validity before it reports these.
fn check_use(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let malformed = |_| CertificateError::BadEncoding;
    let anchor = anchor_from_trusted_cert(certificate).map_err(malformed)?;
    let end_entity = EndEntityCert::try_from(certificate).map_err(malformed)?;
    let algorithms = provider().signature_verification_algorithms.all;
    let anchors = [anchor];
    let verified =
        end_entity.verify_for_usage(algorithms, &anchors, &[], now, KeyUsage::server_auth(), None, None);
    match verified {
        Ok(_) | Err(webpki::Error::CaUsedAsEndEntity | webpki::Error::UnknownIssuer) => Ok(()),
        Err(webpki::Error::CertExpired { time, not_after }) => {
            Err(CertificateError::ExpiredContext { time, not_after }.into())
        }
        Err(webpki::Error::CertNotValidYet { time, not_before }) => {
            Err(CertificateError::NotValidYetContext { time, not_before }.into())
        }
        Err(error) => Err(rustls::Error::General(format!("invalid peer certificate: {error}"))),
    }
}

/// Checks the host name. A pinned certificate without any alternative name is valid for its common name, as `openssl
/// req -x509 -subj` makes them; since the exact certificate is known, nobody else can have chosen that name.
fn check_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    match verify_server_name(&parsed, name) {
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            presented,
            ..
        })) if presented.is_empty() && has_common_name(certificate, &name.to_str()) => Ok(()),
        verified => verified,
    }
}

fn has_common_name(certificate: &CertificateDer<'_>, name: &str) -> bool {
    /// The attribute type `commonName` (2.5.4.3) in DER.
    const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
    let Ok(end_entity) = EndEntityCert::try_from(certificate) else { return false };
    let subject = end_entity.subject();
    let mut rest = subject;
    while let Some(at) = rest.windows(COMMON_NAME.len()).position(|window| window == COMMON_NAME) {
        rest = rest.get(at + COMMON_NAME.len()..).unwrap_or_default();
        // Tag and length of the string in DER. Only lengths below 128 are one byte; longer names do not match.
        let [_tag, length, value @ ..] = rest else { return false };
        if value.get(..usize::from(*length)).is_some_and(|value| value.eq_ignore_ascii_case(name.as_bytes()))
        {
            return true;
        }
    }
    false
}

/// Accepts any certificate, as `insecure_skip_verify` and `--insecure` ask for.
///
/// Nor is it checked that the server has the certificate's key: anybody could show a certificate of their own. That
/// check would only refuse what webpki cannot read, such as the certificates of X.509 version 1 that
/// `openssl x509 -req` makes.
#[derive(Debug)]
pub(super) struct AnyCertificate(WebPkiSupportedAlgorithms);

impl AnyCertificate {
    pub(super) fn new() -> Self {
        Self(provider().signature_verification_algorithms)
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
