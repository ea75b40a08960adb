//! A body as it comes from a peer, or from another part of refshim that makes it ([`Feed`]). That of an answer by HTTP/1.1 has its connection with it: whoever reads the body moves
//! the connection on. A connection with a task of its own would cost two more tasks to wake and two channels to pass for
//! each request.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::BodyError;

/// A connection that is moved on by whoever uses it.
pub trait Carrier: Send + Sync {
    /// Moves the connection on until `part` is done. Ready as well if the connection has ended: then nothing more can be
    /// expected of it.
    fn carry(&mut self, cx: &mut Context<'_>, part: &mut dyn FnMut(&mut Context<'_>) -> Poll<()>)
    -> Poll<()>;

    /// The answer was read, or is not wanted any more: the connection is free for the next request, or has to end.
    fn release(self: Box<Self>);
}

/// The body.
pub struct Received {
    /// `None` when it is dropped.
    source: Option<Source>,
    /// Until the body's end.
    carrier: Option<Box<dyn Carrier>>,
}

enum Source {
    Incoming(Incoming),
    Fed(Fed),
}

/// Where a body is made, frame by frame: the other end is a [`Received`].
#[derive(Debug)]
pub struct Feed(mpsc::Sender<Fodder>);

/// What comes from a [`Feed`].
struct Fed {
    fodder: mpsc::Receiver<Fodder>,
    has_ended: bool,
}

enum Fodder {
    Data(Bytes),
    End,
}

/// Nobody reads the body any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread;

impl Feed {
    /// Adds bytes, once there is room for them.
    pub async fn add(&self, data: Bytes) -> Result<(), Unread> {
        self.0.send(Fodder::Data(data)).await.map_err(|_| Unread)
    }

    /// The body is whole. Without that it breaks off, since a body that ended early must not pass for a whole one.
    pub async fn end(self) -> Result<(), Unread> {
        self.0.send(Fodder::End).await.map_err(|_| Unread)
    }
}

impl Fed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(self.fodder.poll_recv(cx)) {
            Some(Fodder::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Fodder::End) => None,
            None => Some(Err(BodyError::Abandoned)),
        };
        self.has_ended = true;
        Poll::Ready(frame)
    }
}

impl Received {
    /// A body that is made by the feed.
    #[must_use]
    pub fn fed() -> (Feed, Self) {
        let (feed, fodder) = mpsc::channel(1);
        let source = Source::Fed(Fed { fodder, has_ended: false });
        (Feed(feed), Self { source: Some(source), carrier: None })
    }

    /// The body of an answer that comes by this connection.
    #[must_use]
    pub fn by(carrier: Box<dyn Carrier>, incoming: Incoming) -> Self {
        let mut body = Self { source: Some(Source::Incoming(incoming)), carrier: Some(carrier) };
        body.release_at_end();
        body
    }

    fn release_at_end(&mut self) {
        if self.is_end_stream()
            && let Some(carrier) = self.carrier.take()
        {
            carrier.release();
        }
    }
}

impl From<Incoming> for Received {
    /// A body whose connection has a task of its own.
    fn from(incoming: Incoming) -> Self {
        Self { source: Some(Source::Incoming(incoming)), carrier: None }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { source, carrier } = &mut *self;
        let incoming = match source {
            Some(Source::Incoming(incoming)) => incoming,
            Some(Source::Fed(fed)) => return fed.poll_frame(cx),
            None => return Poll::Ready(None),
        };
        let mut frame = Poll::Pending;
        if let Some(carrier) = carrier {
            let mut part = |cx: &mut Context<'_>| {
                frame = Pin::new(&mut *incoming).poll_frame(cx);
                if frame.is_ready() { Poll::Ready(()) } else { Poll::Pending }
            };
            ready!(carrier.carry(cx, &mut part));
        }
        if frame.is_pending() {
            // No connection is waited for: what is to come has come.
            frame = Pin::new(&mut *incoming).poll_frame(cx);
        }
        match &frame {
            // The end, also if it is an error: hyper knows what that means for the connection.
            Poll::Ready(None | Some(Err(_))) => drop(self.carrier.take().map(Carrier::release)),
            Poll::Ready(Some(Ok(_))) => self.release_at_end(),
            Poll::Pending => {}
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(BodyError::from)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Some(Source::Incoming(incoming)) => incoming.is_end_stream(),
            Some(Source::Fed(fed)) => fed.has_ended,
            None => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Some(Source::Incoming(incoming)) => incoming.size_hint(),
            Some(Source::Fed(_)) => SizeHint::new(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        // First the body: hyper sees by that that nobody wants the rest. It reads on if that is little, so that the
        // connection can be used again, and else closes it.
        self.source = None;
        if let Some(carrier) = self.carrier.take() {
            carrier.release();
        }
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}
