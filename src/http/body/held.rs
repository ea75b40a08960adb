//! Bodies that are held whole, each with what counts it: the bytes and their guards go together.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::streamed::discard;
use super::{Body, BodyError, Sender};
use crate::http::limits::{Limit, PushGuard, Pushes, RequestGuard};

/// What [`PushLimits::read`] found.
#[derive(Debug)]
pub enum Held {
    /// All of it. The bytes count among the pushes until the last of them is gone.
    Whole(Bytes),
    /// More than the limit: the same body, nothing lost of it.
    Longer(Body),
}

struct Owner<G> {
    bytes: Bytes,
    _guard: G,
}

impl<G> AsRef<[u8]> for Owner<G> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The same bytes, which keep `guard` until the last part of them is dropped: when a connection has sent them,
/// however it was cut into frames and queued before.
pub(super) fn kept_with<G: Send + 'static>(bytes: Bytes, guard: G) -> Bytes {
    Bytes::from_owner(Owner { bytes, _guard: guard })
}

/// How a manifest is read while it is pushed.
#[derive(Clone, Debug)]
pub struct PushLimits {
    /// How long one may be that is held.
    pub bytes: usize,
    /// The longest pause.
    pub idle: Duration,
    /// The longest time for all of it.
    pub whole: Duration,
    /// What is held of all of them.
    pub pushes: Pushes,
}

impl PushLimits {
    /// Reads a client's body. It gives way to other pushes when there is no room for all.
    ///
    /// # Errors
    /// The body breaks off, is too slow, or there is no room for it.
    pub async fn read(&self, mut incoming: Incoming, request: RequestGuard) -> Result<Held, BodyError> {
        let mut push = self.pushes.begin();
        let mut read = BytesMut::new();
        let ended = tokio::time::timeout(self.whole, self.fill(&mut read, &mut incoming, &mut push)).await;
        let is_whole = match ended.unwrap_or(Err(BodyError::Slow(self.whole))) {
            Ok(is_whole) => is_whole,
            Err(error) => {
                discard(incoming, Some(request));
                return Err(error);
            }
        };
        let read = read.freeze();
        if is_whole {
            return Ok(Held::Whole(kept_with(read, push)));
        }
        let read_before = Some(read).filter(|read| !read.is_empty()).map(|read| kept_with(read, push));
        Ok(Held::Longer(Body::streamed(read_before, incoming, self.idle, Sender::Client, Some(request))))
    }

    /// Whether all of the body was read, or else that it is longer than what is held.
    async fn fill(
        &self,
        read: &mut BytesMut,
        incoming: &mut Incoming,
        push: &mut PushGuard,
    ) -> Result<bool, BodyError> {
        while incoming.size_hint().lower() <= self.bytes.saturating_sub(read.len()) as u64 {
            let next = tokio::select! {
                biased;
                () = push.gives_way() => return Err(Limit::ManifestBytes.into()),
                next = tokio::time::timeout(self.idle, incoming.frame()) => next,
            };
            let Some(frame) = next.map_err(|_| BodyError::Idle(self.idle))? else {
                push.finish()?;
                return Ok(true);
            };
            let Ok(data) = frame?.into_data() else { continue };
            let is_longer = data.len() > self.bytes.saturating_sub(read.len());
            // What shows that it is longer goes on at once; counted, it might be more than is ever held.
            if !is_longer {
                push.grow(data.len())?;
            }
            read.extend_from_slice(&data);
            if is_longer {
                break;
            }
        }
        push.finish()?;
        Ok(false)
    }
}
