//! Checks the TLS files that the settings name. `tls` loads them; this module only reports a bad file like any other
//! mistake, with the line of the setting that names it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::mistake::Mistake;
use super::{DatabaseTls, UpstreamTls};

/// Loads a file, or says what is wrong with it.
type FileCheck = fn(&Path) -> Result<(), String>;

/// The checks, given by `tls`.
#[derive(Clone, Copy, Debug)]
pub struct TlsChecks {
    /// A certificate with its chain.
    pub certificate: FileCheck,
    /// A private key.
    pub key: FileCheck,
    /// A valid certificate and a valid private key, which must belong together.
    pub pair: fn(&Path, &Path) -> Result<(), String>,
    /// Certificate authorities, or certificates to be trusted themselves.
    pub authorities: FileCheck,
}

/// The place of each setting's effective value, by key.
pub(super) type Places = BTreeMap<String, String>;

/// The files of one table, `tls`, `index.tls` or `upstreams.<name>`.
pub(super) struct TlsFiles<'a> {
    table: String,
    certificates: Vec<&'a PathBuf>,
    keys: Vec<&'a PathBuf>,
    /// The key of the setting that names them, and the file.
    authorities: Option<(&'static str, &'a PathBuf)>,
}

impl<'a> TlsFiles<'a> {
    pub(super) fn towards_clients(tls: &'a super::TlsConfig) -> Self {
        Self {
            table: "tls".to_owned(),
            certificates: tls.certificates.iter().collect(),
            keys: tls.keys.iter().collect(),
            authorities: tls.client_ca.as_ref().map(|file| ("client_ca", file)),
        }
    }

    pub(super) fn towards_upstream(name: &super::UpstreamName, tls: &'a UpstreamTls) -> Self {
        Self {
            table: format!("upstreams.{name}"),
            certificates: tls.certificate.iter().collect(),
            keys: tls.key.iter().collect(),
            authorities: tls.ca.as_ref().map(|file| ("ca", file)),
        }
    }

    pub(super) fn towards_database(tls: &'a DatabaseTls) -> Self {
        Self {
            table: "index.tls".to_owned(),
            certificates: tls.certificate.iter().collect(),
            keys: tls.key.iter().collect(),
            authorities: tls.ca.as_ref().map(|file| ("ca", file)),
        }
    }

    /// Their mistakes.
    pub(super) fn mistakes(&self, checks: &TlsChecks, places: &Places) -> Vec<Mistake> {
        let mistake = |key: &str, problem: String| {
            let key = format!("{}.{key}", self.table);
            let place = places.get(&key).cloned().unwrap_or(key);
            Mistake::new(place, problem)
        };
        let certificates: Vec<_> = self.certificates.iter().map(|file| (checks.certificate)(file)).collect();
        let keys: Vec<_> = self.keys.iter().map(|file| (checks.key)(file)).collect();
        let mut mistakes = Vec::new();
        // Pairs are unknown if the numbers differ, which is reported as a mistake of its own.
        if certificates.len() == keys.len() {
            let sound = certificates.iter().zip(&keys).map(|(one, other)| one.is_ok() && other.is_ok());
            for ((certificate, key), _) in
                self.certificates.iter().zip(&self.keys).zip(sound).filter(|(_, sound)| *sound)
            {
                mistakes.extend((checks.pair)(certificate, key).err().map(|problem| mistake("key", problem)));
            }
        }
        let wrong = |key: &'static str, found: Vec<Result<(), String>>| {
            found.into_iter().filter_map(Result::err).map(move |problem| (key, problem))
        };
        let authorities = self
            .authorities
            .iter()
            .filter_map(|(key, file)| (checks.authorities)(file).err().map(|problem| (*key, problem)));
        let wrong = wrong("certificate", certificates).chain(wrong("key", keys)).chain(authorities);
        mistakes.extend(wrong.map(|(key, problem)| mistake(key, problem)));
        mistakes
    }
}
