//! Bodies: streamed from one side to the other with a limit on pauses, or whole. Nothing is buffered
//! here but manifests, and those only up to a limit.

mod held;
mod lent;
mod outlet;
mod pauses;

pub use held::{Held, PushLimits};
pub use outlet::{Backlog, Outlet, limit_stall};
pub use pauses::Progress;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use self::pauses::{Holder, PauseLimit};
use crate::http::limits::{Limit, RequestGuard};

pub use lent::Lent;
use lent::WayHome;

/// A body on its way to the upstream or to the client.
#[derive(Debug)]
pub struct Body {
    source: BodySource,
    /// There if a client is to get it.
    outlet: Option<Outlet>,
}

#[derive(Debug)]
enum BodySource {
    Whole(Option<Bytes>),
    Streamed(Box<Streamed>),
}

#[derive(Debug)]
struct Streamed {
    gate: Option<Gate>,
    read_before: Option<Bytes>,
    sender: Sender,
    /// None once it came to its end, whichever.
    incoming: Option<Incoming>,
    broken: Option<Broken>,
    pauses: PauseLimit,
    progress: Option<Arc<Progress>>,
    copy: Option<BodyCopy>,
    /// Of the request whose body it is, or that it answers.
    request: Option<RequestGuard>,
    way_home: Option<Box<WayHome>>,
}

/// What passed so far, for somebody who wants it all.
#[derive(Debug)]
struct BodyCopy {
    kept: BytesMut,
    limit: usize,
    whole: oneshot::Sender<Bytes>,
}

/// Whose body it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Client,
    Upstream,
}

/// A body that broke off, which is told at the end of a moment.
#[derive(Debug)]
struct Broken {
    error: BodyError,
    moment: Pin<Box<Sleep>>,
}

/// How long what came before a break has to be sent. HTTP/2 forgets what it has not sent of a stream that is
/// reset, be it the head.
const BREAK_PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct Gate(Pin<Box<tokio::time::Timeout<oneshot::Receiver<()>>>>);

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its sender went away or broke the protocol.
    #[error("the body broke off")]
    Broken(#[from] hyper::Error),
    /// Its sender paused for longer than allowed.
    #[error("no byte of the body came for {0:?}")]
    Idle(Duration),
    /// A manifest took longer than allowed.
    #[error("the manifest did not come whole within {0:?} (timeouts.manifest)")]
    Slow(Duration),
    /// There is no room to hold it.
    #[error(transparent)]
    Limit(#[from] Limit),
}

impl Body {
    /// A body of these bytes.
    #[must_use]
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::from(BodySource::Whole(Some(bytes.into())))
    }

    /// A body without a byte.
    #[must_use]
    pub fn empty() -> Self {
        Self::from(BodySource::Whole(None))
    }

    /// What a client sends, passed on as it comes; an error if nothing comes for `idle`. When nobody wants
    /// the rest of it, that is still read for a while, as a part of its request: a client that is cut off
    /// while it sends may not have read its answer.
    #[must_use]
    pub fn from_client(incoming: Incoming, idle: Duration, request: RequestGuard) -> Self {
        if incoming.is_end_stream() {
            Self::empty()
        } else {
            Self::streamed(None, incoming, idle, Sender::Client, Some(request))
        }
    }

    /// What the upstream sends, passed on as it comes; an error if nothing comes for `idle`.
    #[must_use]
    pub fn from_upstream(incoming: Incoming, idle: Duration) -> Self {
        if incoming.is_end_stream() {
            Self::empty()
        } else {
            Self::streamed(None, incoming, idle, Sender::Upstream, None)
        }
    }

    fn streamed(
        read_before: Option<Bytes>,
        incoming: Incoming,
        idle: Duration,
        sender: Sender,
        request: Option<RequestGuard>,
    ) -> Self {
        Self::from(BodySource::Streamed(Box::new(Streamed {
            gate: None,
            read_before,
            sender,
            incoming: Some(incoming),
            broken: None,
            pauses: PauseLimit::new(idle),
            progress: None,
            copy: None,
            request,
            way_home: None,
        })))
    }

    /// Lets nothing of a streamed body be read before the gate's other end is used or dropped, for
    /// `at_most` that long.
    pub fn wait_for(&mut self, gate: oneshot::Receiver<()>, at_most: Duration) {
        if let BodySource::Streamed(streamed) = &mut self.source {
            streamed.gate = Some(Gate(Box::pin(tokio::time::timeout(at_most, gate))));
        }
    }

    /// A copy of a streamed body, once all of it has passed; none if it breaks off or is longer than `limit`.
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

    /// Keeps the guard of the request that this answers until the client has taken the body. A streamed one is gone
    /// before that: its last bytes, queued for the client, keep the guard then.
    pub fn keep(&mut self, request: RequestGuard) {
        match &mut self.source {
            BodySource::Streamed(streamed) => streamed.request = Some(request),
            BodySource::Whole(_) => self.hold(request),
        }
    }

    /// Keeps a guard of a whole answer until the client has taken it; of a streamed one it is dropped.
    pub fn hold(&mut self, guard: impl Send + 'static) {
        if let BodySource::Whole(Some(bytes)) = &mut self.source {
            *bytes = held::kept_with(bytes.clone(), guard);
        }
    }

    /// How long a whole body is.
    #[must_use]
    pub fn whole_length(&self) -> Option<usize> {
        match &self.source {
            BodySource::Whole(bytes) => bytes.as_ref().map(Bytes::len),
            BodySource::Streamed(_) => None,
        }
    }

    /// Gives it to a client that may be slow to take it.
    #[must_use]
    pub fn through(self, outlet: Outlet) -> Self {
        Self { outlet: Some(outlet), ..self }
    }

    /// How far a streamed body has got; whole ones need no watching.
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
        let Self { source, outlet } = self.get_mut();
        match outlet {
            None => source.poll_frame(cx),
            Some(outlet) => outlet.poll_frame(source, cx),
        }
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
        Self { source, outlet: None }
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
                let ended = streamed.incoming.as_ref().is_none_or(http_body::Body::is_end_stream);
                streamed.read_before.is_none() && streamed.broken.is_none() && ended
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(length(bytes.as_ref())),
            Self::Streamed(streamed) => {
                let read_before = length(streamed.read_before.as_ref());
                let rest = streamed.incoming.as_ref().map_or(SizeHint::with_exact(0), Incoming::size_hint);
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

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
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
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                self.incoming = None;
                let moment = Box::pin(tokio::time::sleep(BREAK_PAUSE));
                self.broken = Some(Broken { error: error.into(), moment });
                self.poll_broken(cx)
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.pauses.moved();
                self.copy_data(frame.data_ref());
                if self.incoming.as_ref().is_some_and(Incoming::is_end_stream) {
                    self.hand_copy_over();
                }
                Poll::Ready(Some(Ok(self.counted(frame))))
            }
            Poll::Ready(None) => {
                self.incoming = None;
                self.hand_copy_over();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let error = ready!(self.pauses.poll_exceeded(cx));
                self.incoming = None;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    /// What may be the last of an answer keeps its request in progress. Of an answer of unknown length, that is
    /// each frame.
    fn counted(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let may_be_last = self.incoming.as_ref().is_none_or(|rest| rest.size_hint().lower() == 0);
        match &self.request {
            Some(request) if may_be_last && self.sender == Sender::Upstream => {
                frame.map_data(|data| held::kept_with(data, request.clone()))
            }
            Some(_) | None => frame,
        }
    }

    /// A body of which too much was taken, or that broke, does not come back.
    fn keep_way_home(&mut self, frame: &Poll<Option<Result<Frame<Bytes>, BodyError>>>) {
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
            ready!(broken.moment.as_mut().poll(cx));
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
            // Whoever wanted it may have gone.
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
                incoming: self.incoming.take(),
                broken: self.broken.take(),
                pauses: PauseLimit::new(self.pauses.idle),
                progress: None,
                copy: None,
                request: self.request.take(),
                way_home: None,
            });
        }
        let rest = self.incoming.take().filter(|_| self.sender == Sender::Client);
        if let Some(rest) = rest {
            discard(rest, self.request.take());
        }
    }
}

/// How long the rest of a body that nobody wants is read.
const LINGER: Duration = Duration::from_secs(5);

/// Reads the rest of a body for [`LINGER`] at most, as a part of its request; the connection that the body
/// comes from is drained only after it.
fn discard(mut rest: Incoming, request: Option<RequestGuard>) {
    let runtime = tokio::runtime::Handle::try_current();
    if let (Ok(runtime), false) = (runtime, rest.is_end_stream()) {
        runtime.spawn(async move {
            let read = async { while let Some(Ok(_)) = rest.frame().await {} };
            // The client may go on for longer: then it is cut off.
            let _elapsed = tokio::time::timeout(LINGER, read).await;
            drop(request);
        });
    }
}

fn length(bytes: Option<&Bytes>) -> u64 {
    bytes.map_or(0, |bytes| bytes.len() as u64)
}
