//! What may be sent again. A request that the upstream processed, or may have, is not: it could be an upload
//! that goes on at another place than the client thinks. What it certainly did not process is, so that its
//! client does not notice how the upstream ends its connections.

use std::error::Error as _;
use std::time::Duration;

use http::{Method, Request};
use http_body::Body as _;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::Connected;

use super::UpstreamError;
use crate::http::body::{Body, BodyError, Lent};

/// How often a request is sent again. A registry that ends its connections after a few requests refuses, of many
/// that come at once, all but these few each time.
pub(super) const RESENDS: u32 = 16;

/// The pause before a request is sent for the `sent + 1`st time: none at first, as a new connection is all that is
/// needed; then longer, for an upstream that refuses for want of room.
pub(super) fn pause_before(sent: u32) -> Duration {
    match sent {
        0..4 => Duration::ZERO,
        4.. => Duration::from_millis(5 << (sent - 4).min(4)),
    }
}

/// What it takes to send a request again.
pub(super) struct Again {
    head: Request<()>,
    body: Lent,
    has_body: bool,
}

impl Again {
    /// Before the request is sent.
    pub(super) fn of(request: &mut Request<Body>) -> Self {
        let mut head = Request::new(());
        head.method_mut().clone_from(request.method());
        head.uri_mut().clone_from(request.uri());
        *head.version_mut() = request.version();
        head.headers_mut().clone_from(request.headers());
        // The client's side of a connection that is to be switched to another protocol stays with the client's
        // request; nothing else there is the upstream's.
        let has_body = !request.body().is_end_stream();
        Self { head, body: request.body_mut().lend(), has_body }
    }

    /// Whether it makes no difference if the upstream sees the request twice.
    pub(super) fn is_without_consequences(&self) -> bool {
        let is_safe = *self.head.method() == Method::GET || *self.head.method() == Method::HEAD;
        is_safe && !self.has_body
    }

    /// The request once more, if its body came back.
    pub(super) async fn request(self) -> Option<Request<Body>> {
        let body = self.body.back().await?;
        Some(self.head.map(|()| body))
    }
}

/// Whether a request is sent whole with its head, and has consequences.
pub(super) fn is_done_by_its_head(request: &Request<Body>) -> bool {
    let is_safe = *request.method() == Method::GET || *request.method() == Method::HEAD;
    !is_safe && request.body().is_end_stream()
}

/// What an error of the client means, by whether the request [is done by its head](is_done_by_its_head).
pub(super) fn classify(
    error: legacy::Error,
    is_always_http2: bool,
    is_done_by_its_head: bool,
) -> UpstreamError {
    if error.is_connect() {
        return UpstreamError::Unreachable(error);
    }
    let is_http2 = is_always_http2 || error.connect_info().is_some_and(Connected::is_negotiated_h2);
    let mut source = error.source();
    let mut is_unprocessed = false;
    while let Some(cause) = source {
        match cause.downcast_ref::<BodyError>() {
            Some(BodyError::Idle(_)) => return UpstreamError::RequestBodyIdle,
            Some(broken @ (BodyError::Broken(_) | BodyError::Slow(_) | BodyError::Limit(_))) => {
                return UpstreamError::RequestBody(broken.to_string());
            }
            None => {}
        }
        let was_never_sent = |error| was_never_sent(error, is_http2 && !is_done_by_its_head);
        is_unprocessed |= cause.downcast_ref::<hyper::Error>().is_some_and(was_never_sent);
        is_unprocessed |= cause.downcast_ref::<h2::Error>().is_some_and(was_refused);
        source = cause.source();
    }
    if is_unprocessed {
        UpstreamError::Unprocessed(error.into())
    } else {
        UpstreamError::Broken(error.into())
    }
}

/// Whether a connection ended while the request waited for its turn. In HTTP/2, hyper calls it a mistake of its
/// user if that was because the upstream allows no more streams: then h2 may still send the head, without the body
/// and with a reset behind it.
fn was_never_sent(error: &hyper::Error, only_its_head_may_be: bool) -> bool {
    error.is_canceled() || (only_its_head_may_be && error.is_user())
}

/// Whether the upstream says that it did not process a stream: a GOAWAY, which h2 tells only to streams beyond its
/// last (RFC 9113, section 6.8), or `REFUSED_STREAM` (section 8.7).
fn was_refused(error: &h2::Error) -> bool {
    let is_refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || is_refused)
}
