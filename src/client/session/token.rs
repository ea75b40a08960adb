//! Bearer tokens (distribution, "Token Authentication Specification" for GET, "Oauth2 Token Authentication"
//! for POST).

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use form_urlencoded::Serializer;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use url::Url;

use super::{Credential, Scope};
use crate::client::transport::{Request, Transport};
use crate::client::{Error, Result};

/// Lifetime, in seconds, of a token without `expires_in`; the specification's default, and its minimum.
const DEFAULT_LIFE: u64 = 60;
/// Longest lifetime that is believed, in seconds: no command takes longer, and with the largest `expires_in`
/// the end is more than an [`Instant`] can hold.
const LONGEST_LIFE: u64 = 24 * 60 * 60;
/// A token that expires within this time is no longer used, since the request takes time, too.
const MARGIN: Duration = Duration::from_secs(10);
const CLIENT_ID: &str = "refshim";

/// A token and when it expires.
pub(super) struct Token {
    authorization: HeaderValue,
    ends: Instant,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("ends", &self.ends).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Given {
    // One of the two is there, or both: OAuth 2.0 calls it `access_token`, and the specification accepts
    // either.
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
}

impl Token {
    /// Requests a token. The service grants as much of the scope as the user has a right to. The header fields say whom it
    /// is for, if that is not refshim itself.
    pub(super) async fn ask(
        transport: &Transport,
        realm: Url,
        service: &str,
        scope: &Scope,
        credential: Option<&Credential>,
        on_behalf_of: &HeaderMap,
    ) -> Result<Self> {
        let asked = format!("asking {} for {scope}", realm.host_str().unwrap_or_default());
        let mut request = request(realm, service, scope, credential);
        request.headers_mut().extend(on_behalf_of.clone());
        let response = transport.send(&asked, request).await?;
        let status = response.status();
        let body = response.read(&asked).await?;
        if status != StatusCode::OK {
            // Some services answer 400 to an expired refresh token (`invalid_grant`; RFC 6749, section 5.2).
            let status = if status == StatusCode::BAD_REQUEST { StatusCode::UNAUTHORIZED } else { status };
            return Err(Error::answered(asked, status, &body));
        }
        Self::given(&body).ok_or_else(|| Error::failed(asked, "the answer has no token in it"))
    }

    fn given(body: &[u8]) -> Option<Self> {
        let given: Given = serde_json::from_slice(body).ok()?;
        let token = if given.token.is_empty() { given.access_token } else { given.token };
        let authorization = bearer(&token)?;
        // The specification allows no less: of a few seconds, `MARGIN` would leave nothing.
        let life = given.expires_in.unwrap_or(DEFAULT_LIFE).clamp(DEFAULT_LIFE, LONGEST_LIFE);
        let life = Duration::from_secs(life);
        (!token.is_empty()).then_some(Self { authorization, ends: Instant::now() + life })
    }

    pub(super) fn authorization(&self) -> HeaderValue {
        self.authorization.clone()
    }

    pub(super) fn is_fresh(&self) -> bool {
        Instant::now() + MARGIN < self.ends
    }
}

/// `Basic …`
pub(super) fn basic(username: &str, password: &str) -> HeaderValue {
    let encoded = STANDARD.encode(format!("{username}:{password}"));
    // The fallback is never used: base64 is always valid in a header.
    let mut basic =
        HeaderValue::try_from(format!("Basic {encoded}")).unwrap_or(HeaderValue::from_static("Basic"));
    basic.set_sensitive(true);
    basic
}

/// `Bearer …`; nothing if that cannot stand in a header.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    // Keeps it out of debug output, and out of HPACK's table (RFC 7541, section 7.1.3).
    bearer.set_sensitive(true);
    Some(bearer)
}

fn request(mut realm: Url, service: &str, scope: &Scope, credential: Option<&Credential>) -> Request {
    if let Some(Credential::Identity(token)) = credential {
        // Only the OAuth 2.0 endpoint takes refresh tokens. There the scopes stand in one field (RFC 6749,
        // section 3.3).
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token);
        form.append_pair("service", service)
            .append_pair("client_id", CLIENT_ID)
            .append_pair("scope", &scope.0);
        let mut request = Request::new(Method::POST, realm).with_body(form.finish());
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(CONTENT_TYPE, form_type);
        return request;
    }
    realm.query_pairs_mut().append_pair("service", service).append_pair("client_id", CLIENT_ID);
    // By GET, the specification wants a parameter for each scope.
    for scope in scope.0.split_terminator(' ') {
        realm.query_pairs_mut().append_pair("scope", scope);
    }
    // Without credentials it is an anonymous token, which is enough for what is public.
    let mut request = Request::new(Method::GET, realm);
    if let Some(Credential::Password { username, password }) = credential {
        request.headers_mut().insert(AUTHORIZATION, basic(username, password));
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a token with this answer is kept, in seconds.
    #[track_caller]
    fn check(answer: &str, life: u64) {
        let before = Instant::now();
        let token = Token::given(answer.as_bytes()).unwrap();
        let life = Duration::from_secs(life);
        assert!(token.ends >= before + life && token.ends <= Instant::now() + life, "{answer}");
    }

    #[test]
    fn a_token_is_kept_for_a_minute_to_a_day() {
        check(r#"{"token":"a"}"#, 60);
        check(r#"{"token":"a","expires_in":5}"#, 60);
        check(r#"{"token":"a","expires_in":300}"#, 300);
        check(&format!(r#"{{"token":"a","expires_in":{}}}"#, u64::MAX), 24 * 60 * 60);
    }
}
