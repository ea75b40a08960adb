//! Requests a manifest: HEAD first, then GET where the answer to HEAD decides nothing. Some proxies block HEAD (405,
//! a 404, or a closed connection), and some registries answer HEAD with 500 or without a digest.

use std::sync::Arc;

use http::{Method, StatusCode};

use super::memory::Epoch;
use super::question::CallerKey;
use super::transport::{manifest_uri, refused};
use super::{Answer, Caller, FoundManifest, Registry, Visit, answer};
use crate::oci::{RepositoryName, TagOrDigest, media_type};
use crate::proxy::error::Error;
use crate::proxy::upstream::UpstreamError;

/// The key of a question: identical ones share one request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    epoch: Epoch,
    caller: CallerKey,
    manifest: TagOrDigest,
    need: Need,
}

/// What a question wants of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Need {
    /// Whether it exists, and its digest.
    Existence,
    /// Its bytes.
    Bytes,
}

impl Registry {
    /// Asks for a manifest, sharing the request with everybody who asks the same at this moment.
    pub(super) async fn shared(
        self: &Arc<Self>,
        visit: &Visit,
        manifest: &TagOrDigest,
        need: Need,
    ) -> Result<Answer<FoundManifest>, Error> {
        let (epoch, caller) = (visit.epoch, visit.caller.key);
        let asked = Asked { epoch, caller, manifest: manifest.clone(), need };
        let question = || {
            let (registry, visit, manifest) = (Arc::clone(self), visit.clone(), manifest.clone());
            async move { registry.ask(&visit, &manifest, need).await }
        };
        self.flights.join(asked, question).await
    }

    async fn ask(
        &self,
        visit: &Visit,
        manifest: &TagOrDigest,
        need: Need,
    ) -> Result<Answer<FoundManifest>, Error> {
        let Visit { caller, repository, epoch, .. } = visit;
        let repository = &repository.name;
        let by_head = match need {
            Need::Existence => self.ask_by_head(caller, repository, manifest).await?,
            Need::Bytes => None,
        };
        let answer = match by_head {
            Some(answer) => answer,
            None => self.ask_by_get(caller, repository, manifest).await?,
        };
        if matches!(answer, Answer::Present(FoundManifest { is_proof: true, .. })) {
            self.memory.set_readable(*epoch, caller);
        }
        Ok(answer)
    }

    /// The answer to a HEAD; none if only a GET can decide.
    async fn ask_by_head(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        manifest: &TagOrDigest,
    ) -> Result<Option<Answer<FoundManifest>>, Error> {
        let uri = manifest_uri(repository, manifest, caller)?;
        let response = self.send(Method::HEAD, uri, caller, media_type::ACCEPT_EVERY_MANIFEST).await;
        let response = match response {
            Ok(response) => response,
            // Some proxies close the connection on a HEAD.
            Err(Error::Upstream(UpstreamError::Broken(_))) => return Ok(None),
            Err(error) => return Err(error),
        };
        match response.status() {
            StatusCode::OK => {
                let found = answer::of_head(manifest, response.headers());
                if found.is_some() {
                    self.memory.trust_head();
                }
                Ok(found.map(Answer::Present))
            }
            // These do not depend on the method: a GET would be answered alike.
            StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                refused(response).map(Some)
            }
            // A proxy that blocks HEAD answers 403 or 404 to it. Both count only from a registry that was seen to
            // answer HEAD properly.
            StatusCode::FORBIDDEN if self.memory.trusts_head() => refused(response).map(Some),
            StatusCode::NOT_FOUND if self.memory.trusts_head() => Ok(Some(Answer::Absent)),
            _ => Ok(None),
        }
    }

    async fn ask_by_get(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        manifest: &TagOrDigest,
    ) -> Result<Answer<FoundManifest>, Error> {
        let uri = manifest_uri(repository, manifest, caller)?;
        let response = self.get(uri, caller, media_type::ACCEPT_EVERY_MANIFEST).await?;
        match response.status() {
            StatusCode::OK => {
                let (head, bytes) = self.whole(response).await?;
                let found = answer::of_get(manifest, &head, bytes, self.manifest_limit);
                Ok(found.map_or(Answer::Odd(StatusCode::OK), Answer::Present))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(Answer::Absent),
            // 503 is throttling, which goes to the client with its Retry-After.
            status if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE => {
                Err(Error::Undecided(status))
            }
            _ => refused(response),
        }
    }
}
