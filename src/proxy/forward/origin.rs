//! Where a request came from, for the upstream's `X-Forwarded-*`, and how the client reaches refshim, for addresses
//! in answers. `X-Forwarded-*` in a request is trusted only from `trusted_proxies`: a registry may allow by address,
//! build its challenge's realm from the host, and redirect to https by the scheme.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use ipnet::IpNet;

use crate::config::{Config, RegistryUrl};
use crate::http::header::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};
use crate::proxy::selection::Selected;

/// Settings for all clients: the external URL, and the trusted proxies.
#[derive(Debug, Default)]
pub struct Clients {
    external: Option<(HeaderValue, HeaderValue)>,
    trusted: Vec<IpNet>,
}

/// The peer of a client's connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peer {
    client: IpAddr,
    address: HeaderValue,
    scheme: &'static str,
}

/// Where one request came from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Origin {
    client: IpAddr,
    /// `X-Forwarded-For` for the upstream: the list of a trusted proxy, and the peer.
    forwarded_for: HeaderValue,
    is_trusted: bool,
    /// `http` or `https`, as the client sees it.
    scheme: HeaderValue,
    /// The host that the request is for, which selects the upstream.
    requested_host: Option<HeaderValue>,
    /// The host in `X-Forwarded-Host` and in absolute addresses: that of `external_url` if it is set.
    external_host: Option<HeaderValue>,
    /// The path prefix that leads back to an upstream that was not selected by the host.
    pub(super) mark: Option<Arc<str>>,
    /// The `ns=` by which the upstream was selected.
    pub(super) namespace: Option<HeaderValue>,
}

impl Clients {
    /// The settings of a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let value = |url: &RegistryUrl| {
            let host = HeaderValue::from_str(url.authority().as_str()).ok()?;
            Some((HeaderValue::from_static(url.scheme()), host))
        };
        Self {
            external: config.external_url.as_ref().and_then(value),
            trusted: config.trusted_proxies.clone(),
        }
    }

    /// Where this request came from.
    #[must_use]
    pub fn origin<B>(&self, peer: &Peer, request: &Request<B>) -> Origin {
        let is_trusted = self.trusts(&peer.client);
        let told = |name: &HeaderName| {
            if is_trusted { request.headers().get(name).cloned() } else { None }
        };
        let requested_host = told(&X_FORWARDED_HOST).or_else(|| host_of(request));
        let (scheme, external_host) = match &self.external {
            Some((scheme, host)) => (scheme.clone(), Some(host.clone())),
            None => (
                told(&X_FORWARDED_PROTO).unwrap_or(HeaderValue::from_static(peer.scheme)),
                requested_host.clone(),
            ),
        };
        Origin {
            client: if is_trusted { self.client(peer, request.headers()) } else { peer.client },
            forwarded_for: if is_trusted { peer.behind(request.headers()) } else { peer.address.clone() },
            is_trusted,
            scheme,
            requested_host,
            external_host,
            mark: None,
            namespace: None,
        }
    }

    fn trusts(&self, address: &IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// The address nearest to refshim that is not a trusted proxy's. Read from the end, since the client can write
    /// anything at the beginning.
    fn client(&self, peer: &Peer, headers: &HeaderMap) -> IpAddr {
        let told = headers.get_all(X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let told: Vec<&str> = told.flat_map(|value| value.split(',')).collect();
        let addresses = told.iter().rev().map_while(|address| address.trim().parse::<IpAddr>().ok());
        let mut clients = addresses.map(|address| address.to_canonical());
        clients.find(|client| !self.trusts(client)).unwrap_or(peer.client)
    }
}

impl Peer {
    /// The client at this address, over TLS or not.
    #[must_use]
    pub fn new(client: IpAddr, tls: bool) -> Self {
        let client = client.to_canonical();
        let address = HeaderValue::from_maybe_shared(Bytes::from(client.to_string()));
        Self {
            client,
            address: address.unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            scheme: if tls { "https" } else { "http" },
        }
    }

    /// `X-Forwarded-For` of a trusted proxy: what it says, and itself.
    fn behind(&self, headers: &HeaderMap) -> HeaderValue {
        let before = headers.get_all(X_FORWARDED_FOR).iter();
        let all: Vec<&[u8]> = before.chain([&self.address]).map(HeaderValue::as_bytes).collect();
        HeaderValue::from_bytes(&all.join(&b", "[..])).unwrap_or_else(|_| self.address.clone())
    }
}

impl Origin {
    /// Adds how the upstream was selected.
    pub fn came_through(&mut self, selected: Selected) {
        self.mark = selected.mark;
        self.namespace = selected.namespace.and_then(|namespace| HeaderValue::try_from(namespace).ok());
    }

    /// The address of the client, behind the trusted proxies.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// The host that the request is for: `Host`, `:authority`, or `X-Forwarded-Host` of a trusted proxy. In a list,
    /// the first is what the client asked for.
    #[must_use]
    pub fn requested_host(&self) -> Option<&str> {
        let hosts = self.requested_host.as_ref()?.to_str().ok()?;
        hosts.split(',').next().map(str::trim)
    }

    /// The host by which clients reach refshim.
    pub(super) fn external_host(&self) -> Option<&str> {
        self.external_host.as_ref()?.to_str().ok()
    }

    /// `https://hub.example.com`, as the client reaches refshim.
    pub(super) fn base(&self) -> Option<String> {
        Some(format!("{}://{}", self.scheme.to_str().ok()?, self.external_host()?))
    }

    /// Whether a field of the peer may be forwarded: those of proxies only from trusted ones.
    pub(super) fn may_tell(&self, name: &HeaderName) -> bool {
        self.is_trusted || !is_proxys(name.as_str())
    }

    /// Says where it came from, and nothing else of it.
    #[must_use]
    pub fn forwarded_for(&self) -> HeaderMap {
        HeaderMap::from_iter([(X_FORWARDED_FOR, self.forwarded_for.clone())])
    }

    /// Sets `X-Forwarded-*` for the upstream.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        headers.insert(X_FORWARDED_FOR, self.forwarded_for.clone());
        headers.insert(X_FORWARDED_PROTO, self.scheme.clone());
        match &self.external_host {
            Some(host) => headers.insert(X_FORWARDED_HOST, host.clone()),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
}

/// Whether only a proxy may set this field: it says where a request came from, or what it was before the proxy
/// changed it. Registries, and proxies in front of them, decide by these as by `X-Forwarded-For`.
fn is_proxys(name: &str) -> bool {
    name.starts_with("x-forwarded-")
        || name.starts_with("x-original-")
        || matches!(
            name,
            "x-real-ip"
                | "true-client-ip"
                | "cf-connecting-ip"
                | "cf-connecting-ipv6"
                | "cf-pseudo-ipv4"
                | "client-ip"
                | "fastly-client-ip"
                | "forwarded-for"
                | "proxy-client-ip"
                | "wl-proxy-client-ip"
                | "x-azure-clientip"
                | "x-azure-socketip"
                | "x-client-ip"
                | "x-cluster-client-ip"
                | "x-envoy-external-address"
                | "x-forwarded"
                | "x-proxyuser-ip"
                | "x-remote-addr"
                | "x-remote-ip"
                | "x-rewrite-url"
        )
}

/// The host that a request is for.
fn host_of<B>(request: &Request<B>) -> Option<HeaderValue> {
    match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => request.headers().get(HOST).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(external: Option<&str>, client: &str, expected: [&str; 3]) {
        let value = |text: &str| HeaderValue::from_str(text).unwrap();
        let external = external.map(|host| (value("https"), value(host)));
        let trusted = vec!["10.0.0.0/8".parse().unwrap(), "fd00::1/128".parse().unwrap()];
        let (clients, peer) = (Clients { external, trusted }, Peer::new(client.parse().unwrap(), false));
        let request = Request::builder()
            .header("host", "own")
            .header("x-forwarded-for", "1.1.1.1, 2.2.2.2")
            .header("x-forwarded-for", "3.3.3.3")
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", "told")
            .body(())
            .unwrap();
        let mut headers = HeaderMap::new();
        clients.origin(&peer, &request).tell(&mut headers);
        let found = [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST];
        assert_eq!(found.map(|name| headers.get(name).unwrap().to_str().unwrap().to_owned()), expected);
    }

    #[test]
    fn forwarded_fields_are_believed_from_trusted_proxies_alone() {
        check(None, "192.0.2.1", ["192.0.2.1", "http", "own"]);
        check(None, "::ffff:192.0.2.1", ["192.0.2.1", "http", "own"]);
        let chain = |last: &str| format!("1.1.1.1, 2.2.2.2, 3.3.3.3, {last}");
        check(None, "10.1.2.3", [&chain("10.1.2.3"), "https", "told"]);
        check(None, "::ffff:10.1.2.3", [&chain("10.1.2.3"), "https", "told"]);
        check(None, "fd00::1", [&chain("fd00::1"), "https", "told"]);
        check(None, "fd00::2", ["fd00::2", "http", "own"]);
    }

    #[track_caller]
    fn check_client(peer: &str, told: &[&str], expected: &str) {
        let clients = Clients { external: None, trusted: vec!["10.0.0.0/8".parse().unwrap()] };
        let peer = Peer::new(peer.parse().unwrap(), false);
        let mut request = Request::builder();
        for value in told {
            request = request.header("x-forwarded-for", *value);
        }
        let origin = clients.origin(&peer, &request.body(()).unwrap());
        assert_eq!(origin.client().to_string(), expected, "{told:?}");
    }

    #[test]
    fn the_client_is_the_nearest_that_is_no_trusted_proxy() {
        check_client("192.0.2.1", &["1.1.1.1"], "192.0.2.1");
        check_client("10.0.0.1", &[], "10.0.0.1");
        check_client("10.0.0.1", &["1.1.1.1"], "1.1.1.1");
        check_client("10.0.0.1", &["1.1.1.1, 2.2.2.2", "::ffff:10.0.0.2"], "2.2.2.2");
        check_client("10.0.0.1", &["1.1.1.1, nonsense, 10.0.0.2"], "10.0.0.1");
        check_client("::ffff:10.0.0.1", &["10.0.0.3"], "10.0.0.1");
    }

    #[test]
    fn an_external_url_comes_before_what_the_request_says() {
        check(Some("hub"), "192.0.2.1", ["192.0.2.1", "https", "hub"]);
        check(Some("hub"), "10.0.0.1", ["1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.1", "https", "hub"]);
    }
}
