//! `limits.connections`: number of client connections. At the limit, the connection that has been idle for the
//! longest is closed in favour of the new one, as in nginx. So only requests in progress can keep others out, and
//! those are limited per client. A connection with a blocked write counts as idle too (after those that do nothing):
//! a client that does not read can cause any number of such writes without a request.
//!
//! The state of a connection is in atomics, and the lock is taken only when a connection begins or ends, or another
//! has to be evicted: counting a request costs no lock that all connections share.

mod place;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::place::{ConnectionState, Idleness, NOT_WRITING};
use super::{Budget, BudgetGuard, Limit};

pub use self::place::{Busy, Closing, Place};

/// How long a new connection waits for the evicted one to close, which usually takes microseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// Limit on the bytes of incomplete request heads of all connections of a listener. Above it, the connection whose
/// head began first is closed: clients that send heads byte by byte (slowloris) cannot fill the memory.
const UNFINISHED_HEAD_BYTES: usize = 8 << 20;

/// The connections of one listener.
#[derive(Clone, Debug)]
pub struct Connections(Arc<SharedConnections>);

#[derive(Debug)]
struct SharedConnections {
    served: Budget,
    refused: Budget,
    began: Instant,
    /// Those that are open.
    count: AtomicUsize,
    head_bytes: AtomicUsize,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    taken: HashMap<u64, Arc<ConnectionState>>,
    begun: u64,
    /// The next connections to evict, best candidate last, with their idleness when [`Places::taken`] was last
    /// searched. One search serves many evictions: with 10,000 connections it takes 0.1 ms.
    idlest: Vec<(Arc<ConnectionState>, Idleness)>,
}

impl Connections {
    /// A limit of `most` connections. A tenth as many beyond it are accepted to be answered with 503.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let budget = |most| Budget::new(Limit::Connections, most);
        Self(Arc::new(SharedConnections {
            served: budget(most),
            refused: budget(reserve(most)),
            began: Instant::now(),
            count: AtomicUsize::new(0),
            head_bytes: AtomicUsize::new(0),
            places: Mutex::default(),
        }))
    }

    /// Changes the limit. Idle connections above it are closed, for nothing new is served until there is room again;
    /// others stay until they end.
    pub fn resize(&self, most: usize) {
        let above = self.0.served.resize(most);
        for _ in 0..above {
            if !self.0.evict() {
                break;
            }
        }
        self.0.refused.resize(reserve(most));
    }

    /// Admits a connection, evicting an idle one if need be. Over the connection limit, every request on it is
    /// answered with 503 ([`Place::is_served`]); `None` if even those are too many, and the connection is to be
    /// closed unanswered.
    pub async fn admit(&self) -> Option<Arc<Place>> {
        let shared = &self.0;
        let mut served = shared.served.take(1);
        if served.is_err() && shared.evict() {
            served = shared.served.wait_for_one(PATIENCE).await;
        }
        match served {
            Ok(permit) => Some(self.place(permit, true)),
            Err(_) => shared.refused.take(1).ok().map(|permit| self.place(permit, false)),
        }
    }

    fn place(&self, permit: BudgetGuard, is_served: bool) -> Arc<Place> {
        let state = Arc::new(ConnectionState {
            is_served,
            was_used: AtomicBool::new(false),
            busy: AtomicU32::new(0),
            idle_since: AtomicU64::new(self.0.now()),
            writing_since: AtomicU64::new(NOT_WRITING),
            head_bytes: AtomicUsize::new(0),
            head_since: AtomicU64::new(0),
            closing: Notify::new(),
        });
        let mut places = self.0.lock();
        let number = places.begun;
        places.begun += 1;
        places.taken.insert(number, Arc::clone(&state));
        drop(places);
        self.0.count.fetch_add(1, Ordering::Relaxed);
        Arc::new(Place { shared: Arc::clone(&self.0), number, state, _permit: permit })
    }
}

/// How many connections beyond the limit are accepted to be answered with 503.
fn reserve(most: usize) -> usize {
    most.div_ceil(10)
}

impl SharedConnections {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection that has been idle for the longest, or else the one whose write has been blocked for the
    /// longest; false if all have requests in progress.
    fn evict(&self) -> bool {
        let mut places = self.lock();
        loop {
            while let Some((state, idleness)) = places.idlest.pop() {
                // The list may be stale: a candidate that had a request meanwhile is no longer the longest idle.
                if state.idleness() == Some(idleness) && state.close(self) {
                    return true;
                }
            }
            places.look_through();
            if places.idlest.is_empty() {
                return false;
            }
        }
    }

    /// Closes the connections whose incomplete heads began first until the rest are below the limit.
    fn limit_heads(&self) {
        let places = self.lock();
        while self.head_bytes.load(Ordering::Relaxed) > UNFINISHED_HEAD_BYTES {
            let holding = places.taken.values().filter(|state| state.head_bytes.load(Ordering::Relaxed) > 0);
            let idle = holding.filter(|state| state.busy.load(Ordering::Acquire) == 0);
            let Some(first) = idle.min_by_key(|state| state.head_since.load(Ordering::Relaxed)) else {
                return;
            };
            first.close(self);
        }
    }
}

impl Places {
    /// Searches for the next connections to evict.
    fn look_through(&mut self) {
        // Only connections within the limit: closing one of those that get 503 frees no permit of the limit.
        let served = self.taken.values().filter(|state| state.is_served);
        let idle = served.filter_map(|state| Some((Arc::clone(state), state.idleness()?)));
        let mut idle: Vec<_> = idle.collect();
        // Connections with a blocked write are candidates only if there is no other; the list must not mix the two,
        // since by the next eviction another connection may have become idle.
        let is_nothing = |idleness: &Idleness| matches!(idleness, Idleness::Nothing(_));
        if idle.iter().any(|(_, idleness)| is_nothing(idleness)) {
            idle.retain(|(_, idleness)| is_nothing(idleness));
        }
        idle.sort_unstable_by_key(|(_, idleness)| std::cmp::Reverse(*idleness));
        let kept = idle.len().min(self.taken.len() / 16 + 1);
        self.idlest = idle.split_off(idle.len() - kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn served(connections: &Connections) -> Arc<Place> {
        let place = connections.admit().await.unwrap();
        assert!(place.is_served());
        place
    }

    /// Three connections at a limit of three, 10 ms apart.
    async fn full() -> (Connections, Vec<Option<Arc<Place>>>) {
        let connections = Connections::new(3);
        let mut places = Vec::new();
        for _ in 0..3 {
            places.push(Some(served(&connections).await));
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        (connections, places)
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_makes_room_and_a_busy_one_does_not() {
        let (connections, mut places) = full().await;
        let busy = places[0].as_ref().unwrap().begin().unwrap();
        let mut waits = vec![];
        for place in places.drain(1..) {
            let place = place.unwrap();
            waits.push(tokio::spawn(
                async move { (place.closing(Duration::from_secs(9)).await, Instant::now()) },
            ));
        }
        let new = served(&connections).await;
        assert_eq!(waits.remove(0).await.unwrap().0, Closing::Evicted);
        let other = served(&connections).await;
        assert_eq!(waits.remove(0).await.unwrap().0, Closing::Evicted);
        let _both = [other.begin().unwrap(), new.begin().unwrap()];
        assert!(!connections.admit().await.unwrap().is_served());
        drop(busy);
        let Some(first) = places[0].take() else { panic!() };
        let (admitted, closing) =
            tokio::join!(connections.admit(), async { first.closing(Duration::from_secs(9)).await });
        // It keeps its place for as long as the test keeps it: the new one is refused after its patience.
        assert_eq!(closing, Closing::Evicted);
        assert!(!admitted.unwrap().is_served());
        assert!(first.begin().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_read_keeps_nobody_out_without_a_request() {
        let (connections, mut places) = full().await;
        // The third waits for the longest; only the second does nothing; the first has a request besides.
        let request = places[0].as_ref().unwrap().begin().unwrap();
        for number in [2, 0] {
            places[number].as_ref().unwrap().begin_wait();
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        let mut others = Vec::new();
        for number in [1, 2] {
            let place = places[number].take().unwrap();
            let limit = Duration::from_secs(9);
            let (closing, other) =
                tokio::join!(async move { place.closing(limit).await }, served(&connections));
            assert_eq!(closing, Closing::Evicted);
            others.push((other.begin().unwrap(), other));
        }
        assert!(!connections.admit().await.unwrap().is_served());
        // A wait outlasts the time of an idle connection.
        drop(request);
        let first = places[0].take().unwrap();
        let began = Instant::now();
        let waiting = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            first.end_wait();
        };
        let (closing, ()) = tokio::join!(first.closing(Duration::from_secs(9)), waiting);
        assert_eq!((closing, began.elapsed().as_secs()), (Closing::Idle, 109));
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_counts_from_the_last_request() {
        let place = served(&Connections::new(1)).await;
        let began = Instant::now();
        let busy = place.begin().unwrap();
        let working = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            drop(busy);
        };
        let (closing, ()) = tokio::join!(place.closing(Duration::from_secs(9)), working);
        assert_eq!(closing, Closing::Idle);
        assert_eq!(began.elapsed().as_secs(), 109);
    }

    #[tokio::test(start_paused = true)]
    async fn the_head_that_began_first_gives_way_and_not_the_longest_idle_connection() {
        let connections = Connections::new(1_000);
        let kept_alive = served(&connections).await;
        let mut others = Vec::new();
        for _ in 0..UNFINISHED_HEAD_BYTES / (128 << 10) {
            tokio::time::advance(Duration::from_millis(10)).await;
            others.push(served(&connections).await);
            others.last().unwrap().hold_head(128 << 10);
        }
        tokio::time::advance(Duration::from_millis(10)).await;
        kept_alive.hold_head(100);
        assert!(kept_alive.begin().is_some());
        let closed: Vec<_> = others.iter().map(|place| place.begin().is_none()).collect();
        assert!(closed[0] && !closed[1..].contains(&true), "{closed:?}");
    }

    #[tokio::test]
    async fn unfinished_heads_are_held_up_to_a_limit() {
        let connections = Connections::new(1_000);
        let mut places = Vec::new();
        for _ in 0..200 {
            let place = served(&connections).await;
            place.hold_head(128 << 10);
            places.push(place);
        }
        let open = places.iter().filter(|place| place.begin().is_some()).count();
        assert_eq!(open, UNFINISHED_HEAD_BYTES / (128 << 10));
        drop(places);
        assert_eq!(connections.0.head_bytes.load(Ordering::Relaxed), 0);
        assert!(connections.0.lock().taken.is_empty());
    }
}
