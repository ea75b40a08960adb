//! One upstream: its settings, the table of their keys (`upstreams.<name>.<key>`), and its number in the index. The
//! number is computed from the name alone, so that it survives changes of the URL and needs no file of its own.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::kind::{At, Kind, List, Optional, YesOrNo};
use super::service::{ServiceConfig, ServiceDraft};
use super::settings::{LIMIT, Setting, live, setting};
use super::value::{ANYTHING, FILE, HOST, HTTP2, MODE, REGISTRY, REPOSITORY, SERVER_NAME, UPSTREAM};
use super::{Mode, RegistryUrl, TimeoutsConfig};
use crate::oci::RepositoryName;

/// A registry behind refshim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// The operator's name for it; `default` for the upstream that gets what no other's rules match.
    pub name: UpstreamName,
    /// Its URL.
    pub url: RegistryUrl,
    /// What refshim does with the requests for it. Default full.
    pub mode: Mode,
    /// The upstream that is the same registry, so that what is recorded of either counts for both.
    pub shares: Option<UpstreamName>,
    /// The `Host` names that select it, in lower case; without a port, any port.
    pub hosts: Vec<String>,
    /// The values of `ns=` that select it.
    pub namespaces: Vec<String>,
    /// The prefixes of repository names that select it: `hub` matches `hub` and `hub/…`.
    pub prefixes: Vec<RepositoryName>,
    /// Whether to remove the prefix from the names sent to it. Default no.
    pub strip_prefix: bool,
    /// TLS towards it.
    pub tls: UpstreamTls,
    /// refshim's own credentials for it. Default none.
    pub service: Option<ServiceConfig>,
    /// HTTP/2 towards it. Default never.
    pub http2: Http2,
    /// Whether to rewrite the realm of a login challenge that names the upstream, so that it leads through refshim.
    /// Default no.
    pub rewrite_realm: bool,
    /// Its time-outs; those that it does not set are the common ones.
    pub timeouts: TimeoutsConfig,
}

/// TLS towards an upstream. All files are PEM, reloaded when they change and on SIGHUP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The authorities that its certificate is verified with. Default: the platform's.
    pub ca: Option<PathBuf>,
    /// refshim's own client certificate, with its chain.
    pub certificate: Option<PathBuf>,
    /// The private key of that certificate.
    pub key: Option<PathBuf>,
    /// The name that its certificate must have. Default: the host of its URL.
    pub server_name: Option<String>,
    /// Whether to accept any certificate. Default no.
    pub insecure_skip_verify: bool,
}

/// HTTP/2 towards an upstream. One connection then carries many requests, at most as many at once as the upstream
/// allows on it, and slow downloads count among them; in HTTP/1.1 each request has a connection of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Http2 {
    /// HTTP/1.1.
    #[default]
    Never,
    /// If TLS negotiates it (ALPN).
    Auto,
    /// Also without TLS.
    Always,
}

/// The name of an upstream: a lower-case letter, then lower-case letters and digits, since it is part of variables'
/// names. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamName(Arc<str>);

/// The text does not follow the grammar of upstream names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a name for an upstream: lower-case letters and digits, beginning with a letter")]
pub struct InvalidUpstreamName;

/// An upstream while its settings are parsed.
#[derive(Debug, Default)]
pub(super) struct UpstreamDraft {
    pub(super) url: Option<RegistryUrl>,
    mode: Mode,
    shares: Option<UpstreamName>,
    hosts: Vec<String>,
    namespaces: Vec<String>,
    prefixes: Vec<RepositoryName>,
    strip_prefix: bool,
    pub(super) tls: UpstreamTls,
    pub(super) service: ServiceDraft,
    http2: Http2,
    rewrite_realm: bool,
    connect: Option<Duration>,
    response: Option<Duration>,
    body_idle: Option<Duration>,
    pool_idle: Option<Duration>,
}

/// Every setting of an upstream, in the order of the example file.
pub(super) static UPSTREAM_SETTINGS: &[Setting<UpstreamDraft>] = &[
    setting("url", &at(Optional(REGISTRY), |to| &mut to.url)),
    live("hosts", &at(List(HOST), |to| &mut to.hosts)),
    live("namespaces", &at(List(ANYTHING), |to| &mut to.namespaces)),
    live("prefixes", &at(List(REPOSITORY), |to| &mut to.prefixes)),
    live("strip_prefix", &at(YesOrNo, |to| &mut to.strip_prefix)),
    setting("mode", &at(MODE, |to| &mut to.mode)),
    setting("ca", &at(Optional(FILE), |to| &mut to.tls.ca)),
    setting("certificate", &at(Optional(FILE), |to| &mut to.tls.certificate)),
    setting("key", &at(Optional(FILE), |to| &mut to.tls.key)),
    setting("server_name", &at(Optional(SERVER_NAME), |to| &mut to.tls.server_name)),
    setting("insecure_skip_verify", &at(YesOrNo, |to| &mut to.tls.insecure_skip_verify)),
    setting("http2", &at(HTTP2, |to| &mut to.http2)),
    live("rewrite_realm", &at(YesOrNo, |to| &mut to.rewrite_realm)),
    live("connect", &at(Optional(LIMIT), |to| &mut to.connect)),
    live("response", &at(Optional(LIMIT), |to| &mut to.response)),
    live("body_idle", &at(Optional(LIMIT), |to| &mut to.body_idle)),
    live("pool_idle", &at(Optional(LIMIT), |to| &mut to.pool_idle)),
    setting("service.user", &at(Optional(ANYTHING), |to| &mut to.service.user)),
    setting("service.password_file", &at(Optional(FILE), |to| &mut to.service.password_file)),
    setting("service.token_file", &at(Optional(FILE), |to| &mut to.service.token_file)),
    setting("service.docker_config", &at(Optional(FILE), |to| &mut to.service.docker_config)),
    setting("shares", &at(Optional(UPSTREAM), |to| &mut to.shares)),
];

const fn at<K: Kind>(kind: K, field: fn(&mut UpstreamDraft) -> &mut K::Value) -> At<UpstreamDraft, K> {
    At::new(kind, field)
}

impl UpstreamConfig {
    /// The upstream's number in the index: 0 for the default one, else the first bytes of a hash of the name; of one
    /// that shares, the other's.
    #[must_use]
    pub fn number(&self) -> u32 {
        let name = self.shares.as_ref().unwrap_or(&self.name);
        let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(name.as_str()).into();
        if name.is_default() { 0 } else { u32::from_be_bytes([a, b, c, d]) }
    }
}

impl UpstreamDraft {
    /// The upstream, if it has a URL. Inconsistent settings are reported to `problem`.
    pub(super) fn finish(
        self,
        name: &UpstreamName,
        common: &TimeoutsConfig,
        mut problem: impl FnMut(&'static str),
    ) -> Option<UpstreamConfig> {
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            problem("set both certificate and key, or neither");
        }
        if self.tls.ca.is_some() && self.tls.insecure_skip_verify {
            problem(
                "ca has no effect with insecure_skip_verify, which accepts any certificate: set one of the two",
            );
        }
        if self.strip_prefix && self.prefixes.is_empty() {
            problem("strip_prefix needs prefixes");
        }
        let service = self.service.finish().unwrap_or_else(|unfit| {
            problem(unfit);
            None
        });
        let is_chosen = !(self.hosts.is_empty() && self.namespaces.is_empty() && self.prefixes.is_empty());
        if !is_chosen && !name.is_default() {
            problem("no request is sent to it: set hosts, namespaces or prefixes");
        }
        let Some(url) = self.url else {
            if !name.is_default() {
                problem("has no url (write url = \"https://registry.example\")");
            }
            return None;
        };
        Some(UpstreamConfig {
            name: name.clone(),
            url,
            mode: self.mode,
            shares: self.shares,
            hosts: self.hosts,
            namespaces: self.namespaces,
            prefixes: self.prefixes,
            strip_prefix: self.strip_prefix,
            tls: self.tls,
            service,
            http2: self.http2,
            rewrite_realm: self.rewrite_realm,
            timeouts: TimeoutsConfig {
                connect: self.connect.unwrap_or(common.connect),
                response: self.response.unwrap_or(common.response),
                body_idle: self.body_idle.unwrap_or(common.body_idle),
                pool_idle: self.pool_idle.unwrap_or(common.pool_idle),
                ..common.clone()
            },
        })
    }
}

impl Default for UpstreamName {
    fn default() -> Self {
        Self::default_upstream()
    }
}

impl UpstreamName {
    /// The name of the default upstream.
    #[must_use]
    pub fn default_upstream() -> Self {
        Self("default".into())
    }

    /// Whether this is the name of the default upstream.
    #[must_use]
    pub fn is_default(&self) -> bool {
        &*self.0 == "default"
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UpstreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UpstreamName {
    type Err = InvalidUpstreamName;

    fn from_str(text: &str) -> Result<Self, InvalidUpstreamName> {
        let valid = text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if valid { Ok(Self(text.into())) } else { Err(InvalidUpstreamName) }
    }
}
