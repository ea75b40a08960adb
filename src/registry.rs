//! refshim's own requests to a registry ("questions"), and the cache of their answers: may this caller read this
//! repository, does that manifest exist, which referrers does the registry list itself.
//!
//! # Who may see a link
//! A query is answered only after the registry, asked with the caller's own credentials, served a manifest of the
//! repository: the subject, or, if that is a 404, one of the referrers about to be listed. 401 and 403 go to the
//! client unchanged, `WWW-Authenticate` included, so that its login works. An empty answer leaks nothing, but
//! still passes on a 401.
//!
//! # What holds for every question
//! - It carries everything of the client's request that a registry may decide by ([`Caller`]), and its answer
//!   counts for exactly such requests. Registries decide by address (allow lists), by `X-Forwarded-Proto`
//!   (redirects) and by `ns=` (mirrors), not only by credentials.
//! - A 200 counts only if a manifest came with it ([`Answer`]): login pages and catch-all servers answer 200 to
//!   anything. HEAD is sent first because it is cheap; an unclear answer to it is followed by a GET.
//! - Identical questions in progress share one request (`flights`): a hundred clients that pull the same image
//!   cost the registry one question.
//! - Everything remembered is in `memory`, for seconds, and any write through refshim expires it.
//!
//! # Errors
//! Clients read an error of a listing as "unsigned": cosign 3 then looks no further, and Kubernetes admission
//! rejects the image. So a question fails only if there is no honest answer, and what a missing referrers tag looks
//! like (404, or 403 to somebody who may read the repository) is absence, not failure.

mod answer;
mod flights;
mod inquiry;
mod memory;
mod merge;
mod question;
pub mod reader;
mod referrers_api;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderMap, StatusCode, Uri};

use crate::config::Config;
use crate::http::limits::{Budget, Limit};
use crate::index::{Repository, Version};
use crate::oci::{Digest, TagOrDigest};
use crate::proxy::error::Error;
use crate::proxy::forward::Origin;
use crate::proxy::upstream::Upstream;
use crate::telemetry::{Metrics, Stale};

pub use answer::{
    Answer, FetchedManifest, FoundManifest, content_digest, content_type, is_manifest, unpacked,
};
pub use merge::Merger;
pub use question::{Caller, Callers, Question, Visit};

use flights::Flights;
use inquiry::{Asked, Need};
use memory::Memory;

/// Manifests requested to prove that a caller may read a repository which does not have the subject. Always this
/// many: the duration of the answer must not reveal whether there are links.
const WITNESSES: usize = 3;

/// One registry: sends questions to it and caches the answers.
#[derive(Debug)]
pub struct Registry {
    upstream: Arc<Upstream>,
    callers: Callers,
    /// Shared with whoever stands before the same registry.
    memory: Arc<Memory>,
    flights: Flights<Asked, Answer<FoundManifest>>,
    questions: Budget,
    metrics: Metrics,
    patience: Duration,
    manifest_limit: usize,
    /// How long rights, lists, and lists in the place of failures are remembered.
    lives: [Duration; 3],
}

/// Whether a caller may read a repository, by what the registry answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes: it served a manifest of the repository to this caller.
    Readable,
    /// Unknown: it answered 404, or with something that anybody may get.
    Unproven,
    /// Unknown: it answered with this status, and no manifest came with it.
    Odd(StatusCode),
}

impl Registry {
    /// A registry behind `upstream`, with an empty cache.
    #[must_use]
    pub fn new(upstream: Arc<Upstream>, config: &Config, metrics: Metrics) -> Self {
        let (references, referrers) = (&config.references, &config.referrers);
        let lives @ [access_ttl, upstream_ttl, stale_for] =
            [references.access_ttl, referrers.upstream_ttl, referrers.stale_for];
        Self {
            memory: Arc::new(Memory::new(access_ttl, upstream_ttl, stale_for)),
            callers: Callers::default(),
            flights: Flights::default(),
            metrics,
            questions: Budget::new(Limit::Questions, config.limits.questions),
            // A question waits for a slot as long as for its answer: rejecting it sooner would only turn load
            // into errors, which clients read as "unsigned".
            patience: upstream.silence_limit(),
            manifest_limit: config.manifests.max_bytes,
            lives,
            upstream,
        }
    }

    /// Goes on from `before`, the same registry under an earlier configuration with another limit of questions.
    #[must_use]
    pub fn following(self, before: &Self, config: &Config) -> Self {
        before.questions.resize(config.limits.questions);
        let [access_ttl, upstream_ttl, stale_for] = self.lives;
        let memory = if self.lives == before.lives {
            Arc::clone(&before.memory)
        } else {
            Arc::new(before.memory.with_lives(access_ttl, upstream_ttl, stale_for))
        };
        Self { memory, callers: before.callers.clone(), questions: before.questions.clone(), ..self }
    }

    /// Remembers together with `other`, which is the same registry: a write through one expires what the other
    /// remembers. Rights are not shared by that: each salts the keys of its callers otherwise.
    #[must_use]
    pub fn sharing(self, other: &Self) -> Self {
        Self { memory: Arc::clone(&other.memory), ..self }
    }

    /// The caller of a request for `uri` with these headers.
    #[must_use]
    pub fn caller(&self, headers: &HeaderMap, uri: &Uri, origin: &Origin) -> Arc<Caller> {
        Arc::new(self.callers.caller(headers, uri, origin))
    }

    /// Whether a request for `uri` names another namespace (`ns=`) than the upstream's own.
    #[must_use]
    pub fn is_foreign(&self, uri: &Uri) -> bool {
        let named = question::namespace(uri.query().unwrap_or_default());
        question::is_foreign(named.as_deref(), self.upstream.namespaces())
    }

    /// The caller's visit to a repository. What the visit learns is cached until the next write to it.
    #[must_use]
    pub fn visit(&self, caller: &Arc<Caller>, repository: Repository) -> Visit {
        let is_foreign = question::is_foreign(caller.namespace.as_deref(), self.upstream.namespaces());
        Visit { caller: Arc::clone(caller), epoch: self.memory.epoch(&repository), repository, is_foreign }
    }

    /// The upstream that questions are sent to.
    #[must_use]
    pub fn upstream(&self) -> Arc<Upstream> {
        Arc::clone(&self.upstream)
    }

    /// Expires everything cached of a repository, because it was written to.
    pub fn forget(&self, repository: &Repository) {
        self.memory.forget(repository);
    }

    /// The CORS headers (`Access-Control-*`, `Vary`) that the registry last sent to this caller. refshim's own
    /// answers repeat them, for web UIs on another origin.
    #[must_use]
    pub fn access_control(&self, caller: &Caller) -> Option<Arc<HeaderMap>> {
        self.memory.access_control(caller)
    }

    /// Whether the caller may read the repository: from the cache, else by requesting the subject.
    pub async fn may_read(self: &Arc<Self>, question: &Question) -> Result<Verdict, Error> {
        if self.is_readable(&question.visit) {
            return Ok(Verdict::Readable);
        }
        let subject = TagOrDigest::Digest(question.subject.clone());
        Ok(self.find(&question.visit, &subject).await?.into())
    }

    /// Whether the caller may read the repository: from the cache, else by requesting referrers that are about to
    /// be listed.
    pub async fn may_list(
        self: &Arc<Self>,
        visit: &Visit,
        referrers: impl Iterator<Item = Digest>,
    ) -> Result<Verdict, Error> {
        if self.is_readable(visit) {
            return Ok(Verdict::Readable);
        }
        self.may_read_one_of(visit, referrers).await
    }

    /// Whether the registry serves one of these referrers, which proves that the caller may read the repository.
    pub async fn may_read_one_of(
        self: &Arc<Self>,
        visit: &Visit,
        referrers: impl Iterator<Item = Digest>,
    ) -> Result<Verdict, Error> {
        // Padded with digests that nobody has, so that there are always as many requests. The digests differ,
        // because identical questions share one request, and fewer requests would reveal that there are no links.
        let nobodys = (0..).map(|n| Digest::Sha256([n; 32]));
        let witnesses = referrers.chain(nobodys).take(WITNESSES).map(TagOrDigest::Digest);
        let questions = witnesses.map(|witness| async move { self.find(visit, &witness).await });
        let mut verdict = Ok(Verdict::Unproven);
        for answer in join_all(questions).await {
            match answer.map(Verdict::from) {
                Ok(Verdict::Readable) => return Ok(Verdict::Readable),
                Ok(Verdict::Unproven) => {}
                Ok(odd @ Verdict::Odd(_)) => verdict = verdict.and(Ok(odd)),
                Err(error) => verdict = Err(error),
            }
        }
        verdict
    }

    /// Whether the registry serves one of these manifests to the caller now, the cache aside. Only then does an
    /// earlier 404 mean that a manifest is gone, and not that the caller's rights or the storage are.
    pub async fn still_reads(
        self: &Arc<Self>,
        visit: &Visit,
        manifests: impl Iterator<Item = TagOrDigest>,
    ) -> bool {
        for manifest in manifests.take(WITNESSES) {
            if self
                .find(visit, &manifest)
                .await
                .is_ok_and(|answer| Verdict::from(answer) == Verdict::Readable)
            {
                return true;
            }
        }
        false
    }

    /// Whether a manifest exists for this caller, and its digest.
    pub async fn exists(
        self: &Arc<Self>,
        visit: &Visit,
        manifest: &TagOrDigest,
    ) -> Result<Answer<Digest>, Error> {
        Ok(self.find(visit, manifest).await?.map(|found| found.digest))
    }

    /// Whether a manifest exists for this caller, and whether that proves that the caller may read the repository.
    pub async fn find(
        self: &Arc<Self>,
        visit: &Visit,
        manifest: &TagOrDigest,
    ) -> Result<Answer<FoundManifest>, Error> {
        self.shared(visit, manifest, Need::Existence).await
    }

    /// A manifest's bytes, if it exists for this caller.
    pub async fn fetch(
        self: &Arc<Self>,
        visit: &Visit,
        manifest: &TagOrDigest,
    ) -> Result<Answer<FetchedManifest>, Error> {
        let answer = self.shared(visit, manifest, Need::Bytes).await?;
        Ok(match answer {
            Answer::Present(FoundManifest { manifest: Some(manifest), .. }) => Answer::Present(manifest),
            Answer::Present(_) => return Err(Error::Handler),
            Answer::Absent => Answer::Absent,
            Answer::Odd(status) => Answer::Odd(status),
        })
    }

    /// Counts and logs a query that is answered from the last complete list, because the registry fails.
    fn answered_stale(&self, question: &Question, reason: Stale, error: &Error) {
        self.metrics.query_stale(self.upstream.name(), reason);
        let repository = &question.visit.repository.name;
        tracing::warn!(%repository, subject = %question.subject, %error,
            "the registry cannot list referrers now; answering with the last complete list");
    }

    /// Counts and logs that a referrer is listed unchecked, because the registry fails to answer for it.
    pub fn listed_as_known(&self, visit: &Visit, referrer: &Digest, reason: Stale, error: &Error) {
        self.metrics.query_stale(self.upstream.name(), reason);
        tracing::warn!(repository = %visit.repository.name, digest = %referrer, %error,
            "the registry cannot answer for a referrer that it had; listing it as it is in the index");
    }

    /// Whether this caller got a 404 for this version of a referrer a moment ago.
    #[must_use]
    pub fn was_just_missing(&self, visit: &Visit, manifest: &Digest, version: Version) -> bool {
        self.memory.was_just_missing(visit.epoch, &visit.caller, manifest, version)
    }

    /// Remembers that this caller got a 404 for this version of a referrer.
    pub fn note_missing(&self, visit: &Visit, manifest: &Digest, version: Version) {
        self.memory.set_missing(visit.epoch, &visit.caller, manifest, version);
    }

    fn is_readable(&self, visit: &Visit) -> bool {
        self.memory.is_readable(visit.epoch, &visit.caller)
    }
}

impl From<Answer<FoundManifest>> for Verdict {
    fn from(answer: Answer<FoundManifest>) -> Self {
        match answer {
            Answer::Present(FoundManifest { is_proof: true, .. }) => Self::Readable,
            Answer::Present(FoundManifest { is_proof: false, .. }) | Answer::Absent => Self::Unproven,
            Answer::Odd(status) => Self::Odd(status),
        }
    }
}
