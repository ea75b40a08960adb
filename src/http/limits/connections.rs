//! `limits.connections`: a place for each client connection. When all places are taken, the connection that
//! has been without a request for the longest loses its place to the new one, as in nginx: only requests in
//! progress can keep others out, and those are limited by client. A write that waits for its client does not: a
//! client that asks for nothing can bring about any number of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{Budget, BudgetGuard, Limit};

/// How long a new connection waits for the end of the one that makes room for it, which takes microseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of unfinished heads that all connections of a listener may hold. Over it, the connection whose
/// head began first is closed.
const UNFINISHED_HEAD_BYTES: usize = 8 << 20;
/// Set in [`ConnectionState::busy`] of a connection that is to be closed.
const CLOSING: u32 = 1 << 31;
const NOT_WRITING: u64 = u64::MAX;

/// The connections of one listener.
#[derive(Clone, Debug)]
pub struct Connections(Arc<SharedConnections>);

#[derive(Debug)]
struct SharedConnections {
    served: Budget,
    refused: Budget,
    began: Instant,
    head_bytes: AtomicUsize,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    taken: HashMap<u64, Arc<ConnectionState>>,
    begun: u64,
    /// The longest idle ones when [`Places::taken`] was last looked through, the longest idle last, and how idle
    /// each of them was. One look serves many evictions: with 10,000 places it takes 0.1 ms.
    idlest: Vec<(Arc<ConnectionState>, Idleness)>,
}

/// What a connection without a request in progress does, and since when: the least is the first to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Idleness {
    /// Nothing.
    Nothing(u64),
    /// A write waits for its client.
    Writing(u64),
}

/// What others may know of a connection.
#[derive(Debug)]
struct ConnectionState {
    is_served: bool,
    /// Requests in progress; [`CLOSING`] besides.
    busy: AtomicU32,
    /// Milliseconds from [`SharedConnections::began`] to the end of the last request or wait, or to its acceptance.
    idle_since: AtomicU64,
    /// Milliseconds to when a write began to wait for the client, or [`NOT_WRITING`].
    writing_since: AtomicU64,
    /// Bytes of an unfinished head, and milliseconds to when it began.
    head_bytes: AtomicUsize,
    head_since: AtomicU64,
    closing: Notify,
}

/// A connection's place, as long as its socket is open.
#[derive(Debug)]
pub struct Place {
    shared: Arc<SharedConnections>,
    number: u64,
    state: Arc<ConnectionState>,
    _permit: BudgetGuard,
}

/// Something that a connection is busy with: it is not closed for being idle before this is dropped.
#[derive(Debug)]
pub struct Busy(Arc<Place>);

/// Why a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Another one needs its place.
    Evicted,
    /// It has been without a request for too long.
    Idle,
}

impl Connections {
    /// Serves `most` of them, and tells a tenth as many that they are too many.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let budget = |most| Budget::new(Limit::Connections, most);
        Self(Arc::new(SharedConnections {
            served: budget(most),
            refused: budget(most.div_ceil(10)),
            began: Instant::now(),
            head_bytes: AtomicUsize::new(0),
            places: Mutex::default(),
        }))
    }

    /// A place for one more, in which its requests are served or refused; none if it is to be closed without a
    /// word.
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
        Arc::new(Place { shared: Arc::clone(&self.0), number, state, _permit: permit })
    }
}

impl SharedConnections {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the connection that has been idle for the longest to close, or else the one that has waited for its
    /// client for the longest; false if all have requests in progress.
    fn evict(&self) -> bool {
        let mut places = self.lock();
        loop {
            while let Some((state, idleness)) = places.idlest.pop() {
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

    /// Closes the connections whose unfinished heads began first until those of the others are few enough.
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
    fn look_through(&mut self) {
        // Closing one whose requests are refused makes no room for one whose requests are served.
        let served = self.taken.values().filter(|state| state.is_served);
        let idle = served.filter_map(|state| Some((Arc::clone(state), state.idleness()?)));
        let mut idle: Vec<_> = idle.collect();
        // While some do nothing, none that writes is kept for later.
        let is_nothing = |idleness: &Idleness| matches!(idleness, Idleness::Nothing(_));
        if idle.iter().any(|(_, idleness)| is_nothing(idleness)) {
            idle.retain(|(_, idleness)| is_nothing(idleness));
        }
        idle.sort_unstable_by_key(|(_, idleness)| std::cmp::Reverse(*idleness));
        let kept = idle.len().min(self.taken.len() / 16 + 1);
        self.idlest = idle.split_off(idle.len() - kept);
    }
}

impl ConnectionState {
    /// None while it has requests in progress, or is closing.
    fn idleness(&self) -> Option<Idleness> {
        let is_idle = self.busy.load(Ordering::Acquire) == 0;
        is_idle.then(|| match self.writing_since.load(Ordering::Relaxed) {
            NOT_WRITING => Idleness::Nothing(self.idle_since.load(Ordering::Relaxed)),
            since => Idleness::Writing(since),
        })
    }

    fn is_writing(&self) -> bool {
        self.writing_since.load(Ordering::Relaxed) != NOT_WRITING
    }

    /// From here on no request can begin. False if one was quicker.
    fn close(&self, shared: &SharedConnections) -> bool {
        let closed = self.busy.compare_exchange(0, CLOSING, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if closed {
            self.release_head(shared);
            self.closing.notify_one();
        }
        closed
    }

    fn release_head(&self, shared: &SharedConnections) {
        let bytes = self.head_bytes.swap(0, Ordering::Relaxed);
        shared.head_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Place {
    /// Whether its requests are served.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.state.is_served
    }

    /// Makes the connection busy; none if its requests are not served, or if it is being closed.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Option<Busy> {
        if !self.state.is_served {
            return None;
        }
        let before = self.state.busy.fetch_add(1, Ordering::AcqRel);
        self.release_head();
        let busy = Busy(Arc::clone(self));
        (before & CLOSING == 0).then_some(busy)
    }

    /// A write waits for the client. That is not being idle, and it keeps nobody else out.
    pub fn begin_wait(&self) {
        self.state.writing_since.store(self.shared.now(), Ordering::Relaxed);
    }

    /// The write goes on.
    pub fn end_wait(&self) {
        self.state.idle_since.store(self.shared.now(), Ordering::Relaxed);
        self.state.writing_since.store(NOT_WRITING, Ordering::Relaxed);
    }

    /// Whether it has no request in progress and no write that waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.state.busy.load(Ordering::Acquire) & !CLOSING == 0 && !self.state.is_writing()
    }

    /// Waits until the connection is to be closed: at the latest when it has been idle for `limit`.
    pub async fn closing(&self, limit: Duration) -> Closing {
        // No request sets the timer: whatever ends before it fires leaves the connection idle for longer.
        let mut next = self.idle_until(limit);
        loop {
            tokio::select! {
                biased;
                () = self.evicted() => return Closing::Evicted,
                () = sleep_until(next) => {}
            }
            next = if self.is_idle() { self.idle_until(limit) } else { Instant::now() + limit };
            if next <= Instant::now() {
                return Closing::Idle;
            }
        }
    }

    /// Waits until another connection needs its place.
    pub async fn evicted(&self) {
        self.state.closing.notified().await;
    }

    fn idle_until(&self, limit: Duration) -> Instant {
        let since = Duration::from_millis(self.state.idle_since.load(Ordering::Relaxed));
        self.shared.began + since + limit
    }

    /// Counts bytes of a head that is not finished, as far as is known.
    pub fn hold_head(&self, bytes: usize) {
        // With requests in progress it could not be closed for them, nor when it is closing.
        if self.state.busy.load(Ordering::Acquire) != 0 {
            return;
        }
        if self.state.head_bytes.load(Ordering::Relaxed) == 0 {
            self.state.head_since.store(self.shared.now(), Ordering::Relaxed);
        }
        self.state.head_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.shared.head_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > UNFINISHED_HEAD_BYTES {
            self.shared.limit_heads();
        }
    }

    /// The head is finished.
    pub fn release_head(&self) {
        if self.state.head_bytes.load(Ordering::Relaxed) > 0 {
            self.state.release_head(&self.shared);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.release_head();
        self.shared.lock().taken.remove(&self.number);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let state = &self.0.state;
        // First the time, then the count: whoever sees it idle must not see the time of the request before.
        state.idle_since.store(self.0.shared.now(), Ordering::Relaxed);
        state.busy.fetch_sub(1, Ordering::AcqRel);
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

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_makes_room_and_a_busy_one_does_not() {
        let connections = Connections::new(3);
        let mut places = Vec::new();
        for _ in 0..3 {
            places.push(Some(served(&connections).await));
            tokio::time::advance(Duration::from_millis(10)).await;
        }
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
        let connections = Connections::new(3);
        let mut places = Vec::new();
        for _ in 0..3 {
            places.push(Some(served(&connections).await));
            tokio::time::advance(Duration::from_millis(10)).await;
        }
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
