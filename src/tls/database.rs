//! TLS towards the database of the index: always verified, whatever the URL says.

use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::trust::Trust;
use super::{TlsError, pem, provider};
use crate::config::DatabaseTls;

/// Connects to the database. The files are read for each connection, so that they can be renewed at any time: few
/// connections are made, and each lives long.
#[derive(Clone, Debug)]
pub struct DatabaseConnector {
    settings: DatabaseTls,
}

impl DatabaseConnector {
    /// Reads the files once, without connecting.
    ///
    /// # Errors
    /// A file, or the platform's root certificates, cannot be used.
    pub fn new(settings: &DatabaseTls) -> Result<Self, TlsError> {
        client_config(settings)?;
        Ok(Self { settings: settings.clone() })
    }
}

impl<S> MakeTlsConnect<S> for DatabaseConnector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = <MakeRustlsConnect as MakeTlsConnect<S>>::Stream;
    type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<S>>::TlsConnect;
    type Error = TlsError;

    fn make_tls_connect(&mut self, host: &str) -> Result<Self::TlsConnect, TlsError> {
        let name = self.settings.server_name.as_deref().unwrap_or(host);
        let mut made = MakeRustlsConnect::new(client_config(&self.settings)?);
        <MakeRustlsConnect as MakeTlsConnect<S>>::make_tls_connect(&mut made, name)
            .map_err(|_invalid| TlsError::ServerName(name.to_owned()))
    }
}

fn client_config(settings: &DatabaseTls) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match &settings.ca {
        Some(file) => {
            let trust = Trust::new(pem::certificates(file)?, RootCertStore::empty())?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(trust))
        }
        None => builder.with_native_roots().map_err(TlsError::PlatformRoots)?,
    };
    Ok(match (&settings.certificate, &settings.key) {
        (Some(certificate), Some(key)) => {
            builder.with_client_auth_cert(pem::certificates(certificate)?, pem::key(key)?)?
        }
        (None | Some(_), None | Some(_)) => builder.with_no_client_auth(),
    })
}
