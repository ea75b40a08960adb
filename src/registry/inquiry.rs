//! Asking the registry for a manifest: HEAD first, GET where the answer to HEAD decides nothing.

use std::sync::Arc;

use http::{Method, StatusCode};

use super::memory::Epoch;
use super::question::CallerKey;
use super::transport::{manifest_uri, refused};
use super::{Answer, Caller, FoundManifest, Registry, Visit, answer};
use crate::oci::{RepositoryName, TagOrDigest, media_type};
use crate::proxy::error::Error;
use crate::proxy::upstream::UpstreamError;

/// What equal questions have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    epoch: Epoch,
    caller: CallerKey,
    manifest: TagOrDigest,
    need: Need,
}

/// What is wanted of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Need {
    /// Whether it is there, and its digest.
    Existence,
    /// All of it.
    Bytes,
}

impl Registry {
    /// The same, asked once for all who ask it at this moment.
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

    /// None if the answer says nothing that a GET could not answer otherwise.
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
            // Some proxies hang up on a HEAD.
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
            // Not for the way of asking.
            StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                refused(response).map(Some)
            }
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
            status if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE => {
                Err(Error::Undecided(status))
            }
            _ => refused(response),
        }
    }
}
