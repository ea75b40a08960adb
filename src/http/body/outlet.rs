//! Limits what a slow client can hold of an answer, in memory and in time.
//!
//! In HTTP/1.1 the write time-out ends a connection that is not read; until then hyper would queue more frames, so no
//! more are read from the upstream while a write is blocked. HTTP/2 (RFC 9113) has no time-out for a window that
//! stays closed: hyper waits for the window without a limit, and takes a whole frame as soon as there is room for its
//! first byte. So the body is cut into pieces, and a stream whose client takes none of them for too long is reset.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::Frame;
use tokio::time::{Instant, Sleep};

use super::{BodyError, BodySource};

/// The longest piece, and so the most that is queued for a client whose window is closed.
const PIECE_BYTES: usize = 64 * 1024;
/// The longest piece for a client that was slow once. A client that takes less than a piece within
/// `timeouts.body_idle` counts as stalled; with many streams on a slow line each moves slowly, hence the small size.
const SMALL_PIECE_BYTES: usize = 16 * 1024;

/// How a body is sent to a client.
#[derive(Debug)]
pub enum Outlet {
    /// Stops while a write on the connection is blocked.
    Http1(Arc<Backlog>),
    /// Sends pieces, and counts those that are taken.
    Http2(Pieces),
}

/// Whether a write on an HTTP/1.1 connection is blocked by its client.
#[derive(Debug, Default)]
pub struct Backlog {
    is_there: AtomicBool,
    body: AtomicWaker,
}

/// A body cut into pieces.
#[derive(Debug)]
pub struct Pieces {
    taken: Arc<AtomicU64>,
    rest: Bytes,
}

/// Bit of `taken`: it is the turn of the sender (the upstream), not of the client.
const OWED: u64 = 1;
/// Bit of `taken`: the client was slow once.
const WAITED: u64 = 2;
/// The other bits of `taken` count the pieces. All in one word, so that the task that polls the stream sees them at
/// once without a lock.
const PIECE: u64 = 4;

impl Backlog {
    /// A write is blocked.
    pub fn begin(&self) {
        self.is_there.store(true, Ordering::Release);
    }

    /// The blocked write goes on.
    pub fn end(&self) {
        self.is_there.store(false, Ordering::Release);
        self.body.wake();
    }

    fn poll_end(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_there.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.body.register(cx.waker());
        // Again: it may have ended between the first look and the registration, and would not wake this task.
        if self.is_there.load(Ordering::Acquire) { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Outlet {
    /// The outlet of one HTTP/2 stream, and the counter that [`limit_stall`] watches.
    #[must_use]
    pub fn http2() -> (Self, Arc<AtomicU64>) {
        let taken = Arc::new(AtomicU64::new(OWED));
        (Self::Http2(Pieces { taken: Arc::clone(&taken), rest: Bytes::new() }), taken)
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Http1(_) => true,
            Self::Http2(pieces) => pieces.rest.is_empty(),
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        source: &mut BodySource,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Http1(backlog) => {
                ready!(backlog.poll_end(cx));
                source.poll_frame(cx)
            }
            Self::Http2(pieces) => pieces.poll_frame(source, cx),
        }
    }
}

impl Pieces {
    fn poll_frame(
        &mut self,
        source: &mut BodySource,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let taken = self.taken.load(Ordering::Relaxed);
        if self.rest.is_empty() {
            match source.poll_frame(cx) {
                Poll::Pending => {
                    self.taken.store(taken | OWED, Ordering::Relaxed);
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                    self.rest = frame.into_data().unwrap_or_default();
                }
                Poll::Ready(other) => return Poll::Ready(other),
            }
        }
        self.taken.store((taken & !OWED) + PIECE, Ordering::Relaxed);
        let most = if taken & WAITED == 0 { PIECE_BYTES } else { SMALL_PIECE_BYTES };
        let mut length = self.rest.len().min(most);
        // The last byte is sent alone. hyper ends the stream's task, and with it the stall time-out, as soon as it
        // has the last piece; it takes that one only when the client has opened its window for all before it, so one
        // byte at most is left without a time-out. If the length is not known, each frame may be the last.
        if length == self.rest.len() && length > 1 && source.size_hint().lower() == 0 {
            length -= 1;
        }
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }
}

/// Runs an HTTP/2 stream until it ends, or until its client has taken no piece of the answer for `idle`. Dropping the
/// stream resets it and frees the upstream's connection.
pub async fn limit_stall(stream: impl Future<Output = ()>, taken: Arc<AtomicU64>, idle: Duration) {
    let mut stream = pin!(stream);
    let mut stall = Stall { idle, timer: None, since: None };
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let before = taken.load(Ordering::Relaxed);
        if before & OWED == 0 {
            taken.store(before | WAITED, Ordering::Relaxed);
        }
        // Without `WAITED`, whose change would look like a piece that was taken.
        stall.poll(before & !WAITED, cx)
    })
    .await;
}

/// One timer for each stream. It is reset only when it fires: resetting it for each piece would cost a lock each.
struct Stall {
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    since: Option<(u64, Instant)>,
}

impl Stall {
    fn poll(&mut self, taken: u64, cx: &mut Context<'_>) -> Poll<()> {
        if taken & OWED != 0 {
            // The body has its own idle time-out; its next frame wakes the stream.
            self.since = None;
            return Poll::Pending;
        }
        let since = match self.since {
            Some((before, since)) if before == taken => since,
            Some(_) | None => {
                let now = Instant::now();
                self.since = Some((taken, now));
                now
            }
        };
        let limit = since + self.idle;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(limit)));
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= limit {
                tracing::debug!(limit = ?self.idle, "reset a stream: its client did not read the answer for too long");
                return Poll::Ready(());
            }
            timer.as_mut().reset(limit);
        }
        Poll::Pending
    }
}
