//! Checks TLS files for `config check` and at the start, so that their mistakes are listed with all others.

use std::path::Path;

use super::trust::Trust;
use super::{TlsError, pem};
use crate::config::TlsChecks;

/// The checks, which load files in the same way as TLS does later.
#[must_use]
pub fn checks() -> TlsChecks {
    TlsChecks { certificate, key, pair, authorities }
}

fn certificate(file: &Path) -> Result<(), String> {
    told(pem::certificates(file))
}

fn key(file: &Path) -> Result<(), String> {
    told(pem::key(file))
}

fn pair(certificate: &Path, key: &Path) -> Result<(), String> {
    told(pem::certified_key(certificate, key))
}

fn authorities(file: &Path) -> Result<(), String> {
    let certificates = pem::certificates(file).map_err(|error| error.to_string())?;
    told(pem::authorities(file))?;
    told(Trust::new(certificates, rustls::RootCertStore::empty()))
}

fn told<T, E: Into<TlsError>>(result: Result<T, E>) -> Result<(), String> {
    result.map(|_| ()).map_err(|error| error.into().to_string())
}
