//! A write to the registry, and what its answer says.

use http::{Response, StatusCode};

use crate::http::body::Body;
use crate::index::Repository;
use crate::oci::Digest;
use crate::proxy::error::Error;
use crate::proxy::upstream::UpstreamError;
use crate::registry::{Registry, content_digest};

/// A write in progress. When it ends, what is cached of the repository expires, on drop so that cancellation does
/// it as well. Not if the registry rejected the write: a client without the right to write could otherwise keep the
/// cache empty.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    registry: &'a Registry,
    repository: &'a Repository,
    was_refused: bool,
}

impl<'a> Writing<'a> {
    /// To be called before the write is sent.
    pub(super) fn begin(registry: &'a Registry, repository: &'a Repository) -> Self {
        Self { registry, repository, was_refused: false }
    }

    /// What came of it.
    pub(super) fn ends(mut self, answer: &Result<Response<Body>, Error>) {
        self.was_refused = was_refused(answer);
    }
}

/// Whether the registry certainly did nothing: it rejected the write, or did not get it.
pub(super) fn was_refused(answer: &Result<Response<Body>, Error>) -> bool {
    match answer {
        Ok(response) => is_refusal(response.status()),
        Err(Error::Upstream(UpstreamError::Unreachable(_))) => true,
        Err(_) => false,
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.was_refused {
            self.registry.forget(self.repository);
        }
    }
}

/// Whether the registry rejected a write. A redirect is a rejection too: it leads to a login page.
pub(super) fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() || status.is_redirection()
}

/// Whether the registry accepted a manifest: 201 (distribution-spec, "Pushing Manifests"), or another 2xx with the
/// digest, as Quay answered for years. A 200 alone may be a login page.
pub(super) fn is_taken(response: &Response<Body>, pushed: &Digest) -> bool {
    let is_named = || content_digest(response.headers()).as_ref() == Some(pushed);
    response.status() == StatusCode::CREATED || (response.status().is_success() && is_named())
}
