//! What is broken at the moment, and what clients excuse for it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long after the end of an outage requests may still fail: replicas look for their database every two seconds.
/// What is answered must be right all the same.
pub(super) const GRACE: Duration = Duration::from_secs(4);

/// The way of a request: through the load balancer, or to one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Balanced,
    Direct(usize),
}

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Database,
    Replica(usize),
}

#[derive(Clone, Copy, Debug, Default)]
struct Outage {
    goes_on: bool,
    ended: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Outages<const N: usize> {
    database: Mutex<Outage>,
    replicas: [Mutex<Outage>; N],
}

impl Outage {
    /// Whether it, or what follows from it, was going on at any time since then.
    fn touches(self, since: Instant) -> bool {
        self.goes_on || self.ended.is_some_and(|ended| ended + GRACE > since)
    }
}

impl<const N: usize> Outages<N> {
    pub(super) fn new() -> Self {
        Self { database: Mutex::default(), replicas: std::array::from_fn(|_| Mutex::default()) }
    }

    fn of(&self, part: Part) -> &Mutex<Outage> {
        match part {
            Part::Database => &self.database,
            Part::Replica(n) => &self.replicas[n],
        }
    }

    /// Called before anything breaks.
    pub(super) fn begin(&self, part: Part) {
        self.of(part).lock().unwrap().goes_on = true;
    }

    /// Called when all is well again.
    pub(super) fn end(&self, part: Part) {
        *self.of(part).lock().unwrap() = Outage { goes_on: false, ended: Some(Instant::now()) };
    }

    /// Whether the database was away at any time since then.
    pub(super) fn lacked_the_database(&self, since: Instant) -> bool {
        self.database.lock().unwrap().touches(since)
    }

    /// Whether a request that was sent then may fail.
    pub(super) fn excuse(&self, way: Way, since: Instant) -> bool {
        let touches = |part: &Mutex<Outage>| part.lock().unwrap().touches(since);
        let on_the_way = match way {
            Way::Balanced => self.replicas.iter().any(touches),
            Way::Direct(n) => touches(&self.replicas[n]),
        };
        on_the_way || self.lacked_the_database(since)
    }
}
