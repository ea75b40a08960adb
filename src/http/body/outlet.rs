//! Bodies on their way to a client that may take as little as it likes of an answer for as long as it likes.
//!
//! In HTTP/1.1 the write time-out ends that; until then hyper would queue more frames, which are left at the
//! upstream instead. RFC 9113 (HTTP/2) knows no time-out for a window that stays shut. hyper waits for the window
//! without a limit and takes a frame whole once there is room for its first byte. So a body is cut into pieces,
//! and a stream whose client takes none for too long is reset.

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

/// The longest piece: more than that is never queued for a client that has no room for it.
const PIECE_BYTES: usize = 64 * 1024;
/// The longest piece for a client that ever had to be waited for. Whoever takes less than this within
/// `timeouts.body_idle` counts as taking nothing: of many streams on a slow line, each takes little.
const SMALL_PIECE_BYTES: usize = 16 * 1024;

/// How a body is given out.
#[derive(Debug)]
pub enum Outlet {
    /// Nothing while the connection waits for its client.
    Http1(Arc<Backlog>),
    /// In pieces.
    Http2(Pieces),
}

/// Whether a connection waits for its client to take what was written.
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

/// Whether the sender owes the next piece.
const OWED: u64 = 1;
/// Whether the client ever had to be waited for.
const WAITED: u64 = 2;
/// The other bits of `taken` count pieces.
const PIECE: u64 = 4;

impl Backlog {
    /// A write has to wait.
    pub fn begin(&self) {
        self.is_there.store(true, Ordering::Release);
    }

    /// A write went on.
    pub fn end(&self) {
        self.is_there.store(false, Ordering::Release);
        self.body.wake();
    }

    fn poll_end(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_there.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.body.register(cx.waker());
        // It may have ended before the waker was there.
        if self.is_there.load(Ordering::Acquire) { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Outlet {
    /// For the body of one HTTP/2 stream, and how [`limit_stall`] sees what is taken of it.
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
        // The last byte goes alone: hyper ends a stream, and its time-out with it, as soon as it has the last
        // piece, which it takes when the client has made room for all that is before it. Without a known length,
        // each frame may be the last.
        if length == self.rest.len() && length > 1 && source.size_hint().lower() == 0 {
            length -= 1;
        }
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }
}

/// Runs a stream to its end, or until its client has left a piece of its answer untaken for `idle`. Dropping
/// the stream resets it, and frees what it came from.
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
        // Without that bit, which would look like one more piece.
        stall.poll(before & !WAITED, cx)
    })
    .await;
}

/// One timer a stream, set again only when it fires.
struct Stall {
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    since: Option<(u64, Instant)>,
}

impl Stall {
    fn poll(&mut self, taken: u64, cx: &mut Context<'_>) -> Poll<()> {
        if taken & OWED != 0 {
            // Whatever brings the next piece wakes the stream.
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
                tracing::debug!(limit = ?self.idle, "a client took nothing of its answer for too long");
                return Poll::Ready(());
            }
            timer.as_mut().reset(limit);
        }
        Poll::Pending
    }
}
