//! Recognises an upstream that is refshim itself: every request would come back.

use std::net::{IpAddr, SocketAddr};

use super::StartError;
use crate::config::{Config, RegistryUrl};

/// Looks for an upstream that is refshim itself. No reload changes the URLs, so this is done once.
///
/// # Errors
/// There is one.
pub fn refuse_loops(config: &Config, own: SocketAddr) -> Result<(), StartError> {
    let found = config.upstreams().find(|upstream| leads_to(&upstream.url, own));
    found.map_or(Ok(()), |upstream| Err(StartError::Loop(upstream.url.authority().clone())))
}

/// Whether the upstream's URL is this address, as far as can be told without DNS.
fn leads_to(upstream: &RegistryUrl, own: SocketAddr) -> bool {
    let authority = upstream.authority();
    let port = authority.port_u16().unwrap_or(if upstream.is_https() { 443 } else { 80 });
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_own = |host: IpAddr| host == own.ip() || (own.ip().is_unspecified() && host.is_loopback());
    let is_localhost = host == "localhost" && (own.ip().is_loopback() || own.ip().is_unspecified());
    port == own.port() && (is_localhost || host.parse().is_ok_and(is_own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(upstream: &str, own: &str, expected: bool) {
        assert_eq!(leads_to(&upstream.parse().unwrap(), own.parse().unwrap()), expected, "{upstream} {own}");
    }

    #[test]
    fn an_upstream_that_is_refshim_itself_is_recognised() {
        check("http://127.0.0.1:5000", "127.0.0.1:5000", true);
        check("http://127.0.0.1:5000", "127.0.0.1:5001", false);
        check("http://localhost:5000", "127.0.0.1:5000", true);
        check("http://localhost:5000", "0.0.0.0:5000", true);
        check("http://localhost:5000", "10.0.0.1:5000", false);
        check("http://127.0.0.1", "0.0.0.0:80", true);
        check("https://127.0.0.1", "0.0.0.0:80", false);
        check("http://[::1]:5000", "[::1]:5000", true);
        check("http://registry:5000", "0.0.0.0:5000", false);
    }
}
