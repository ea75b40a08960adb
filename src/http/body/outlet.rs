//! Limits what a slow client can hold of an answer, in memory and in time; and in HTTP/1.1 in the same way what a slow
//! registry can hold of an upload.
//!
//! In HTTP/1.1 the write time-out ends a connection that is not read; until then hyper would queue what comes, up to the
//! size of its buffers, so no frame is read from the upstream while enough is queued. HTTP/2 (RFC 9113) has no time-out
//! for a window that stays closed: hyper waits for the window without a limit, and takes a whole frame as soon as there
//! is room for its first byte. So the body is cut into pieces, and a stream whose client takes none of them for too long
//! is reset.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::Frame;
use tokio::time::{Instant, Sleep};

use super::{BodyError, BodySource};

/// From here on nothing more is queued on an HTTP/1.1 connection until all of it is written. A slow receiver holds up to so
/// much and one frame, so it is small; but several small frames fit in, since they are best written together.
const ENOUGH_BYTES: usize = 16 * 1024;

/// The longest piece, and so the most that is queued for a client whose window is closed.
const PIECE_BYTES: usize = 64 * 1024;
/// The longest piece for a client that was slow once. A client that takes less than a piece within
/// `timeouts.body_idle` counts as stalled; with many streams on a slow line each moves slowly, hence the small size.
const SMALL_PIECE_BYTES: usize = 16 * 1024;

/// How a body is sent to a client, or by HTTP/1.1 to a registry.
#[derive(Debug)]
pub enum Outlet {
    /// Stops while enough is queued on the connection.
    Http1(Arc<Backlog>),
    /// Sends pieces, and counts those that are taken.
    Http2(Pieces),
}

/// What is queued on an HTTP/1.1 connection until the other side takes it.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Bytes of bodies. Heads and chunk sizes are not added but are written as well, so this can be too small by as much.
    queued: AtomicUsize,
    /// From [`ENOUGH_BYTES`] on, until all is written.
    is_enough: AtomicBool,
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
    /// So many bytes were written, or whatever there is if these are more.
    pub fn wrote(&self, bytes: usize) {
        let before = self.queued.load(Ordering::Acquire);
        if before == 0 {
            return;
        }
        let left = before.saturating_sub(bytes);
        self.queued.store(left, Ordering::Release);
        // Not before all is written: the last bytes of a frame keep the memory of all of it.
        if left == 0 && self.is_enough.swap(false, Ordering::AcqRel) {
            self.body.wake();
        }
    }

    fn queue(&self, bytes: usize) {
        // Load and store suffice: the connection's task, which polls the body, is also the one that writes.
        let queued = self.queued.load(Ordering::Acquire) + bytes;
        self.queued.store(queued, Ordering::Release);
        if queued >= ENOUGH_BYTES {
            self.is_enough.store(true, Ordering::Release);
        }
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let has_room = || !self.is_enough.load(Ordering::Acquire);
        if has_room() {
            return Poll::Ready(());
        }
        self.body.register(cx.waker());
        // Again, so that no wake-up can be missed even if something else should write one day.
        if has_room() { Poll::Ready(()) } else { Poll::Pending }
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
                ready!(backlog.poll_room(cx));
                let frame = source.poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &frame {
                    backlog.queue(frame.data_ref().map_or(0, Bytes::len));
                }
                frame
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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn no_more_is_queued_than_enough_and_a_frame() {
        let backlog = Arc::new(Backlog::default());
        let mut outlet = Outlet::Http1(Arc::clone(&backlog));
        let mut cx = Context::from_waker(Waker::noop());
        let mut has_room = |bytes: usize| {
            let mut source = BodySource::Whole(Some(Bytes::from(vec![0; bytes])));
            outlet.poll_frame(&mut source, &mut cx).is_ready()
        };
        assert!(has_room(ENOUGH_BYTES - 1));
        assert!(has_room(10 * ENOUGH_BYTES));
        assert!(!has_room(1));
        backlog.wrote(11 * ENOUGH_BYTES - 2);
        assert!(!has_room(1));
        backlog.wrote(1);
        assert!(has_room(ENOUGH_BYTES));
        assert!(!has_room(1));
        backlog.wrote(usize::MAX);
        assert!(has_room(1));
    }
}
