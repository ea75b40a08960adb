//! Rewrites addresses in answers that name the upstream or refshim. In `Location` and `Link` they become relative, so
//! that the client keeps to the host and scheme that it knows: oras-go rejects an upload `Location` on another host,
//! crane a private address (distribution #479, #2862). The realm of a challenge cannot be relative; it is rewritten
//! only with `rewrite_realm`, since it usually names an auth service that clients reach directly. All other addresses
//! stay.

use http::header::{Entry, LINK, LOCATION, WWW_AUTHENTICATE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Elsewhere;
use super::origin::Origin;
use crate::http::route::is_api;
use crate::proxy::upstream::Upstream;

/// Rewrites the addresses in the header of an answer.
pub(super) fn lead_back(headers: &mut HeaderMap, upstream: &Upstream, origin: &Origin) {
    let rewrites_realm = upstream.rewrites_realm() && headers.contains_key(WWW_AUTHENTICATE);
    if !(headers.contains_key(LOCATION) || headers.contains_key(LINK) || rewrites_realm) {
        return;
    }
    let refshim = refshim(origin);
    let addresses = Addresses::of(upstream, refshim.as_ref(), origin);
    rewrite(headers, &LOCATION, |location| addresses.relative(location));
    rewrite(headers, &LINK, |link| addresses.relative_links(link));
    if rewrites_realm && let Some(base) = origin.base() {
        rewrite(headers, &WWW_AUTHENTICATE, |challenge| addresses.through_refshim(challenge, &base));
    }
}

/// Path and query of an answer's `Location` at the upstream, if it has one.
pub(super) fn location(
    headers: &HeaderMap,
    upstream: &Upstream,
    origin: &Origin,
) -> Result<Option<PathAndQuery>, Elsewhere> {
    let Some(location) = headers.get(LOCATION) else { return Ok(None) };
    let refshim = refshim(origin);
    let addresses = Addresses::of(upstream, refshim.as_ref(), origin);
    let own = location.to_str().ok().and_then(|location| addresses.own_path(location)?.parse().ok());
    own.map(Some).ok_or(Elsewhere)
}

fn refshim(origin: &Origin) -> Option<Authority> {
    origin.external_host().and_then(|host| host.parse().ok())
}

fn rewrite(headers: &mut HeaderMap, name: &HeaderName, change: impl Fn(&str) -> Option<String>) {
    let Entry::Occupied(mut values) = headers.entry(name) else { return };
    for value in values.iter_mut() {
        // Each byte as one character, whatever the encoding: the parts that change are ASCII, the rest must stay.
        let text: String = value.as_bytes().iter().copied().map(char::from).collect();
        let Some(changed) = change(&text) else { continue };
        let bytes: Result<Vec<u8>, _> = changed.chars().map(u8::try_from).collect();
        if let Some(changed) = bytes.ok().and_then(|bytes| HeaderValue::from_bytes(&bytes).ok()) {
            *value = changed;
        }
    }
}

/// The addresses that lead to refshim or should.
struct Addresses<'a> {
    upstream: &'a Authority,
    refshim: Option<&'a Authority>,
    /// The path before `/v2/` at the upstream.
    base_path: &'a str,
    /// The path prefix that selects this upstream again.
    mark: &'a str,
}

impl<'a> Addresses<'a> {
    fn of(upstream: &'a Upstream, refshim: Option<&'a Authority>, origin: &'a Origin) -> Self {
        Self {
            upstream: upstream.authority(),
            refshim,
            base_path: upstream.base_path(),
            mark: origin.mark.as_deref().unwrap_or_default(),
        }
    }

    /// Makes a URI of the upstream or of refshim relative, as a path at refshim; `None` for other URIs.
    fn relative(&self, uri: &str) -> Option<String> {
        self.own_path(uri).map(|path| self.outside(path))
    }

    /// Path and query of a URI of the upstream or of refshim. A URI without host is the upstream's.
    fn own_path<'u>(&self, uri: &'u str) -> Option<&'u str> {
        let path = match uri.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(['/', '?', '#']) => {
                let default_port = match scheme.to_ascii_lowercase().as_str() {
                    "http" => 80,
                    "https" => 443,
                    _ => return None,
                };
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (authority, path) = rest.split_at_checked(end)?;
                let authority: Authority = authority.parse().ok()?;
                let same = |ours: &Authority| {
                    ours.host().eq_ignore_ascii_case(authority.host())
                        && port(ours, default_port) == port(&authority, default_port)
                };
                if !same(self.upstream) && !self.refshim.is_some_and(same) {
                    return None;
                }
                path
            }
            Some(_) | None => uri,
        };
        // `//host/…` would be another host's (RFC 3986, section 4.2).
        (path.starts_with('/') && !path.starts_with("//")).then_some(path)
    }

    /// The path at refshim for a path at the upstream.
    fn outside(&self, path: &str) -> String {
        let below_base = path.strip_prefix(self.base_path).filter(|rest| is_api(rest));
        [self.mark, below_base.unwrap_or(path)].concat()
    }

    /// Rewrites each `<URI>` of a `Link` field.
    fn relative_links(&self, link: &str) -> Option<String> {
        let mut rewritten = String::with_capacity(link.len());
        let mut rest = link;
        while let Some((before, after)) = rest.split_once('<') {
            let (uri, behind) = after.split_once('>')?;
            rewritten.extend([before, "<", self.relative(uri).as_deref().unwrap_or(uri), ">"]);
            rest = behind;
        }
        rewritten.push_str(rest);
        Some(rewritten)
    }

    /// Rewrites a challenge whose realm is at the upstream; `None` for others. `service` and `scope` stay: the token
    /// is signed for them (harbor #3114).
    fn through_refshim(&self, challenge: &str, base: &str) -> Option<String> {
        const REALM: &str = "realm=\"";
        let start = challenge.to_ascii_lowercase().find(REALM)? + REALM.len();
        let (before, rest) = challenge.split_at_checked(start)?;
        let (realm, behind) = rest.split_once('"')?;
        let path = realm.contains("://").then(|| self.own_path(realm)).flatten()?;
        Some([before, base, &self.outside(path), "\"", behind].concat())
    }
}

fn port(authority: &Authority, default: u16) -> u16 {
    authority.port_u16().unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_addresses<T>(base_path: &str, mark: &str, look: impl FnOnce(&Addresses<'_>) -> T) -> T {
        let upstream = "registry.internal:5000".parse().unwrap();
        let refshim = "Hub.example.com".parse().unwrap();
        look(&Addresses { upstream: &upstream, refshim: Some(&refshim), base_path, mark })
    }

    #[track_caller]
    fn check_location(location: &str, expected: Option<&str>) {
        let found = with_addresses("", "", |ours| ours.relative(location));
        assert_eq!(found.as_deref(), expected, "{location}");
    }

    #[test]
    fn locations_of_the_upstream_and_of_refshim_become_relative() {
        check_location(
            "http://registry.internal:5000/v2/a/blobs/uploads/1?_state=x%3D",
            Some("/v2/a/blobs/uploads/1?_state=x%3D"),
        );
        check_location("http://REGISTRY.internal:5000/outside", Some("/outside"));
        check_location("https://registry.internal:5000/v2/", Some("/v2/"));
        check_location("https://hub.example.com/v2/", Some("/v2/"));
        check_location("https://hub.example.com:443/v2/", Some("/v2/"));
        check_location("http://hub.example.com:8080/v2/", None);
        check_location("http://registry.internal/v2/", None);
        check_location("https://storage.example.com/blob", None);
        check_location("http://registry.internal:5000", None);
        check_location("http://registry.internal:5000//evil.example.com/", None);
        check_location("//evil.example.com/", None);
        check_location("/v2/a?to=https://x/", Some("/v2/a?to=https://x/"));
        check_location("uploads/1", None);
        check_location("ftp://registry.internal:5000/", None);
    }

    #[test]
    fn what_stands_before_the_api_at_the_upstream_is_taken_off_and_a_mark_is_put_on() {
        let relative = |base_path: &str, mark: &str, location: &str| {
            with_addresses(base_path, mark, |ours| ours.relative(location)).unwrap()
        };
        let based = "http://registry.internal:5000/repository/docker/v2/a/blobs/uploads/1?x";
        assert_eq!(relative("/repository/docker", "", based), "/v2/a/blobs/uploads/1?x");
        assert_eq!(relative("/repository/docker", "", "/repository/docker/v2?n=1"), "/v2?n=1");
        assert_eq!(relative("/repository/docker", "", "/repository/docker/v2x"), "/repository/docker/v2x");
        assert_eq!(relative("/repository/docker", "", "/uploads/1"), "/uploads/1");
        assert_eq!(relative("/repository", "/.refshim/hub", "/repository/v2/a"), "/.refshim/hub/v2/a");
        assert_eq!(relative("", "/.refshim/hub", "/uploads/1"), "/.refshim/hub/uploads/1");
    }

    #[test]
    fn every_uri_of_a_link_is_looked_at() {
        let link =
            r#"<http://registry.internal:5000/v2/_catalog?last=b&n=1>; rel="next", <https://x/>; rel="y""#;
        let expected = r#"</v2/_catalog?last=b&n=1>; rel="next", <https://x/>; rel="y""#;
        assert_eq!(with_addresses("", "", |ours| ours.relative_links(link)).as_deref(), Some(expected));
    }

    #[test]
    fn bytes_of_any_encoding_stay_as_they_are() {
        let location = HeaderValue::from_bytes(b"http://registry.internal:5000/v2/\xc3\xa9\xff\xdf").unwrap();
        let mut headers = HeaderMap::from_iter([(LOCATION, location)]);
        with_addresses("", "", |ours| rewrite(&mut headers, &LOCATION, |uri| ours.relative(uri)));
        assert_eq!(headers[LOCATION].as_bytes(), b"/v2/\xc3\xa9\xff\xdf");
    }

    #[track_caller]
    fn check_challenge(challenge: &str, expected: Option<&str>) {
        let found = with_addresses("/base", "/.refshim/hub", |ours| {
            ours.through_refshim(challenge, "https://outside")
        });
        assert_eq!(found.as_deref(), expected, "{challenge}");
    }

    #[test]
    fn a_realm_at_the_upstream_is_made_to_lead_through_refshim() {
        check_challenge(
            r#"Bearer realm="https://registry.internal:5000/service/token",service="x",scope="repository:a:pull""#,
            Some(
                r#"Bearer realm="https://outside/.refshim/hub/service/token",service="x",scope="repository:a:pull""#,
            ),
        );
        check_challenge(
            r#"bearer service="x", Realm="http://registry.internal:5000/base/v2/token""#,
            Some(r#"bearer service="x", Realm="https://outside/.refshim/hub/v2/token""#),
        );
        check_challenge(r#"Bearer realm="https://auth.docker.io/token",service="x""#, None);
        check_challenge(r#"Basic realm="Registry""#, None);
        check_challenge(r#"Basic realm="/v2/""#, None);
        check_challenge("Basic", None);
    }
}
