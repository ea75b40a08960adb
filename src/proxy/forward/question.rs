//! The header of refshim's own questions: all fields of the client's request by which a registry may decide.
//!
//! A registry may allow by address list, cookie, proprietary token, or `X-Forwarded-*` (harbor #17490,
//! nexus-public #582). So fields are not selected but removed, and only those that are about one request alone.

use http::{HeaderMap, HeaderName};

use super::{Origin, prepare_headers};

/// The fields of a question on behalf of a client: those that a GET from it would be forwarded with, except those
/// about its own request alone. Credentials, cookies, the client's address, `Origin`, `User-Agent`, `Accept-Language`
/// and `Cache-Control` stay; the caller adds the question's own `Accept`.
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
    // `host` is replaced by the upstream's own; the one that the client asked for is in X-Forwarded-Host.
    let is_named = matches!(
        name.as_str(),
        "accept"
            | "accept-charset"
            | "accept-encoding"
            | "expect"
            | "host"
            | "if-match"
            | "if-modified-since"
            | "if-none-match"
            | "if-range"
            | "if-unmodified-since"
            | "range"
            | "te"
            | "trailer"
    );
    is_named || is_of_content(name.as_str()) || names_a_target(name.as_str())
}

/// Whether a field describes content (RFC 9110, section 8; the digests of RFC 9530).
fn is_of_content(name: &str) -> bool {
    name.starts_with("content-") || matches!(name, "digest" | "repr-digest")
}

/// Whether a field overrides method or path, which some servers obey. With it, a caller could make a question about a
/// private repository be answered for a public one.
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
        let peer = Peer::new("192.0.2.1".parse().unwrap(), false);
        let found = question_headers(request.headers(), &Clients::default().origin(&peer, &request));
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
