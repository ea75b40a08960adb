//! What is told once the index is open: the service manager and the log. That may be long after requests pass through.

use std::time::Duration;

use tokio::time::Instant;

use super::service_manager;
use crate::index::{Index, IndexState};

/// Tells the service manager that requests are served: once the index is open, or takes longer than a query would wait
/// for it. Everything else passes through from the start. Never ends.
pub(super) async fn tell_when_ready(index: &Index, limit: Duration) {
    tokio::time::timeout(limit, index.opened()).await.ok();
    service_manager::ready().await;
    std::future::pending::<()>().await;
}

/// Waits for the index and says how long opening it took and what is in it; never ends.
pub(super) async fn tell_when_open(index: &Index, began: Instant) {
    index.opened().await;
    // Why it is not open is said by whoever found out.
    if index.state() == IndexState::Ready {
        let seconds = began.elapsed().as_secs_f64();
        let counted = index.statistics();
        let (referrers, links) = (counted.map(|it| it.referrers), counted.map(|it| it.links));
        tracing::info!(referrers, links, seconds, "the index is open");
    }
    std::future::pending::<()>().await;
}
