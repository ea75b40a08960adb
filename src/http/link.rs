//! The `Link` header (RFC 8288): the URI of a list's next page. Pure; whether to follow it, and with which
//! credentials, is the caller's decision.

use std::borrow::Cow;

use http::header::LINK;
use http::{HeaderMap, Uri};
use url::Url;

/// The placeholder host for a request whose URI has none; `.invalid` never resolves (RFC 2606).
const NO_HOST: &str = "http://request.invalid";

/// The target of a link is not an HTTP URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the address of a next page: {target:?}")]
pub struct InvalidLink {
    target: String,
}

/// The target of `rel="next"`, if there is one, resolved against the request's URI. If neither has a host, the result
/// is path and query. It may be on another host, or be the request itself: the caller compares, and limits the number
/// of pages.
#[must_use]
pub fn next(headers: &HeaderMap, request: &Uri) -> Option<Result<Uri, InvalidLink>> {
    let fields: Vec<Cow<'_, str>> =
        headers.get_all(LINK).iter().map(|field| String::from_utf8_lossy(field.as_bytes())).collect();
    let mut links = fields.iter().flat_map(|field| links_of(field));
    let link = links.find(|link| link.is_next() && link.is_about(request))?;
    let invalid = || InvalidLink { target: link.target.to_owned() };
    Some(resolved(link.target, request).ok_or_else(invalid))
}

/// One link of a field.
#[derive(Debug, Default)]
struct WebLink<'a> {
    target: &'a str,
    relations: Option<Cow<'a, str>>,
    anchor: Option<Cow<'a, str>>,
}

impl<'a> WebLink<'a> {
    fn is_next(&self) -> bool {
        let relations = self.relations.as_deref().unwrap_or_default();
        relations.split_ascii_whitespace().any(|relation| relation.eq_ignore_ascii_case("next"))
    }

    /// With an `anchor` a link is about another resource (RFC 8288, 3.2), unless that leads back here.
    fn is_about(&self, request: &Uri) -> bool {
        let Some(anchor) = &self.anchor else { return true };
        resolved(anchor, request).is_some_and(|about| Some(about) == resolved("", request))
    }

    fn take(&mut self, name: &str, value: Cow<'a, str>) {
        let parameter = if name.eq_ignore_ascii_case("rel") {
            &mut self.relations
        } else if name.eq_ignore_ascii_case("anchor") {
            &mut self.anchor
        } else {
            return;
        };
        // RFC 8288, 3.3: what comes after the first `rel` MUST be ignored.
        parameter.get_or_insert(value);
    }
}

/// The links of one field (RFC 8288, B.2), up to where it breaks the grammar.
fn links_of(field: &str) -> Vec<WebLink<'_>> {
    let mut links = Vec::new();
    let mut rest = field;
    while let Some((target, parameters)) = link_value(rest) {
        let mut link = WebLink { target: target.trim(), ..WebLink::default() };
        rest = parameters.trim_start();
        while let Some(parameter) = rest.strip_prefix(';') {
            let (name, value, after) = one_parameter(parameter);
            link.take(name, value);
            rest = after;
        }
        links.push(link);
    }
    links
}

/// The target of the link that comes next, and what follows it.
fn link_value(text: &str) -> Option<(&str, &str)> {
    text.trim_start_matches([' ', '\t', ',']).strip_prefix('<')?.split_once('>')
}

/// Name and value of one parameter, and what follows it.
fn one_parameter(text: &str) -> (&str, Cow<'_, str>, &str) {
    let (name, rest) = split_at(text, ['=', ';', ',']);
    let Some(value) = rest.strip_prefix('=') else { return (name.trim(), Cow::Borrowed(""), rest) };
    if let Some(quoted) = value.trim_start().strip_prefix('"') {
        let (value, rest) = unquoted(quoted);
        let (_, rest) = split_at(rest, [';', ',', '<']);
        return (name.trim(), value, rest);
    }
    let (value, rest) = split_at(value, [';', ',', '<']);
    (name.trim(), Cow::Borrowed(value.trim()), rest)
}

fn split_at(text: &str, ends: [char; 3]) -> (&str, &str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

/// A quoted string without its quotes and escapes (RFC 9110, 5.6.4), and what follows it.
fn unquoted(text: &str) -> (Cow<'_, str>, &str) {
    let mut value = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => value.extend(characters.next()),
            _ => value.push(character),
        }
    }
    (Cow::Owned(value), characters.as_str())
}

/// Resolves a reference against the request's URI (RFC 3986, 5.2), without a fragment; `None` if the result is not
/// HTTP.
#[must_use]
pub fn resolved(reference: &str, request: &Uri) -> Option<Uri> {
    let path = request.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let base = match (request.scheme(), request.authority()) {
        (Some(scheme), Some(authority)) => format!("{scheme}://{authority}{path}"),
        (None | Some(_), None | Some(_)) => format!("{NO_HOST}{path}"),
    };
    let mut url = Url::parse(&base).ok()?.join(reference).ok()?;
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    url.set_fragment(None);
    let of_no_host = url.as_str().strip_prefix(NO_HOST).filter(|_| request.authority().is_none());
    of_no_host.unwrap_or(url.as_str()).parse().ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const REQUEST: &str = "https://registry.example:8443/base/v2/a/referrers/sha256:0?n=2&last=1";

    fn next_of(fields: &[&str], request: &str) -> Option<Result<String, InvalidLink>> {
        let fields = fields.iter().map(|field| (LINK, HeaderValue::from_bytes(field.as_bytes()).unwrap()));
        let next = next(&fields.collect(), &request.parse().unwrap())?;
        Some(next.map(|next| next.to_string()))
    }

    #[track_caller]
    fn check(fields: &[&str], expected: Option<&str>) {
        assert_eq!(next_of(fields, REQUEST), expected.map(|next| Ok(next.to_owned())), "{fields:?}");
    }

    /// Each form of a reference, and what it is from [`REQUEST`].
    const TARGETS: [(&str, &str); 12] = [
        ("https://other.example/v2/x?n=1", "https://other.example/v2/x?n=1"),
        ("//other.example/v2/x", "https://other.example/v2/x"),
        ("/v2/a/referrers/x?n=1", "https://registry.example:8443/v2/a/referrers/x?n=1"),
        ("sha256:0?last=2", ""),
        ("./sha256:0?last=2", "https://registry.example:8443/base/v2/a/referrers/sha256:0?last=2"),
        ("../tags/list?n=1", "https://registry.example:8443/base/v2/a/tags/list?n=1"),
        ("?last=2", "https://registry.example:8443/base/v2/a/referrers/sha256:0?last=2"),
        ("?a=1,2;3", "https://registry.example:8443/base/v2/a/referrers/sha256:0?a=1,2;3"),
        ("", REQUEST),
        ("#top", REQUEST),
        (" /v2/b ", "https://registry.example:8443/v2/b"),
        ("/v2/\u{e9}?x=%2B", "https://registry.example:8443/v2/%C3%A9?x=%2B"),
    ];

    const PARAMETERS: [&str; 12] = [
        r#"; rel="next""#,
        "; rel=next",
        ";rel=next;",
        "; REL=\"Next\"",
        r#" ; rel = "next" "#,
        r#"; rel="prev next last""#,
        r#"; title="a, b; rel=x <c>"; rel="next""#,
        r#"; rel="next"; title="\"unended"#,
        "; title; rel=next",
        r#"; title*=UTF-8''a; rel=next; rel="prev""#,
        r#"; rel="n\ext""#,
        r#"; rel=next; anchor="?n=2&last=1""#,
    ];

    const BESIDE: [&[&str]; 6] = [
        &["{}"],
        &["</first>; rel=first, {}"],
        &[r#"</a,b;c>; rel="first"; title="x, <y>; rel=next",{}"#],
        &["</first>; rel=first", "{}"],
        &["", ",, {}"],
        &["</broken; rel=next", "{}"],
    ];

    #[test]
    fn the_next_page_is_found_in_whatever_form_it_is_named() {
        for (target, expected) in TARGETS.into_iter().filter(|(_, expected)| !expected.is_empty()) {
            for parameters in PARAMETERS {
                for beside in BESIDE {
                    let link = format!("<{target}>{parameters}");
                    let fields: Vec<String> = beside.iter().map(|field| field.replace("{}", &link)).collect();
                    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
                    check(&fields, Some(expected));
                }
            }
        }
    }

    #[test]
    fn other_links_and_what_is_no_link_lead_nowhere() {
        check(&[], None);
        for field in [
            "",
            "</v2/a>",
            "</v2/a>; rel=\"prev\"",
            "</v2/a>; rel=prev; rel=next",
            "</v2/a>; rel=\"nextish\"",
            "</v2/a>; title=\"rel=next\"",
            "</v2/a?rel=\"next\">; rel=prev",
            "</v2/a>; rel=next; anchor=\"/elsewhere\"",
            "/v2/a; rel=next",
            "</v2/a; rel=next",
        ] {
            check(&[field], None);
        }
    }

    #[test]
    fn what_cannot_be_asked_for_is_no_page() {
        for target in ["sha256:0?last=2", "ftp://registry.example/x", "mailto:x", "http://[::1/x", "http://"]
        {
            let found = next_of(&[&format!("<{target}>; rel=next")], REQUEST);
            assert_eq!(found, Some(Err(InvalidLink { target: target.to_owned() })));
        }
    }

    #[test]
    fn a_request_without_a_host_is_followed_by_one_without() {
        let check = |target: &str, expected: &str| {
            let found = next_of(&[&format!("<{target}>; rel=next")], "/v2/a/referrers/x?n=1");
            assert_eq!(found, Some(Ok(expected.to_owned())));
        };
        check("?n=2", "/v2/a/referrers/x?n=2");
        check("/v2/b", "/v2/b");
        check("y", "/v2/a/referrers/y");
        check("https://other.example/v2/b", "https://other.example/v2/b");
    }

    proptest::proptest! {
        #[test]
        fn no_field_is_too_odd(field in "[<>;,=\" \\\\a-z?/]{0,60}") {
            let _found = next_of(&[&field], REQUEST);
        }
    }
}
