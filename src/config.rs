//! What an operator can set. Flags come before `REFSHIM_*` variables, these before the TOML file, and
//! the file before the defaults. All mistakes are found in one go, and each names its place. This
//! module checks how a setting is written and must not know what it is used for.

mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod load;
mod mistake;
mod registry_url;
mod settings;
mod tls_files;
mod upstream;
mod value;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::oci::LinkKinds;

pub use load::CommandLine;
pub use mistake::{Mistake, Mistakes};
pub use registry_url::{InvalidRegistryUrl, RegistryUrl};
pub use tls_files::TlsChecks;
pub use upstream::{Http2, InvalidUpstreamName, UpstreamConfig, UpstreamName, UpstreamTls};

/// Every setting, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The registry that requests go to unless a rule of another one takes them. No default.
    pub upstream: UpstreamConfig,
    /// Further registries, by name.
    pub further_upstreams: Vec<UpstreamConfig>,
    /// How clients reach refshim, if the upstreams are to be told another scheme, host and port than
    /// those of the request. Default: those of the request.
    pub external_url: Option<RegistryUrl>,
    /// Whose `X-Forwarded-*` is believed. Default: nobody's.
    pub trusted_proxies: Vec<IpNet>,
    /// Where clients connect. Port 0 lets the system choose. Default `127.0.0.1:5000`.
    pub listen: SocketAddr,
    /// Where health, readiness and metrics are served. Default `127.0.0.1:5001`.
    pub admin_listen: SocketAddr,
    /// The directory of the journal and the index, made if it is missing. A relative path starts at
    /// the working directory. Default `./refshim-data`.
    pub data_dir: PathBuf,
    /// TLS towards clients; without it they are spoken to in plain HTTP.
    pub tls: Option<TlsConfig>,
    /// How often the files of TLS, towards clients and towards upstreams, are looked at. Default 10
    /// seconds.
    pub tls_reload: Duration,
    /// How long anything is waited for.
    pub timeouts: TimeoutsConfig,
    /// What is read of the manifests that pass through.
    pub manifests: ManifestsConfig,
    /// How references queries are answered.
    pub references: ReferencesConfig,
    /// How referrers queries are answered.
    pub referrers: ReferrersConfig,
    /// How much at once.
    pub limits: LimitsConfig,
    /// How links are kept.
    pub index: IndexConfig,
    /// What is logged.
    pub log: LogConfig,
}

/// TLS towards clients. All files are PEM; they are read again when they change, or on SIGHUP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The files of the certificates, each with its chain; the client's server name chooses one, and the
    /// first serves whoever names none. At least one.
    pub certificates: Vec<PathBuf>,
    /// The file of each certificate's private key, in the same order.
    pub keys: Vec<PathBuf>,
    /// The authorities whose client certificates are taken. Default: no client certificate is asked for.
    pub client_ca: Option<PathBuf>,
    /// Whether a client must have a certificate, given [`TlsConfig::client_ca`]. Default required.
    pub client_auth: ClientAuth,
}

/// Whether a client must have a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No connection without one.
    Required,
    /// One that is shown must be valid.
    Optional,
}

/// How long anything is waited for. No limit applies to a body as a whole, but for manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeoutsConfig {
    /// For a connection to the upstream, TLS included. Default 10 seconds.
    pub connect: Duration,
    /// How long the upstream may stay silent before its answer begins. Default 60 seconds.
    pub response: Duration,
    /// The longest pause within a body, whichever side sends it. Default 60 seconds.
    pub body_idle: Duration,
    /// How long a client's connection may be without a request: for the TLS handshake and the first header, and
    /// from one request to the next header. Default 75 seconds.
    pub client_headers: Duration,
    /// How long an idle connection to the upstream is kept. Default 55 seconds.
    pub pool_idle: Duration,
    /// How long requests may go on after the signal to stop. Default 30 seconds.
    pub shutdown: Duration,
    /// For a manifest to come whole while it is pushed; only for those that are held to be read. Default 2
    /// minutes.
    pub manifest: Duration,
    /// How long the index may take for one read or write, as it does on a disk that hangs. Default 10 seconds.
    pub index: Duration,
}

/// What is read of the manifests that pass through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestsConfig {
    /// Bytes of the longest manifest that is read for links; a longer one passes through
    /// unrecorded. Default 4 MiB.
    pub max_bytes: usize,
    /// Bytes that the links of one manifest may take up in the index: their number times the length
    /// of the manifest's own descriptor, which each of them carries. A manifest with more of them
    /// passes through unrecorded. Default 32 MiB.
    pub max_links_bytes: usize,
    /// Bytes of manifests that may be held at a time because they pass in pulls and are read on the way;
    /// zero reads none. Default 16 MiB.
    pub learn_bytes: usize,
}

/// How references queries are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferencesConfig {
    /// Bytes of the longest page of an answer. Default 4 MiB less 64 KiB, because clients read no
    /// manifest over 4 MiB.
    pub page_bytes: usize,
    /// How long the upstream's word that a caller may read a repository is believed; zero asks each
    /// time. Default 10 seconds.
    pub access_ttl: Duration,
    /// Questions to the upstream at once for one query. Default 8.
    pub concurrency: usize,
    /// Repositories that one query across the registry asks about; there are further pages for the
    /// rest. Default 64.
    pub scope_repositories: usize,
}

/// How referrers queries are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferrersConfig {
    /// The kinds of link that are listed besides `subject`. Default none.
    pub include: LinkKinds,
    /// How long it is believed what the upstream's referrers tags and its own referrers API list; zero
    /// asks each time. Default 2 seconds.
    pub upstream_ttl: Duration,
    /// How long the last complete list answers queries while the upstream throttles (429, 503) or fails
    /// (5xx) the questions that would renew it; zero never. Default 60 seconds.
    pub stale_for: Duration,
}

/// How much at once. What is over a limit is answered with 429 or 503 and `Retry-After`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Connections of clients. Default 10,000.
    pub connections: usize,
    /// Requests of one client address in progress. Default 1,000.
    pub requests_per_client: usize,
    /// Bytes of manifests that are held at once while they are pushed, for each upstream. Default 256 MiB.
    pub manifest_bytes: usize,
    /// Bytes of answers of refshim's own (lists, errors) that clients have not taken yet. Default 256 MiB.
    pub answer_bytes: usize,
    /// Questions of refshim's own at once, for each upstream. Default 256.
    pub questions: usize,
    /// Referrers that one repository may have in the index; what is pushed beyond passes through unrecorded.
    /// Default 1,000,000.
    pub repository_referrers: usize,
}

/// How links are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexConfig {
    /// Bytes of memory for the index's own cache. Default 128 MiB.
    pub cache_bytes: u64,
    /// How often the index is written to disk. What it has not written is replayed from the journal
    /// at the next start. Default 500 milliseconds.
    pub flush_interval: Duration,
    /// Bytes after which the journal begins a new file. Default 64 MiB.
    pub segment_bytes: u64,
    /// Bytes by which the journal may grow before it is compacted, or twice of what the last compaction
    /// left if that is more. Default 256 MiB.
    pub compact_bytes: u64,
    /// How long the upstream must have answered nothing but 404 for a referrer before its links are
    /// removed for good. Default 1 hour.
    pub forget_after: Duration,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// How a line is written. Default text.
    pub format: LogFormat,
    /// Which events are logged: a level, or `target=level`, several with commas between them, in the syntax of
    /// `tracing_subscriber::EnvFilter`. Default `info`.
    pub filter: String,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one object a line.
    Json,
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
        }
    }
}

impl Default for ReferrersConfig {
    fn default() -> Self {
        Self {
            include: LinkKinds::default(),
            upstream_ttl: Duration::from_secs(2),
            stale_for: Duration::from_secs(60),
        }
    }
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 128 << 20,
            flush_interval: Duration::from_millis(500),
            segment_bytes: 64 << 20,
            compact_bytes: 256 << 20,
            forget_after: Duration::from_secs(60 * 60),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}
