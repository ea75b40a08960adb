//! Follows redirects of refshim's own questions. Clients follow theirs themselves; but without this, refshim could
//! learn nothing from a registry that serves manifests by redirect (GitLab's virtual registry, moby #50065;
//! registry.k8s.io).
//!
//! Whoever can make the registry redirect chooses the host that refshim connects to (SSRF). So: never from https to
//! http, never from a registry at a public address to a private address, never to the link-local addresses where
//! clouds serve credentials; and no credentials of the client go to another host.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::header::{ACCEPT, USER_AGENT, VIA};
use http::uri::Scheme;
use http::{HeaderMap, Request, Response, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower::Service;

use super::connection::{BoxError, Failure};
use super::http1;
use super::{SharedError, UpstreamError, resending};
use crate::config;
use crate::http::body::{Body, Received};
use crate::http::limits::ReadSize;
use crate::tls::{TlsError, connector_to_anyone};

/// Where a redirect may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// To public addresses only: the registry is at a public address.
    Public,
    /// To private addresses too: the registry is at one, and its storage may be next to it.
    Anywhere,
}

/// What connects to other hosts for redirects, made on first use, without a client certificate.
#[derive(Debug, Default)]
pub(super) struct Redirects {
    public: OnceLock<Foreign>,
    anywhere: OnceLock<Foreign>,
}

type Foreign = HttpsConnector<HttpConnector<Guarded>>;

impl Redirects {
    /// Sends a request to another host than the upstream, within `reach`.
    pub(super) async fn send(
        &self,
        settings: &config::UpstreamConfig,
        reach: Reach,
        request: Request<Body>,
    ) -> Result<Response<Received>, UpstreamError> {
        // Checked here as well: a literal address is not given to the resolver, which checks all others.
        let host = request.uri().host().unwrap_or_default().trim_matches(['[', ']']);
        if host.parse().is_ok_and(|address| !reach.admits(address)) {
            return Err(UpstreamError::Redirect);
        }
        let connector = self.connector(settings, reach).map_err(|error| {
            tracing::warn!(upstream = %settings.name, %error, "cannot set up TLS to follow redirects of the registry");
            UpstreamError::Redirect
        })?;
        let answer = tokio::time::timeout(settings.timeouts.response, once(connector.clone(), request)).await;
        let answer = answer.map_err(|_| UpstreamError::Silent(settings.timeouts.response))?;
        answer.map_err(|failure| resending::classify(failure, false))
    }

    fn connector(&self, settings: &config::UpstreamConfig, reach: Reach) -> Result<&Foreign, TlsError> {
        let cell = match reach {
            Reach::Public => &self.public,
            Reach::Anywhere => &self.anywhere,
        };
        if let Some(connector) = cell.get() {
            return Ok(connector);
        }
        let resolver = Guarded { resolver: GaiResolver::new(), reach };
        let connector = connector_to_anyone(&settings.tls, settings.timeouts.connect, resolver)?;
        Ok(cell.get_or_init(|| connector))
    }
}

/// Sends a request over a connection of its own.
async fn once(mut connector: Foreign, request: Request<Body>) -> Result<Response<Received>, Failure> {
    let connected = async {
        let io = connector.call(request.uri().clone()).await?;
        Ok::<_, BoxError>(http1::begin(io, ReadSize::Large, None).await?)
    };
    let http1 = connected.await.map_err(|error| Failure::Connect(SharedError::new(error)))?;
    http1.send(Box::new(request)).await
}

/// Checks the target of a redirect from `from`. True if it is the same host, to which the client's fields may go.
///
/// # Errors
/// It is not HTTP, or leads from https to http.
pub(super) fn target(from: &Uri, location: &Uri) -> Result<bool, UpstreamError> {
    let is_http = |scheme: &Scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS;
    let (Some(own), Some(scheme)) = (from.scheme(), location.scheme()) else {
        return Err(UpstreamError::Redirect);
    };
    if !is_http(scheme) || location.host().is_none() || (*own == Scheme::HTTPS && *scheme != Scheme::HTTPS) {
        return Err(UpstreamError::Redirect);
    }
    let port =
        |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
    let same_host = from.host().zip(location.host()).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b));
    Ok(own == scheme && same_host && port(from) == port(location))
}

/// The fields of a question that may go to a host that the client did not choose: none that may identify it.
pub(super) fn without_credentials(headers: &HeaderMap) -> HeaderMap {
    let kept = [ACCEPT, USER_AGENT].into_iter();
    let kept = kept.filter_map(|name| headers.get(&name).cloned().map(|value| (name, value)));
    kept.chain([(VIA, super::VIA_REFSHIM)]).collect()
}

/// Where an upstream's redirects may lead, by its own addresses.
pub(super) async fn reach_of(host: &str, port: u16) -> Reach {
    let host = host.trim_matches(['[', ']']);
    // If it cannot be resolved now, the stricter rule holds.
    let Ok(addresses) = tokio::net::lookup_host((host, port)).await else { return Reach::Public };
    let mut addresses = addresses.map(|address| address.ip());
    if addresses.any(|address| !is_public(address)) { Reach::Anywhere } else { Reach::Public }
}

impl Reach {
    fn admits(self, address: IpAddr) -> bool {
        let is_within = match self {
            Self::Public => is_public(address),
            Self::Anywhere => true,
        };
        is_within && !hands_out_credentials(plain(address))
    }
}

/// Unwraps an IPv4 address that is written as IPv6 (mapped, or NAT64 by RFC 6052): it is what is connected to.
fn plain(address: IpAddr) -> IpAddr {
    const NAT64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];
    match address {
        IpAddr::V6(v6) if v6.segments().starts_with(&NAT64) => {
            let [.., high, low] = v6.segments();
            IpAddr::from(((u32::from(high) << 16) | u32::from(low)).to_be_bytes())
        }
        IpAddr::V6(v6) => v6.to_canonical(),
        IpAddr::V4(v4) => IpAddr::V4(v4),
    }
}

/// Link-local addresses, and others at which clouds serve credentials (Alibaba, Azure, AWS).
fn hands_out_credentials(address: IpAddr) -> bool {
    const AWS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match address {
        IpAddr::V4(v4) => {
            v4.is_link_local() || [[100, 100, 100, 200], [168, 63, 129, 16]].contains(&v4.octets())
        }
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6 == AWS,
    }
}

/// Whether an address is globally reachable (special-purpose address registries, RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            let is_benchmark = a == 198 && (b == 18 || b == 19);
            let is_special = a == 0 || a >= 224 || (a == 192 && b == 0 && c == 0);
            !(v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_documentation()
                || is_shared
                || is_benchmark
                || is_special)
        }
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    // Only 2000::/3 is allocated for global unicast; documentation, 6to4 and Teredo are in it.
    let is_given_out = first & 0xe000 == 0x2000;
    let is_documentation = (first == 0x2001 && second == 0xdb8) || first == 0x3fff;
    let is_transition = first == 0x2002 || (first == 0x2001 && second == 0);
    is_given_out && !is_documentation && !is_transition
}

/// Resolves names, and drops addresses that are not allowed. Checking in the resolver, not before it, prevents DNS
/// rebinding: a name may have another address the next time it is resolved.
#[derive(Clone, Debug)]
pub(super) struct Guarded {
    resolver: GaiResolver,
    reach: Reach,
}

impl Service<Name> for Guarded {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.resolver.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (found, reach) = (self.resolver.call(name), self.reach);
        Box::pin(async move {
            let admitted: Vec<SocketAddr> = found.await?.filter(|it| reach.admits(it.ip())).collect();
            if admitted.is_empty() {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "the host has no address that refshim may connect to",
                ));
            }
            Ok(admitted.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: &str, from_public: bool, from_private: bool) {
        let parsed = address.parse().unwrap();
        let found = (Reach::Public.admits(parsed), Reach::Anywhere.admits(parsed));
        assert_eq!(found, (from_public, from_private), "{address}");
    }

    #[test]
    fn a_public_registry_leads_to_public_addresses_and_none_to_link_local_ones() {
        for public in
            ["1.1.1.1", "100.63.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
        {
            check(public, true, true);
        }
        for private in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "0.0.0.0",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fd00::1",
            "fec0::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001:db8::1",
            "ff02::1",
        ] {
            check(private, false, true);
        }
        for link_local in [
            "100.100.100.200",
            "168.63.129.16",
            "fd00:ec2::254",
            "169.254.169.254",
            "fe80::1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
        ] {
            check(link_local, false, false);
        }
    }

    #[track_caller]
    fn check_target(from: &str, to: &str, expected: Option<bool>) {
        let found = target(&from.parse().unwrap(), &to.parse().unwrap()).ok();
        assert_eq!(found, expected, "{from} {to}");
    }

    #[test]
    fn fields_go_to_the_same_host_alone_and_nothing_goes_from_https_to_http() {
        check_target("https://a/v2/x", "https://a/y", Some(true));
        check_target("https://a/v2/x", "https://A:443/y", Some(true));
        check_target("https://a/v2/x", "https://a:444/y", Some(false));
        check_target("https://a/v2/x", "https://b/y", Some(false));
        check_target("https://a/v2/x", "http://a/y", None);
        check_target("http://a/v2/x", "https://a/y", Some(false));
        check_target("http://a/v2/x", "http://b/y", Some(false));
        check_target("http://a/v2/x", "ftp://a/y", None);
        check_target("http://a/v2/x", "/y", None);
    }
}
