//! The log lines of a request, and the request id, which its client can quote.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Uri};
use hyper::body::Incoming;

use crate::http::body::Body;
use crate::http::header::X_REQUEST_ID;
use crate::http::route::Route;
use crate::proxy::error::Error;
use crate::proxy::upstream::Upstream;
use crate::telemetry::Described;

/// How many bytes of a request id are logged.
const LOGGED_ID_BYTES: usize = 128;

/// The fields of a request's log lines. Without the query, which may hold tokens.
pub(super) struct RequestLog {
    method: Method,
    uri: Uri,
    request_id: Option<HeaderValue>,
    pub(super) began: Instant,
    /// The upstream, and what it is to be asked, once they are known.
    selected: Option<(Arc<Upstream>, Uri)>,
}

impl RequestLog {
    pub(super) fn of(request: &Request<Incoming>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            request_id: request.headers().get(X_REQUEST_ID).cloned(),
            began: Instant::now(),
            selected: None,
        }
    }

    /// The same, of a request to this upstream.
    pub(super) fn selected(self, upstream: &Arc<Upstream>, target: &Uri) -> Self {
        Self { selected: Some((Arc::clone(upstream), target.clone())), ..self }
    }

    /// Logs a failure. `request_id` is for lines outside of `within_request`, which say it otherwise.
    pub(super) fn failure(&self, error: &Error, request_id: Option<&str>) {
        let (method, path) = (&self.method, self.uri.path());
        let causes = causes(error);
        if error.is_the_clients() {
            tracing::info!(%method, path, request_id, causes, "refused a request: {error}");
        } else {
            tracing::warn!(%method, path, request_id, causes, "a request failed: {error}");
        }
    }

    pub(super) fn answered(&self, response: &Response<Body>) {
        tracing::debug!(method = %self.method, path = self.uri.path(), status = response.status().as_u16(),
            duration_ms = self.began.elapsed().as_secs_f64() * 1e3,
            "answered");
    }

    /// The request id as it is logged.
    pub(super) fn request_id(&self) -> &str {
        shown_id(self.request_id.as_ref())
    }
}

/// A request id as it is logged: cut at the first character that could forge another field of the line, and at
/// [`LOGGED_ID_BYTES`].
pub(super) fn shown_id(id: Option<&HeaderValue>) -> &str {
    let id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
    let is_of_id = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:+/=@".contains(&byte);
    let end = id.bytes().take(LOGGED_ID_BYTES).take_while(|byte| is_of_id(*byte)).count();
    id.get(..end).unwrap_or_default()
}

impl Described for RequestLog {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("request_id", self.request_id().to_owned())];
        if let Some((upstream, target)) = &self.selected {
            fields.push(("upstream", upstream.name().to_string()));
            // Read once more, since hardly any request is logged.
            let route = Route::parse(&self.method, target.path());
            fields.extend(route.repository().map(|repository| ("repository", repository.to_string())));
        }
        fields
    }
}

/// The chain of sources behind an error, outermost first.
fn causes(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |cause| cause.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Makes request ids that differ between processes and between requests.
#[derive(Debug)]
pub(super) struct RequestIds {
    /// What all ids of this process begin with.
    process: String,
    count: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        use std::hash::BuildHasher as _;
        // The keys of `RandomState` are random. The process id alone is the same in most containers.
        let process = std::hash::RandomState::new().hash_one(std::process::id());
        Self { process: format!("{process:016x}-"), count: AtomicU64::new(0) }
    }
}

impl RequestIds {
    /// The id that a request came with, or a new one that it gets.
    pub(super) fn identify<B>(&self, request: &mut Request<B>) -> Option<HeaderValue> {
        // Kept, so that the logs of everyone on the way have the same id.
        if let Some(id) = request.headers().get(X_REQUEST_ID) {
            return Some(id.clone());
        }
        let mut count = itoa::Buffer::new();
        let count = count.format(self.count.fetch_add(1, Ordering::Relaxed));
        // Not by `format!`, which would take longer than all the rest of this.
        let id = HeaderValue::from_maybe_shared(Bytes::from([&self.process, count].concat())).ok()?;
        request.headers_mut().insert(X_REQUEST_ID, id.clone());
        Some(id)
    }
}
