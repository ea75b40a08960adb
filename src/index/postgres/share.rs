//! How many connections this replica uses at a time: as many as are configured, or fewer while the database takes no
//! more. Otherwise each operation would try to connect, at some expense, while another one's connection would do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::failure::Failure;

/// How long until it is tried whether the database takes more again.
const LESS: Duration = Duration::from_secs(60);

/// The connections that may be used at a time.
#[derive(Debug)]
pub(super) struct Share {
    free: Arc<Semaphore>,
    most: usize,
    /// How many of them are not used, and since when at least one is not.
    withheld: AtomicUsize,
    since: Mutex<Option<Instant>>,
}

impl Share {
    pub(super) fn new(most: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(most)),
            most,
            withheld: AtomicUsize::new(0),
            since: Mutex::default(),
        }
    }

    /// Waits until one may be used.
    pub(super) async fn one(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.free).acquire_owned().await.map_err(|_closed| Failure::Closed)
    }

    /// Uses this one no more for some time; false if it is the last.
    pub(super) fn withhold(&self, one: OwnedSemaphorePermit) -> bool {
        let is_one_left = |withheld: usize| (withheld + 1 < self.most).then_some(withheld + 1);
        let withheld = self.withheld.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_one_left);
        if withheld.is_ok() {
            one.forget();
            let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
            since.get_or_insert_with(Instant::now);
        }
        withheld.is_ok()
    }

    /// Uses all again, if it is time to try.
    pub(super) fn restore(&self) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_some_and(|since| since.elapsed() > LESS) {
            *since = None;
            self.free.add_permits(self.withheld.swap(0, Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_is_always_used_and_all_are_tried_again() {
        let share = Share::new(3);
        let [one, two, three] = [share.one().await, share.one().await, share.one().await].map(Result::unwrap);
        assert!(share.withhold(one) && share.withhold(two) && !share.withhold(three));
        assert_eq!(share.free.available_permits(), 1);
        share.restore();
        assert_eq!(share.free.available_permits(), 1);
        tokio::time::advance(2 * LESS).await;
        share.restore();
        assert_eq!(share.free.available_permits(), 3);
    }
}
