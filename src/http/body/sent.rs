//! What a client was sent of a body, told once when the body ends or is dropped.

use std::fmt;
use std::task::Poll;

use bytes::Bytes;
use http_body::Frame;

use super::BodyError;

/// What a client was sent of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes that the connection took. Of a connection that breaks, the last of them may not have been delivered.
    pub bytes: u64,
    /// Whether it was all of the body.
    pub is_whole: bool,
}

type Teller = Box<dyn FnOnce(Sent) + Send + Sync>;

/// Counts what is sent of a body.
pub(super) struct SentCount {
    sent: Sent,
    has_failed: bool,
    tell: Option<Teller>,
}

impl SentCount {
    pub(super) fn new(is_empty: bool, tell: Teller) -> Self {
        Self { sent: Sent { bytes: 0, is_whole: is_empty }, has_failed: false, tell: Some(tell) }
    }

    /// Counts a frame. `is_last` if nothing is left behind it: not every protocol asks for the end then.
    pub(super) fn count(&mut self, frame: &Poll<Option<Result<Frame<Bytes>, BodyError>>>, is_last: bool) {
        match frame {
            Poll::Pending => {}
            Poll::Ready(None) => self.sent.is_whole = !self.has_failed,
            Poll::Ready(Some(Ok(frame))) => {
                self.sent.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.sent.is_whole = is_last && !self.has_failed;
            }
            Poll::Ready(Some(Err(_))) => {
                self.has_failed = true;
                self.sent.is_whole = false;
            }
        }
    }
}

impl Drop for SentCount {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(self.sent);
        }
    }
}

impl fmt::Debug for SentCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentCount").field("sent", &self.sent).finish_non_exhaustive()
    }
}
