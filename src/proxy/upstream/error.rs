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
    #[error("the registry broke the connection off")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It did not process the request, and said so, or the connection broke before the request was sent.
    #[error("the registry did not take the request")]
    Unprocessed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Where its answer ends is not clear.
    #[error(transparent)]
    Framing(#[from] InvalidFraming),
    /// It accepted the request and said nothing.
    #[error("the registry did not answer within {0:?}")]
    Silent(Duration),
    /// The client's body ended early, so that the request could not be completed.
    #[error("the request's body broke off: {0}")]
    RequestBody(String),
    /// The client paused for too long within its body.
    #[error("the request's body paused for too long")]
    RequestBodyIdle,
    /// A redirect in answer to a question of refshim's own leads where it must not be followed to.
    #[error("the registry redirects to where refshim does not follow")]
    Redirect,
    /// Path and query cannot be those of a request to the upstream.
    #[error("the path cannot be asked of the registry")]
    Target,
}
