//! A refusal of the registry that a query passes on.

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderMap, Response, StatusCode};

use super::error_response;
use crate::http::body::Body;
use crate::oci::ErrorCode;

/// The registry refused one of refshim's own questions: log in, no right, too many requests, not now. The
/// client gets its status and header, the challenge above all, with a body of refshim's own, since the answer
/// to a HEAD has none.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the registry answered {status} to this caller")]
pub struct Rejection {
    status: StatusCode,
    code: ErrorCode,
    headers: HeaderMap,
}

impl Rejection {
    /// What this answer refuses, if it does; its header without hop-by-hop fields.
    #[must_use]
    pub fn of(status: StatusCode, mut headers: HeaderMap) -> Option<Self> {
        let code = match status {
            StatusCode::UNAUTHORIZED => ErrorCode::Unauthorized,
            StatusCode::FORBIDDEN => ErrorCode::Denied,
            StatusCode::TOO_MANY_REQUESTS => ErrorCode::TooManyRequests,
            StatusCode::SERVICE_UNAVAILABLE => ErrorCode::Unavailable,
            _ => return None,
        };
        for name in [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING, TRANSFER_ENCODING] {
            headers.remove(name);
        }
        Some(Self { status, code, headers })
    }

    /// The registry's status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Whether it says that this caller may not, rather than that nobody can now.
    #[must_use]
    pub fn is_about_rights(&self) -> bool {
        matches!(self.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
    }

    /// The answer that the client gets.
    #[must_use]
    pub(super) fn to_response(&self) -> Response<Body> {
        let mut response = error_response(self.status, self.code, &self.to_string());
        for (name, value) in &self.headers {
            response.headers_mut().append(name, value.clone());
        }
        response
    }
}
