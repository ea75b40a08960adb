//! Why an upstream gave no answer.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::http::framing::InvalidFraming;

/// Why there is no answer of the upstream.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection could be made.
    #[error("the registry cannot be reached")]
    Unreachable(#[source] SharedError),
    /// The connection broke before an answer.
    #[error("the connection to the registry broke before it answered")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
    /// It said that it did not process the request, or the connection broke before the request was sent.
    #[error("the registry did not process the request")]
    Unprocessed(#[source] Box<dyn Error + Send + Sync>),
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

impl UpstreamError {
    /// Whether it says something about the upstream, and not about the client or the one request.
    pub(super) fn is_the_upstreams(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::Broken(_)
            | Self::Unprocessed(_)
            | Self::Framing(_)
            | Self::Silent(_) => true,
            Self::RequestBody(_) | Self::RequestBodyIdle | Self::Redirect | Self::Target => false,
        }
    }
}

/// An error of all who waited for the same connection.
#[derive(Clone, Debug)]
pub struct SharedError(Arc<dyn Error + Send + Sync>);

impl SharedError {
    pub(super) fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for SharedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}
