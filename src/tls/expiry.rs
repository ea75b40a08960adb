//! When certificates expire.

use std::path::{Path, PathBuf};

use rustls::sign::CertifiedKey;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

/// A certificate that clients are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedCertificate {
    /// Its file.
    pub file: PathBuf,
    /// When it expires, or one of its chain before it, in seconds since 1970.
    pub expires: u64,
}

impl ServedCertificate {
    /// A certificate with its chain; none if it cannot be read, which rustls, being less strict, may serve all the same.
    pub(super) fn of(file: &Path, certified: &CertifiedKey) -> Option<Self> {
        let expiries = certified.cert.iter().filter_map(|certificate| {
            let certificate = Certificate::from_der(certificate).ok()?;
            Some(certificate.tbs_certificate.validity.not_after.to_unix_duration().as_secs())
        });
        Some(Self { file: file.to_owned(), expires: expiries.min()? })
    }
}
