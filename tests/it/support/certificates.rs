//! An authority of a test's own and the certificates that it gives out, as PEM files.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// An authority that nobody trusts who was not told to.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Identity {
    /// A server's identity for these hosts that vouches for itself, in files in this directory.
    pub(crate) fn of_its_own(directory: &Path, hosts: &[&str]) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = named("self-signed", hosts).self_signed(&key).unwrap();
        Self::write(directory, "self-signed", &certificate, &key)
    }

    /// [`Identity::of_its_own`], but no longer valid.
    pub(crate) fn expired(directory: &Path, hosts: &[&str], is_ca: bool) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = named("expired", hosts);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let certificate = params.self_signed(&key).unwrap();
        Self::write(directory, "expired", &certificate, &key)
    }

    fn write(directory: &Path, name: &str, certificate: &Certificate, key: &KeyPair) -> Self {
        let identity = Self {
            certificate: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
        };
        std::fs::write(&identity.certificate, certificate.pem()).unwrap();
        std::fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = named("refshim test authority", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let authority = Self { issuer: Issuer::new(params, key), directory };
        std::fs::create_dir(authority.directory()).unwrap();
        std::fs::write(authority.certificate(), certificate.pem()).unwrap();
        authority
    }

    /// Its own certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory().join("ca.crt")
    }

    /// A directory with nothing but [`Authority::certificate`], as the containers tools want it.
    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.path().join("authority")
    }

    /// A server's identity for these host names and addresses. `name` names its files; the same name
    /// again overwrites them.
    pub(crate) fn server(&self, name: &str, hosts: &[&str]) -> Identity {
        self.identity(name, hosts, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// [`Authority::server`], valid until the first day of this year.
    pub(crate) fn server_until(&self, name: &str, hosts: &[&str], year: i32) -> Identity {
        let mut params = named(name, hosts);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.signed(name, params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's identity, the subject's common name being `name`.
    pub(crate) fn client(&self, name: &str) -> Identity {
        self.identity(name, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn identity(&self, name: &str, hosts: &[&str], usage: ExtendedKeyUsagePurpose) -> Identity {
        self.signed(name, named(name, hosts), usage)
    }

    fn signed(&self, name: &str, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Identity {
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity::write(self.directory.path(), name, &certificate, &key)
    }
}

fn named(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
