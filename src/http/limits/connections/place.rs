//! One connection's place, and what others see of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{SharedConnections, UNFINISHED_HEAD_BYTES};
use crate::http::limits::BudgetGuard;

/// Set in [`ConnectionState::busy`] of a connection that is to be closed.
const CLOSING: u32 = 1 << 31;
pub(super) const NOT_WRITING: u64 = u64::MAX;

/// What a connection without a request in progress does, and since when: the least is the first to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Idleness {
    /// Nothing.
    Nothing(u64),
    /// A write waits for its client.
    Writing(u64),
}

/// What others may know of a connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub(super) is_served: bool,
    /// Requests in progress; [`CLOSING`] besides.
    pub(super) busy: AtomicU32,
    /// Milliseconds from [`SharedConnections::began`] to the end of the last request or wait, or to its acceptance.
    pub(super) idle_since: AtomicU64,
    /// Milliseconds to when a write began to wait for the client, or [`NOT_WRITING`].
    pub(super) writing_since: AtomicU64,
    /// Bytes of an unfinished head, and milliseconds to when it began.
    pub(super) head_bytes: AtomicUsize,
    pub(super) head_since: AtomicU64,
    pub(super) closing: Notify,
}

/// A connection's place, as long as its socket is open.
#[derive(Debug)]
pub struct Place {
    pub(super) shared: Arc<SharedConnections>,
    pub(super) number: u64,
    pub(super) state: Arc<ConnectionState>,
    pub(super) _permit: BudgetGuard,
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

impl ConnectionState {
    /// None while it has requests in progress, or is closing.
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

    /// From here on no request can begin. False if one was quicker.
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
