//! refshim's own questions to a registry, and all that is remembered of the answers: may this caller read this
//! repository, is that manifest there, what does the registry list itself.
//!
//! What holds for all of them:
//! - A question is the client's request in all that the registry may decide by ([`Caller`]), and nobody is
//!   ever answered from another caller's rights.
//! - A 200 is a yes only if a manifest came with it ([`Answer`]). HEAD is asked first since it is cheap, and
//!   is asked again as GET before anything else than a yes is concluded from an odd answer.
//! - Equal questions under way are asked once: a hundred clients that ask the same cost the registry one
//!   question, and a registry that is slow does not turn them into errors.
//! - What is remembered lives in `memory` alone, for seconds, and is forgotten by what is written.

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
use crate::index::Repository;
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

/// How many manifests are asked for to show that a repository without the subject can be read.
/// Always this many, so that the time of an answer does not tell whether there are links.
const WITNESSES: usize = 3;

/// A registry as refshim asks it.
#[derive(Debug)]
pub struct Registry {
    upstream: Arc<Upstream>,
    callers: Callers,
    memory: Memory,
    flights: Flights<Asked, Answer<FoundManifest>>,
    questions: Budget,
    metrics: Metrics,
    patience: Duration,
    manifest_limit: usize,
}

/// Whether the registry showed that a caller may read a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It gave this caller a manifest of it.
    Readable,
    /// It neither gave one nor refused.
    Unproven,
    /// It answered with this status and no manifest, which is neither.
    Odd(StatusCode),
}

impl Registry {
    /// Nothing remembered yet.
    #[must_use]
    pub fn new(upstream: Arc<Upstream>, config: &Config, metrics: Metrics) -> Self {
        let (references, referrers) = (&config.references, &config.referrers);
        Self {
            memory: Memory::new(references.access_ttl, referrers.upstream_ttl, referrers.stale_for),
            callers: Callers::default(),
            flights: Flights::default(),
            metrics,
            questions: Budget::new(Limit::Questions, config.limits.questions),
            // A question waits for its turn as long as for its answer: to refuse it sooner would only turn
            // load into errors, and an error is read as "unsigned".
            patience: upstream.silence_limit(),
            manifest_limit: config.manifests.max_bytes,
            upstream,
        }
    }

    /// Who sent a request for `uri` with these headers.
    #[must_use]
    pub fn caller(&self, headers: &HeaderMap, uri: &Uri, origin: &Origin) -> Arc<Caller> {
        Arc::new(self.callers.caller(headers, uri, origin))
    }

    /// Whether a request for `uri` is about another namespace (`ns=`) than the one that the upstream stands for.
    #[must_use]
    pub fn is_foreign(&self, uri: &Uri) -> bool {
        let named = question::namespace(uri.query().unwrap_or_default());
        question::is_foreign(named.as_deref(), self.upstream.namespaces())
    }

    /// This caller at that repository, from now on.
    #[must_use]
    pub fn visit(&self, caller: &Arc<Caller>, repository: Repository) -> Visit {
        let is_foreign = question::is_foreign(caller.namespace.as_deref(), self.upstream.namespaces());
        Visit { caller: Arc::clone(caller), epoch: self.memory.epoch(&repository), repository, is_foreign }
    }

    /// The upstream behind it.
    #[must_use]
    pub fn upstream(&self) -> Arc<Upstream> {
        Arc::clone(&self.upstream)
    }

    /// Forgets what is remembered of a repository, since it was written to.
    pub fn forget(&self, repository: &Repository) {
        self.memory.forget(repository);
    }

    /// The fields by which the registry lets pages of other origins read its answers, as it last sent them to
    /// this caller: refshim's answers have the same.
    #[must_use]
    pub fn access_control(&self, caller: &Caller) -> Option<Arc<HeaderMap>> {
        self.memory.access_control(caller)
    }

    /// Whether the caller may read the repository: by what is remembered, else by asking for the subject.
    pub async fn may_read(self: &Arc<Self>, question: &Question) -> Result<Verdict, Error> {
        if self.is_readable(&question.visit) {
            return Ok(Verdict::Readable);
        }
        let subject = TagOrDigest::Digest(question.subject.clone());
        Ok(self.find(&question.visit, &subject).await?.into())
    }

    /// Whether the caller may read the repository: by what is remembered, else by one of the referrers about
    /// to be listed.
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

    /// Whether one of the referrers about to be listed shows that the caller may read the repository.
    pub async fn may_read_one_of(
        self: &Arc<Self>,
        visit: &Visit,
        referrers: impl Iterator<Item = Digest>,
    ) -> Result<Verdict, Error> {
        // Different digests: equal ones would be asked once, so that fewer questions would tell that there are no links.
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

    /// Whether the registry gives one of these manifests to the caller even now, whatever is remembered: only
    /// then does a 404 that came before mean that something is gone.
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

    /// Whether the registry gives this manifest to this caller, and under which digest.
    pub async fn exists(
        self: &Arc<Self>,
        visit: &Visit,
        manifest: &TagOrDigest,
    ) -> Result<Answer<Digest>, Error> {
        Ok(self.find(visit, manifest).await?.map(|found| found.digest))
    }

    /// The same, and whether that shows that the caller may read the repository.
    pub async fn find(
        self: &Arc<Self>,
        visit: &Visit,
        manifest: &TagOrDigest,
    ) -> Result<Answer<FoundManifest>, Error> {
        self.shared(visit, manifest, Need::Existence).await
    }

    /// A manifest, if the registry gives it to this caller.
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

    /// Counts and logs a query that the last complete list answers, since the registry does not.
    fn answered_stale(&self, question: &Question, reason: Stale, error: &Error) {
        self.metrics.query_stale(self.upstream.name(), reason);
        let repository = &question.visit.repository.name;
        tracing::warn!(%repository, subject = %question.subject, %error,
            "the registry cannot list referrers now; the last complete list is the answer");
    }

    /// Counts and logs that a referrer is listed as it is known, since the registry cannot be asked for it.
    pub fn listed_as_known(&self, visit: &Visit, referrer: &Digest, reason: Stale, error: &Error) {
        self.metrics.query_stale(self.upstream.name(), reason);
        tracing::warn!(repository = %visit.repository.name, digest = %referrer, %error,
            "the registry cannot be asked for a referrer that it had; it is listed as it is known");
    }

    /// Whether this caller was told a moment ago that this manifest is not there.
    #[must_use]
    pub fn was_just_missing(&self, visit: &Visit, manifest: &Digest) -> bool {
        self.memory.was_just_missing(visit.epoch, &visit.caller, manifest)
    }

    /// Notes that this caller was told that this manifest is not there.
    pub fn note_missing(&self, visit: &Visit, manifest: &Digest) {
        self.memory.set_missing(visit.epoch, &visit.caller, manifest, false);
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
