//! What a reverse proxy does to the head of a message, in both directions: hop-by-hop fields
//! (RFC 9110, section 7.6.1), where the request came from, and addresses that name the upstream.
//! Everything else stays as it came.

mod addresses;
mod origin;
mod question;
mod tunnel;

pub use origin::{Clients, Origin, Peer};
pub use question::question_headers;

use http::header::{
    CONNECTION, COOKIE, FORWARDED, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::http::body::Body;
use crate::http::header::{KEEP_ALIVE, OCI_NAMESPACE, PROXY_CONNECTION};
use crate::http::limits::RequestGuard;
use crate::proxy::error::Error;
use crate::proxy::upstream::Upstream;

/// Fields that end at the next hop. Proxy-Authorization is for refshim's address, not for the registry behind
/// it (RFC 9110, section 11.7.2).
static HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Passes a request on and its answer back, both bodies streaming. If the two sides agree on another
/// protocol, what they say then passes in a task of `tasks`, as a part of this request.
pub async fn pass(
    upstream: &Upstream,
    origin: &Origin,
    tasks: &TaskTracker,
    mut request: Request<Incoming>,
    in_progress: &RequestGuard,
) -> Result<Response<Body>, Error> {
    let wanted = tunnel::wanted(&mut request);
    let request = request.map(|body| Body::from_client(body, upstream.body_idle(), in_progress.clone()));
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
                tasks.spawn(tunnel.in_current_span());
            }
            Ok(response)
        }
    }
}

/// [`pass`] for a request whose body was already looked at.
pub async fn send(
    upstream: &Upstream,
    origin: &Origin,
    mut request: Request<Body>,
) -> Result<Response<Body>, Error> {
    prepare_request(&mut request, origin);
    Ok(answer(upstream, upstream.send(request).await?))
}

/// A request that asks for another protocol, and what passes afterwards if the upstream agrees.
async fn switch(
    upstream: &Upstream,
    origin: &Origin,
    mut request: Request<Body>,
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

/// Makes an answer, whoever made it, lead back the way the request came.
pub fn lead_back(response: &mut Response<Body>, upstream: &Upstream, origin: &Origin) {
    addresses::lead_back(response.headers_mut(), upstream, origin);
    if let Some(namespace) = &origin.namespace {
        response.headers_mut().insert(OCI_NAMESPACE, namespace.clone());
    }
}

/// The upstream's answer as the client gets it.
fn answer(upstream: &Upstream, response: Response<Incoming>) -> Response<Body> {
    let idle = upstream.body_idle();
    let mut response = response.map(|body| Body::from_upstream(body, idle));
    *response.version_mut() = Version::HTTP_11;
    strip_hop_by_hop(response.headers_mut());
    response
}

fn prepare_request(request: &mut Request<Body>, origin: &Origin) {
    *request.version_mut() = Version::HTTP_11;
    prepare_headers(request.headers_mut(), origin);
}

/// A client's fields as the upstream gets them. For requests that are passed on and for refshim's own
/// questions alike: were they prepared apart, a registry could be made to decide differently.
fn prepare_headers(headers: &mut HeaderMap, origin: &Origin) {
    strip(headers, |name| HOP_BY_HOP.contains(name) || !origin.may_tell(name));
    join_cookies(headers);
    headers.remove(FORWARDED);
    origin.tell(headers);
}

/// Takes out what is about one connection only.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip(headers, |name| HOP_BY_HOP.contains(name));
}

/// Takes out what `is_ours` to take out, and what Connection names.
fn strip(headers: &mut HeaderMap, is_ours: impl Fn(&HeaderName) -> bool) {
    // One look at the names: most messages have none of these.
    let found: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name)).cloned().collect();
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
