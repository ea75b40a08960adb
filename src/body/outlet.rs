//! Bodies on their way to a client of HTTP/2, which may take as little as it likes of an answer for as long as
//! it likes: RFC 9113 knows no time-out for a window that stays shut. hyper waits for the window without a
//! limit and takes a frame whole once there is room for its first byte. So a body is cut into pieces, and a
//! stream whose client takes none for too long is reset.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::time::{Instant, Sleep};

use super::{BodyError, Source};

/// The longest piece: more than that is never queued for a client that has no room for it. Whoever takes less
/// than this within `timeouts.body_idle` counts as taking nothing.
const PIECE_BYTES: usize = 64 * 1024;

/// Gives a body out in pieces.
#[derive(Debug, Default)]
pub struct Outlet {
    taken: Arc<AtomicU64>,
    rest: Bytes,
}

/// Whether the sender owes the next piece; the other bits of `taken` count pieces.
const OWED: u64 = 1;

impl Outlet {
    /// For the body of one stream, and how [`limit_stall`] sees what is taken of it.
    #[must_use]
    pub fn new() -> (Self, Arc<AtomicU64>) {
        let taken = Arc::new(AtomicU64::new(OWED));
        (Self { taken: Arc::clone(&taken), rest: Bytes::new() }, taken)
    }

    pub(super) fn rest(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn poll_frame(
        &mut self,
        source: &mut Source,
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
        self.taken.store((taken & !OWED) + 2, Ordering::Relaxed);
        let mut length = self.rest.len().min(PIECE_BYTES);
        // The last byte goes alone: hyper ends a stream, and its time-out with it, as soon as it has the last
        // piece, which it takes when the client has made room for all that is before it.
        if length == self.rest.len() && length > 1 && source.is_end_stream() {
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
        stall.poll(taken.load(Ordering::Relaxed), cx)
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
