//! The URL of the registry behind the shim: a scheme, a host, perhaps a port, and nothing else,
//! because the path and the credentials of a request are the client's.

use std::fmt;
use std::str::FromStr;

use http::uri::Authority;

/// Where the upstream is, `https://registry.example`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamUrl {
    https: bool,
    authority: Authority,
}

/// The text is no URL of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUpstreamUrl {
    /// It is not made of `http` or `https`, a host and perhaps a port.
    #[error(
        "not a URL of scheme, host and port alone: {0:?} \
         (write https://registry.example or http://10.0.0.5:5000)"
    )]
    Form(String),
    /// It holds a user or a password. The text is left out, so that no log shows it.
    #[error("holds credentials, but they come from the client (write https://registry.example)")]
    Credentials,
}

impl UpstreamUrl {
    /// Whether the upstream is spoken to over TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Its host, and its port if that is not the scheme's own.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

impl FromStr for UpstreamUrl {
    type Err = InvalidUpstreamUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUpstreamUrl> {
        if text.contains('@') {
            return Err(InvalidUpstreamUrl::Credentials);
        }
        parsed(text).ok_or_else(|| InvalidUpstreamUrl::Form(text.to_owned()))
    }
}

fn parsed(text: &str) -> Option<UpstreamUrl> {
    let (scheme, rest) = text.split_once("://")?;
    let https = scheme.eq_ignore_ascii_case("https");
    let authority: Authority = rest.strip_suffix('/').unwrap_or(rest).parse().ok()?;
    let known_scheme = https || scheme.eq_ignore_ascii_case("http");
    (known_scheme && has_host_and_port(&authority)).then_some(UpstreamUrl { https, authority })
}

/// `Authority` takes an empty host and any text for a port.
fn has_host_and_port(authority: &Authority) -> bool {
    let port_is_valid = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => true,
        _ => authority.port_u16().is_some_and(|port| port > 0),
    };
    !authority.host().is_empty() && port_is_valid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(bool, &str)>) {
        let url: Result<UpstreamUrl, _> = text.parse();
        assert_eq!(
            url.as_ref().ok().map(|url| (url.is_https(), url.authority().as_str())),
            expected,
            "{text}"
        );
    }

    #[test]
    fn a_url_is_a_scheme_and_an_authority() {
        check("http://registry", Some((false, "registry")));
        check("https://registry.example", Some((true, "registry.example")));
        check("https://registry.example/", Some((true, "registry.example")));
        check("HTTPS://registry.example:8443", Some((true, "registry.example:8443")));
        check("http://10.0.0.5:5000", Some((false, "10.0.0.5:5000")));
        check("http://[::1]", Some((false, "[::1]")));
        check("http://[::1]:5000", Some((false, "[::1]:5000")));
        check("", None);
        check("registry.example", None);
        check("registry.example:5000", None);
        check("ftp://registry.example", None);
        check("https://", None);
        check("https:///", None);
        check("https://:443", None);
        check("https://registry.example:", None);
        check("https://registry.example:0", None);
        check("https://registry.example:65536", None);
        check("https://registry.example:port", None);
        check("https://registry.example//", None);
        check("https://registry.example/v2", None);
        check("https://registry.example?a=b", None);
        check("https://registry.example/#a", None);
        check("https://registry example", None);
        check(" https://registry.example", None);
        check("https://[::1", None);
        check("https://user:password@registry.example", None);
    }

    #[test]
    fn credentials_are_refused_and_not_repeated() {
        let url: Result<UpstreamUrl, _> = "https://user:secret@registry.example/x y".parse();
        assert_eq!(url, Err(InvalidUpstreamUrl::Credentials));
    }

    #[test]
    fn a_url_is_shown_as_it_is_written() {
        let url: UpstreamUrl = "https://registry.example:8443/".parse().unwrap();
        assert_eq!(url.to_string(), "https://registry.example:8443");
    }
}
