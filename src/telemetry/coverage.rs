//! Metrics of how far the registries are known, and of the sweeps.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::families::{UpstreamLabels, registered};
use super::{Metrics, Swept};
use crate::config::UpstreamName;
use crate::index::Index;

#[derive(Debug)]
pub(super) struct CoverageMetrics {
    sweeps: Family<SweepLabels, Counter>,
    read: Family<UpstreamLabels, Counter>,
    vanished: Family<UpstreamLabels, Counter>,
    complete: Family<UpstreamLabels, Gauge>,
    repositories: Family<UpstreamLabels, Gauge>,
    backfilled: Family<UpstreamLabels, Gauge>,
    swept: Family<UpstreamLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SweepLabels {
    upstream: UpstreamName,
    outcome: Swept,
}

impl CoverageMetrics {
    pub(super) fn new(all: &mut Registry) -> Self {
        Self {
            sweeps: registered(all, "sweeps", "Sweeps of a registry that have ended"),
            read: registered(
                all,
                "sweep_manifests",
                "Manifests that sweeps found and that had passed nobody",
            ),
            vanished: registered(
                all,
                "sweep_vanished",
                "Listed referrers that a sweep did not find any more",
            ),
            complete: registered(
                all,
                "coverage_complete",
                "Whether all that the registry holds is known; if not, lists may carry a Warning",
            ),
            repositories: registered(
                all,
                "coverage_repositories",
                "Repositories that are known completely by themselves",
            ),
            backfilled: registered(
                all,
                "coverage_backfilled_timestamp_seconds",
                "When the last backfill that read all of the registry began",
            ),
            swept: registered(
                all,
                "coverage_swept_timestamp_seconds",
                "When the last sweep that read all of the registry began",
            ),
        }
    }
}

impl Metrics {
    /// Begins the counters of an upstream's sweeps at zero.
    pub(super) fn sweeps_begin(&self, upstream: &UpstreamName) {
        let all = &self.all.coverage;
        for outcome in Swept::ALL {
            drop(all.sweeps.get_or_create(&SweepLabels { upstream: upstream.clone(), outcome }));
        }
        for family in [&all.read, &all.vanished] {
            drop(family.get_or_create(&UpstreamLabels { upstream: upstream.clone() }));
        }
    }

    /// Counts a sweep, the manifests that it found, and the listed referrers that it did not.
    pub fn swept(&self, outcome: Swept, read: u64, vanished: u64) {
        let (Some(upstream), all) = (self.upstream.clone(), &self.all.coverage) else { return };
        let labels = UpstreamLabels { upstream: upstream.clone() };
        all.sweeps.get_or_create(&SweepLabels { upstream, outcome }).inc();
        all.read.get_or_create(&labels).inc_by(read);
        all.vanished.get_or_create(&labels).inc_by(vanished);
    }

    /// Takes over how far an upstream is known.
    pub async fn covered(&self, upstream: &UpstreamName, number: u32, index: &Index) {
        // Metrics of everything else are told also while the index cannot be read.
        let Ok(Some((_, covered))) = index.covered(number).await else { return };
        let labels = UpstreamLabels { upstream: upstream.clone() };
        let all = &self.all.coverage;
        let set = |gauges: &Family<UpstreamLabels, Gauge>, value: i64| {
            gauges.get_or_create(&labels).set(value);
        };
        let whole = covered.get(&None).copied().unwrap_or_default();
        let complete =
            covered.iter().filter(|(name, covered)| name.is_some() && covered.is_complete()).count();
        set(&all.complete, i64::from(whole.is_complete()));
        set(&all.repositories, i64::try_from(complete).unwrap_or(i64::MAX));
        // Absent rather than 1970 while there was none.
        for (gauges, time) in [(&all.backfilled, whole.backfilled), (&all.swept, whole.swept)] {
            if let Some(time) = time {
                set(gauges, time.as_second());
            }
        }
    }
}
