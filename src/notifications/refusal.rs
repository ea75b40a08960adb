//! Why a notification is refused, and what its sender is answered.

use http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

use super::{MOST_BYTES, MOST_EVENTS, text};
use crate::http::body::Body;
use crate::telemetry::Notified;

/// What a sender that is refused for now is told to wait, in seconds.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("5");
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"notifications\"");

/// Why a notification is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("only POST")]
    Method,
    #[error("not the credentials of this source")]
    Unauthorized,
    #[error("the credentials cannot be checked; refshim's log says why")]
    Unchecked,
    #[error("the body did not come in time")]
    Slow,
    #[error("the body broke off")]
    Broken,
    #[error("longer than {MOST_BYTES} bytes")]
    TooLong,
    #[error("{0} events at once are more than {MOST_EVENTS}")]
    TooMany(usize),
    #[error("{0}")]
    Malformed(String),
    #[error("too many events wait (notifications.queue)")]
    Full,
    #[error("the events cannot be written to disk; refshim's log says why")]
    NotWritten,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Unchecked => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLong | Self::TooMany(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Broken | Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Full | Self::NotWritten => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// What it is counted as; nothing for what says little about the sender.
    pub(super) fn counted(&self) -> Option<Notified> {
        match self {
            Self::Unauthorized => Some(Notified::Unauthorized),
            Self::TooLong | Self::TooMany(_) => Some(Notified::TooLong),
            Self::Malformed(_) => Some(Notified::Malformed),
            Self::Full => Some(Notified::Full),
            Self::NotWritten => Some(Notified::NotWritten),
            Self::Method | Self::Unchecked | Self::Slow | Self::Broken => None,
        }
    }

    pub(super) fn to_response(&self) -> Response<Body> {
        let status = self.status();
        let mut response = text(status, format!("{self}\n"));
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
        }
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_SECONDS);
        }
        response
    }
}
