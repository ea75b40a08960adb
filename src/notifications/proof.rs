//! Who sends a notification: what the head of the request proves. Secrets are compared in a time that does not depend
//! on where they differ.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::{Choice, ConstantTimeEq as _};

use super::field;
use crate::config::{SourceCredentials, secret};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    Right,
    Wrong,
}

/// Whether the head proves what is asked for. The file is read each time, so that it can be rotated.
///
/// # Errors
/// It cannot be read.
pub(super) async fn check(credentials: &SourceCredentials, headers: &HeaderMap) -> Result<Proof, String> {
    let file = match credentials {
        SourceCredentials::Anybody => return Ok(Proof::Right),
        SourceCredentials::Secret(file) => file.clone(),
        SourceCredentials::Password { password_file, .. } => password_file.clone(),
    };
    let read = tokio::task::spawn_blocking(move || secret(&file)).await;
    let secret = read.map_err(|error| error.to_string())??;
    Ok(proved(credentials, &secret, field(headers, AUTHORIZATION.as_str()).unwrap_or_default()))
}

fn proved(credentials: &SourceCredentials, secret: &str, shown: &str) -> Proof {
    let is_right = match credentials {
        SourceCredentials::Anybody => return Proof::Right,
        // Harbor sends what is typed in as it is; with distribution, the scheme is typed in with it.
        SourceCredentials::Secret(_) => {
            same(shown, secret) | of_scheme(shown, "Bearer").map_or(no(), |token| same(token, secret))
        }
        SourceCredentials::Password { user, .. } => {
            let decoded = of_scheme(shown, "Basic").and_then(|basic| STANDARD.decode(basic).ok());
            let decoded = decoded.and_then(|decoded| String::from_utf8(decoded).ok()).unwrap_or_default();
            decoded.split_once(':').map_or(no(), |(name, password)| same(name, user) & same(password, secret))
        }
    };
    if bool::from(is_right) { Proof::Right } else { Proof::Wrong }
}

fn same(shown: &str, known: &str) -> Choice {
    shown.as_bytes().ct_eq(known.as_bytes())
}

fn no() -> Choice {
    Choice::from(0)
}

/// What stands behind the scheme, whose case does not matter (RFC 9110, section 11.1).
fn of_scheme<'a>(shown: &'a str, scheme: &str) -> Option<&'a str> {
    let (given, rest) = shown.split_once(' ')?;
    given.eq_ignore_ascii_case(scheme).then(|| rest.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(credentials: &SourceCredentials, shown: &str, expected: Proof) {
        assert_eq!(proved(credentials, "secret", shown), expected, "{shown}");
    }

    #[test]
    fn a_secret_stands_alone_or_behind_its_scheme() {
        let secret = SourceCredentials::Secret("file".into());
        for shown in ["secret", "Bearer secret", "bearer  secret"] {
            check(&secret, shown, Proof::Right);
        }
        for shown in
            ["", "Bearer", "Bearer ", "Secret", "secret2", "Bearer secre", "Basic secret", "Basic c2VjcmV0"]
        {
            check(&secret, shown, Proof::Wrong);
        }
    }

    #[test]
    fn a_password_comes_with_its_name() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let password = SourceCredentials::Password { user: "zot".to_owned(), password_file: "file".into() };
        check(&password, &basic("zot:secret"), Proof::Right);
        for text in ["zot:Secret", "Zot:secret", "zot:", ":secret", "zot", "", "zot:secret:"] {
            check(&password, &basic(text), Proof::Wrong);
        }
        for shown in ["", "Basic", "Basic %", "secret", "Bearer secret"] {
            check(&password, shown, Proof::Wrong);
        }
    }

    #[test]
    fn nothing_is_asked_of_anybody_where_that_is_said() {
        check(&SourceCredentials::Anybody, "", Proof::Right);
    }
}
