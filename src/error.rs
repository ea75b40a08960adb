//! Everything that can go wrong with a request, and the one place that gives each its status and its
//! OCI error body. An answer of the upstream is never an error here: it is passed on.

use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::body::{Body, BodyError};
use crate::framing::Ambiguity;
use crate::index::{ReadError, WriteError};
use crate::limits::Limit;
use crate::oci::{ErrorBody, ErrorCode};
use crate::route::MalformedPath;
use crate::upstream::UpstreamError;

/// Why a request is answered by refshim with an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path of a query is malformed.
    #[error(transparent)]
    Path(#[from] MalformedPath),
    /// A parameter of a query is malformed.
    #[error(transparent)]
    Query(#[from] BadQuery),
    /// The method does not go with a query.
    #[error("only GET and HEAD are possible here")]
    QueryMethod,
    /// The request can be read in two ways.
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
    /// The upstream's answer to a question of refshim's own says neither yes nor no.
    #[error("the registry answered {0} where refshim had to know whether a manifest is there")]
    Undecided(StatusCode),
    /// The upstream's body ended early, or was longer than a manifest may be.
    #[error("the registry's answer could not be read whole")]
    UpstreamBody,
    /// The links of a manifest could not be recorded; the push can be repeated.
    #[error("the references of this manifest could not be recorded, push it again: {0}")]
    Record(#[source] WriteError),
    /// What the upstream lists could not be recorded, so that it cannot be listed either.
    #[error("what the registry itself lists could not be recorded: {0}")]
    Gather(#[source] WriteError),
    /// The index cannot be read now.
    #[error("what refers to this manifest cannot be looked up now: {0}")]
    LookUp(#[source] ReadError),
    /// There is too much at once.
    #[error("{0}, try again later")]
    Limit(#[from] Limit),
    /// Something that handles requests ended before it answered.
    #[error("refshim failed to handle the request")]
    Handler,
}

/// Which parameter of a query is malformed, and how.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// `n` must be a positive number.
    #[error("n must be a whole number from 1 on")]
    Count,
    /// `last` does not come from a `Link` of refshim.
    #[error("last is not one that refshim gave in a Link header")]
    Last,
    /// `beyond` does not come from a `Link` of this process.
    #[error("beyond is not one that refshim gave in a Link header since it was started; begin again")]
    Beyond,
    /// `kind` names none.
    #[error("kind must be one of reference, subject, parent, attestation, cosign, fallback")]
    Kind,
    /// `scope` names none.
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
    /// Two different values where one is due.
    #[error("{0} may be given once")]
    Repeated(&'static str),
}

/// Seconds after which a client may try again what failed for want of the index, or of room.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("5");

impl Error {
    /// A body of a client that could not be read.
    #[must_use]
    pub fn request_body(error: BodyError) -> Self {
        match error {
            BodyError::Limit(limit) => Self::Limit(limit),
            BodyError::Broken(_) | BodyError::Idle(_) | BodyError::Slow(_) => Self::RequestBody(error),
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
            Self::QueryMethod => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
            Self::Method(_) => (StatusCode::NOT_IMPLEMENTED, ErrorCode::Unsupported),
            Self::TagUnknown => (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown),
            Self::RequestBody(BodyError::Idle(_) | BodyError::Slow(_))
            | Self::Upstream(UpstreamError::RequestBodyIdle) => {
                (StatusCode::REQUEST_TIMEOUT, ErrorCode::SizeInvalid)
            }
            Self::RequestBody(BodyError::Broken(_)) | Self::Upstream(UpstreamError::RequestBody(_)) => {
                (StatusCode::BAD_REQUEST, ErrorCode::SizeInvalid)
            }
            Self::Upstream(UpstreamError::Unreachable(_) | UpstreamError::Broken(_))
            | Self::Undecided(_)
            | Self::UpstreamBody => (StatusCode::BAD_GATEWAY, ErrorCode::Unavailable),
            Self::Upstream(UpstreamError::Silent(_)) => (StatusCode::GATEWAY_TIMEOUT, ErrorCode::Unavailable),
            Self::Limit(Limit::RequestsPerClient) => {
                (StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests)
            }
            Self::Limit(_)
            | Self::RequestBody(BodyError::Limit(_))
            | Self::Record(_)
            | Self::Gather(_)
            | Self::LookUp(_) => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
            Self::Handler => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown),
        }
    }

    /// The answer that the client gets.
    #[must_use]
    pub fn to_response(&self) -> Response<Body> {
        let (status, code) = self.status_and_code();
        let mut response = error_response(status, code, &self.to_string());
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&status) {
            response.headers_mut().insert(RETRY_AFTER, RETRY_SECONDS);
        }
        if matches!(self, Self::Limit(Limit::Connections)) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Whether the client itself could have avoided it.
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
