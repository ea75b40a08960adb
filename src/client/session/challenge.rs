//! Authentication challenges: `WWW-Authenticate` (RFC 9110, section 11.6.1), with the parameters of
//! distribution's token specification.

use http::HeaderValue;
use http_auth::ChallengeRef;

/// An authentication scheme that this client supports.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token from this service with each request.
    Bearer(Service),
}

/// A token service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) realm: String,
    pub(super) service: String,
}

impl Challenge {
    /// The preferred scheme of those that an answer offers.
    pub(super) fn of<'a>(headers: impl IntoIterator<Item = &'a HeaderValue>) -> Option<Self> {
        let offered: Vec<Self> = headers
            .into_iter()
            .filter_map(|header| http_auth::parse_challenges(header.to_str().ok()?).ok())
            .flatten()
            .filter_map(|challenge| Self::from(&challenge))
            .collect();
        // With a token, the password goes to the token service alone and not along with every request.
        offered.into_iter().max_by_key(|challenge| matches!(challenge, Self::Bearer(_)))
    }

    fn from(challenge: &ChallengeRef<'_>) -> Option<Self> {
        let parameter = |wanted: &str| {
            let found = challenge.params.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.to_unescaped())
        };
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            Some(Self::Basic)
        } else if challenge.scheme.eq_ignore_ascii_case("bearer") {
            let service = parameter("service").unwrap_or_default();
            // Not the `scope`: it is what the refused request needs, and a HEAD before an upload needs less
            // than the upload.
            Some(Self::Bearer(Service { realm: parameter("realm")?, service }))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[&'static str], expected: Option<&Challenge>) {
        let headers: Vec<HeaderValue> = headers.iter().copied().map(HeaderValue::from_static).collect();
        assert_eq!(Challenge::of(&headers).as_ref(), expected);
    }

    #[test]
    fn a_token_is_preferred_to_sending_the_password_with_each_request() {
        let service = Service { realm: "https://a/token".to_owned(), service: "a, b".to_owned() };
        let bearer = Challenge::Bearer(service);
        let scope = r#"Bearer realm="https://a/token",service="a, b",scope="repository:x:pull""#;
        check(&[scope], Some(&bearer));
        check(&[r#"Basic realm="x""#, scope], Some(&bearer));
        check(&[r#"bearer realm="https://a/token",service="a, b", Basic realm="x""#], Some(&bearer));
        check(&[r#"Basic realm="x""#], Some(&Challenge::Basic));
        check(&["Negotiate"], None);
        check(&[], None);
    }
}
