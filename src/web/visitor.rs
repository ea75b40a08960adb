//! A visitor of the web page, as the registry is to see them: their own credentials, their own address, nothing else.
//! Logs them in where the registry asks for it.

use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Request, Uri};

use super::WebRegistry;
use super::respond::Failure;
use crate::client::{Credential, ErrorKind, LoginOutcome};
use crate::http::header::{X_FORWARDED_FOR, X_FORWARDED_PROTO, X_REQUEST_ID};
use crate::index::Repository;
use crate::oci::{RepositoryName, TagOrDigest};
use crate::proxy::error::Error;
use crate::proxy::forward::{Clients, Origin, Peer};
use crate::registry::{Answer, FoundManifest, Visit};

/// A visitor.
#[derive(Debug)]
pub(super) struct Visitor {
    headers: HeaderMap,
    origin: Origin,
    /// Name and password, if the browser sent any.
    credential: Option<Credential>,
}

impl Visitor {
    /// The visitor who sent these fields.
    pub(super) fn new(clients: &Clients, peer: &Peer, sent: &HeaderMap) -> Self {
        let mut headers = HeaderMap::new();
        for name in [AUTHORIZATION, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_REQUEST_ID] {
            // All of its values, as they came: of the first two, the registry may read another than the first.
            for value in sent.get_all(&name) {
                headers.append(name.clone(), value.clone());
            }
        }
        // Of a request without `Host`: the registry must not see this page's as the one that clients use for it.
        let mut request = Request::new(());
        *request.headers_mut() = headers.clone();
        let credential = password(sent.get(AUTHORIZATION));
        Self { headers, origin: clients.origin(peer, &request), credential }
    }

    /// Whether the visitor sent credentials of any kind.
    pub(super) fn is_anonymous(&self) -> bool {
        !self.headers.contains_key(AUTHORIZATION)
    }

    /// Asks the registry for a manifest, and logs in if it wants that. The visit has the rights for which it was
    /// answered.
    pub(super) async fn find(
        &self,
        at: &WebRegistry,
        name: &RepositoryName,
        manifest: &TagOrDigest,
    ) -> Result<(Visit, Answer<FoundManifest>), Failure> {
        // The registry gets the password only if it is one that asks for it: where there is a token service, that alone.
        let holds_back = self.credential.is_some() && !at.takes_passwords.load(Ordering::Relaxed);
        let mut headers = self.headers.clone();
        if holds_back {
            headers.remove(AUTHORIZATION);
        }
        let visit = self.visit(at, name, &headers);
        let refused = match at.registry.find(&visit, manifest).await {
            Ok(answer @ Answer::Present(_)) => return Ok((visit, answer)),
            Ok(_) if holds_back => return self.find_by_password(at, name, manifest).await,
            Ok(answer) => return Ok((visit, answer)),
            Err(error) => error,
        };
        let Error::Rejected(rejection) = refused.root() else { return Err(refused.into()) };
        if rejection.status() != http::StatusCode::UNAUTHORIZED || !self.may_log_in() {
            return Err(refused.into());
        }
        let (forwarded, credential) = (self.origin.forwarded_for(), self.credential.as_ref());
        let login = at.login.log_in(rejection.challenges(), credential, name, &forwarded).await;
        match login {
            Ok(LoginOutcome::Token(token)) => {
                let mut headers = self.headers.clone();
                headers.insert(AUTHORIZATION, token);
                let visit = self.visit(at, name, &headers);
                match at.registry.find(&visit, manifest).await {
                    // The password is right, or a token would not have been given: to ask for it again leads nowhere.
                    Err(error) if error.is_about_rights() && self.credential.is_some() => {
                        Err(Failure::Denied)
                    }
                    Err(error) => Err(error.into()),
                    Ok(answer) => Ok((visit, answer)),
                }
            }
            Ok(LoginOutcome::Password) if holds_back => {
                at.takes_passwords.store(true, Ordering::Relaxed);
                self.find_by_password(at, name, manifest).await
            }
            Ok(LoginOutcome::Password) => Err(refused.into()),
            Ok(LoginOutcome::Unknown) => Err(Failure::OtherLogin),
            Err(error) if error.kind() == ErrorKind::Denied => Err(Failure::Login),
            Err(error) => Err(Failure::TokenService(error)),
        }
    }

    async fn find_by_password(
        &self,
        at: &WebRegistry,
        name: &RepositoryName,
        manifest: &TagOrDigest,
    ) -> Result<(Visit, Answer<FoundManifest>), Failure> {
        let visit = self.visit(at, name, &self.headers);
        let answer = at.registry.find(&visit, manifest).await?;
        Ok((visit, answer))
    }

    /// A token that the visitor brings is used as it is.
    fn may_log_in(&self) -> bool {
        self.is_anonymous() || self.credential.is_some()
    }

    fn visit(&self, at: &WebRegistry, name: &RepositoryName, headers: &HeaderMap) -> Visit {
        // Without `ns=`: the page shows a registry's own repositories.
        let caller = at.registry.caller(headers, &Uri::from_static("/"), &self.origin);
        at.registry.visit(&caller, Repository { upstream: at.upstream.number(), name: name.clone() })
    }
}

/// Name and password (RFC 7617) in an `Authorization`.
fn password(authorization: Option<&HeaderValue>) -> Option<Credential> {
    let (scheme, encoded) = authorization?.to_str().ok()?.split_once(' ')?;
    let decoded = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(encoded.trim()).ok())??;
    let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(Credential::Password { username: username.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_password_are_read_as_browsers_send_them() {
        let read = |text: &'static str| password(Some(&HeaderValue::from_static(text)));
        let expected = Credential::Password { username: "a".to_owned(), password: "b:c".to_owned() };
        assert_eq!(read("Basic YTpiOmM="), Some(expected.clone()));
        assert_eq!(read("basic  YTpiOmM="), Some(expected));
        for text in ["Bearer YTpiOmM=", "Basic", "Basic %", "Basic YQ==", ""] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(password(None), None);
    }
}
