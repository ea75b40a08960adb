//! Bodies, streamed with an idle time-out or held whole. Only manifests and refshim's own answers are held, up to a
//! limit; blobs of many gigabytes pass frame by frame.
//!
//! - The time-outs are for pauses, not for the whole: a total limit over a slow upload breaks large layers on slow
//!   lines (harbor #9394, #18508).
//! - Back pressure goes through: a frame is read from one side when the other has room for it. A slow client, or a
//!   slow registry, costs the buffers of one connection ([`Outlet`]), and a client that stops reading is cut off after
//!   `timeouts.body_idle`.
//! - A request that the upstream certainly did not process can be sent again, as long as little of its body was taken
//!   ([`Lent`]).
//! - What is counted for a body (its request, its share of a limit) is released when its last byte was handed to the
//!   connection, not when the handler returned.

mod held;
mod lent;
mod outlet;
mod pauses;
mod received;
mod sent;
mod streamed;

pub use held::{Held, PushLimits};
pub use outlet::{Backlog, Outlet, limit_stall};
pub use pauses::Progress;
pub use received::{Carrier, Feed, Received, Unread};
pub use sent::Sent;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use self::pauses::{Holder, PauseLimit};
use self::sent::SentCount;
use self::streamed::{BodyCopy, Gate, Streamed};
use crate::http::limits::{Limit, RequestGuard};

pub use lent::Lent;

/// A body on its way to the upstream or to the client.
#[derive(Debug)]
pub struct Body {
    source: BodySource,
    /// Present if what the receiver does not take is limited.
    outlet: Option<Outlet>,
    /// Present if somebody wants to know what was sent of it. Boxed: most bodies have none.
    sent: Option<Box<SentCount>>,
}

#[derive(Debug)]
enum BodySource {
    Whole(Option<Bytes>),
    Streamed(Box<Streamed>),
}

/// Who sends the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Client,
    Upstream,
    /// Another part of refshim.
    Refshim,
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection ended, or the sender violated the protocol.
    #[error("the body broke off")]
    Broken(#[from] hyper::Error),
    /// The idle time-out expired.
    #[error("no byte of the body came for {0:?}")]
    Idle(Duration),
    /// Whoever made the body gave it up.
    #[error("the body was given up")]
    Abandoned,
    /// A manifest took longer than `timeouts.manifest`.
    #[error("the manifest did not come whole within {0:?} (timeouts.manifest)")]
    Slow(Duration),
    /// A limit is reached.
    #[error(transparent)]
    Limit(#[from] Limit),
}

impl Body {
    /// A body of these bytes.
    #[must_use]
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::from(BodySource::Whole(Some(bytes.into())))
    }

    /// An empty body.
    #[must_use]
    pub fn empty() -> Self {
        Self::from(BodySource::Whole(None))
    }

    /// Streams a client's body, with `idle` as time-out. If it is dropped early, the rest is still read for
    /// a few seconds, as part of its request: many clients read no answer before they have sent their
    /// body, and would see a reset connection instead.
    #[must_use]
    pub fn from_client(incoming: Incoming, idle: Duration, request: RequestGuard) -> Self {
        if incoming.is_end_stream() {
            Self::empty()
        } else {
            Self::streamed(None, incoming.into(), idle, Sender::Client, Some(request))
        }
    }

    /// Streams an upstream's body, with `idle` as time-out.
    #[must_use]
    pub fn from_upstream(received: Received, idle: Duration) -> Self {
        if received.is_end_stream() {
            Self::empty()
        } else {
            Self::streamed(None, received, idle, Sender::Upstream, None)
        }
    }

    /// A body that is made by the feed, with `idle` as time-out.
    #[must_use]
    pub fn fed(idle: Duration) -> (Feed, Self) {
        let (feed, received) = Received::fed();
        (feed, Self::streamed(None, received, idle, Sender::Refshim, None))
    }

    fn streamed(
        read_before: Option<Bytes>,
        received: Received,
        idle: Duration,
        sender: Sender,
        request: Option<RequestGuard>,
    ) -> Self {
        Self::from(BodySource::Streamed(Box::new(Streamed {
            gate: None,
            read_before,
            sender,
            received: Some(received),
            broken: None,
            pauses: PauseLimit::new(idle),
            progress: None,
            copy: None,
            request,
            way_home: None,
        })))
    }

    /// Holds a streamed body back until the other end of `gate` is used or dropped, but not for longer than
    /// `at_most`.
    pub fn wait_for(&mut self, gate: oneshot::Receiver<()>, at_most: Duration) {
        if let BodySource::Streamed(streamed) = &mut self.source {
            streamed.gate = Some(Gate(Box::pin(tokio::time::timeout(at_most, gate))));
        }
    }

    /// Copies a streamed body while it passes. The receiver gets the copy when the body is complete, and fails if it
    /// breaks off or exceeds `limit`.
    pub fn copy(&mut self, limit: usize) -> Option<oneshot::Receiver<Bytes>> {
        match &mut self.source {
            BodySource::Whole(_) => None,
            BodySource::Streamed(streamed) => {
                let (whole, copy) = oneshot::channel();
                streamed.copy = Some(BodyCopy { kept: BytesMut::new(), limit, whole });
                Some(copy)
            }
        }
    }

    /// Attaches the guard of the request that this answers, until the client has read the body. A stream is dropped
    /// before that, with bytes still queued for the client; then its last bytes keep the guard.
    pub fn keep(&mut self, request: RequestGuard) {
        match &mut self.source {
            BodySource::Streamed(streamed) => streamed.request = Some(request),
            BodySource::Whole(_) => self.hold(request),
        }
    }

    /// Attaches a guard to a whole answer until the client has read it; for a streamed body the guard is dropped.
    pub fn hold(&mut self, guard: impl Send + 'static) {
        if let BodySource::Whole(Some(bytes)) = &mut self.source {
            *bytes = held::kept_with(bytes.clone(), guard);
        }
    }

    /// Drops it, without reading the rest of a client's body as a drop otherwise does.
    pub fn leave_unread(mut self) {
        if let BodySource::Streamed(streamed) = &mut self.source {
            streamed.received = None;
        }
    }

    /// Whether it streams from a connection, and is not in memory.
    #[must_use]
    pub fn is_streamed(&self) -> bool {
        matches!(self.source, BodySource::Streamed(_))
    }

    /// The length of a whole body; `None` if it is streamed.
    #[must_use]
    pub fn whole_length(&self) -> Option<usize> {
        match &self.source {
            BodySource::Whole(bytes) => bytes.as_ref().map(Bytes::len),
            BodySource::Streamed(_) => None,
        }
    }

    /// Sends it through `outlet`, which limits what a slow receiver can hold.
    #[must_use]
    pub fn through(self, outlet: Outlet) -> Self {
        Self { outlet: Some(outlet), ..self }
    }

    /// [`Body::through`], in place.
    pub fn send_through(&mut self, outlet: Outlet) {
        self.outlet = Some(outlet);
    }

    /// Calls `tell` once with what was sent of it: when it ends, or is dropped before.
    pub fn when_sent(&mut self, tell: impl FnOnce(Sent) + Send + Sync + 'static) {
        self.sent = Some(Box::new(SentCount::new(self.is_end_stream(), Box::new(tell))));
    }

    /// The progress of a streamed body; `None` for a whole one, which never waits for its sender.
    pub fn watch(&mut self) -> Option<Arc<Progress>> {
        match &mut self.source {
            BodySource::Whole(_) => None,
            BodySource::Streamed(streamed) => Some(Arc::clone(streamed.progress.get_or_insert_default())),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { source, outlet, sent } = self.get_mut();
        let frame = match outlet {
            None => source.poll_frame(cx),
            Some(outlet) => outlet.poll_frame(source, cx),
        };
        if let Some(sent) = sent {
            // By its length, too, as in `Streamed::poll_frame`.
            let is_sent = source.is_end_stream() || source.size_hint().exact() == Some(0);
            sent.count(&frame, is_sent && outlet.as_ref().is_none_or(Outlet::is_empty));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.outlet.as_ref().is_none_or(Outlet::is_empty) && self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before the first frame, when the outlet is empty.
        self.source.size_hint()
    }
}

impl From<BodySource> for Body {
    fn from(source: BodySource) -> Self {
        Self { source, outlet: None, sent: None }
    }
}

impl BodySource {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(streamed) => {
                let frame = streamed.poll_frame(cx);
                streamed.keep_way_home(&frame);
                if let Some(progress) = &streamed.progress {
                    progress.set(if frame.is_pending() { Holder::Sender } else { Holder::Receiver });
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Streamed(streamed) => {
                let ended = streamed.received.as_ref().is_none_or(http_body::Body::is_end_stream);
                streamed.read_before.is_none() && streamed.broken.is_none() && ended
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(length(bytes.as_ref())),
            Self::Streamed(streamed) => {
                let read_before = length(streamed.read_before.as_ref());
                let rest = streamed.received.as_ref().map_or(SizeHint::with_exact(0), Received::size_hint);
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower() + read_before);
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper + read_before);
                }
                hint
            }
        }
    }
}

fn length(bytes: Option<&Bytes>) -> u64 {
    bytes.map_or(0, |bytes| bytes.len() as u64)
}
