//! Time as the committer uses it: orders that always increase, the length of an absence, and when to retry.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::index::Order;

/// The first wait of a [`Backoff`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait of a [`Backoff`]: a disk that has room again is noticed after this long at the latest.
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// After this long without a failure the waits start short again. Without it, an index that can be built but fails
/// soon after would keep the machine busy with rebuilding it.
const CALM: Duration = Duration::from_secs(300);

/// Gives orders and timestamps.
#[derive(Debug)]
pub(crate) struct Clock {
    last_order: Order,
    /// The system's time when the clock was started.
    started: Duration,
    running: Instant,
}

/// Tells when a failed operation is retried: soon at first, then less and less often.
#[derive(Debug)]
pub(crate) struct Backoff {
    due: Option<Instant>,
    wait: Duration,
    last_failure: Option<Instant>,
}

impl Clock {
    /// A clock whose orders are higher than `last_order`.
    pub(crate) fn new(last_order: Order) -> Self {
        Self { last_order, started: since_1970(), running: Instant::now() }
    }

    /// The highest order given so far.
    pub(crate) fn last_order(&self) -> Order {
        self.last_order
    }

    /// The next order: the system's time, or the last order plus one where that time is not later.
    pub(crate) fn next_order(&mut self) -> Order {
        // The order is part of a link's key and the place where the next page of a query begins: one given twice
        // would overwrite another referrer's link, and a lower one would be skipped by a client between two pages.
        let now = micros(since_1970());
        self.last_order = Order(now.max(self.last_order.0.saturating_add(1)));
        self.last_order
    }

    /// Microseconds since 1970, for measuring absences.
    pub(crate) fn now(&self) -> u64 {
        // From the monotonic clock: a step of the system's clock must not make an absence look longer, because a
        // referrer is forgotten for it.
        micros(self.started + self.running.elapsed())
    }
}

impl Backoff {
    /// A backoff without a failure so far.
    pub(crate) fn new() -> Self {
        Self { due: None, wait: FIRST_WAIT, last_failure: None }
    }

    /// Notes a failure and schedules the next attempt.
    pub(crate) fn failed(&mut self) {
        let now = Instant::now();
        if self.last_failure.is_some_and(|before| now.duration_since(before) > CALM) {
            self.wait = FIRST_WAIT;
        }
        self.last_failure = Some(now);
        self.due = Some(now + self.wait);
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }

    /// When the next attempt is due, if one is scheduled.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether an attempt is due now. If so, none is scheduled any more until the next failure.
    pub(crate) fn take(&mut self) -> bool {
        self.due.take_if(|due| *due <= Instant::now()).is_some()
    }
}

/// A duration in microseconds, at most [`u64::MAX`].
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_increase_although_the_system_clock_is_behind() {
        let ahead = Order(micros(since_1970() + Duration::from_secs(3600)));
        let mut clock = Clock::new(ahead);
        let orders = [clock.next_order(), clock.next_order()];
        assert_eq!(orders, [Order(ahead.0 + 1), Order(ahead.0 + 2)]);
        assert_eq!(clock.last_order(), orders[1]);
    }
}
