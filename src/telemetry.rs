//! Sets up logging, and counts for `/metrics`. Never logs an `Authorization`, a cookie, a token or a body.
//!
//! Labels are closed enums, so that clients cannot make the number of time series grow.

mod audit;
mod coverage;
mod families;
mod labels;
mod line_log;
mod logging;
mod maybe;
mod process;
mod reloads;
mod traces;
mod zeros;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::config::{Mode, SourceName, UpstreamName};
use crate::http::limits::Limit;
use crate::http::route::RouteClass;
use crate::index::{IndexState, Statistics};
use crate::oci::LinkKind;

pub use audit::{Audit, AuditEntry, Audited, Queried};
use families::{
    All, CertificateLabels, EventLabels, LimitLabels, LinkLabels, LogLabels, ModeLabels, NotifiedLabels,
    QueryRefusedLabels, RequestLabels, SECONDS, Seconds, StaleLabels, TagLabels, UnrecordedLabels,
    UpstreamLabels,
};
pub use labels::{
    EventFailure, LinkOutcome, LogName, Notified, QueryRefused, Stale, Swept, TagFailure, Unrecorded,
};
pub use line_log::{LineLog, LineLogError, Rotation};
pub use logging::{
    Described, FilterError, LogFilter, start_logging, tell_requests, within_request, within_this_request,
};
pub use traces::{Span, Traces, TracesError};

/// The counters of one upstream, or of requests whose upstream is not known. Cheap to make: all share one registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    upstream: Option<UpstreamName>,
    upstream_seconds: Histogram,
    query_seconds: Histogram,
    all: Arc<All>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
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

    /// Sets whether a registry answered when this upstream was last looked at.
    pub fn upstream_ready(&self, upstream: &UpstreamName, is_ready: bool) {
        let labels = UpstreamLabels { upstream: upstream.clone() };
        self.all.operation.upstreams_ready.get_or_create(&labels).set(i64::from(is_ready));
    }

    /// Forgets all certificates: others may be shown now.
    pub fn forget_certificates(&self) {
        self.all.operation.certificates.clear();
    }

    /// Sets when a certificate expires, in seconds since 1970.
    pub fn certificate_expires(&self, file: &Path, expires: u64) {
        let labels = CertificateLabels { file: file.display().to_string() };
        self.all
            .operation
            .certificates
            .get_or_create(&labels)
            .set(i64::try_from(expires).unwrap_or(i64::MAX));
    }

    /// The counter of lines that could not be written.
    fn lines_lost(&self, log: LogName) -> Counter {
        self.all.operation.lines_lost.get_or_create_owned(&LogLabels { log })
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
                (&gauges.damaged, index.damaged),
                (&gauges.checked, index.checked.unwrap_or(0)),
            ] {
                set(gauge.get(), value);
            }
            // The index counts them.
            gauges.commits.get().inner().store(index.commits, Ordering::Relaxed);
            gauges.compactions.get().inner().store(index.compactions, Ordering::Relaxed);
        }
        set(&gauges.ready, u64::from(matches!(state, IndexState::Ready)));
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _written = prometheus_client::encoding::text::encode(&mut text, &self.all.registry);
        text
    }
}
