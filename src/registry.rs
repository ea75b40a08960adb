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
mod image_index;
mod memory;
mod merge;
mod question;
pub mod reader;
mod referrers_api;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{ACCEPT, LOCATION, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use crate::config::Config;
use crate::http::body::Body;
use crate::http::limits::{Budget, BudgetGuard, Limit};
use crate::http::{link, route};
use crate::index::Repository;
use crate::oci::{Digest, RepositoryName, TagOrDigest, media_type};
use crate::proxy::error::{Error, Rejection};
use crate::proxy::forward::{Origin, strip_hop_by_hop};
use crate::proxy::upstream::{Upstream, UpstreamError, question as request_of};
use crate::telemetry::{Metrics, Stale};

pub use answer::{
    Answer, FetchedManifest, FoundManifest, content_digest, content_type, is_manifest, unpacked,
};
pub use merge::Merger;
pub use question::{Caller, Callers, Question, Visit};

use flights::Flights;
use memory::{Epoch, Memory};
use question::CallerKey;

/// How many manifests are asked for to show that a repository without the subject can be read.
/// Always this many, so that the time of an answer does not tell whether there are links.
const WITNESSES: usize = 3;
/// How many redirects in a row a question follows.
const REDIRECTS: usize = 3;
const ACCESS_CONTROL: &str = "access-control-";

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

/// What equal questions have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    epoch: Epoch,
    caller: CallerKey,
    manifest: TagOrDigest,
    need: Need,
}

/// What is wanted of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Need {
    /// Whether it is there, and its digest.
    Existence,
    /// All of it.
    Bytes,
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

    /// The same, asked once for all who ask it at this moment.
    async fn shared(
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

    /// Whatever the registry answers to a GET, redirects followed.
    async fn get(
        &self,
        uri: Uri,
        caller: &Caller,
        accept: &'static str,
    ) -> Result<Response<Incoming>, Error> {
        let mut from = self.upstream.absolute(&uri)?;
        let mut response = self.send(Method::GET, uri, caller, accept).await?;
        for _ in 0..REDIRECTS {
            let Some(location) = redirect_of(&response, &from) else { break };
            // Else a client could choose who speaks for the registry.
            if caller.told_host(&location) {
                break;
            }
            let mut headers = caller.headers.clone();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            // The question's place among all goes on to whoever answers it.
            let guard = response.extensions_mut().remove::<Arc<BudgetGuard>>();
            response = match self.upstream.follow(&from, location.clone(), &headers).await {
                Ok(response) => response,
                // Where it must not go, the redirect itself is the answer: neither yes nor no.
                Err(UpstreamError::Redirect) => break,
                Err(error) => return Err(error.into()),
            };
            response.extensions_mut().extend(guard.map(with_guard).unwrap_or_default());
            from = location;
        }
        Ok(response)
    }

    /// Asks for something at the upstream. The answer keeps its place among the questions until it is dropped.
    async fn send(
        &self,
        method: Method,
        uri: Uri,
        caller: &Caller,
        accept: &'static str,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = request_of(method, uri);
        request.headers_mut().clone_from(&caller.headers);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(accept));
        let guard = self.questions.wait_for_one(self.patience).await?;
        let mut response = self.upstream.send(request).await?;
        self.note_access_control(caller, response.headers());
        response.extensions_mut().insert(Arc::new(guard));
        Ok(response)
    }

    /// The header and the body of an answer, which may be as long as a manifest.
    async fn whole(&self, response: Response<Incoming>) -> Result<(HeaderMap, Bytes), Error> {
        // The guard of the question goes with the head, at the end.
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

impl From<Answer<FoundManifest>> for Verdict {
    fn from(answer: Answer<FoundManifest>) -> Self {
        match answer {
            Answer::Present(FoundManifest { is_proof: true, .. }) => Self::Readable,
            Answer::Present(FoundManifest { is_proof: false, .. }) | Answer::Absent => Self::Unproven,
            Answer::Odd(status) => Self::Odd(status),
        }
    }
}

impl<T> Answer<T> {
    /// The same answer about something made of what is there.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Self::Present(there) => Answer::Present(change(there)),
            Self::Absent => Answer::Absent,
            Self::Odd(status) => Answer::Odd(status),
        }
    }
}

/// A refusal that is to be passed on, else an answer that is neither yes nor no.
fn refused<T>(response: Response<Incoming>) -> Result<Answer<T>, Error> {
    let (head, _body) = response.into_parts();
    let mut headers = head.headers;
    strip_hop_by_hop(&mut headers);
    Rejection::of(head.status, headers).map_or(Ok(Answer::Odd(head.status)), |refused| Err(refused.into()))
}

/// Where a redirect leads, if this answer is one.
fn redirect_of(response: &Response<Incoming>, from: &Uri) -> Option<Uri> {
    use StatusCode as S;
    let redirects =
        [S::MOVED_PERMANENTLY, S::FOUND, S::SEE_OTHER, S::TEMPORARY_REDIRECT, S::PERMANENT_REDIRECT];
    if !redirects.contains(&response.status()) {
        return None;
    }
    link::resolved(response.headers().get(LOCATION)?.to_str().ok()?, from)
}

/// The URI of a manifest for one of refshim's own questions. Never another one instead: the answer to it
/// decides who may see what.
fn manifest_uri(repository: &RepositoryName, manifest: &TagOrDigest, caller: &Caller) -> Result<Uri, Error> {
    own_uri(route::manifest_path(repository, manifest), caller)
}

/// The URI of the registry's own referrers API for a subject.
fn referrers_uri(repository: &RepositoryName, subject: &Digest, caller: &Caller) -> Result<Uri, Error> {
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
