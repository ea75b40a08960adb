//! Which requests may be retried. Not those that the upstream processed, or may have: a repeated PATCH would append
//! to an upload twice (distribution #2634). Those that it certainly did not process are, so that clients do not
//! notice how it ends its connections: nginx sends GOAWAY after `keepalive_requests`, and refuses the streams that
//! cross it (kaniko #1754; RFC 9113, sections 6.8 and 8.7).

use std::error::Error;
use std::time::Duration;

use http::{Method, Request};
use http_body::Body as _;

use super::UpstreamError;
use super::connection::Failure;
use crate::http::body::{Body, BodyError, Lent};

/// How often a request is retried. A registry that ends its connections after a few requests refuses, of many that
/// arrive at once, all but these few each time; so one request may be refused several times in a row.
pub(super) const RESENDS: u32 = 16;

/// The pause before the next attempt: none at first, when a new connection is all that is needed; then increasing,
/// for an upstream that refuses because it is overloaded.
pub(super) fn pause_before(sent: u32) -> Duration {
    match sent {
        0..4 => Duration::ZERO,
        4.. => Duration::from_millis(5 << (sent - 4).min(4)),
    }
}

/// A request kept for a retry.
pub(super) struct Again {
    head: Request<()>,
    body: Lent,
    has_body: bool,
}

impl Again {
    /// Keeps what is needed of a request that is about to be sent.
    pub(super) fn of(request: &mut Request<Body>) -> Self {
        let mut head = Request::new(());
        head.method_mut().clone_from(request.method());
        head.uri_mut().clone_from(request.uri());
        *head.version_mut() = request.version();
        head.headers_mut().clone_from(request.headers());
        // Without extensions: the client's side of an upgrade can be used once only and stays with the first attempt.
        let has_body = !request.body().is_end_stream();
        Self { head, body: request.body_mut().lend(), has_body }
    }

    /// Whether the request is safe (RFC 9110, section 9.2.1), so that the upstream may get it twice.
    pub(super) fn is_without_consequences(&self) -> bool {
        let is_safe = *self.head.method() == Method::GET || *self.head.method() == Method::HEAD;
        is_safe && !self.has_body
    }

    /// The request for a retry; `None` if its body cannot be had back.
    pub(super) async fn request(self) -> Option<Request<Body>> {
        let body = self.body.back().await?;
        Some(self.head.map(|()| body))
    }
}

/// Whether the head alone makes the upstream act: there is no body, and the method is not safe.
pub(super) fn is_done_by_its_head(request: &Request<Body>) -> bool {
    let is_safe = *request.method() == Method::GET || *request.method() == Method::HEAD;
    !is_safe && request.body().is_end_stream()
}

/// Says what became of a request. Whether it [is done by its head](is_done_by_its_head) matters, because then a head
/// that may have been sent counts as processed.
pub(super) fn classify(failure: Failure, is_done_by_its_head: bool) -> UpstreamError {
    let (error, is_http2, is_unsent) = match failure {
        Failure::Connect(error) => return UpstreamError::Unreachable(error),
        Failure::Exchange { error, is_http2, is_unsent, .. } => (error, is_http2, is_unsent),
    };
    let mut next: Option<&(dyn Error + 'static)> = Some(&*error);
    let mut is_unprocessed = is_unsent;
    while let Some(cause) = next {
        match cause.downcast_ref::<BodyError>() {
            Some(BodyError::Idle(_)) => return UpstreamError::RequestBodyIdle,
            Some(
                broken @ (BodyError::Broken(_)
                | BodyError::Slow(_)
                | BodyError::Abandoned
                | BodyError::Limit(_)),
            ) => {
                return UpstreamError::RequestBody(broken.to_string());
            }
            None => {}
        }
        let was_never_sent = |error| was_never_sent(error, is_http2 && !is_done_by_its_head);
        is_unprocessed |= cause.downcast_ref::<hyper::Error>().is_some_and(was_never_sent);
        is_unprocessed |= cause.downcast_ref::<h2::Error>().is_some_and(was_refused);
        next = cause.source();
    }
    if is_unprocessed { UpstreamError::Unprocessed(error) } else { UpstreamError::Broken(error) }
}

/// Whether the connection ended while the request was queued. If it was queued because the upstream allows no more
/// HTTP/2 streams, hyper reports a user error instead; h2 may then still send the head, followed by a reset and
/// without body.
fn was_never_sent(error: &hyper::Error, only_its_head_may_be: bool) -> bool {
    error.is_canceled() || (only_its_head_may_be && error.is_user())
}

/// Whether the upstream said that it did not process the stream: by a GOAWAY, which h2 reports only to streams after
/// the last processed one (RFC 9113, section 6.8), or by `REFUSED_STREAM` (section 8.7).
fn was_refused(error: &h2::Error) -> bool {
    let is_refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || is_refused)
}
