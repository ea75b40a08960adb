//! A body that can be had back from whoever it was given to, for a request that turns out not to have been
//! processed: as long as what was taken of it is little enough to be kept meanwhile.

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::sync::oneshot;

use super::streamed::Streamed;
use super::{Body, BodySource};

/// How much of a streamed body is kept until it has passed for good: what an HTTP/2 upstream takes before it was
/// asked whether it wants any (RFC 9113, section 6.9.2).
const KEPT_BYTES: usize = 64 * 1024;

/// The owner's hold on a body that was given away.
#[derive(Debug)]
pub struct Lent(Hold);

#[derive(Debug)]
enum Hold {
    Whole(Option<Bytes>),
    Streamed(oneshot::Receiver<Streamed>),
}

/// How a streamed body comes back, and what was taken of it.
#[derive(Debug)]
pub(super) struct WayHome {
    owner: oneshot::Sender<Streamed>,
    /// A copy: each piece, be it of one byte, would hold on to the whole buffer that it was read into.
    taken: BytesMut,
}

impl Body {
    /// Makes it possible to have the body back.
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
    /// The body as it was, once whoever had it has dropped it; none if too much was taken of it.
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
    /// Keeps what is taken; whether the body can still come back.
    pub(super) fn keep(&mut self, frame: &Frame<Bytes>) -> bool {
        let Some(data) = frame.data_ref() else { return false };
        if data.len() > KEPT_BYTES - self.taken.len() {
            return false;
        }
        self.taken.extend_from_slice(data);
        true
    }

    /// Hands the rest of a body over to its owner, with what was taken in front of it.
    pub(super) fn send(mut self, mut rest: Streamed) {
        // What was read before is taken first: as long as it was not, nothing else was.
        if !self.taken.is_empty() {
            self.taken.extend_from_slice(&rest.read_before.take().unwrap_or_default());
            rest.read_before = Some(self.taken.freeze());
        }
        // An owner who does not want it any more lets it go, as whoever had it would have.
        drop(self.owner.send(rest));
    }
}
