//! The head of a question of refshim's own: the client's request in all that a registry may decide by.

use http::header::{
    ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, EXPECT, HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, TE, TRAILER,
};
use http::{HeaderMap, HeaderName};

use super::{Origin, prepare_headers};

/// The fields that go with a question on behalf of a client: all that would be passed on with a GET from it,
/// but what is about its own request alone. Credentials, cookies, the client's address, `Origin`, `User-Agent`,
/// `Accept-Language` and `Cache-Control` stay; whoever asks adds the `Accept` of the question.
#[must_use]
pub fn question_headers(request: &HeaderMap, origin: &Origin) -> HeaderMap {
    let mut headers = request.clone();
    prepare_headers(&mut headers, origin);
    let own: Vec<HeaderName> = headers.keys().filter(|name| is_of_one_request(name)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
    headers
}

/// Whether a field is about one request alone (RFC 9110): which representation is wanted (section 12.5),
/// which part of it (14.2), on which condition (13.1), what its own content is (8), and how that is sent
/// (10.1.1, 10.1.4, 6.6.2).
fn is_of_one_request(name: &HeaderName) -> bool {
    const NAMES: [HeaderName; 13] = [
        ACCEPT,
        ACCEPT_CHARSET,
        ACCEPT_ENCODING,
        EXPECT,
        // The upstream's own name is put in its place; what the client asked for is in X-Forwarded-Host.
        HOST,
        IF_MATCH,
        IF_MODIFIED_SINCE,
        IF_NONE_MATCH,
        IF_RANGE,
        IF_UNMODIFIED_SINCE,
        RANGE,
        TE,
        TRAILER,
    ];
    NAMES.contains(name) || is_of_content(name.as_str()) || names_a_target(name.as_str())
}

/// RFC 9110, section 8, and the digests of RFC 9530.
fn is_of_content(name: &str) -> bool {
    name.starts_with("content-") || matches!(name, "digest" | "repr-digest")
}

/// Whether a field says what is to be asked instead of the request's own method and path. With it, a caller
/// could have a question about a private repository answered for a public one.
fn names_a_target(name: &str) -> bool {
    name.starts_with("x-original-")
        || matches!(
            name,
            "x-forwarded-method"
                | "x-forwarded-path"
                | "x-forwarded-uri"
                | "x-http-method"
                | "x-http-method-override"
                | "x-method-override"
                | "x-rewrite-url"
        )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Request;

    use super::*;
    use crate::proxy::forward::{Clients, Peer};

    #[track_caller]
    fn check(fields: &[(&str, &str)], expected: &[(&str, &str)]) {
        let mut request = Request::builder().uri("/v2/").header("host", "own");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let peer = Peer::new(Arc::new(Clients::default()), "192.0.2.1".parse().unwrap(), false);
        let found = question_headers(request.headers(), &peer.origin(&request));
        let told =
            [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-host", "own"), ("x-forwarded-proto", "http")];
        let expected: HeaderMap = expected
            .iter()
            .chain(&told)
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        assert_eq!(found, expected, "{fields:?}");
    }

    #[test]
    fn what_a_registry_may_decide_by_goes_with_a_question() {
        for field in [
            ("authorization", "Basic eA=="),
            ("x-jfrog-art-api", "key"),
            ("private-token", "t"),
            ("user-agent", "cosign"),
            ("origin", "https://ui"),
            ("accept-language", "de"),
            ("cache-control", "no-cache"),
            ("x-request-id", "1"),
        ] {
            check(&[field], &[field]);
        }
        check(&[("cookie", "a=1"), ("cookie", "b=2")], &[("cookie", "a=1; b=2")]);
    }

    #[test]
    fn what_is_about_one_request_alone_does_not() {
        for name in [
            "accept",
            "accept-encoding",
            "accept-charset",
            "range",
            "if-range",
            "if-match",
            "if-none-match",
            "if-modified-since",
            "if-unmodified-since",
            "content-type",
            "content-length",
            "content-digest",
            "digest",
            "repr-digest",
            "expect",
            "te",
            "trailer",
            "x-http-method-override",
            "x-original-url",
        ] {
            check(&[(name, "1")], &[]);
        }
    }

    #[test]
    fn what_is_not_passed_on_does_not_go_with_a_question() {
        check(&[("connection", "x-hop, keep-alive"), ("x-hop", "1"), ("keep-alive", "timeout=5")], &[]);
        for name in ["x-forwarded-for", "forwarded", "x-real-ip", "proxy-authorization", "te", "upgrade"] {
            check(&[(name, "1.2.3.4")], &[]);
        }
    }
}
