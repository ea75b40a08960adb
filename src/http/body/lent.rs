//! Gets a body back for a retry, after the HTTP client took it for a request that the upstream did not process. That
//! works as long as so little of it was taken that a copy could be kept.

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::sync::oneshot;

use super::streamed::Streamed;
use super::{Body, BodySource};

/// How much of a streamed body is copied for a retry: the initial window of HTTP/2 (RFC 9113, section 6.9.2), which
/// is sent before the upstream can refuse the stream.
const KEPT_BYTES: usize = 64 * 1024;

/// The handle by which the owner gets a lent body back.
#[derive(Debug)]
pub struct Lent(Hold);

#[derive(Debug)]
enum Hold {
    Whole(Option<Bytes>),
    Streamed(oneshot::Receiver<Streamed>),
}

/// Returns a streamed body to its owner, with a copy of what was taken of it.
#[derive(Debug)]
pub(super) struct WayHome {
    owner: oneshot::Sender<Streamed>,
    /// Copied, not cloned: each `Bytes`, even of one byte, would keep the whole read buffer alive.
    taken: BytesMut,
}

impl Body {
    /// Lends the body to whoever gets it next.
    pub fn lend(&mut self) -> Lent {
        Lent(match &mut self.source {
            BodySource::Whole(bytes) => Hold::Whole(bytes.clone()),
            BodySource::Streamed(streamed) => {
                let (owner, body) = oneshot::channel();
                streamed.way_home = Some(Box::new(WayHome { owner, taken: BytesMut::new() }));
                Hold::Streamed(body)
            }
        })
    }
}

impl Lent {
    /// Waits until the borrower has dropped the body; `None` if too much of it was taken.
    pub async fn back(self) -> Option<Body> {
        match self.0 {
            Hold::Whole(bytes) => Some(Body::from(BodySource::Whole(bytes))),
            Hold::Streamed(body) => {
                body.await.ok().map(|body| Body::from(BodySource::Streamed(Box::new(body))))
            }
        }
    }
}

impl WayHome {
    /// Copies a frame that is taken; false if the body can no longer be returned.
    pub(super) fn keep(&mut self, frame: &Frame<Bytes>) -> bool {
        let Some(data) = frame.data_ref() else { return false };
        if data.len() > KEPT_BYTES - self.taken.len() {
            return false;
        }
        self.taken.extend_from_slice(data);
        true
    }

    /// Returns a body to its owner, with what was taken put in front of the rest.
    pub(super) fn send(mut self, mut rest: Streamed) {
        // `read_before` is taken before anything of the connection, so it belongs behind what was taken.
        if !self.taken.is_empty() {
            self.taken.extend_from_slice(&rest.read_before.take().unwrap_or_default());
            rest.read_before = Some(self.taken.freeze());
        }
        // If the owner no longer wants it, it is dropped here, which reads the rest of it as any drop does.
        drop(self.owner.send(rest));
    }
}
