//! Idle time-out of a body, and which side it is waiting for.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::BodyError;

/// Idle time-out. One timer for each body, reset only when it fires: a frame costs no timer operation.
#[derive(Debug)]
pub(super) struct PauseLimit {
    pub(super) idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting_since: Option<Instant>,
}

impl PauseLimit {
    pub(super) fn new(idle: Duration) -> Self {
        Self { idle, timer: None, waiting_since: None }
    }

    pub(super) fn moved(&mut self) {
        self.waiting_since = None;
    }

    pub(super) fn poll_exceeded(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let limit = *self.waiting_since.get_or_insert_with(Instant::now) + self.idle;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(limit)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= limit {
                return Poll::Ready(BodyError::Idle(self.idle));
            }
            timer.as_mut().reset(limit);
        }
    }
}

/// Which side a streamed body is waiting for, and since when. It distinguishes an upstream that does not read from a
/// client that does not send, so that the right one gets the time-out (504 or 408).
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    /// When the receiver's turn began, in milliseconds since `began`, or [`HELD_BY_SENDER`].
    taken: AtomicU64,
}

const HELD_BY_SENDER: u64 = u64::MAX;

#[derive(Clone, Copy)]
pub(super) enum Holder {
    Sender,
    Receiver,
}

impl Default for Progress {
    fn default() -> Self {
        Self { began: Instant::now(), taken: AtomicU64::new(0) }
    }
}

impl Progress {
    /// When the receiver's turn began; `None` while the sender has to send.
    #[must_use]
    pub fn receiver_since(&self) -> Option<Instant> {
        match self.taken.load(Ordering::Relaxed) {
            HELD_BY_SENDER => None,
            taken => Some(self.began + Duration::from_millis(taken)),
        }
    }

    pub(super) fn set(&self, holder: Holder) {
        let taken = match holder {
            Holder::Sender => HELD_BY_SENDER,
            Holder::Receiver => u64::try_from(self.began.elapsed().as_millis()).unwrap_or(0),
        };
        self.taken.store(taken, Ordering::Relaxed);
    }
}
