//! The families of metrics and their labels: what `/metrics` shows.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use super::coverage::CoverageMetrics;
use super::maybe::Maybe;
use super::process::Process;
use super::reloads::ReloadMetrics;
use super::{EventFailure, LinkOutcome, LogName, Notified, QueryRefused, Stale, TagFailure, Unrecorded};
use crate::config::{Mode, SourceName, UpstreamName};
use crate::http::limits::Limit;
use crate::http::route::RouteClass;
use crate::oci::LinkKind;

/// Buckets from what an answer from memory takes to the longest time-outs.
pub(super) const SECONDS: [f64; 18] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 120.0,
];

/// Everything that `/metrics` shows.
#[derive(Debug)]
pub(super) struct All {
    pub(super) registry: Registry,
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) upstream_seconds: Seconds,
    pub(super) query_seconds: Seconds,
    pub(super) links: Family<LinkLabels, Counter>,
    pub(super) unrecorded: Family<UnrecordedLabels, Counter>,
    pub(super) queries_refused: Family<QueryRefusedLabels, Counter>,
    pub(super) queries_stale: Family<StaleLabels, Counter>,
    pub(super) attestations_refused: Family<UpstreamLabels, Counter>,
    pub(super) refused: Family<LimitLabels, Counter>,
    pub(super) notified: Family<NotifiedLabels, Counter>,
    pub(super) event_failures: Family<EventLabels, Counter>,
    pub(super) events_waiting: Family<UpstreamLabels, Gauge>,
    pub(super) events_oldest: Family<UpstreamLabels, Gauge>,
    pub(super) coverage: CoverageMetrics,
    pub(super) modes: Family<ModeLabels, Gauge>,
    pub(super) tags_written: Family<UpstreamLabels, Counter>,
    pub(super) tag_failures: Family<TagLabels, Counter>,
    pub(super) tags_waiting: Family<UpstreamLabels, Gauge>,
    pub(super) tags_oldest: Family<UpstreamLabels, Gauge>,
    pub(super) reloads: ReloadMetrics,
    pub(super) index: IndexGauges,
    pub(super) operation: OperationMetrics,
}

/// What refshim depends on.
#[derive(Debug)]
pub(super) struct OperationMetrics {
    pub(super) upstreams_ready: Family<UpstreamLabels, Gauge>,
    pub(super) certificates: Family<CertificateLabels, Gauge>,
    pub(super) lines_lost: Family<LogLabels, Counter>,
}

pub(super) type Seconds = Family<UpstreamLabels, Histogram, fn() -> Histogram>;

#[derive(Debug, Default)]
pub(super) struct IndexGauges {
    // Absent where the index is in a database: 0 would say that nothing is recorded.
    pub(super) referrers: Maybe<Gauge>,
    pub(super) links: Maybe<Gauge>,
    pub(super) pending: Maybe<Gauge>,
    pub(super) journal_bytes: Maybe<Gauge>,
    pub(super) commits: Maybe<Counter>,
    pub(super) compactions: Maybe<Counter>,
    pub(super) damaged: Maybe<Gauge>,
    pub(super) checked: Maybe<Gauge>,
    pub(super) ready: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UpstreamLabels {
    pub(super) upstream: UpstreamName,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ModeLabels {
    pub(super) upstream: UpstreamName,
    pub(super) mode: Mode,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) upstream: Option<UpstreamName>,
    pub(super) class: RouteClass,
    pub(super) status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LinkLabels {
    pub(super) upstream: Option<UpstreamName>,
    pub(super) kind: LinkKind,
    pub(super) outcome: LinkOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UnrecordedLabels {
    pub(super) upstream: Option<UpstreamName>,
    pub(super) reason: Unrecorded,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct QueryRefusedLabels {
    pub(super) upstream: UpstreamName,
    pub(super) reason: QueryRefused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StaleLabels {
    pub(super) upstream: UpstreamName,
    pub(super) reason: Stale,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct NotifiedLabels {
    pub(super) source: SourceName,
    pub(super) told: Notified,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct EventLabels {
    pub(super) upstream: UpstreamName,
    pub(super) reason: EventFailure,
    pub(super) dropped: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TagLabels {
    pub(super) upstream: UpstreamName,
    pub(super) reason: TagFailure,
    pub(super) dropped: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LimitLabels {
    pub(super) limit: Limit,
}

/// The file is the operator's own, so there are only so many.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CertificateLabels {
    pub(super) file: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LogLabels {
    pub(super) log: LogName,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

impl All {
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        // Without the prefix: dashboards for any process look for them by these names.
        registry.register_collector(Box::new(Process::new()));
        let all = registry.sub_registry_with_prefix("refshim");
        Self {
            requests: registered(all, "requests", "Requests by upstream, class of route, and status"),
            upstream_seconds: seconds(all, "upstream_seconds", "Time until the upstream's answer begins"),
            query_seconds: seconds(all, "query_seconds", "Time to answer a references query"),
            links: registered(all, "links", "Links that passed in manifests"),
            unrecorded: registered(all, "unrecorded", "Links, or manifests, left out of the index"),
            queries_refused: registered(all, "queries_refused", "Queries that were answered with an error"),
            queries_stale: registered(
                all,
                "queries_stale",
                "Queries, or entries of them, that were answered from what the registry said earlier",
            ),
            attestations_refused: registered(
                all,
                "attestations_refused",
                "Attestations of BuildKit's that the registry refused, maybe for want of their subject",
            ),
            refused: registered(all, "refused", "Requests, or connections, over a limit"),
            notified: registered(all, "notifications", "Events of notifications, or refused ones"),
            event_failures: registered(
                all,
                "notification_failures",
                "Events that could not be worked off, to be tried again or dropped",
            ),
            events_waiting: registered(all, "notifications_waiting", "Events that wait to be worked off"),
            events_oldest: registered(
                all,
                "notifications_oldest_seconds",
                "How long the oldest of them has waited",
            ),
            coverage: CoverageMetrics::new(all),
            modes: registered(all, "upstream_mode", "1 for the mode that an upstream is in"),
            tags_written: registered(all, "referrers_tags_written", "Referrers tags written after pushes"),
            tag_failures: registered(
                all,
                "referrers_tag_failures",
                "Referrers tags that could not be written, to be tried again or dropped",
            ),
            tags_waiting: registered(
                all,
                "referrers_tags_waiting",
                "Subjects whose referrers tags are still to be looked at",
            ),
            tags_oldest: registered(
                all,
                "referrers_tags_oldest_seconds",
                "How long the oldest of them has waited",
            ),
            reloads: ReloadMetrics::new(all),
            index: IndexGauges::new(all),
            operation: OperationMetrics::new(all),
            registry,
        }
    }
}

impl OperationMetrics {
    fn new(all: &mut Registry) -> Self {
        let build = Info::new(BuildLabels { version: env!("CARGO_PKG_VERSION") });
        all.register("build", "1, with the version that is running", build);
        Self {
            upstreams_ready: registered(
                all,
                "upstream_ready",
                "Whether a registry answered when the upstream was last looked at",
            ),
            certificates: registered(
                all,
                "certificate_expiry_timestamp_seconds",
                "When a certificate that clients are shown expires",
            ),
            lines_lost: registered(
                all,
                "log_lines_lost",
                "Lines of the access log or the audit log that could not be written",
            ),
        }
    }
}

/// Registers a metric.
pub(super) fn registered<M: Clone + Default + Metric>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

pub(super) fn seconds(registry: &mut Registry, name: &str, help: &str) -> Seconds {
    let seconds = Seconds::new_with_constructor(|| Histogram::new(SECONDS));
    registry.register(name, help, seconds.clone());
    seconds
}

impl IndexGauges {
    pub(super) fn new(registry: &mut Registry) -> Self {
        Self {
            referrers: registered(registry, "index_referrers", "Referrers in the index"),
            links: registered(registry, "index_links", "Links in the index"),
            pending: registered(
                registry,
                "index_pending",
                "Referrers in the index that the registry has to be asked for when they are listed",
            ),
            journal_bytes: registered(registry, "index_journal_bytes", "Size of the journal"),
            commits: registered(registry, "index_commits", "Group commits, each with one sync"),
            compactions: registered(registry, "index_compactions", "Compactions of the journal"),
            damaged: registered(
                registry,
                "index_damaged_blocks",
                "Blocks of the snapshot that are not as they were written; lists that need one are answered with an error",
            ),
            checked: registered(
                registry,
                "index_checked_timestamp_seconds",
                "When all that is stored of the index was last read and checked; 0 if not since the start",
            ),
            ready: registered(registry, "index_ready", "Whether queries are answered"),
        }
    }
}
