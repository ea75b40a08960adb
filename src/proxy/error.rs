//! All errors of a request, and the one place that maps each to its status and OCI error body. An upstream's error
//! answer to a client's own request is not an error here: it is passed on.

mod attachment;
mod rejection;

use std::sync::Arc;

use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::http::body::{Body, BodyError};
use crate::http::framing::Ambiguity;
use crate::http::limits::Limit;
use crate::http::route::MalformedPath;
use crate::index::{ReadError, WriteError};
use crate::oci::{ErrorBody, ErrorCode};
use crate::proxy::upstream::UpstreamError;
use crate::queue::NotQueued;
use crate::telemetry::{QueryRefused, Stale};

pub use attachment::BadAttachment;
pub use rejection::Rejection;

/// Why refshim answers a request with an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path of a query is malformed.
    #[error(transparent)]
    Path(#[from] MalformedPath),
    /// A parameter of a query is malformed.
    #[error(transparent)]
    Query(#[from] BadQuery),
    /// What is to be attached, or a single reference, is not as it has to be.
    #[error(transparent)]
    Attachment(#[from] BadAttachment),
    /// The method is not allowed here; these are.
    #[error("only {0} are allowed here")]
    QueryMethod(&'static str),
    /// The request is ambiguous.
    #[error(transparent)]
    Ambiguous(#[from] Ambiguity),
    /// The request cannot be proxied.
    #[error("{0} cannot be proxied")]
    Method(http::Method),
    /// The tag whose references are asked for does not exist.
    #[error("the registry has no such tag")]
    TagUnknown,
    /// The client's body ended early.
    #[error("the request's body: {0}")]
    RequestBody(#[source] BodyError),
    /// The upstream gave no answer.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The upstream rejected one of refshim's own questions.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The upstream's answer to one of refshim's own questions decides nothing. A 200 without a manifest does not
    /// either: login pages have that status.
    #[error(
        "the registry answered {0} without a manifest, so it is not known whether the caller may read it"
    )]
    Undecided(StatusCode),
    /// The upstream's own list of referrers has too many pages.
    #[error("the registry's own list of referrers has more than {0} pages")]
    EndlessList(usize),
    /// The upstream's body ended early, cannot be decoded, or exceeds the limit for manifests.
    #[error("the registry's answer is incomplete, malformed or too long")]
    UpstreamBody,
    /// The links of a manifest could not be recorded. The client has to push again: with a 201, crane and cosign
    /// would ask the referrers API, take its 200 for success, and write no fallback tag, so the link would be lost.
    #[error("the references of this manifest could not be recorded, push it again: {0}")]
    Record(#[source] WriteError),
    /// The referrers tag that a push is to bring level could not be queued. The client has to push again.
    #[error("the referrers tag of this manifest cannot be written later, push it again: {0}")]
    Tag(#[source] NotQueued),
    /// The referrers listed by the upstream could not be recorded, so they cannot be listed either.
    #[error("the referrers listed by the registry could not be recorded: {0}")]
    Gather(#[source] WriteError),
    /// The index cannot be read now.
    #[error("the referrers of this manifest cannot be read now: {0}")]
    LookUp(#[source] ReadError),
    /// A concurrency limit is reached.
    #[error("{0}, try again later")]
    Limit(#[from] Limit),
    /// A question that several requests waited for failed (single flight).
    #[error(transparent)]
    Shared(#[from] Arc<Error>),
    /// A task ended before it answered (a bug in refshim).
    #[error("refshim failed to handle the request")]
    Handler,
}

/// Which parameter of a query is malformed, and how.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// `n` must be a positive number.
    #[error("n must be a whole number, at least 1")]
    Count,
    /// `last` does not come from a `Link` of refshim.
    #[error("last must be taken from a Link header of refshim")]
    Last,
    /// `beyond` does not come from a `Link` of this process.
    #[error("beyond must be taken from a Link header that refshim sent since it was started; begin again")]
    Beyond,
    /// `kind` is not a kind of link.
    #[error("kind must be one of reference, subject, parent, attestation, cosign, fallback")]
    Kind,
    /// `scope` is not a scope.
    #[error("scope must be repository or registry")]
    Scope,
    /// `inline` is neither `true` nor `false`.
    #[error("inline must be true or false")]
    Inline,
    /// `annotation` has no key.
    #[error("annotation must be key or key=value")]
    Annotation,
    /// `artifactType` or `mediaType` is empty.
    #[error("{0} must not be empty")]
    Empty(&'static str),
    /// A parameter is repeated with different values.
    #[error("{0} may be given only once")]
    Repeated(&'static str),
}

/// `Retry-After` of 429 and 503, in seconds.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("5");

impl Error {
    /// The error for a client's body that could not be read.
    #[must_use]
    pub fn request_body(error: BodyError) -> Self {
        match error {
            BodyError::Limit(limit) => Self::Limit(limit),
            BodyError::Broken(_) | BodyError::Idle(_) | BodyError::Slow(_) | BodyError::Abandoned => {
                Self::RequestBody(error)
            }
        }
    }

    fn status_and_code(&self) -> (StatusCode, ErrorCode) {
        match self {
            Self::Path(MalformedPath::Name(_)) => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
            Self::Path(MalformedPath::Manifest(crate::oci::InvalidTag::Tag)) => {
                (StatusCode::BAD_REQUEST, ErrorCode::TagInvalid)
            }
            Self::Path(
                MalformedPath::Manifest(crate::oci::InvalidTag::Digest(_)) | MalformedPath::Digest(_),
            ) => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
            Self::Query(BadQuery::Count) => (StatusCode::BAD_REQUEST, ErrorCode::PaginationNumberInvalid),
            Self::Query(_) | Self::Ambiguous(_) | Self::Upstream(UpstreamError::Target) => {
                (StatusCode::BAD_REQUEST, ErrorCode::Unsupported)
            }
            Self::QueryMethod(_) => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
            Self::Attachment(bad) => bad.status_and_code(),
            Self::Method(_) => (StatusCode::NOT_IMPLEMENTED, ErrorCode::Unsupported),
            Self::TagUnknown => (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown),
            Self::RequestBody(BodyError::Idle(_) | BodyError::Slow(_))
            | Self::Upstream(UpstreamError::RequestBodyIdle) => {
                (StatusCode::REQUEST_TIMEOUT, ErrorCode::SizeInvalid)
            }
            Self::RequestBody(BodyError::Broken(_) | BodyError::Abandoned)
            | Self::Upstream(UpstreamError::RequestBody(_)) => {
                (StatusCode::BAD_REQUEST, ErrorCode::SizeInvalid)
            }
            Self::Upstream(
                UpstreamError::Unreachable(_)
                | UpstreamError::Broken(_)
                | UpstreamError::Unprocessed(_)
                | UpstreamError::Framing(_)
                | UpstreamError::Redirect,
            )
            | Self::Undecided(_)
            | Self::EndlessList(_)
            | Self::UpstreamBody => (StatusCode::BAD_GATEWAY, ErrorCode::Unavailable),
            Self::Upstream(UpstreamError::Silent(_)) => (StatusCode::GATEWAY_TIMEOUT, ErrorCode::Unavailable),
            Self::Limit(Limit::RequestsPerClient) => {
                (StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests)
            }
            Self::Limit(_)
            | Self::RequestBody(BodyError::Limit(_))
            | Self::Record(_)
            | Self::Tag(_)
            | Self::Gather(_)
            | Self::LookUp(_) => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
            Self::Rejected(rejection) => (rejection.status(), ErrorCode::Unavailable),
            Self::Shared(error) => error.status_and_code(),
            Self::Handler => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown),
        }
    }

    /// The answer for the client.
    #[must_use]
    pub fn to_response(&self) -> Response<Body> {
        if let Self::Rejected(rejection) = self.root() {
            return rejection.to_response();
        }
        let (status, code) = self.status_and_code();
        let mut response = error_response(status, code, &self.to_string());
        if let Self::QueryMethod(allowed) = self {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        }
        if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&status) {
            response.headers_mut().insert(RETRY_AFTER, RETRY_SECONDS);
        }
        if matches!(self.root(), Self::Limit(Limit::Connections)) {
            // The connection is over the limit; a client that kept it would get 503 for ever.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The error itself, where several requests share it.
    #[must_use]
    pub fn root(&self) -> &Self {
        if let Self::Shared(error) = self { error.root() } else { self }
    }

    /// The status of its answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status_and_code().0
    }

    /// The status with which the upstream rejected a question, if it did.
    #[must_use]
    pub fn rejected(&self) -> Option<StatusCode> {
        if let Self::Rejected(rejection) = self.root() { Some(rejection.status()) } else { None }
    }

    /// Whether the upstream rejected this caller (401, 403).
    #[must_use]
    pub fn is_about_rights(&self) -> bool {
        matches!(self.root(), Self::Rejected(rejection) if rejection.is_about_rights())
    }

    /// Why an earlier answer may stand in for this error; `None` if it may not. It may where the error says only that
    /// the upstream cannot answer now: clients such as cosign read any failing list as "no signatures".
    #[must_use]
    pub fn stands_in(&self) -> Option<Stale> {
        match self.root() {
            Self::Rejected(rejection) if !rejection.is_about_rights() => Some(Stale::Throttled),
            Self::Limit(_) => Some(Stale::Throttled),
            Self::Undecided(status) if status.is_server_error() => Some(Stale::Failed),
            Self::UpstreamBody | Self::EndlessList(_) => Some(Stale::Failed),
            Self::Upstream(error) if !matches!(error, UpstreamError::Redirect | UpstreamError::Target) => {
                Some(Stale::Unreachable)
            }
            Self::Upstream(_)
            | Self::Rejected(_)
            | Self::Undecided(_)
            | Self::Path(_)
            | Self::Query(_)
            | Self::QueryMethod(_)
            | Self::Attachment(_)
            | Self::Ambiguous(_)
            | Self::Method(_)
            | Self::TagUnknown
            | Self::RequestBody(_)
            | Self::Record(_)
            | Self::Tag(_)
            | Self::Gather(_)
            | Self::LookUp(_)
            | Self::Shared(_)
            | Self::Handler => None,
        }
    }

    /// The label under which a failed query is counted.
    #[must_use]
    pub fn query_refused(&self) -> QueryRefused {
        match self.root() {
            Self::Rejected(rejection) => match rejection.status() {
                StatusCode::UNAUTHORIZED => QueryRefused::Unauthorized,
                StatusCode::FORBIDDEN => QueryRefused::Denied,
                StatusCode::TOO_MANY_REQUESTS => QueryRefused::Throttled,
                _ => QueryRefused::Unavailable,
            },
            Self::Undecided(status) if status.is_server_error() => QueryRefused::Unavailable,
            Self::Undecided(_) | Self::UpstreamBody | Self::EndlessList(_) | Self::Shared(_) => {
                QueryRefused::Undecided
            }
            Self::Upstream(UpstreamError::Silent(_)) => QueryRefused::Timeout,
            Self::Upstream(_) => QueryRefused::Unreachable,
            Self::Record(_) | Self::Tag(_) | Self::Gather(_) | Self::LookUp(_) | Self::Handler => {
                QueryRefused::Index
            }
            Self::Limit(_) => QueryRefused::Limit,
            Self::TagUnknown => QueryRefused::Unknown,
            Self::Path(_)
            | Self::Query(_)
            | Self::QueryMethod(_)
            | Self::Attachment(_)
            | Self::Ambiguous(_)
            | Self::Method(_)
            | Self::RequestBody(_) => QueryRefused::Malformed,
        }
    }

    /// Whether it is the client's fault (4xx).
    #[must_use]
    pub fn is_the_clients(&self) -> bool {
        self.status_and_code().0.is_client_error()
    }
}

/// An answer with an OCI error body.
#[must_use]
pub fn error_response(status: StatusCode, code: ErrorCode, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::whole(ErrorBody::new(code, message).to_json()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
