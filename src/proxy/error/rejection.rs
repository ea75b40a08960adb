//! A rejection by the registry, passed on to the client of a query.

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::error_response;
use crate::http::body::Body;
use crate::oci::ErrorCode;

/// The registry rejected one of refshim's own questions with 401, 403, 429 or 503. The client gets its status and
/// header fields, so that login works (`WWW-Authenticate`) and retries wait (`Retry-After`); the body is refshim's
/// own, since the answer to a HEAD has none.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the registry answered {status} to this caller")]
pub struct Rejection {
    status: StatusCode,
    code: ErrorCode,
    headers: HeaderMap,
}

impl Rejection {
    /// The rejection in an answer, if it is one. `headers` must be without hop-by-hop fields.
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

    /// The ways to log in that the registry offers.
    pub fn challenges(&self) -> impl Iterator<Item = &HeaderValue> {
        self.headers.get_all(WWW_AUTHENTICATE).iter()
    }

    /// Whether it is about the rights of this caller (401, 403), not about load.
    #[must_use]
    pub fn is_about_rights(&self) -> bool {
        matches!(self.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
    }

    /// The answer for the client.
    #[must_use]
    pub(super) fn to_response(&self) -> Response<Body> {
        let mut response = error_response(self.status, self.code, &self.to_string());
        for (name, value) in &self.headers {
            response.headers_mut().append(name, value.clone());
        }
        response
    }
}
