//! How a registry says that it wants a login (RFC 7235, and the distribution's token specification).

use http::HeaderValue;
use http_auth::ChallengeRef;

/// A login that this client can do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token of this service with each request.
    Bearer(Service),
}

/// A token service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) realm: String,
    pub(super) service: String,
}

impl Challenge {
    /// The best of the logins that an answer offers.
    pub(super) fn of<'a>(headers: impl IntoIterator<Item = &'a HeaderValue>) -> Option<Self> {
        let offered: Vec<Self> = headers
            .into_iter()
            .filter_map(|header| http_auth::parse_challenges(header.to_str().ok()?).ok())
            .flatten()
            .filter_map(|challenge| Self::from(&challenge))
            .collect();
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
    fn a_token_is_preferred_to_a_password_with_each_request() {
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
