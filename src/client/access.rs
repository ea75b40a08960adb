//! How a client speaks to an upstream of refshim's: where it is, over which TLS, and with refshim's own credentials
//! for it.

use std::sync::Arc;

use url::{Position, Url};

use super::{Client, Error, Options, Pace, Result};
use crate::config::{ServiceConfig, UpstreamConfig};
use crate::tls::{ClientTls, Connector, Protocols, Reload};

/// The way to one upstream. Cheap to clone.
#[derive(Clone, Debug)]
pub struct UpstreamAccess {
    pub(super) host: String,
    /// With the path before `/v2/`.
    pub(super) url: Url,
    /// Not where other TLS settings were given by hand.
    pub(super) connector: Option<Connector>,
    pub(super) service: Option<ServiceConfig>,
}

impl UpstreamAccess {
    /// Loads the upstream's TLS files.
    fn new(upstream: &UpstreamConfig, is_own_tls: bool) -> Result<Self> {
        let url = format!("{}/v2/", upstream.url);
        let asked = || format!("setting up the connection to {}", upstream.url);
        let url = Url::parse(&url).map_err(|error| Error::failed(asked(), error.to_string()))?;
        let connector = is_own_tls
            .then(|| Connector::new(upstream, Protocols::Either))
            .transpose()
            .map_err(|error| Error::failed(asked(), error.to_string()))?;
        let host = upstream.url.authority().to_string();
        Ok(Self { host, url, connector, service: upstream.service.clone() })
    }

    /// Host and port as they stand in requests: without the port if it is that of the scheme.
    pub(super) fn authority(&self) -> &str {
        &self.url[Position::BeforeHost..Position::AfterPort]
    }
}

impl Options {
    /// The same for this upstream: its URL, its TLS settings unless others were given by hand, and its service
    /// credentials. Other hosts that it leads to (a token service) must have a certificate of the platform's
    /// authorities or of the upstream's `ca`.
    ///
    /// # Errors
    /// TLS files cannot be used.
    pub fn towards(self, upstream: &UpstreamConfig) -> Result<Self> {
        let access = UpstreamAccess::new(upstream, self.tls.is_none())?;
        let tls = match (self.tls, &upstream.tls.ca) {
            (None, Some(file)) => {
                let asked = || format!("reading {}", file.display());
                let pem = std::fs::read(file).map_err(|error| Error::io(asked(), &error))?;
                let tls = ClientTls::trusting(&pem);
                Some(tls.map_err(|error| Error::failed(asked(), error.to_string()))?)
            }
            (given, _) => given,
        };
        Ok(Self { tls, upstream: Some(access), ..self })
    }
}

impl Client {
    /// A client of the serving process for one upstream. Without service credentials it is anonymous: whoever runs a
    /// server does not expect it to use a login of theirs.
    ///
    /// # Errors
    /// TLS files cannot be used.
    pub fn of_upstream(upstream: &UpstreamConfig, pace: Option<Arc<Pace>>) -> Result<Self> {
        let options = Options { pace, is_anonymous: true, ..Options::default() };
        Ok(Self::new(options.towards(upstream)?))
    }
}

impl Reload for Client {
    /// Reloads the TLS files of its upstream, if they changed. Credentials are read at each log-in anyway.
    fn reload(&self) {
        let connector = self.options.upstream.as_ref().and_then(|upstream| upstream.connector.as_ref());
        connector.into_iter().for_each(Reload::reload);
    }
}
