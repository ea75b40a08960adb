//! What a reverse proxy does to the head of a message, in both directions: hop-by-hop fields
//! (RFC 9110, section 7.6.1), where the request came from, and addresses that name the upstream.
//! Everything else stays as it came.

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{
    CONNECTION, COOKIE, Entry, FORWARDED, HOST, LINK, LOCATION, PROXY_AUTHENTICATE, TE, TRANSFER_ENCODING,
    UPGRADE,
};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use hyper::body::Incoming;

use crate::body::Body;
use crate::error::Error;
use crate::upstream::Upstream;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

static HOP_BY_HOP: [HeaderName; 7] =
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, TE, TRANSFER_ENCODING, UPGRADE];

/// Whom a connection comes from, as the upstream is told. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Origin(HeaderValue);

impl From<IpAddr> for Origin {
    fn from(client: IpAddr) -> Self {
        let address = HeaderValue::from_maybe_shared(Bytes::from(client.to_canonical().to_string()));
        Self(address.unwrap_or_else(|_| HeaderValue::from_static("unknown")))
    }
}

/// Passes a request on and its answer back, both bodies streaming.
pub fn pass(
    upstream: &Upstream,
    origin: &Origin,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Error>> {
    let idle = upstream.body_idle();
    send(upstream, origin, request.map(|body| Body::streamed(body, idle)))
}

/// [`pass`] for a request whose body was already looked at.
pub async fn send(
    upstream: &Upstream,
    origin: &Origin,
    mut request: Request<Body>,
) -> Result<Response<Body>, Error> {
    if *request.method() == Method::CONNECT {
        return Err(Error::Method(Method::CONNECT));
    }
    let host = host_of(&request);
    prepare_request(&mut request, origin, host.as_ref());
    let response = upstream.send(request).await?;
    Ok(answer(upstream, host.as_ref(), response))
}

/// The upstream's answer as the client gets it.
fn answer(upstream: &Upstream, host: Option<&HeaderValue>, response: Response<Incoming>) -> Response<Body> {
    let idle = upstream.body_idle();
    let mut response = response.map(|body| Body::streamed(body, idle));
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    strip_hop_by_hop(headers);
    if headers.contains_key(LOCATION) || headers.contains_key(LINK) {
        let host = host.and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
        let ours = Addresses { upstream: upstream.authority(), refshim: host.as_ref() };
        rewrite(headers, &LOCATION, |location| ours.relative(location).map(str::to_owned));
        rewrite(headers, &LINK, |link| ours.relative_links(link));
    }
    response
}

/// The name by which the client reached refshim.
fn host_of(request: &Request<Body>) -> Option<HeaderValue> {
    match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => request.headers().get(HOST).cloned(),
    }
}

fn prepare_request(request: &mut Request<Body>, origin: &Origin, host: Option<&HeaderValue>) {
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    strip_hop_by_hop(headers);
    join_cookies(headers);
    headers.remove(FORWARDED);
    headers.insert(X_FORWARDED_FOR, origin.0.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    match host {
        Some(host) => headers.insert(X_FORWARDED_HOST, host.clone()),
        None => headers.remove(X_FORWARDED_HOST),
    };
}

/// Takes out what is about one connection only.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // One look at the names: most messages have none of these.
    let found: Vec<HeaderName> = headers.keys().filter(|name| HOP_BY_HOP.contains(name)).cloned().collect();
    if found.is_empty() {
        return;
    }
    let takes_trailers = tokens(headers, &TE).any(|coding| coding == "trailers");
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter(|option| !["close", "keep-alive"].contains(option))
        .filter_map(|name| name.parse().ok())
        .collect();
    for name in found.into_iter().chain(named) {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// The elements of a field that is a list.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// HTTP/2 may split cookies over several fields, HTTP/1.1 may not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

fn rewrite(headers: &mut HeaderMap, name: &HeaderName, change: impl Fn(&str) -> Option<String>) {
    let Entry::Occupied(mut values) = headers.entry(name) else { return };
    for value in values.iter_mut() {
        let changed = value.to_str().ok().and_then(&change);
        if let Some(changed) = changed.and_then(|changed| HeaderValue::try_from(changed).ok()) {
            *value = changed;
        }
    }
}

/// The addresses that stand for refshim in the client's eyes.
struct Addresses<'a> {
    upstream: &'a Authority,
    refshim: Option<&'a Authority>,
}

impl Addresses<'_> {
    /// A URI of the upstream or of refshim without scheme and authority, so that the client goes on
    /// the way it came; `None` for every other URI.
    fn relative<'u>(&self, uri: &'u str) -> Option<&'u str> {
        let (scheme, rest) = uri.split_once("://")?;
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
        let is_ours = same(self.upstream) || self.refshim.is_some_and(same);
        (is_ours && path.starts_with('/') && !path.starts_with("//")).then_some(path)
    }

    /// Each `<URI>` of a Link field.
    fn relative_links(&self, link: &str) -> Option<String> {
        let mut rewritten = String::with_capacity(link.len());
        let mut rest = link;
        while let Some((before, after)) = rest.split_once('<') {
            let (uri, behind) = after.split_once('>')?;
            rewritten.extend([before, "<", self.relative(uri).unwrap_or(uri), ">"]);
            rest = behind;
        }
        rewritten.push_str(rest);
        Some(rewritten)
    }
}

fn port(authority: &Authority, default: u16) -> u16 {
    authority.port_u16().unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_location(location: &str, expected: Option<&str>) {
        let upstream = "registry.internal:5000".parse().unwrap();
        let refshim = "Hub.example.com".parse().unwrap();
        let ours = Addresses { upstream: &upstream, refshim: Some(&refshim) };
        assert_eq!(ours.relative(location), expected, "{location}");
    }

    #[test]
    fn locations_of_the_upstream_and_of_refshim_become_relative() {
        check_location(
            "http://registry.internal:5000/v2/a/blobs/uploads/1?_state=x%3D",
            Some("/v2/a/blobs/uploads/1?_state=x%3D"),
        );
        check_location("http://REGISTRY.internal:5000/outside", Some("/outside"));
        check_location("https://hub.example.com/v2/", Some("/v2/"));
        check_location("https://hub.example.com:443/v2/", Some("/v2/"));
        check_location("http://hub.example.com:8080/v2/", None);
        check_location("http://registry.internal/v2/", None);
        check_location("https://storage.example.com/blob", None);
        check_location("http://registry.internal:5000", None);
        check_location("http://registry.internal:5000//evil.example.com/", None);
        check_location("/v2/a", None);
        check_location("ftp://registry.internal:5000/", None);
    }

    #[test]
    fn every_uri_of_a_link_is_looked_at() {
        let upstream = "registry:5000".parse().unwrap();
        let ours = Addresses { upstream: &upstream, refshim: None };
        let link = r#"<http://registry:5000/v2/_catalog?last=b&n=1>; rel="next", <https://x/>; rel="y""#;
        let expected = r#"</v2/_catalog?last=b&n=1>; rel="next", <https://x/>; rel="y""#;
        assert_eq!(ours.relative_links(link).as_deref(), Some(expected));
    }

    #[track_caller]
    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn hop_by_hop_fields_end_here() {
        let mut fields = headers(&[
            ("connection", "close, X-Hop"),
            ("connection", "keep-alive"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip, trailers"),
            ("trailer", "x-sum"),
            ("authorization", "Basic eA=="),
        ]);
        strip_hop_by_hop(&mut fields);
        let left = headers(&[("te", "trailers"), ("trailer", "x-sum"), ("authorization", "Basic eA==")]);
        assert_eq!(fields, left);
    }

    #[test]
    fn split_cookies_are_joined() {
        let mut fields = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut fields);
        assert_eq!(fields, headers(&[("cookie", "a=1; b=2")]));
    }
}
