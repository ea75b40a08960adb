//! Certificates and keys out of PEM files.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::provider;

/// A file does not hold what it should.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct PemError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("no certificate in it")]
    Empty,
    #[error("{0}")]
    Pem(#[from] pem::Error),
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
}

fn in_file<T, E: Into<Problem>>(path: &Path, result: Result<T, E>) -> Result<T, PemError> {
    result.map_err(|problem| PemError { path: path.to_owned(), problem: problem.into() })
}

/// The certificates of a file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let certificates: Result<Vec<_>, pem::Error> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates = in_file(path, certificates)?;
    if certificates.is_empty() { in_file(path, Err(Problem::Empty)) } else { Ok(certificates) }
}

/// The private key of a file.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    in_file(path, PrivateKeyDer::from_pem_file(path))
}

/// A certificate with its chain and its key, which must belong together.
pub(super) fn certified_key(certificate: &Path, key_file: &Path) -> Result<CertifiedKey, PemError> {
    let (chain, key) = (certificates(certificate)?, key(key_file)?);
    in_file(key_file, CertifiedKey::from_der(chain, key, &provider()))
}

/// The authorities of a file.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        in_file(path, roots.add(certificate))?;
    }
    Ok(roots)
}
