//! The URL of a registry: scheme, host, optional port, optional path before its `/v2/`. No credentials: each request
//! carries its client's.

use std::fmt;
use std::str::FromStr;

use http::uri::{Authority, PathAndQuery};

/// Where a registry is: `https://registry.example`, `https://nexus.example/repository/docker`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryUrl {
    https: bool,
    authority: Authority,
    path: String,
}

/// The text is not the URL of a registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRegistryUrl {
    /// It is not made of `http` or `https`, a host, and optionally a port and a path.
    #[error(
        "not a URL of scheme, host, port and the path before /v2: {0:?} \
         (write https://registry.example, http://10.0.0.5:5000 or https://nexus.example/repository/docker)"
    )]
    Form(String),
    /// It has a user or a password. The text is left out, to keep it out of logs.
    #[error("has credentials, but each request carries those of its client (write https://registry.example)")]
    Credentials,
    /// It has a path where none is accepted.
    #[error("has a path, but only scheme, host and port are accepted here (write https://hub.example)")]
    Path,
}

impl RegistryUrl {
    /// Whether the registry is reached over TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// Its host, and its port if it has one.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The path before `/v2/`: `/repository/docker`, or nothing (Nexus has registries under a path).
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The same URL, if it has no path.
    ///
    /// # Errors
    /// It has one.
    pub fn without_path(self) -> Result<Self, InvalidRegistryUrl> {
        if self.path.is_empty() { Ok(self) } else { Err(InvalidRegistryUrl::Path) }
    }
}

impl fmt::Display for RegistryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority, self.path)
    }
}

impl FromStr for RegistryUrl {
    type Err = InvalidRegistryUrl;

    fn from_str(text: &str) -> Result<Self, InvalidRegistryUrl> {
        if text.contains('@') {
            return Err(InvalidRegistryUrl::Credentials);
        }
        parsed(text).ok_or_else(|| InvalidRegistryUrl::Form(text.to_owned()))
    }
}

fn parsed(text: &str) -> Option<RegistryUrl> {
    let (scheme, rest) = text.split_once("://")?;
    let https = scheme.eq_ignore_ascii_case("https");
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let authority: Authority = authority.parse().ok()?;
    let known_scheme = https || scheme.eq_ignore_ascii_case("http");
    (known_scheme && has_host_and_port(&authority) && (path.is_empty() || is_base(path)))
        .then(|| RegistryUrl { https, authority, path: path.to_owned() })
}

/// `Authority` accepts an empty host and any text as port.
fn has_host_and_port(authority: &Authority) -> bool {
    let port_is_valid = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => true,
        _ => authority.port_u16().is_some_and(|port| port > 0),
    };
    !authority.host().is_empty() && port_is_valid
}

/// `/repository/docker`: no empty or dot segments, and no `/v2`, since that is added.
fn is_base(path: &str) -> bool {
    let segments = path.strip_prefix('/').unwrap_or(path).split('/');
    path.parse::<PathAndQuery>().is_ok_and(|parsed| parsed.as_str() == path && parsed.query().is_none())
        && segments.clone().all(|segment| !matches!(segment, "" | "." | ".." | "v2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(bool, &str, &str)>) {
        let url: Result<RegistryUrl, _> = text.parse();
        assert_eq!(
            url.as_ref().ok().map(|url| (url.is_https(), url.authority().as_str(), url.path())),
            expected,
            "{text}"
        );
    }

    #[test]
    fn a_url_is_a_scheme_an_authority_and_perhaps_a_path() {
        check("http://registry", Some((false, "registry", "")));
        check("https://registry.example", Some((true, "registry.example", "")));
        check("https://registry.example/", Some((true, "registry.example", "")));
        check("HTTPS://registry.example:8443", Some((true, "registry.example:8443", "")));
        check("http://10.0.0.5:5000", Some((false, "10.0.0.5:5000", "")));
        check("http://[::1]", Some((false, "[::1]", "")));
        check("http://[::1]:5000", Some((false, "[::1]:5000", "")));
        check("https://nexus/repository/docker/", Some((true, "nexus", "/repository/docker")));
        check("https://nexus:8443/a%20b", Some((true, "nexus:8443", "/a%20b")));
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
        check("https://registry.example/a//b", None);
        check("https://registry.example/a/../b", None);
        check("https://registry.example?a=b", None);
        check("https://registry.example/a?b=c", None);
        check("https://registry.example/#a", None);
        check("https://registry example", None);
        check(" https://registry.example", None);
        check("https://[::1", None);
        check("https://user:password@registry.example", None);
    }

    #[test]
    fn credentials_are_refused_and_not_repeated() {
        let url: Result<RegistryUrl, _> = "https://user:secret@registry.example/x y".parse();
        assert_eq!(url, Err(InvalidRegistryUrl::Credentials));
    }

    #[test]
    fn a_url_is_shown_as_it_is_written() {
        let url: RegistryUrl = "https://registry.example:8443/a/b/".parse().unwrap();
        assert_eq!(url.to_string(), "https://registry.example:8443/a/b");
        assert_eq!(url.without_path(), Err(InvalidRegistryUrl::Path));
    }
}
