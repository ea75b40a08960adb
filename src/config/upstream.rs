//! One upstream: its settings, the table of their keys (`upstreams.<name>.<key>`), and its number in the index. The
//! number is computed from the name alone, so that it survives changes of the URL and needs no file of its own.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::service::{ServiceConfig, ServiceDraft};
use super::settings::{LIMIT, Setting, SettingForm, put, setting};
use super::value::{duration, file, host, http2, list, mode, server_name, text, upstream_name, yes_or_no};
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
    setting("url", SettingForm::One, |to, text| put(&mut to.url, text.parse().map(Some))),
    setting("hosts", SettingForm::Many, |to, text| put(&mut to.hosts, list(text, host))),
    setting("namespaces", SettingForm::Many, |to, words| put(&mut to.namespaces, list(words, text))),
    setting("prefixes", SettingForm::Many, |to, text| {
        put(&mut to.prefixes, list(text, RepositoryName::from_str))
    }),
    setting("strip_prefix", SettingForm::YesOrNo, |to, text| put(&mut to.strip_prefix, yes_or_no(text))),
    setting("mode", SettingForm::One, |to, text| put(&mut to.mode, mode(text))),
    setting("ca", SettingForm::One, |to, text| put(&mut to.tls.ca, file(text).map(Some))),
    setting("certificate", SettingForm::One, |to, text| put(&mut to.tls.certificate, file(text).map(Some))),
    setting("key", SettingForm::One, |to, text| put(&mut to.tls.key, file(text).map(Some))),
    setting("server_name", SettingForm::One, |to, text| {
        put(&mut to.tls.server_name, server_name(text).map(Some))
    }),
    setting("insecure_skip_verify", SettingForm::YesOrNo, |to, text| {
        put(&mut to.tls.insecure_skip_verify, yes_or_no(text))
    }),
    setting("http2", SettingForm::One, |to, text| put(&mut to.http2, http2(text))),
    setting("rewrite_realm", SettingForm::YesOrNo, |to, text| put(&mut to.rewrite_realm, yes_or_no(text))),
    setting("connect", SettingForm::One, |to, text| put(&mut to.connect, duration(text, LIMIT).map(Some))),
    setting("response", SettingForm::One, |to, text| put(&mut to.response, duration(text, LIMIT).map(Some))),
    setting("body_idle", SettingForm::One, |to, text| {
        put(&mut to.body_idle, duration(text, LIMIT).map(Some))
    }),
    setting("pool_idle", SettingForm::One, |to, text| {
        put(&mut to.pool_idle, duration(text, LIMIT).map(Some))
    }),
    setting("service.user", SettingForm::One, |to, words| put(&mut to.service.user, text(words).map(Some))),
    setting("service.password_file", SettingForm::One, |to, text| {
        put(&mut to.service.password_file, file(text).map(Some))
    }),
    setting("service.token_file", SettingForm::One, |to, text| {
        put(&mut to.service.token_file, file(text).map(Some))
    }),
    setting("service.docker_config", SettingForm::One, |to, text| {
        put(&mut to.service.docker_config, file(text).map(Some))
    }),
    setting("shares", SettingForm::One, |to, text| put(&mut to.shares, upstream_name(text).map(Some))),
];

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
