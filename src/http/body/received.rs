//! A body as it comes from a peer. That of an answer by HTTP/1.1 has its connection with it: whoever reads the body moves
//! the connection on. A connection with a task of its own would cost two more tasks to wake and two channels to pass for
//! each request.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

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
    incoming: Option<Incoming>,
    /// Until the body's end.
    carrier: Option<Box<dyn Carrier>>,
}

impl Received {
    /// The body of an answer that comes by this connection.
    #[must_use]
    pub fn by(carrier: Box<dyn Carrier>, incoming: Incoming) -> Self {
        let mut body = Self { incoming: Some(incoming), carrier: Some(carrier) };
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
        Self { incoming: Some(incoming), carrier: None }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { incoming: Some(incoming), carrier } = &mut *self else { return Poll::Ready(None) };
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
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        // First the body: hyper sees by that that nobody wants the rest. It reads on if that is little, so that the
        // connection can be used again, and else closes it.
        self.incoming = None;
        if let Some(carrier) = self.carrier.take() {
            carrier.release();
        }
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Received").field(&self.incoming).finish()
    }
}
