//! A metric that may have nothing to say.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Absent until it is asked for to be set: where something does not exist, 0 would be wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Maybe<M>(Arc<OnceLock<M>>);

impl<M: Default> Maybe<M> {
    /// The metric, which exists from now on.
    pub(super) fn get(&self) -> &M {
        self.0.get_or_init(M::default)
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Maybe<M> {
    fn encode(&self, encoder: MetricEncoder) -> Result<(), fmt::Error> {
        self.0.get().map_or(Ok(()), |metric| metric.encode(encoder))
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.0.get().is_none()
    }
}
