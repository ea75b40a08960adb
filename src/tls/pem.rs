//! Loads certificates and keys from PEM files.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::provider;

/// A PEM file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct PemError {
    path: PathBuf,
    problem: PemProblem,
}

/// What is wrong with PEM.
#[derive(Debug, thiserror::Error)]
pub enum PemProblem {
    /// It cannot be read.
    #[error("{0}")]
    Io(std::io::Error),
    /// It contains no certificate.
    #[error("no certificate in it (PEM, -----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// It contains no private key.
    #[error("no private key in it (PEM, -----BEGIN PRIVATE KEY-----)")]
    NoKey,
    /// The key is encrypted; there is nobody to enter the password.
    #[error("the private key is encrypted; write it without a password (openssl pkey)")]
    EncryptedKey,
    /// The key does not belong to the certificate.
    #[error("the private key is not that of the certificate")]
    Mismatch,
    /// It is malformed.
    #[error("{0}")]
    Pem(pem::Error),
    /// TLS cannot use it.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
}

fn in_file<T, E: Into<PemProblem>>(path: &Path, result: Result<T, E>) -> Result<T, PemError> {
    result.map_err(|problem| PemError { path: path.to_owned(), problem: problem.into() })
}

fn read(path: &Path) -> Result<Vec<u8>, PemError> {
    in_file(path, std::fs::read(path).map_err(PemProblem::Io))
}

/// Loads the certificates of a file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    in_file(path, certificates_of(&read(path)?))
}

/// Parses the certificates of a PEM text, at least one.
pub(super) fn certificates_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemProblem> {
    let certificates: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(PemProblem::Pem)?;
    if certificates.is_empty() { Err(PemProblem::NoCertificate) } else { Ok(certificates) }
}

/// Loads the private key of a file.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    let pem = read(path)?;
    let is_encrypted = || {
        let text = String::from_utf8_lossy(&pem);
        text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED")
    };
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        if is_encrypted() {
            PemProblem::EncryptedKey
        } else if matches!(error, pem::Error::NoItemsFound) {
            PemProblem::NoKey
        } else {
            PemProblem::Pem(error)
        }
    });
    in_file(path, key)
}

/// Loads a certificate with its chain and its key, and checks that they belong together.
pub(super) fn certified_key(certificate: &Path, key_file: &Path) -> Result<CertifiedKey, PemError> {
    let (chain, key) = (certificates(certificate)?, key(key_file)?);
    let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
        if matches!(error, rustls::Error::InconsistentKeys(_)) {
            PemProblem::Mismatch
        } else {
            PemProblem::Rustls(error)
        }
    });
    in_file(key_file, certified)
}

/// Loads the certificate authorities of a file.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        in_file(path, roots.add(certificate))?;
    }
    Ok(roots)
}
