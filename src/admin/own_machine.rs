//! What is taken from this machine alone: it asks for no credentials, and does more than to tell how refshim is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::{FORWARDED, HOST, VIA};
use http::{HeaderName, Request, Version};

/// Whether a request comes from this machine. `what` begins the sentence that says why not.
///
/// # Errors
/// It does not, or it may not.
pub(super) fn check<B>(client: IpAddr, request: &Request<B>, what: &str) -> Result<(), String> {
    // Not all of 127.0.0.0/8: Istio hands on what comes from elsewhere as 127.0.0.6. And nothing that was handed on.
    let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let marks =
        ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "x-envoy-external-address"];
    let mut marks = marks.map(HeaderName::from_static).into_iter().chain([FORWARDED, VIA]);
    // HTTP/1.0 is what nginx speaks to what is behind it, unless it is told otherwise; no browser and no tool does.
    let is_handed_on =
        request.version() == Version::HTTP_10 || marks.any(|name| request.headers().contains_key(name));
    if !own.contains(&client.to_canonical()) || is_handed_on {
        return Err(format!("{what} taken from this machine only; in a container, run the command inside"));
    }
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()?.parse().ok());
    let host: Option<http::uri::Authority> = host.or_else(|| request.uri().authority().cloned());
    let is_own = host.is_some_and(|host| {
        let name = host.host().trim_matches(['[', ']']);
        // Who comes from elsewhere through a proxy that adds nothing names another address, unless they know better: the
        // manual says that nothing may lead here.
        name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| own.contains(&address))
    });
    if is_own {
        Ok(())
    } else {
        Err("the Host is not this machine's own: 127.0.0.1, [::1] or localhost".to_owned())
    }
}
