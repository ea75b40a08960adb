//! Sets up logging, and counts for `/metrics`. Never logs an `Authorization`, a cookie, a token or a body.
//!
//! Labels are closed enums, so that clients cannot make the number of time series grow.

mod coverage;
mod labels;
mod logging;
mod maybe;
mod reloads;
mod traces;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::config::{Mode, SourceName, UpstreamName};
use crate::http::limits::Limit;
use crate::http::route::RouteClass;
use crate::index::{IndexState, Statistics};
use crate::oci::LinkKind;

use coverage::CoverageMetrics;
pub use labels::{EventFailure, LinkOutcome, Notified, QueryRefused, Stale, Swept, TagFailure, Unrecorded};
pub use logging::{Described, FilterError, LogFilter, start_logging, within_request, within_this_request};
use maybe::MaybeGauge;
use reloads::ReloadMetrics;
pub use traces::{Span, Traces, TracesError};

const SECONDS: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0];

/// The counters of one upstream, or of requests whose upstream is not known. Cheap to make: all share one registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    upstream: Option<UpstreamName>,
    upstream_seconds: Histogram,
    query_seconds: Histogram,
    all: Arc<All>,
}

/// Everything that `/metrics` shows.
#[derive(Debug)]
struct All {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    upstream_seconds: Seconds,
    query_seconds: Seconds,
    links: Family<LinkLabels, Counter>,
    unrecorded: Family<UnrecordedLabels, Counter>,
    queries_refused: Family<QueryRefusedLabels, Counter>,
    queries_stale: Family<StaleLabels, Counter>,
    attestations_refused: Family<UpstreamLabels, Counter>,
    refused: Family<LimitLabels, Counter>,
    notified: Family<NotifiedLabels, Counter>,
    event_failures: Family<EventLabels, Counter>,
    events_waiting: Family<UpstreamLabels, Gauge>,
    events_oldest: Family<UpstreamLabels, Gauge>,
    coverage: CoverageMetrics,
    modes: Family<ModeLabels, Gauge>,
    tags_written: Family<UpstreamLabels, Counter>,
    tag_failures: Family<TagLabels, Counter>,
    tags_waiting: Family<UpstreamLabels, Gauge>,
    tags_oldest: Family<UpstreamLabels, Gauge>,
    reloads: ReloadMetrics,
    index: IndexGauges,
}

type Seconds = Family<UpstreamLabels, Histogram, fn() -> Histogram>;

#[derive(Debug, Default)]
struct IndexGauges {
    // Absent where the index is in a database: 0 would say that nothing is recorded.
    referrers: MaybeGauge,
    links: MaybeGauge,
    pending: MaybeGauge,
    journal_bytes: MaybeGauge,
    commits: MaybeGauge,
    damaged: MaybeGauge,
    checked: MaybeGauge,
    ready: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    upstream: UpstreamName,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    upstream: UpstreamName,
    mode: Mode,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    upstream: Option<UpstreamName>,
    class: RouteClass,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LinkLabels {
    upstream: Option<UpstreamName>,
    kind: LinkKind,
    outcome: LinkOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnrecordedLabels {
    upstream: Option<UpstreamName>,
    reason: Unrecorded,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryRefusedLabels {
    upstream: UpstreamName,
    reason: QueryRefused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StaleLabels {
    upstream: UpstreamName,
    reason: Stale,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotifiedLabels {
    source: SourceName,
    told: Notified,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    upstream: UpstreamName,
    reason: EventFailure,
    dropped: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TagLabels {
    upstream: UpstreamName,
    reason: TagFailure,
    dropped: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: Limit,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl All {
    fn new() -> Self {
        let mut registry = Registry::with_prefix("refshim");
        let all = &mut registry;
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
            registry,
        }
    }
}

/// Registers a metric.
fn registered<M: Clone + Default + Metric>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn seconds(registry: &mut Registry, name: &str, help: &str) -> Seconds {
    let seconds = Seconds::new_with_constructor(|| Histogram::new(SECONDS));
    registry.register(name, help, seconds.clone());
    seconds
}

impl IndexGauges {
    fn new(registry: &mut Registry) -> Self {
        Self {
            referrers: registered(registry, "index_referrers", "Referrers in the index"),
            links: registered(registry, "index_links", "Links in the index"),
            pending: registered(
                registry,
                "index_pending",
                "Referrers in the index that the registry has to be asked for when they are listed",
            ),
            journal_bytes: registered(registry, "index_journal_bytes", "Size of the journal"),
            commits: registered(registry, "index_commits", "Group commits since the start"),
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

impl Metrics {
    /// New metrics, all at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::counting(Arc::new(All::new()), None)
    }

    /// The metrics of this upstream, in the same registry.
    #[must_use]
    pub fn of_upstream(&self, upstream: &UpstreamName) -> Self {
        Self::counting(Arc::clone(&self.all), Some(upstream.clone()))
    }

    fn counting(all: Arc<All>, upstream: Option<UpstreamName>) -> Self {
        // Looked up once, not with each request: that would cost a lock and a clone of the name.
        let seconds = |all: &Seconds| match &upstream {
            Some(upstream) => all.get_or_create_owned(&UpstreamLabels { upstream: upstream.clone() }),
            None => Histogram::new(SECONDS),
        };
        let (upstream_seconds, query_seconds) = (seconds(&all.upstream_seconds), seconds(&all.query_seconds));
        Self { upstream, upstream_seconds, query_seconds, all }
    }

    /// Sets the mode of an upstream.
    pub fn mode(&self, upstream: &UpstreamName, mode: Mode) {
        self.all.modes.get_or_create(&ModeLabels { upstream: upstream.clone(), mode }).set(1);
    }

    /// Counts an answered request.
    pub fn request(&self, class: RouteClass, status: StatusCode) {
        let labels = RequestLabels { upstream: self.upstream.clone(), class, status: status.as_u16() };
        self.all.requests.get_or_create(&labels).inc();
    }

    /// Counts links by their outcome.
    pub fn links(&self, kinds: impl IntoIterator<Item = LinkKind>, outcome: LinkOutcome) {
        for kind in kinds {
            let labels = LinkLabels { upstream: self.upstream.clone(), kind, outcome };
            self.all.links.get_or_create(&labels).inc();
        }
    }

    /// Counts links, or a manifest, left out of the index.
    pub fn unrecorded(&self, reason: Unrecorded, count: usize) {
        let labels = UnrecordedLabels { upstream: self.upstream.clone(), reason };
        self.all.unrecorded.get_or_create(&labels).inc_by(count as u64);
    }

    /// Counts a query to this upstream that was answered with an error.
    pub fn query_refused(&self, upstream: &UpstreamName, reason: QueryRefused) {
        let labels = QueryRefusedLabels { upstream: upstream.clone(), reason };
        self.all.queries_refused.get_or_create(&labels).inc();
    }

    /// Counts a query to this upstream, or an entry of one, that was answered from an earlier answer of the upstream.
    pub fn query_stale(&self, upstream: &UpstreamName, reason: Stale) {
        let labels = StaleLabels { upstream: upstream.clone(), reason };
        self.all.queries_stale.get_or_create(&labels).inc();
    }

    /// Counts an attestation of BuildKit that the upstream rejected.
    pub fn attestation_refused(&self) {
        if let Some(upstream) = self.upstream.clone() {
            self.all.attestations_refused.get_or_create(&UpstreamLabels { upstream }).inc();
        }
    }

    /// Counts a request or connection over a limit.
    pub fn refused(&self, limit: Limit) {
        self.all.refused.get_or_create(&LimitLabels { limit }).inc();
    }

    /// Counts events of a notification, or a refused one.
    pub fn notified(&self, source: &SourceName, told: Notified, count: usize) {
        let labels = NotifiedLabels { source: source.clone(), told };
        self.all.notified.get_or_create(&labels).inc_by(count as u64);
    }

    /// Counts an event that could not be worked off.
    pub fn event_failed(&self, reason: EventFailure, is_dropped: bool) {
        if let Some(upstream) = self.upstream.clone() {
            let labels = EventLabels { upstream, reason, dropped: is_dropped };
            self.all.event_failures.get_or_create(&labels).inc();
        }
    }

    /// Sets how many events wait, and how long the oldest one has.
    pub fn events_waiting(&self, count: usize, oldest: Duration) {
        self.waiting([&self.all.events_waiting, &self.all.events_oldest], count, oldest);
    }

    /// Counts a referrers tag that was written.
    pub fn tag_written(&self) {
        if let Some(upstream) = self.upstream.clone() {
            self.all.tags_written.get_or_create(&UpstreamLabels { upstream }).inc();
        }
    }

    /// Counts a referrers tag that could not be written.
    pub fn tag_failed(&self, reason: TagFailure, is_dropped: bool) {
        if let Some(upstream) = self.upstream.clone() {
            let labels = TagLabels { upstream, reason, dropped: is_dropped };
            self.all.tag_failures.get_or_create(&labels).inc();
        }
    }

    /// Sets how many subjects wait for their referrers tags, and how long the oldest one has.
    pub fn tags_waiting(&self, count: usize, oldest: Duration) {
        self.waiting([&self.all.tags_waiting, &self.all.tags_oldest], count, oldest);
    }

    fn waiting(&self, [waiting, since]: [&Family<UpstreamLabels, Gauge>; 2], count: usize, oldest: Duration) {
        if let Some(upstream) = self.upstream.clone() {
            let labels = UpstreamLabels { upstream };
            let set = |gauges: &Family<UpstreamLabels, Gauge>, value: u64| {
                gauges.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            set(waiting, count as u64);
            set(since, oldest.as_secs());
        }
    }

    /// Records the time from sending a request to the head of the upstream's answer.
    pub fn upstream_answered(&self, took: Duration) {
        self.upstream_seconds.observe(took.as_secs_f64());
    }

    /// Records the time from a query to its answer, including the upstream's.
    pub fn query(&self, took: Duration) {
        self.query_seconds.observe(took.as_secs_f64());
    }

    /// Renders all metrics in the text format of Prometheus, with the current state of the index.
    #[must_use]
    pub fn render(&self, index: Option<&Statistics>, state: &IndexState) -> String {
        let gauges = &self.all.index;
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        if let Some(index) = index {
            for (gauge, value) in [
                (&gauges.referrers, index.referrers),
                (&gauges.links, index.links),
                (&gauges.pending, index.pending),
                (&gauges.journal_bytes, index.journal_bytes),
                (&gauges.commits, index.commits),
                (&gauges.damaged, index.damaged),
                (&gauges.checked, index.checked.unwrap_or(0)),
            ] {
                set(gauge.get(), value);
            }
        }
        set(&gauges.ready, u64::from(matches!(state, IndexState::Ready)));
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _written = prometheus_client::encoding::text::encode(&mut text, &self.all.registry);
        text
    }
}
