//! One registry as one user: sends requests, and logs in when the registry asks for it.
//!
//! Credentials go to the registry itself and to the token service that it names, and to no other host:
//! neither to where a redirect leads nor to where an upload is sent on to.

mod challenge;
mod token;
mod visitors;

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode};
use url::{Host, Url};

use super::credentials::{Credential, Source};
use super::transport::{Request, Response, Transport};
use super::{Error, ErrorKind, Options, Pace, Result};
use crate::tls::MixedUp;
use challenge::Challenge;
use token::Token;

pub use visitors::{LoginOutcome, VisitorLogin};

const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_REGISTRY: &str = "registry-1.docker.io";

/// A registry, used as one user.
#[derive(Debug)]
pub(super) struct Session {
    transport: Transport,
    pace: Option<Arc<Pace>>,
    host: String,
    base: Url,
    source: Source,
    login: Mutex<Login>,
}

/// What the registry asked for so far: the credentials themselves, or tokens of its token service, by their scope.
#[derive(Debug, Default)]
struct Login {
    direct: Option<HeaderValue>,
    tokens: HashMap<String, Token>,
}

/// The rights that a request needs: `repository:name:actions`, separated by spaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scope(String);

impl Scope {
    pub(super) fn pull(name: &str) -> Self {
        Self(format!("repository:{name}:pull"))
    }

    pub(super) fn push(name: &str) -> Self {
        Self(format!("repository:{name}:pull,push"))
    }

    pub(super) fn delete(name: &str) -> Self {
        Self(format!("repository:{name}:pull,push,delete"))
    }

    /// No right: to be known is enough.
    fn nothing() -> Self {
        Self(String::new())
    }

    /// The right to list the repositories (distribution's own form).
    pub(super) fn catalog() -> Self {
        Self("registry:catalog:*".to_owned())
    }

    /// The right to pull from a second repository as well.
    pub(super) fn and_pull(self, name: &str) -> Self {
        Self(format!("{} repository:{name}:pull", self.0))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("a token") } else { write!(f, "the right to {}", self.0) }
    }
}

/// A request to be sent. `asked` says in words what it is for.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) asked: &'a str,
    pub(super) scope: Scope,
    pub(super) request: Request,
}

impl Session {
    pub(super) fn new(host: &str, options: &Options, transport: Transport) -> Result<Self> {
        let asked = || format!("setting up the connection to {host}");
        let plain = options.plain_http || (is_this_machine(host) && options.tls.is_none());
        let (scheme, address) = (
            if plain { "http" } else { "https" },
            if host == DOCKER_HUB { DOCKER_HUB_REGISTRY } else { host },
        );
        let upstream = options.upstream.as_ref().filter(|upstream| upstream.host == host);
        let base = upstream.map(|upstream| upstream.url.clone());
        let parsed = || Url::parse(&format!("{scheme}://{address}/v2/"));
        let base = base.map_or_else(parsed, Ok).map_err(|error| {
            let error = Error::new(ErrorKind::Usage, asked(), error.to_string());
            let is_bare = address.parse::<Ipv6Addr>().is_ok();
            if is_bare { error.advise("write an IPv6 address in brackets: [::1]:5000") } else { error }
        });
        Ok(Self {
            transport,
            pace: options.pace.clone(),
            host: host.to_owned(),
            base: base?,
            source: Source::of(host, options),
            login: Mutex::default(),
        })
    }

    /// The host as the user named it.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Whether reads are tried again while the registry throttles or fails.
    pub(super) fn is_patient(&self) -> bool {
        self.pace.is_some()
    }

    /// A URL below `/v2/`.
    pub(super) fn url(&self, path: &str) -> Result<Url> {
        self.resolve(&self.base, path)
    }

    /// A URL that an answer to a request for `base` named.
    pub(super) fn resolve(&self, base: &Url, reference: &str) -> Result<Url> {
        base.join(reference).map_err(|error| {
            Error::failed(format!("following {reference:?} of {}", self.host), error.to_string())
        })
    }

    /// The answer, whatever its status. After a 401 it logs in and repeats the request, once. A streamed body
    /// cannot be sent twice, so such a request needs an earlier one of the same scope that logged in.
    pub(super) async fn send(&self, ask: Ask<'_>) -> Result<Response> {
        let Ask { asked, scope, mut request } = ask;
        let is_ours = request.url().origin() == self.base.origin();
        if is_ours && let Some(authorization) = self.authorization(&scope) {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        let again = request.try_clone();
        let response = self.paced(asked, request).await?;
        // A challenge from where a redirect led must be ignored: that host would name the token service that
        // gets the password.
        let is_ours = is_ours && response.url().origin() == self.base.origin();
        let (StatusCode::UNAUTHORIZED, true, Some(mut again)) = (response.status(), is_ours, again) else {
            return Ok(response);
        };
        let authorization = self.log_in(asked, &scope, response).await?;
        again.headers_mut().insert(AUTHORIZATION, authorization);
        self.paced(asked, again).await
    }

    /// Logs in if the registry asks for it; whether it does.
    pub(super) async fn check_login(&self) -> Result<bool> {
        let asked = &format!("logging in at {}", self.host);
        let request = Request::new(Method::GET, self.base.clone());
        self.succeed(Ask { asked, scope: Scope::nothing(), request }).await?;
        Ok(self.authorization(&Scope::nothing()).is_some())
    }

    /// Sends a request when it is its turn, and again while the registry asks for patience.
    async fn paced(&self, asked: &str, mut request: Request) -> Result<Response> {
        let Some(pace) = &self.pace else { return self.transport.send(asked, request).await };
        let mut tried = 0;
        loop {
            let again = request.is_safe().then(|| request.try_clone()).flatten();
            pace.turn().await;
            let answer = self.transport.send(asked, request).await;
            let pause = match &answer {
                Ok(response) => pace.pause_after(response.status(), response.headers(), tried),
                Err(_) => pace.pause_after_silence(tried),
            };
            match (pause, again) {
                (Some(pause), Some(again)) => {
                    pace.hold(pause);
                    request = again;
                }
                // Not sent again, but what it was told is meant for all.
                (Some(pause), None) if answer.is_ok() => {
                    pace.hold(pause);
                    return answer;
                }
                (None, _) | (_, None) => return answer,
            }
            tried += 1;
        }
    }

    /// The answer if it is a success.
    pub(super) async fn succeed(&self, ask: Ask<'_>) -> Result<Response> {
        let asked = ask.asked.to_owned();
        let response = self.send(ask).await?;
        if response.status().is_success() { Ok(response) } else { Err(self.refused(&asked, response).await) }
    }

    /// The answer, or nothing if it is a 404.
    pub(super) async fn find(&self, ask: Ask<'_>) -> Result<Option<Response>> {
        let asked = ask.asked.to_owned();
        let response = self.send(ask).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(response)),
            _ => Err(self.refused(&asked, response).await),
        }
    }

    /// The error for an unwanted answer.
    pub(super) async fn refused(&self, asked: &str, response: Response) -> Error {
        let (status, url) = (response.status(), response.url().origin().ascii_serialization());
        // Without the body, the status still says more than an error about reading it.
        let body = response.read(asked).await.unwrap_or_default();
        // TLS servers answer plain HTTP with a 400 of their own.
        if let Some(mixed_up) = MixedUp::told(&url, status, &body) {
            return Error::mixed_up(asked, &mixed_up);
        }
        Error::answered(asked, status, &body)
    }

    fn authorization(&self, scope: &Scope) -> Option<HeaderValue> {
        let login = self.login();
        let token = login.tokens.get(&scope.0).filter(|token| token.is_fresh());
        token.map(Token::authorization).or_else(|| login.direct.clone())
    }

    /// Logs in as a 401 demands; gives the `Authorization` to repeat the request with.
    async fn log_in(&self, asked: &str, scope: &Scope, refused: Response) -> Result<HeaderValue> {
        let challenge = Challenge::of(refused.headers().get_all(WWW_AUTHENTICATE));
        let Some(challenge) = challenge else { return Err(self.refused(asked, refused).await) };
        match (challenge, self.source.credential(&self.host).await?) {
            (_, Some(Credential::Bearer(token))) => {
                let bearer = token::bearer(&token).ok_or_else(|| {
                    Error::failed(asked, "the token of the service credentials cannot stand in a header")
                })?;
                Ok(self.keep(bearer))
            }
            (Challenge::Basic, Some(Credential::Password { username, password })) => {
                Ok(self.keep(token::basic(&username, &password)))
            }
            (Challenge::Basic, None | Some(Credential::Identity(_))) => {
                Err(self.refused(asked, refused).await)
            }
            (Challenge::Bearer(service), credential) => {
                let realm = self.resolve(&self.base, &service.realm)?;
                // TLS is there to protect the credentials, and those go to the realm.
                if self.base.scheme() == "https" && realm.scheme() != "https" {
                    return Err(Error::failed(
                        asked,
                        format!(
                            "{} wants the credentials sent to {realm}, which is not encrypted",
                            self.host
                        ),
                    ));
                }
                let token = Token::ask(
                    &self.transport,
                    realm,
                    &service.service,
                    scope,
                    credential.as_ref(),
                    &HeaderMap::new(),
                )
                .await?;
                // No lock is held while waiting: requests that are refused at the same time each get a token,
                // and the last one is kept.
                let authorization = token.authorization();
                self.login().tokens.insert(scope.0.clone(), token);
                Ok(authorization)
            }
        }
    }

    /// Credentials that are sent with each request from now on.
    fn keep(&self, authorization: HeaderValue) -> HeaderValue {
        self.login().direct = Some(authorization.clone());
        authorization
    }

    fn login(&self) -> MutexGuard<'_, Login> {
        self.login.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a host, with or without a port, is a loopback address or `localhost`.
fn is_this_machine(host: &str) -> bool {
    // Parsed as the URL that is connected to: an address has many spellings.
    let url = Url::parse(&format!("http://{host}/"));
    url.is_ok_and(|url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, expected: bool) {
        assert_eq!(is_this_machine(host), expected, "{host}");
    }

    #[test]
    fn this_machine_is_known_by_each_of_its_names() {
        for host in ["localhost", "localhost:5000", "LOCALHOST", "127.0.0.1", "127.8.0.1:5000"] {
            check(host, true);
        }
        for host in ["[::1]", "[::1]:5000", "[0:0:0:0:0:0:0:1]", "[0:0::1]:80", "[::ffff:127.0.0.1]:5000"] {
            check(host, true);
        }
        for host in ["registry.example", "localhost.example:5000", "10.0.0.1", "[::2]", "[fe80::1]:5000"] {
            check(host, false);
        }
    }
}
