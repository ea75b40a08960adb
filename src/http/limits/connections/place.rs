//! The state of one connection: busy, idle, waiting for its client, or closing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{SharedConnections, UNFINISHED_HEAD_BYTES};
use crate::http::limits::{BudgetGuard, ReadSize};

/// The bit of [`ConnectionState::busy`] that marks a closing connection. In the same word as the count, so that
/// "close if there is no request" is one atomic step and no request can begin in between.
const CLOSING: u32 = 1 << 31;
/// No write is blocked.
pub(super) const NOT_WRITING: u64 = u64::MAX;

/// How idle a connection without a request is, as the order of eviction: the least is evicted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Idleness {
    /// It has done nothing since then.
    Nothing(u64),
    /// A write has been blocked by the client since then.
    Writing(u64),
}

/// The part of a connection's state that an eviction looks at.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub(super) is_served: bool,
    /// Whether it had a request.
    pub(super) was_used: AtomicBool,
    /// Number of requests in progress, and [`CLOSING`].
    pub(super) busy: AtomicU32,
    /// When the last request or blocked write ended, or the connection was accepted; this and all times here in
    /// milliseconds since [`SharedConnections::began`].
    pub(super) idle_since: AtomicU64,
    /// When the current write was blocked, or [`NOT_WRITING`].
    pub(super) writing_since: AtomicU64,
    /// Bytes of an incomplete head, and when it began.
    pub(super) head_bytes: AtomicUsize,
    pub(super) head_since: AtomicU64,
    pub(super) closing: Notify,
}

/// An admitted connection, until its socket is closed.
#[derive(Debug)]
pub struct Place {
    pub(super) shared: Arc<SharedConnections>,
    pub(super) number: u64,
    pub(super) state: Arc<ConnectionState>,
    pub(super) _permit: BudgetGuard,
}

/// A request in progress on a connection: while it exists, the connection is not idle.
#[derive(Debug)]
pub struct Busy(Arc<Place>);

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Evicted in favour of a new connection.
    Evicted,
    /// Its idle time-out expired.
    Idle,
}

impl ConnectionState {
    /// `None` if it has requests in progress, or is closing.
    pub(super) fn idleness(&self) -> Option<Idleness> {
        let is_idle = self.busy.load(Ordering::Acquire) == 0;
        is_idle.then(|| match self.writing_since.load(Ordering::Relaxed) {
            NOT_WRITING => Idleness::Nothing(self.idle_since.load(Ordering::Relaxed)),
            since => Idleness::Writing(since),
        })
    }

    fn is_writing(&self) -> bool {
        self.writing_since.load(Ordering::Relaxed) != NOT_WRITING
    }

    /// Marks an idle connection as closing, so that no request can begin any more; false if one began before.
    pub(super) fn close(&self, shared: &SharedConnections) -> bool {
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
    /// Whether it is within the connection limit. Otherwise each of its requests is answered with 503.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.state.is_served
    }

    /// How much may be read from it at once. By the number of connections and not of requests: it keeps the buffers
    /// to which it has grown until it is closed.
    #[must_use]
    pub fn read_size(&self) -> ReadSize {
        ReadSize::for_one_of(self.shared.count.load(Ordering::Relaxed))
    }

    /// Whether a request has begun on it, perhaps long ago.
    #[must_use]
    pub fn was_used(&self) -> bool {
        self.state.was_used.load(Ordering::Relaxed)
    }

    /// Begins a request; `None` if the connection is over the limit or closing.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Option<Busy> {
        if !self.state.is_served {
            return None;
        }
        let before = self.state.busy.fetch_add(1, Ordering::AcqRel);
        self.release_head();
        self.state.was_used.store(true, Ordering::Relaxed);
        // Also for a closing connection: dropping it undoes the count.
        let busy = Busy(Arc::clone(self));
        (before & CLOSING == 0).then_some(busy)
    }

    /// A write is blocked by the client. The idle time-out stops, but the connection can be evicted.
    pub fn begin_wait(&self) {
        self.state.writing_since.store(self.shared.now(), Ordering::Relaxed);
    }

    /// The blocked write goes on.
    pub fn end_wait(&self) {
        // In this order: whoever sees that no write is blocked must not see the idle time of before the write.
        self.state.idle_since.store(self.shared.now(), Ordering::Relaxed);
        self.state.writing_since.store(NOT_WRITING, Ordering::Relaxed);
    }

    /// Whether it has no request in progress and no blocked write.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.state.busy.load(Ordering::Acquire) & !CLOSING == 0 && !self.state.is_writing()
    }

    /// Waits until the connection has to be closed: it is evicted, or has been idle for `limit`.
    pub async fn closing(&self, limit: Duration) -> Closing {
        // One timer for all requests, since resetting it for each would cost more than the rest of this room:
        // when it fires, it is set again by the end of the last request.
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

    /// Waits until the connection is evicted.
    pub async fn evicted(&self) {
        self.state.closing.notified().await;
    }

    fn idle_until(&self, limit: Duration) -> Instant {
        let since = Duration::from_millis(self.state.idle_since.load(Ordering::Relaxed));
        self.shared.began + since + limit
    }

    /// Counts bytes that were read without a request in progress: part of an incomplete head.
    pub fn hold_head(&self, bytes: usize) {
        // A connection with requests in progress cannot be closed for its heads, so its bytes must not count: they
        // would close others in its place.
        if self.state.busy.load(Ordering::Acquire) != 0 {
            return;
        }
        if self.state.head_bytes.load(Ordering::Relaxed) == 0 {
            self.state.head_since.store(self.shared.now(), Ordering::Relaxed);
        }
        // First the sum: whoever closes the connection in between takes away no more than was added.
        let all = self.shared.head_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.state.head_bytes.fetch_add(bytes, Ordering::Relaxed);
        if all > UNFINISHED_HEAD_BYTES {
            self.shared.limit_heads();
        }
    }

    /// The head is complete.
    pub fn release_head(&self) {
        if self.state.head_bytes.load(Ordering::Relaxed) > 0 {
            self.state.release_head(&self.shared);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.release_head();
        self.shared.count.fetch_sub(1, Ordering::Relaxed);
        self.shared.lock().taken.remove(&self.number);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let state = &self.0.state;
        // First the time, then the count: whoever sees the connection idle must not see the time of an earlier
        // request, or the connection that was last busy would be evicted as the longest idle.
        state.idle_since.store(self.0.shared.now(), Ordering::Relaxed);
        state.busy.fetch_sub(1, Ordering::AcqRel);
    }
}
