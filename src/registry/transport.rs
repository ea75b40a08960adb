//! Sends one question and reads its answer: the caller's headers, redirects, the body up to its limit.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, LOCATION, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};

use super::{Answer, Caller, Registry};
use crate::http::body::{Body, Received};
use crate::http::limits::BudgetGuard;
use crate::http::{link, route};
use crate::oci::{Digest, RepositoryName, TagOrDigest};
use crate::proxy::error::{Error, Rejection};
use crate::proxy::forward::strip_hop_by_hop;
use crate::proxy::upstream::{UpstreamError, question as request_of};

/// Redirects that a question follows in a row. Manifests are served by redirect from elsewhere by GitLab's virtual
/// registry and registry.k8s.io.
const REDIRECTS: usize = 3;
const ACCESS_CONTROL: &str = "access-control-";

/// Marks an answer of another host than the registry's.
#[derive(Clone, Copy, Debug)]
struct Elsewhere;

impl Registry {
    /// The answer to a GET, after redirects. Credentials do not go to another host, and no redirect leads from https
    /// to http or from a public address to a private one; [`Upstream::follow`] sees to that.
    ///
    /// [`Upstream::follow`]: crate::proxy::upstream::Upstream::follow
    pub(super) async fn get(
        &self,
        uri: Uri,
        caller: &Caller,
        accept: &'static str,
    ) -> Result<Response<Received>, Error> {
        let mut from = self.upstream.absolute(&uri)?;
        let mut response = self.send(Method::GET, uri, caller, accept).await?;
        for _ in 0..REDIRECTS {
            let Some(location) = redirect_of(&response, &from) else { break };
            // A registry may build its redirects from X-Forwarded-Host, which a client can set. Following one
            // there would let the client choose who answers for the registry, and so whom to grant access.
            if caller.told_host(&location) {
                break;
            }
            let mut headers = caller.headers.clone();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            // The slot of limits.questions is held until the last answer of the redirects is read.
            let guard = response.extensions_mut().remove::<Arc<BudgetGuard>>();
            response = match self.upstream.follow(&from, location.clone(), &headers).await {
                Ok(response) => response,
                // A forbidden redirect is an odd answer itself, not a failure.
                Err(UpstreamError::Redirect) => break,
                Err(error) => return Err(error.into()),
            };
            response.extensions_mut().extend(guard.map(with_guard).unwrap_or_default());
            from = location;
        }
        if from.authority() != Some(self.upstream.authority()) {
            response.extensions_mut().insert(Elsewhere);
        }
        Ok(response)
    }

    /// Sends one request. Its slot of limits.questions is freed when the response is dropped.
    pub(super) async fn send(
        &self,
        method: Method,
        uri: Uri,
        caller: &Caller,
        accept: &'static str,
    ) -> Result<Response<Received>, Error> {
        let mut request = request_of(method, uri);
        request.headers_mut().clone_from(&caller.headers);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(accept));
        let guard = self.questions.wait_for_one(self.patience).await?;
        let mut response = self.upstream.send(request).await?;
        self.note_access_control(caller, response.headers());
        response.extensions_mut().insert(Arc::new(guard));
        Ok(response)
    }

    /// Reads a response whole, up to `manifests.max_bytes`.
    pub(super) async fn whole(&self, response: Response<Received>) -> Result<(HeaderMap, Bytes), Error> {
        // `head` holds the slot of limits.questions until the body is read.
        let (head, body) = response.into_parts();
        let body = Body::from_upstream(body, self.upstream.body_idle());
        let whole = Limited::new(body, self.manifest_limit).collect().await;
        Ok((head.headers, whole.map_err(|_| Error::UpstreamBody)?.to_bytes()))
    }

    fn note_access_control(&self, caller: &Caller, headers: &HeaderMap) {
        let is_one = |name: &HeaderName| name.as_str().starts_with(ACCESS_CONTROL);
        if !headers.keys().any(is_one) {
            return;
        }
        let kept = headers.iter().filter(|(name, _)| is_one(name) || **name == VARY);
        let kept = kept.fold(HeaderMap::new(), |mut kept, (name, value)| {
            kept.append(name, value.clone());
            kept
        });
        self.memory.set_access_control(caller, kept);
    }
}

/// A rejection (401, 403, 429, 503) to be passed to the client, else an odd answer.
pub(super) fn refused<T>(response: Response<Received>) -> Result<Answer<T>, Error> {
    let (head, _body) = response.into_parts();
    let is_about_rights = matches!(head.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    if is_about_rights && head.extensions.get::<Elsewhere>().is_some() {
        // Its challenge would name the token service that gets the password for the registry.
        return Ok(Answer::Odd(head.status));
    }
    let mut headers = head.headers;
    strip_hop_by_hop(&mut headers);
    Rejection::of(head.status, headers).map_or(Ok(Answer::Odd(head.status)), |refused| Err(refused.into()))
}

/// The target of a redirect.
fn redirect_of(response: &Response<Received>, from: &Uri) -> Option<Uri> {
    use StatusCode as S;
    let redirects =
        [S::MOVED_PERMANENTLY, S::FOUND, S::SEE_OTHER, S::TEMPORARY_REDIRECT, S::PERMANENT_REDIRECT];
    if !redirects.contains(&response.status()) {
        return None;
    }
    link::resolved(response.headers().get(LOCATION)?.to_str().ok()?, from)
}

/// The URI of a manifest. An error rather than a fallback if it cannot be built: the answer decides who may see
/// what.
pub(super) fn manifest_uri(
    repository: &RepositoryName,
    manifest: &TagOrDigest,
    caller: &Caller,
) -> Result<Uri, Error> {
    own_uri(route::manifest_path(repository, manifest), caller)
}

/// The URI of the registry's own referrers API (distribution-spec, "Listing Referrers").
pub(super) fn referrers_uri(
    repository: &RepositoryName,
    subject: &Digest,
    caller: &Caller,
) -> Result<Uri, Error> {
    own_uri(route::referrers_path(repository, subject), caller)
}

fn with_guard(guard: Arc<BudgetGuard>) -> http::Extensions {
    let mut extensions = http::Extensions::new();
    extensions.insert(guard);
    extensions
}

fn own_uri(path: String, caller: &Caller) -> Result<Uri, Error> {
    let uri = match &caller.namespace {
        None => path,
        Some(namespace) => [&path, "?", namespace].concat(),
    };
    Uri::try_from(uri).map_err(|_| Error::Handler)
}
