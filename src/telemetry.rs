//! Logs and metrics: how they are set up, and the numbers that refshim counts. Never an
//! Authorization, a cookie, a token or a body.

use std::fmt;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tracing_subscriber::filter::{EnvFilter, ParseError};

use crate::config::{Log, LogFormat};
use crate::index::{State, Statistics};
use crate::limits::Limit;
use crate::oci::LinkKind;
use crate::route::RouteClass;

const SECONDS: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0];

/// Sends what is logged to standard error from here on.
///
/// # Errors
/// The filter is malformed.
pub fn start_logging(log: &Log) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(&log.filter)?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => logs.with_ansi(false).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Everything that `/metrics` shows.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    /// From sending a request to the header of the answer.
    pub upstream_seconds: Histogram,
    /// From a references query to its answer, the upstream's part included.
    pub query_seconds: Histogram,
    links: Family<LinkLabels, Counter>,
    unrecorded: Family<UnrecordedLabels, Counter>,
    refused: Family<LimitLabels, Counter>,
    index: IndexGauges,
}

#[derive(Debug, Default)]
struct IndexGauges {
    referrers: Gauge,
    links: Gauge,
    pending: Gauge,
    journal_bytes: Gauge,
    commits: Gauge,
    ready: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    class: RouteClass,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LinkLabels {
    kind: LinkKind,
    outcome: LinkOutcome,
}

/// What became of a link that passed in a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkOutcome {
    /// The upstream took the manifest, the link is listed.
    Recorded,
    /// The upstream's answer is not known; the next query asks again.
    Pending,
    /// The upstream refused the manifest.
    Refused,
    /// It was read from a manifest that was pulled.
    Learnt,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnrecordedLabels {
    reason: Unrecorded,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: Limit,
}

/// Why links were left out of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unrecorded {
    /// The manifest is longer than the limit; how many links it has is not known.
    TooLong,
    /// A link in it is malformed, or the whole manifest unreadable.
    Malformed,
    /// Its links and its descriptor together are too much.
    TooMany,
    /// Its repository has as many referrers as one may have.
    RepositoryFull,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All counts at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("refshim");
        let requests = Family::default();
        registry.register("requests", "Requests by class of route and status", requests.clone());
        let upstream_seconds = Histogram::new(SECONDS);
        registry.register(
            "upstream_seconds",
            "Time until the upstream's answer begins",
            upstream_seconds.clone(),
        );
        let query_seconds = Histogram::new(SECONDS);
        registry.register("query_seconds", "Time to answer a references query", query_seconds.clone());
        let links = Family::default();
        registry.register("links", "Links that passed in manifests", links.clone());
        let unrecorded = Family::default();
        registry.register("unrecorded", "Links, or manifests, left out of the index", unrecorded.clone());
        let refused = Family::default();
        registry.register("refused", "Requests, or connections, over a limit", refused.clone());
        let index = IndexGauges::default();
        for (name, help, gauge) in [
            ("index_referrers", "Referrers in the index", &index.referrers),
            ("index_links", "Links in the index", &index.links),
            (
                "index_pending",
                "Referrers in the index that the registry has to be asked for when they are listed",
                &index.pending,
            ),
            ("index_journal_bytes", "Size of the journal", &index.journal_bytes),
            ("index_commits", "Group commits since the start", &index.commits),
            ("index_ready", "Whether queries are answered", &index.ready),
        ] {
            registry.register(name, help, gauge.clone());
        }
        Self { registry, requests, upstream_seconds, query_seconds, links, unrecorded, refused, index }
    }

    /// Counts an answered request.
    pub fn request(&self, class: RouteClass, status: StatusCode) {
        self.requests.get_or_create(&RequestLabels { class, status: status.as_u16() }).inc();
    }

    /// Counts what became of links.
    pub fn links(&self, kinds: impl IntoIterator<Item = LinkKind>, outcome: LinkOutcome) {
        for kind in kinds {
            self.links.get_or_create(&LinkLabels { kind, outcome }).inc();
        }
    }

    /// Counts links, or a manifest, left out of the index.
    pub fn unrecorded(&self, reason: Unrecorded, count: usize) {
        self.unrecorded.get_or_create(&UnrecordedLabels { reason }).inc_by(count as u64);
    }

    /// Counts what was refused because of a limit.
    pub fn refused(&self, limit: Limit) {
        self.refused.get_or_create(&LimitLabels { limit }).inc();
    }

    /// Adds up the time of a query.
    pub fn query(&self, took: Duration) {
        self.query_seconds.observe(took.as_secs_f64());
    }

    /// The text that Prometheus reads, with the index as it is now.
    #[must_use]
    pub fn render(&self, index: &Statistics, state: &State) -> String {
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.index.referrers, index.referrers);
        set(&self.index.links, index.links);
        set(&self.index.pending, index.pending);
        set(&self.index.journal_bytes, index.journal_bytes);
        set(&self.index.commits, index.commits);
        set(&self.index.ready, u64::from(matches!(state, State::Ready)));
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _written = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

impl EncodeLabelValue for RouteClass {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for LinkKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for LinkOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let outcome = match self {
            Self::Recorded => "recorded",
            Self::Pending => "pending",
            Self::Refused => "refused",
            Self::Learnt => "learnt",
        };
        outcome.encode(encoder)
    }
}

impl EncodeLabelValue for Limit {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let limit = match self {
            Self::Connections => "connections",
            Self::RequestsPerClient => "requests_per_client",
            Self::ManifestBytes => "manifest_bytes",
            Self::AnswerBytes => "answer_bytes",
            Self::Questions => "questions",
        };
        limit.encode(encoder)
    }
}

impl EncodeLabelValue for Unrecorded {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let reason = match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::TooMany => "too_many",
            Self::RepositoryFull => "repository_full",
        };
        reason.encode(encoder)
    }
}
