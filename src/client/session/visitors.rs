//! Logs people in who look at refshim's web page, as a client would that they run themselves: with their own name and
//! password, at the token service that the registry names, for the right to pull from one repository. Keeps nothing.

use http::{HeaderMap, HeaderValue};
use url::{Host, Url};

use super::Scope;
use super::challenge::{Challenge, Service};
use super::token::Token;
use crate::client::transport::Transport;
use crate::client::{Client, Credential, Error, Options, Result};
use crate::config::UpstreamConfig;
use crate::oci::RepositoryName;
use crate::tls::{Connector, Reload};

/// The way to log in to one upstream.
#[derive(Debug)]
pub struct VisitorLogin {
    transport: Transport,
    base: Url,
    connector: Option<Connector>,
}

/// What a registry's challenge asks for.
#[derive(Debug)]
pub enum LoginOutcome {
    /// Name and password with each request.
    Password,
    /// This `Authorization`, which has the visitor's rights to the repository; those of everybody if no name was given.
    Token(HeaderValue),
    /// Something that neither refshim nor a browser can give.
    Unknown,
}

impl VisitorLogin {
    /// The way to log in to this upstream, over TLS as its settings say.
    ///
    /// # Errors
    /// TLS files cannot be used.
    pub fn of_upstream(upstream: &UpstreamConfig) -> Result<Self> {
        let client = Client::new(Options { is_anonymous: true, ..Options::default() }.towards(upstream)?);
        let access = client.options.upstream.as_ref();
        let nowhere = || Error::failed("setting up the web page", "there is no upstream");
        let base = access.map(|access| access.url.clone()).ok_or_else(nowhere)?;
        let connector = access.and_then(|access| access.connector.clone());
        Ok(Self { transport: client.transport()?, base, connector })
    }

    /// Does what the challenges of a 401 ask for, as far as that can be done for this visitor. `forwarded` tells the token
    /// service the visitor's address, by which it may decide: refshim's own may have more rights.
    ///
    /// # Errors
    /// The token service rejects the visitor, gives no token, or is one that no password may be sent to.
    pub async fn log_in(
        &self,
        challenges: impl Iterator<Item = &HeaderValue>,
        visitor: Option<&Credential>,
        repository: &RepositoryName,
        forwarded: &HeaderMap,
    ) -> Result<LoginOutcome> {
        match Challenge::of(challenges) {
            None => Ok(LoginOutcome::Unknown),
            Some(Challenge::Basic) => Ok(LoginOutcome::Password),
            Some(Challenge::Bearer(Service { realm, service })) => {
                let realm = self.realm(&realm)?;
                let scope = Scope::pull(repository.as_str());
                let token = Token::ask(&self.transport, realm, &service, &scope, visitor, forwarded).await?;
                Ok(LoginOutcome::Token(token.authorization()))
            }
        }
    }

    /// Where a challenge wants the password sent to, if that is encrypted or does not leave this machine.
    fn realm(&self, named: &str) -> Result<Url> {
        let asked = || "logging in a visitor of the web page";
        let realm = self.base.join(named).map_err(|error| Error::failed(asked(), error.to_string()))?;
        // A registry elsewhere must not have refshim ask this machine for anything.
        let is_of_this_machine = |url: &Url| url.scheme() == "http" && is_loopback(url);
        if realm.scheme() == "https" || (is_of_this_machine(&realm) && is_of_this_machine(&self.base)) {
            return Ok(realm);
        }
        Err(Error::failed(asked(), "the registry names a token service that is not reached over https"))
    }
}

/// Not a session's rule, which also believes the name `localhost`: what that leads to, a resolver decides.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        Some(Host::Domain(_)) | None => false,
    }
}

impl Reload for VisitorLogin {
    fn reload(&self) {
        self.connector.iter().for_each(Reload::reload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CommandLine, Config};

    #[test]
    fn passwords_leave_the_machine_only_encrypted() {
        let upstream = Some("http://127.0.0.1:5000/base".to_owned());
        let config = Config::load(&CommandLine { upstream, ..CommandLine::default() }, []).unwrap();
        let login = VisitorLogin::of_upstream(&config.upstream).unwrap();
        for named in ["https://auth.example/token", "http://127.0.0.2:5001/token", "http://[::1]/t", "/token"]
        {
            assert!(login.realm(named).is_ok(), "{named}");
        }
        for named in
            ["http://auth.example/token", "http://localhost/token", "ftp://127.0.0.1/", "file:///etc/x"]
        {
            assert!(login.realm(named).is_err(), "{named}");
        }
        let upstream = Some("https://registry.example".to_owned());
        let config = Config::load(&CommandLine { upstream, ..CommandLine::default() }, []).unwrap();
        let login = VisitorLogin::of_upstream(&config.upstream).unwrap();
        assert!(login.realm("https://auth.example/token").is_ok());
        assert!(login.realm("http://127.0.0.1:8080/token").is_err());
    }
}
