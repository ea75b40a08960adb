//! When connections break and when the registry answers oddly: what clients excuse, and when.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// For how long after oddities refshim may leave out what it was told is not there.
pub(super) const GRACE: Duration = Duration::from_secs(4);

/// Each number is odd while such a storm lasts.
#[derive(Default)]
pub(super) struct Storms {
    breaking: AtomicU64,
    odd: AtomicU64,
    last_oddity: Mutex<Option<Instant>>,
    last_change: Mutex<Option<Instant>>,
}

/// What a storm does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// Connections break.
    pub(super) breaks: bool,
    /// The registry answers oddly.
    pub(super) is_odd: bool,
}

/// The default is one without any storm.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moment {
    breaking: u64,
    odd: u64,
    is_aftermath: bool,
    /// How long ago the last storm began or ended; for whoever reads a finding.
    #[allow(dead_code, reason = "it is told with the rest")]
    since: Option<Duration>,
}

impl Storms {
    /// Such a storm begins, or it ends.
    pub(super) fn change(&self, Kind { breaks, is_odd }: Kind) {
        *self.last_change.lock().unwrap() = Some(Instant::now());
        self.breaking.fetch_add(u64::from(breaks), Ordering::SeqCst);
        if is_odd {
            *self.last_oddity.lock().unwrap() = Some(Instant::now());
        }
        self.odd.fetch_add(u64::from(is_odd), Ordering::SeqCst);
    }

    pub(super) fn now(&self) -> Moment {
        let (breaking, odd) = (self.breaking.load(Ordering::SeqCst), self.odd.load(Ordering::SeqCst));
        let last_oddity = *self.last_oddity.lock().unwrap();
        let is_aftermath = last_oddity.is_some_and(|last| last.elapsed() < GRACE);
        let since = self.last_change.lock().unwrap().map(|last| last.elapsed());
        Moment { breaking, odd, is_aftermath, since }
    }
}

impl Moment {
    pub(super) fn is_storm(self) -> bool {
        self.breaking % 2 == 1 || self.is_odd()
    }

    fn is_odd(self) -> bool {
        self.odd % 2 == 1
    }

    /// Whether connections broke at some time between this moment and that one.
    pub(super) fn broke_until(self, then: Self) -> bool {
        self.breaking != then.breaking || self.breaking % 2 == 1
    }

    /// Whether the registry answered oddly at some time between this moment and that one.
    pub(super) fn was_odd_until(self, then: Self) -> bool {
        self.odd != then.odd || self.is_odd()
    }

    /// Whether what is there may be left out between this moment and that one.
    pub(super) fn may_lack_until(self, then: Self) -> bool {
        self.was_odd_until(then) || self.is_aftermath
    }
}
