//! The user that a request's credentials name. Nobody is believed by it: the registry decides, and says with its answer
//! whether it did.

use base64::Engine as _;
use base64::alphabet::STANDARD as STANDARD_ALPHABET;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::{Deserialize, Serialize};

/// The longest name that is taken over, in characters.
const MOST_CHARACTERS: usize = 256;

/// Basic credentials without their padding are sent, too.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD_ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A user by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedUser {
    /// Its name, as the client wrote it.
    pub name: String,
    /// Where it is written.
    pub source: UserSource,
}

/// What names a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UserSource {
    /// The user name of Basic credentials (RFC 7617).
    Basic,
    /// The subject of a token (`sub`, RFC 7519, section 4.1.2). Its signature is not checked here.
    Token,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
}

/// The user that the request's credentials name, if they name one.
#[must_use]
pub fn named_user(headers: &HeaderMap) -> Option<NamedUser> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    // Of two the registry may take either.
    let (Some(credentials), None) = (all.next(), all.next()) else { return None };
    let (scheme, value) = credentials.to_str().ok()?.trim().split_once(' ')?;
    let (name, source) = if scheme.eq_ignore_ascii_case("basic") {
        let decoded = LENIENT.decode(value.trim()).ok()?;
        let at = decoded.iter().position(|byte| *byte == b':')?;
        let (user, password) = decoded.split_at(at);
        // Then the token itself stands in place of the name, as GitHub and others take it.
        if matches!(password, b":" | b":x-oauth-basic") {
            return None;
        }
        (String::from_utf8_lossy(user).into_owned(), UserSource::Basic)
    } else if scheme.eq_ignore_ascii_case("bearer") {
        (subject_of(value.trim())?, UserSource::Token)
    } else {
        return None;
    };
    let name: String = name.chars().take(MOST_CHARACTERS).collect();
    (!name.is_empty()).then_some(NamedUser { name, source })
}

/// The subject of a JSON Web Token; nothing if it is another kind of token.
fn subject_of(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    serde_json::from_slice::<Claims>(&claims).ok()?.sub
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check(credentials: &str, expected: Option<(&str, UserSource)>) {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(credentials).unwrap());
        let found = named_user(&headers);
        let found = found.as_ref().map(|user| (user.name.as_str(), user.source));
        assert_eq!(found, expected, "{credentials}");
    }

    fn token(claims: &str) -> String {
        format!("Bearer e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn the_user_of_basic_credentials_stands_before_the_colon() {
        let basic = |text: &str| format!("basic {}", STANDARD.encode(text));
        check(&basic("alice:s3cret:more"), Some(("alice", UserSource::Basic)));
        check(basic("alice:pw").trim_end_matches('='), Some(("alice", UserSource::Basic)));
        check(&basic("al\n\"ice:pw"), Some(("al\n\"ice", UserSource::Basic)));
        check(&basic(":pw"), None);
        check(&basic("alice"), None);
        check(&basic("ghp_token:"), None);
        check(&basic("ghp_token:x-oauth-basic"), None);
        check("Basic ***", None);
        check("Basic", None);
        let long = "x".repeat(10_000);
        check(&basic(&format!("{long}:pw")), Some((&long[..MOST_CHARACTERS], UserSource::Basic)));
    }

    #[test]
    fn the_user_of_a_token_is_its_subject() {
        check(&token(r#"{"iss":"auth","sub":"alice","access":[]}"#), Some(("alice", UserSource::Token)));
        check(&token(r#"{"sub":""}"#), None);
        check(&token(r#"{"sub":7}"#), None);
        check(&token("{}"), None);
        check("Bearer opaque", None);
        check("Bearer a.b", None);
        check("Bearer a.b.c.d", None);
        check("Negotiate YII=", None);
    }

    #[test]
    fn of_two_credentials_none_is_taken() {
        let mut headers = HeaderMap::new();
        for user in ["a:x", "b:x"] {
            let value = format!("Basic {}", STANDARD.encode(user));
            headers.append(AUTHORIZATION, HeaderValue::from_str(&value).unwrap());
        }
        assert_eq!(named_user(&headers), None);
        assert_eq!(named_user(&HeaderMap::new()), None);
    }
}
