//! A body that streams from one connection to another.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::lent::WayHome;
use super::pauses::{PauseLimit, Progress};
use super::{BodyError, Received, Sender, held};
use crate::http::limits::RequestGuard;

/// A streamed body and all that is watched while it passes.
#[derive(Debug)]
pub(super) struct Streamed {
    pub(super) gate: Option<Gate>,
    /// Bytes that are sent before the rest of `received`.
    pub(super) read_before: Option<Bytes>,
    pub(super) sender: Sender,
    /// `None` after its end or an error.
    pub(super) received: Option<Received>,
    pub(super) broken: Option<Broken>,
    pub(super) pauses: PauseLimit,
    pub(super) progress: Option<Arc<Progress>>,
    pub(super) copy: Option<BodyCopy>,
    /// The request that it belongs to, or answers.
    pub(super) request: Option<RequestGuard>,
    pub(super) way_home: Option<Box<WayHome>>,
}

/// A copy of what has passed.
#[derive(Debug)]
pub(super) struct BodyCopy {
    pub(super) kept: BytesMut,
    pub(super) limit: usize,
    pub(super) whole: oneshot::Sender<Bytes>,
}

/// A read error held back for [`BREAK_PAUSE`], so that what came before it is sent first.
#[derive(Debug)]
pub(super) struct Broken {
    error: BodyError,
    pause: Pin<Box<Sleep>>,
}

/// How long a read error is held back. An HTTP/2 stream that is reset loses what is queued for it, even the head of
/// the answer; the client would see neither status nor the bytes that did come.
const BREAK_PAUSE: Duration = Duration::from_millis(250);

/// Nothing is read before it opens, or its time is up.
#[derive(Debug)]
pub(super) struct Gate(pub(super) Pin<Box<tokio::time::Timeout<oneshot::Receiver<()>>>>);

impl Streamed {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(Gate(open)) = &mut self.gate {
            let _open_or_waited_enough = ready!(open.as_mut().poll(cx));
            self.gate = None;
        }
        if let Some(bytes) = self.read_before.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if self.broken.is_some() {
            return self.poll_broken(cx);
        }
        let Some(received) = &mut self.received else { return Poll::Ready(None) };
        match Pin::new(received).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                self.received = None;
                let pause = Box::pin(tokio::time::sleep(BREAK_PAUSE));
                self.broken = Some(Broken { error, pause });
                self.poll_broken(cx)
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.pauses.moved();
                self.copy_data(frame.data_ref());
                // By its length, too: HTTP/2 may say only in a frame of its own that this was all, and hyper does not
                // ask for one more frame than the other side's Content-Length needs.
                let is_whole = |rest: &Received| rest.is_end_stream() || rest.size_hint().exact() == Some(0);
                if self.received.as_ref().is_some_and(is_whole) {
                    self.hand_copy_over();
                }
                Poll::Ready(Some(Ok(self.counted(frame))))
            }
            Poll::Ready(None) => {
                self.received = None;
                self.hand_copy_over();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let error = ready!(self.pauses.poll_exceeded(cx));
                self.received = None;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    /// Attaches the request's guard to a frame that may be the last of an answer. If the length is not known, that
    /// is every frame.
    fn counted(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let may_be_last = self.received.as_ref().is_none_or(|rest| rest.size_hint().lower() == 0);
        match &self.request {
            Some(request) if may_be_last && self.sender == Sender::Upstream => {
                frame.map_data(|data| held::kept_with(data, request.clone()))
            }
            Some(_) | None => frame,
        }
    }

    /// Gives up the way back to the owner if too much of the body was taken, or it failed.
    pub(super) fn keep_way_home(&mut self, frame: &Poll<Option<Result<Frame<Bytes>, BodyError>>>) {
        let Some(way_home) = &mut self.way_home else { return };
        let comes_back = match frame {
            Poll::Pending | Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(frame))) => way_home.keep(frame),
            Poll::Ready(Some(Err(_))) => false,
        };
        if !comes_back {
            self.way_home = None;
        }
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(broken) = &mut self.broken {
            ready!(broken.pause.as_mut().poll(cx));
        }
        Poll::Ready(self.broken.take().map(|broken| Err(broken.error)))
    }

    fn copy_data(&mut self, data: Option<&Bytes>) {
        let (Some(copy), Some(data)) = (&mut self.copy, data) else { return };
        if data.len() > copy.limit - copy.kept.len() {
            self.copy = None;
        } else {
            copy.kept.extend_from_slice(data);
        }
    }

    fn hand_copy_over(&mut self) {
        if let Some(copy) = self.copy.take() {
            // The receiver may have been dropped.
            copy.whole.send(copy.kept.freeze()).ok();
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if let Some(way_home) = self.way_home.take() {
            return way_home.send(Self {
                gate: None,
                read_before: self.read_before.take(),
                sender: self.sender,
                received: self.received.take(),
                broken: self.broken.take(),
                pauses: PauseLimit::new(self.pauses.idle),
                progress: None,
                // What was taken is in it already, and is not copied again when it is sent again.
                copy: self.copy.take(),
                request: self.request.take(),
                way_home: None,
            });
        }
        let rest = self.received.take().filter(|_| self.sender == Sender::Client);
        if let Some(rest) = rest {
            discard(rest, self.request.take());
        }
    }
}

/// How long the rest of an unwanted body is read.
const LINGER: Duration = Duration::from_secs(5);

/// Reads and discards the rest of a body, for [`LINGER`] at most, as part of its request. Closing a connection with
/// unread bytes makes the system reset it, and the client may lose the answer.
pub(super) fn discard(mut rest: Received, request: Option<RequestGuard>) {
    let runtime = tokio::runtime::Handle::try_current();
    if let (Ok(runtime), false) = (runtime, rest.is_end_stream()) {
        runtime.spawn(async move {
            let read = async { while let Some(Ok(_)) = rest.frame().await {} };
            // After that the client is cut off.
            let _elapsed = tokio::time::timeout(LINGER, read).await;
            drop(request);
        });
    }
}
