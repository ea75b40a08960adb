//! A gauge that may have nothing to say.

use std::sync::{Arc, OnceLock};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::Gauge;

/// Absent until it is asked for to be set: where something does not exist, 0 would be wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct MaybeGauge(Arc<OnceLock<Gauge>>);

impl MaybeGauge {
    /// The gauge, which exists from now on.
    pub(super) fn get(&self) -> &Gauge {
        self.0.get_or_init(Gauge::default)
    }
}

impl EncodeMetric for MaybeGauge {
    fn encode(&self, encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        self.0.get().map_or(Ok(()), |gauge| gauge.encode(encoder))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        self.0.get().is_none()
    }
}
