//! Bodies held whole in memory, with their guards attached to the bytes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::streamed::discard;
use super::{Body, BodyError, Sender};
use crate::http::limits::{Limit, PushGuard, Pushes, RequestGuard};

/// The result of [`PushLimits::read`].
#[derive(Debug)]
pub enum Held {
    /// The whole body. It counts against the limit on pushes until the last clone of the bytes is dropped.
    Whole(Bytes),
    /// It exceeds the limit: the same body as a stream, from its first byte.
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

/// Attaches a guard to bytes, dropped with the last slice of them. So it lives until a connection has sent them,
/// however they were cut into frames and queued.
pub(super) fn kept_with<G: Send + 'static>(bytes: Bytes, guard: G) -> Bytes {
    Bytes::from_owner(Owner { bytes, _guard: guard })
}

/// Limits on reading a manifest that is pushed.
#[derive(Clone, Debug)]
pub struct PushLimits {
    /// The longest manifest that is held (`manifests.max_bytes`).
    pub bytes: usize,
    /// Idle time-out.
    pub idle: Duration,
    /// Time-out for the whole manifest, so that one who sends a byte a minute holds no memory for hours.
    pub whole: Duration,
    /// The limit on the bytes of all pushes together.
    pub pushes: Pushes,
}

impl PushLimits {
    /// Reads a client's body. It may be aborted in favour of another push when memory is short.
    ///
    /// # Errors
    /// The body breaks off, a time-out expires, or a limit is reached.
    pub async fn read(&self, mut incoming: Incoming, request: RequestGuard) -> Result<Held, BodyError> {
        let mut push = self.pushes.begin();
        let mut read = BytesMut::new();
        let ended = tokio::time::timeout(self.whole, self.fill(&mut read, &mut incoming, &mut push)).await;
        let is_whole = match ended.unwrap_or(Err(BodyError::Slow(self.whole))) {
            Ok(is_whole) => is_whole,
            Err(error) => {
                discard(incoming.into(), Some(request));
                return Err(error);
            }
        };
        let read = read.freeze();
        if is_whole {
            return Ok(Held::Whole(kept_with(read, push)));
        }
        let read_before = Some(read).filter(|read| !read.is_empty()).map(|read| kept_with(read, push));
        Ok(Held::Longer(Body::streamed(
            read_before,
            incoming.into(),
            self.idle,
            Sender::Client,
            Some(request),
        )))
    }

    /// Reads up to the limit; true if that was the whole body.
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
            // The frame that exceeds the limit is not counted: it is passed on at once, and counting it could
            // exceed the budget of all pushes.
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
