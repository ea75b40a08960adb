//! When what failed is tried again: soon at first, then less and less often.

use std::time::{Duration, Instant};

/// The first wait.
const FIRST: Duration = Duration::from_millis(250);
/// The longest wait. A disk that has room again is noticed after this long at the latest.
const LONGEST: Duration = Duration::from_secs(8);
/// How long something must have gone well before the next failure counts as a first one; an index that is built
/// and fails again and again would keep the machine busy with nothing else.
const CALM: Duration = Duration::from_secs(300);

/// Tells when the next attempt is due.
#[derive(Debug)]
pub(crate) struct Backoff {
    due: Option<Instant>,
    wait: Duration,
    failed: Option<Instant>,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { due: None, wait: FIRST, failed: None }
    }

    /// Takes note of a failure; there will be another attempt.
    pub(crate) fn failed(&mut self) {
        let now = Instant::now();
        if self.failed.is_some_and(|before| now.duration_since(before) > CALM) {
            self.wait = FIRST;
        }
        self.failed = Some(now);
        self.due = Some(now + self.wait);
        self.wait = (self.wait * 2).min(LONGEST);
    }

    /// When the next attempt is due, if there is one to be made.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the attempt is to be made now; after that there is none until the next failure.
    pub(crate) fn take(&mut self) -> bool {
        self.due.take_if(|due| *due <= Instant::now()).is_some()
    }
}
