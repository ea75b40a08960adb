//! Why an upstream gave no answer.

use std::time::Duration;

use crate::http::framing::InvalidFraming;

/// Why there is no answer of the upstream.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection could be made.
    #[error("the registry cannot be reached")]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    /// The connection broke before an answer.
    #[error("the connection to the registry broke before it answered")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It said that it did not process the request, or the connection broke before the request was sent.
    #[error("the registry did not process the request")]
    Unprocessed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The end of its answer is not clear.
    #[error(transparent)]
    Framing(#[from] InvalidFraming),
    /// It did not answer within `timeouts.response`.
    #[error("the registry did not answer within {0:?}")]
    Silent(Duration),
    /// The client's body ended early.
    #[error("the request's body broke off: {0}")]
    RequestBody(String),
    /// The idle time-out of the client's body expired.
    #[error("the request's body paused for too long")]
    RequestBodyIdle,
    /// A redirect of one of refshim's own questions is not allowed.
    #[error("the registry redirects to an address that refshim does not follow")]
    Redirect,
    /// Path and query are not valid at the upstream.
    #[error("the path is not valid at the registry")]
    Target,
}
