//! Metrics of how the configuration was last loaded.

use std::time::SystemTime;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Metrics;
use super::families::registered;

#[derive(Debug)]
pub(super) struct ReloadMetrics {
    successful: Gauge,
    success: Gauge,
}

impl ReloadMetrics {
    pub(super) fn new(all: &mut Registry) -> Self {
        Self {
            successful: registered(
                all,
                "config_last_reload_successful",
                "Whether the configuration could be taken over when it was last loaded",
            ),
            success: registered(
                all,
                "config_last_reload_success_timestamp_seconds",
                "When the configuration in force was last loaded",
            ),
        }
    }
}

impl Metrics {
    /// Sets whether the configuration was taken over when it was loaded, just now.
    pub fn loaded_configuration(&self, is_taken: bool) {
        let all = &self.all.reloads;
        all.successful.set(i64::from(is_taken));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if is_taken {
            all.success.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        }
    }
}
