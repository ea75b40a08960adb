//! Forwards requests and answers, and changes their heads as a reverse proxy must: removes hop-by-hop fields (RFC
//! 9110, section 7.6.1), sets `X-Forwarded-*`, and rewrites addresses that name the upstream. Everything else stays
//! as it is: `Accept` (a registry would convert the manifest, distribution #3718), `Range`, `Content-Length` of a
//! HEAD, `Docker-Content-Digest`, `Retry-After`, statuses (clients of mirrors fall back to the origin on 403, 429,
//! 503).

mod addresses;
mod origin;
mod question;
mod tunnel;

pub use origin::{Clients, Origin, Peer};
pub use question::question_headers;

use http::header::{CONNECTION, COOKIE, FORWARDED, TE, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio_util::task::TaskTracker;

use crate::http::body::{Body, Received};
use crate::http::header::OCI_NAMESPACE;
use crate::http::limits::RequestGuard;
use crate::proxy::error::Error;
use crate::proxy::upstream::Upstream;
use crate::telemetry::within_this_request;

/// Whether a field is hop-by-hop. `Proxy-Authorization` is: it is for refshim as a proxy, not for the registry (RFC 9110,
/// section 11.7.2).
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Forwards a request and its answer, both bodies streaming. If the two sides switch protocols, the tunnel runs in
/// `tasks` and counts as this request until it ends.
///
/// If the client disconnects, the request to the upstream is dropped.
pub async fn pass(
    upstream: &Upstream,
    origin: &Origin,
    tasks: &TaskTracker,
    mut request: Box<Request<Incoming>>,
    in_progress: &RequestGuard,
) -> Result<Response<Body>, Error> {
    let wanted = tunnel::wanted(&mut request);
    let request = from_client(request, upstream, in_progress);
    match wanted {
        None => send(upstream, origin, request).await,
        Some(wanted) => {
            let (response, tunnel) = Box::pin(switch(upstream, origin, request, wanted)).await?;
            if let Some(tunnel) = tunnel {
                let in_progress = in_progress.clone();
                let tunnel = async move {
                    tunnel.await;
                    drop(in_progress);
                };
                tasks.spawn(within_this_request(tunnel));
            }
            Ok(response)
        }
    }
}

/// A client's request whose body streams.
#[must_use]
pub fn from_client(
    request: Box<Request<Incoming>>,
    upstream: &Upstream,
    in_progress: &RequestGuard,
) -> Box<Request<Body>> {
    Box::new(request.map(|body| Body::from_client(body, upstream.body_idle(), in_progress.clone())))
}

/// [`pass`] for a request whose body was already read, without switching protocols.
pub async fn send(
    upstream: &Upstream,
    origin: &Origin,
    mut request: Box<Request<Body>>,
) -> Result<Response<Body>, Error> {
    prepare_request(&mut request, origin);
    Ok(answer(upstream, upstream.send(request).await?))
}

/// Forwards a request to switch protocols; also gives the tunnel if the upstream agrees.
async fn switch(
    upstream: &Upstream,
    origin: &Origin,
    mut request: Box<Request<Body>>,
    wanted: tunnel::WantedProtocol,
) -> Result<(Response<Body>, Option<impl Future<Output = ()> + use<>>), Error> {
    prepare_request(&mut request, origin);
    let client = wanted.ask(&mut request);
    let mut response = upstream.send_http1(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok((answer(upstream, response), None));
    }
    let protocol = response.headers().get(UPGRADE).cloned();
    let upstreams: OnUpgrade = hyper::upgrade::on(&mut response);
    let tunnel = tunnel::join(client, upstreams, upstream.body_idle());
    let mut response = answer(upstream, response);
    tunnel::agree(response.headers_mut(), protocol);
    Ok((response, Some(tunnel)))
}

/// Rewrites the addresses in an answer, of the upstream or of refshim, so that the client can follow them.
pub fn lead_back(response: &mut Response<Body>, upstream: &Upstream, origin: &Origin) {
    addresses::lead_back(response.headers_mut(), upstream, origin);
    if let Some(namespace) = &origin.namespace {
        response.headers_mut().insert(OCI_NAMESPACE, namespace.clone());
    }
}

/// A `Location` leads to another host than the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere;

/// Path and query of an answer's `Location` at the upstream, if it has one. The upstream may name itself or refshim.
///
/// # Errors
/// It names another host.
pub fn location(
    headers: &HeaderMap,
    upstream: &Upstream,
    origin: &Origin,
) -> Result<Option<PathAndQuery>, Elsewhere> {
    addresses::location(headers, upstream, origin)
}

/// The upstream's answer as the client gets it.
fn answer(upstream: &Upstream, response: Response<Received>) -> Response<Body> {
    let idle = upstream.body_idle();
    let mut response = response.map(|body| Body::from_upstream(body, idle));
    // The version is that of one connection; hyper sets the one of the client's.
    *response.version_mut() = Version::HTTP_11;
    strip_hop_by_hop(response.headers_mut());
    response
}

fn prepare_request(request: &mut Request<Body>, origin: &Origin) {
    *request.version_mut() = Version::HTTP_11;
    prepare_headers(request.headers_mut(), origin);
}

/// Prepares a client's fields for the upstream. Forwarded requests and refshim's own questions share this: if they
/// were prepared differently, the registry could answer a question otherwise than it would answer the client.
fn prepare_headers(headers: &mut HeaderMap, origin: &Origin) {
    strip(headers, |name| is_hop_by_hop(name) || !origin.may_tell(name));
    join_cookies(headers);
    // X-Forwarded-* says the same; a client's own Forwarded (RFC 7239) could contradict it.
    headers.remove(FORWARDED);
    origin.tell(headers);
}

/// Removes hop-by-hop fields.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip(headers, is_hop_by_hop);
}

/// Removes the fields that `is_ours` selects, and those that `Connection` names.
fn strip(headers: &mut HeaderMap, is_ours: impl Fn(&HeaderName) -> bool) {
    // One look at the names: most messages have none of these, or a `Connection` that names no field.
    let found: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name)).cloned().collect();
    if found.is_empty() {
        return;
    }
    let has = |name: &HeaderName| found.contains(name);
    let takes_trailers = has(&TE) && tokens(headers, &TE).any(|coding| coding == "trailers");
    let named: Vec<HeaderName> = if has(&CONNECTION) {
        let options = tokens(headers, &CONNECTION).filter(|option| !["close", "keep-alive"].contains(option));
        options.filter_map(|name| name.parse().ok()).collect()
    } else {
        Vec::new()
    };
    for name in found.into_iter().chain(named) {
        headers.remove(name);
    }
    // The one transfer coding that passes a proxy: hyper forwards trailers.
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// The elements of a list field.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Joins cookies in one field. HTTP/2 may split them; for HTTP/1.1 they MUST be joined (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
