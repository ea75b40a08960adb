//! Counters at zero from the start. A counter that appears with its first event has no increase: of the first error
//! since a start, `rate()` and alerts would not know.

use super::families::{
    EventLabels, LimitLabels, LinkLabels, LogLabels, NotifiedLabels, QueryRefusedLabels, RequestLabels,
    StaleLabels, TagLabels, UnrecordedLabels, UpstreamLabels,
};
use super::{
    EventFailure, LinkOutcome, LogName, Metrics, Notified, QueryRefused, Stale, TagFailure, Unrecorded,
};
use crate::config::{Config, UpstreamName};
use crate::http::limits::Limit;
use crate::http::route::RouteClass;
use crate::oci::LinkKind;

/// The statuses that each class of requests usually has, and those that somebody may want to be told of.
const USUAL: [(RouteClass, &[u16]); 8] = [
    (RouteClass::Base, &[200, 401, 502, 503, 504]),
    (RouteClass::Manifests, &[200, 201, 202, 401, 403, 404, 429, 500, 502, 503, 504]),
    (RouteClass::Blobs, &[200, 206, 307, 401, 404, 429, 502, 503, 504]),
    (RouteClass::Uploads, &[201, 202, 204, 401, 403, 404, 502, 503, 504]),
    (RouteClass::Tags, &[200, 401, 404, 502, 503, 504]),
    (RouteClass::Catalog, &[200, 401, 502, 503, 504]),
    (RouteClass::References, &[200, 400, 401, 403, 404, 429, 502, 503, 504]),
    (RouteClass::Referrers, &[200, 400, 401, 403, 404, 429, 502, 503, 504]),
];

impl Metrics {
    /// Begins all counters of these settings at zero.
    pub fn begin_at_zero(&self, config: &Config) {
        for upstream in config.upstreams() {
            self.begin_upstream(&upstream.name);
            self.begin_links(&upstream.name);
            self.sweeps_begin(&upstream.name);
        }
        let all = &self.all;
        for limit in Limit::ALL {
            drop(all.refused.get_or_create(&LimitLabels { limit }));
        }
        for log in LogName::ALL {
            drop(all.operation.lines_lost.get_or_create(&LogLabels { log }));
        }
        for source in &config.notifications.sources {
            for told in Notified::ALL {
                drop(all.notified.get_or_create(&NotifiedLabels { source: source.name.clone(), told }));
            }
        }
    }

    fn begin_upstream(&self, name: &UpstreamName) {
        let (all, upstream) = (&self.all, || name.clone());
        for (class, statuses) in USUAL {
            for status in statuses.iter().copied() {
                let labels = RequestLabels { upstream: Some(upstream()), class, status };
                drop(all.requests.get_or_create(&labels));
            }
        }
        for reason in QueryRefused::ALL {
            drop(all.queries_refused.get_or_create(&QueryRefusedLabels { upstream: upstream(), reason }));
        }
        for reason in Stale::ALL {
            drop(all.queries_stale.get_or_create(&StaleLabels { upstream: upstream(), reason }));
        }
        for dropped in [false, true] {
            for reason in EventFailure::ALL {
                drop(all.event_failures.get_or_create(&EventLabels {
                    upstream: upstream(),
                    reason,
                    dropped,
                }));
            }
            for reason in TagFailure::ALL {
                drop(all.tag_failures.get_or_create(&TagLabels { upstream: upstream(), reason, dropped }));
            }
        }
        for family in [&all.attestations_refused, &all.tags_written] {
            drop(family.get_or_create(&UpstreamLabels { upstream: upstream() }));
        }
    }

    fn begin_links(&self, name: &UpstreamName) {
        let upstream = || Some(name.clone());
        for kind in LinkKind::ALL {
            for outcome in LinkOutcome::ALL {
                let labels = LinkLabels { upstream: upstream(), kind, outcome };
                drop(self.all.links.get_or_create(&labels));
            }
        }
        for reason in Unrecorded::ALL {
            let labels = UnrecordedLabels { upstream: upstream(), reason };
            drop(self.all.unrecorded.get_or_create(&labels));
        }
    }
}
