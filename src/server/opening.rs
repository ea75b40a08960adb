//! What the log says of the index once it is open, which may be long after refshim serves.

use tokio::time::Instant;

use crate::index::{Index, IndexState};

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
