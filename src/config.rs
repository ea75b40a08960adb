//! The configuration. Flags override `REFSHIM_*` variables, these the TOML file, and the file the defaults. All
//! mistakes are reported at once, each with its place. This module checks how a setting is written and must not know
//! what it is used for.

mod consistency;
mod database;
mod database_url;
mod draft;
mod example;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod in_force;
mod kind;
mod load;
mod logs;
mod mistake;
mod mode;
mod notifications;
mod quantity;
mod registry_url;
mod schema;
mod service;
mod settings;
mod tls_files;
mod upstream;
mod value;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::oci::LinkKinds;

pub use database::{DatabaseConfig, DatabaseTls, Statements};
pub use database_url::{DatabaseUrl, InvalidDatabaseUrl};
pub use in_force::{Changes, Loaded, SettingsInForce};
pub use load::{CommandLine, ConfigSources, IndexPlace};
pub use logs::{AccessLogConfig, AuditConfig, LogOutput};
pub use mistake::{Mistake, Mistakes};
pub use mode::Mode;
pub use notifications::{
    InvalidSourceName, NotificationSource, NotificationsConfig, SourceCredentials, SourceKind, SourceName,
};
pub use registry_url::{InvalidRegistryUrl, RegistryUrl};
pub use schema::schema;
pub use service::{ServiceConfig, secret};
pub use tls_files::TlsChecks;
pub use upstream::{Http2, InvalidUpstreamName, UpstreamConfig, UpstreamName, UpstreamTls};

/// Every setting, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The default registry: it gets the requests that no other registry's rules match. No default.
    pub upstream: UpstreamConfig,
    /// Further registries, by name.
    pub further_upstreams: Vec<UpstreamConfig>,
    /// Scheme, host and port for `X-Forwarded-Proto` and `-Host`. Default: those of the request.
    pub external_url: Option<RegistryUrl>,
    /// The proxies whose `X-Forwarded-*` is accepted. Default none.
    pub trusted_proxies: Vec<IpNet>,
    /// The address for clients. Port 0 lets the system choose. Default `127.0.0.1:5000`.
    pub listen: SocketAddr,
    /// The address of health, readiness and metrics. Default `127.0.0.1:5001`.
    pub admin_listen: SocketAddr,
    /// The web page.
    pub web: WebConfig,
    /// The directory of the journal and the index, created if it is missing. Relative to the working
    /// directory. Default `./refshim-data`.
    pub data_dir: PathBuf,
    /// TLS towards clients; without it refshim serves plain HTTP.
    pub tls: Option<TlsConfig>,
    /// How often changed TLS files (clients' and upstreams') are looked for. Default 10 seconds.
    pub tls_reload: Duration,
    /// Time-outs.
    pub timeouts: TimeoutsConfig,
    /// Limits of recording manifests.
    pub manifests: ManifestsConfig,
    /// How references queries are answered.
    pub references: ReferencesConfig,
    /// How referrers queries are answered.
    pub referrers: ReferrersConfig,
    /// Concurrency and memory limits.
    pub limits: LimitsConfig,
    /// Notifications of what was pushed past refshim.
    pub notifications: NotificationsConfig,
    /// Sweeps of what was pushed past refshim.
    pub sweep: SweepConfig,
    /// The index.
    pub index: IndexConfig,
    /// Traces.
    pub traces: TracesConfig,
    /// The log.
    pub log: LogConfig,
    /// The access log.
    pub access_log: AccessLogConfig,
    /// The audit log.
    pub audit: AuditConfig,
}

/// TLS towards clients. All files are PEM, reloaded when they change and on SIGHUP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate files, each with its chain. The client's server name (SNI) selects one; the first is the
    /// default. At least one.
    pub certificates: Vec<PathBuf>,
    /// The file of each certificate's private key, in the same order.
    pub keys: Vec<PathBuf>,
    /// The authorities whose client certificates are accepted. Default: none is requested.
    pub client_ca: Option<PathBuf>,
    /// Whether a client must have a certificate, given [`TlsConfig::client_ca`]. Default required.
    pub client_auth: ClientAuth,
}

/// Whether a client must have a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Connections without one are rejected.
    Required,
    /// A client may have none; one that is sent must be valid.
    Optional,
}

/// The web page: what is attached to an image, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebConfig {
    /// Its address; over TLS if [`Config::tls`] is set. Default: none, there is no web page.
    pub listen: Option<SocketAddr>,
}

/// Sweeps: the registry is gone through again and again for what was pushed past refshim, and for what vanished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepConfig {
    /// From the beginning of one to the next; zero for none. Default zero.
    pub interval: Duration,
    /// Requests to one upstream a second at most. Default 20.
    pub rate: usize,
}

/// Time-outs. Only manifests have one for a whole body; a blob may take as long as it keeps moving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeoutsConfig {
    /// Connecting to the upstream or the index's database, TLS included. Default 10 seconds.
    pub connect: Duration,
    /// The longest wait for the start of the upstream's response. Default 60 seconds.
    pub response: Duration,
    /// The longest pause within a body, from either side. Default 60 seconds.
    pub body_idle: Duration,
    /// How long a client's connection may be without a request: until the first request's headers (TLS handshake
    /// included), and between requests. Default 75 seconds.
    pub client_headers: Duration,
    /// How long an idle connection to the upstream is kept. Default 55 seconds.
    pub pool_idle: Duration,
    /// How long requests in progress may go on after SIGTERM. Default 30 seconds.
    pub shutdown: Duration,
    /// Receiving a pushed manifest whole; only those that are held to be recorded. Default 2 minutes.
    pub manifest: Duration,
    /// One read or write of the index, in case the disk hangs. Default 10 seconds.
    pub index: Duration,
}

/// Limits of recording manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestsConfig {
    /// Bytes of the longest manifest whose links are recorded; a longer one only passes through. Default 4 MiB.
    pub max_bytes: usize,
    /// Bytes of one manifest's links in the index: their number times the length of its descriptor, which is stored
    /// with each. A manifest with more passes through unrecorded. Default 32 MiB.
    pub max_links_bytes: usize,
    /// Bytes of pulled manifests that are held at a time to record their links; 0 records none. Default 16 MiB.
    pub learn_bytes: usize,
}

/// How references queries are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferencesConfig {
    /// Bytes of the longest page of an answer. Default 4 MiB less 64 KiB, because clients read no
    /// manifest over 4 MiB.
    pub page_bytes: usize,
    /// How long it is cached that a caller may read a repository; 0 asks each time. Default 10 seconds.
    pub access_ttl: Duration,
    /// Requests to the upstream at a time for one query. Default 8.
    pub concurrency: usize,
    /// Repositories that one page of a query with `scope=registry` searches. Default 64.
    pub scope_repositories: usize,
    /// Bytes of the pages that are kept in memory for the next who asks the same; 0 keeps none. Default 32 MiB.
    pub cache_bytes: usize,
}

/// How referrers queries are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferrersConfig {
    /// The kinds of link listed besides `subject`. Default none.
    pub include: LinkKinds,
    /// How long the upstream's referrers tags and its own referrers API are cached; 0 asks each time. Default 2
    /// seconds.
    pub upstream_ttl: Duration,
    /// How long the last complete list may answer queries while the upstream throttles (429, 503) or fails (5xx); 0
    /// never. Default 60 seconds.
    pub stale_for: Duration,
    /// When refshim itself writes referrers tags into the registry. Default never.
    pub write_tags: WriteTags,
}

/// When refshim itself writes referrers tags into the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteTags {
    /// Never; `refshim export` writes them all at once.
    #[default]
    Never,
    /// Soon after each push of a referrer.
    Push,
}

/// Concurrency and memory limits. Exceeding one is answered with 429 or 503 and `Retry-After`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Client connections. Default 10,000.
    pub connections: usize,
    /// Requests in progress of one client address. Default 1,000.
    pub requests_per_client: usize,
    /// Bytes of manifests held while they are pushed, per upstream. Default 256 MiB.
    pub manifest_bytes: usize,
    /// Bytes of refshim's own responses (lists, errors) that clients have not received yet. Default 256 MiB.
    pub answer_bytes: usize,
    /// refshim's own requests in progress, per upstream. Default 256.
    pub questions: usize,
    /// Referrers of one repository in the index; more pass through unrecorded. Default 1,000,000.
    pub repository_referrers: usize,
}

/// The index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexConfig {
    /// The database that it is in. Default: none, it is in [`Config::data_dir`].
    pub database: Option<DatabaseConfig>,
    /// Bytes of sled's cache, for what changed since the last compaction. Default 128 MiB.
    pub cache_bytes: u64,
    /// Growth in bytes after which the journal is compacted, or an eighth of its snapshot if that is more. Default 64 MiB.
    pub compact_bytes: u64,
    /// How long the upstream must have answered nothing but 404 for a referrer before its links are removed.
    /// Default 1 hour.
    pub forget_after: Duration,
}

/// Traces, sent by OpenTelemetry's protocol over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TracesConfig {
    /// The collector, without `/v1/traces`. Default: none, and no traces.
    pub endpoint: Option<RegistryUrl>,
    /// The share of the traces that begin here which is sampled. One that a client began is sampled if the client says so.
    /// Default all.
    pub sample: Share,
}

/// A share of a whole, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// All of it.
    pub const ALL: Self = Self(1_000_000);

    /// So many hundredths of it, as a decimal number with up to four digits after the point.
    fn of_percent(text: &str) -> Option<Self> {
        let (percent, rest) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(percent) || !is_number(rest) || rest.len() > 4 {
            return None;
        }
        let millionths =
            percent.parse::<u32>().ok()?.checked_mul(10_000)? + format!("{rest:0<4}").parse::<u32>().ok()?;
        (millionths <= Self::ALL.0).then_some(Self(millionths))
    }

    /// From 0 to 1.
    #[must_use]
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / f64::from(Self::ALL.0)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (percent, rest) = (self.0 / 10_000, self.0 % 10_000);
        let rest = format!("{rest:04}");
        match rest.trim_end_matches('0') {
            "" => write!(f, "{percent}%"),
            rest => write!(f, "{percent}.{rest}%"),
        }
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::ALL
    }
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The format of a line. Default text.
    pub format: LogFormat,
    /// The filter: a level, or `target=level`, several with commas between them, in the syntax of
    /// `tracing_subscriber::EnvFilter`. Default `info`.
    pub filter: String,
}

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object per line.
    Json,
}

impl Default for SweepConfig {
    fn default() -> Self {
        Self { interval: Duration::ZERO, rate: 20 }
    }
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            response: Duration::from_secs(60),
            body_idle: Duration::from_secs(60),
            client_headers: Duration::from_secs(75),
            pool_idle: Duration::from_secs(55),
            shutdown: Duration::from_secs(30),
            manifest: Duration::from_secs(120),
            index: Duration::from_secs(10),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 10_000,
            requests_per_client: 1_000,
            manifest_bytes: 256 << 20,
            answer_bytes: 256 << 20,
            questions: 256,
            repository_referrers: 1_000_000,
        }
    }
}

impl Default for ManifestsConfig {
    fn default() -> Self {
        Self { max_bytes: 4 << 20, max_links_bytes: 32 << 20, learn_bytes: 16 << 20 }
    }
}

impl Default for ReferencesConfig {
    fn default() -> Self {
        Self {
            page_bytes: (4 << 20) - (64 << 10),
            access_ttl: Duration::from_secs(10),
            concurrency: 8,
            scope_repositories: 64,
            cache_bytes: 32 << 20,
        }
    }
}

impl Default for ReferrersConfig {
    fn default() -> Self {
        Self {
            include: LinkKinds::default(),
            upstream_ttl: Duration::from_secs(2),
            stale_for: Duration::from_secs(60),
            write_tags: WriteTags::Never,
        }
    }
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self {
            database: None,
            cache_bytes: 128 << 20,
            compact_bytes: 64 << 20,
            forget_after: Duration::from_secs(60 * 60),
        }
    }
}

impl LogConfig {
    /// The filter in this text, as the setting has it.
    ///
    /// # Errors
    /// It is none; what is wrong with it.
    pub fn filter_of(text: &str) -> Result<String, String> {
        value::log_filter(text).map_err(|invalid| invalid.to_string())
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}
