//! May this caller read this repository? Only the upstream knows: it is asked with the caller's own
//! credentials, and a yes is remembered for a short time for exactly these credentials. Nobody is
//! ever answered from another caller's rights.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, TRANSFER_ENCODING,
    USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::body::Body;
use crate::error::{Error, error_response};
use crate::forward::strip_hop_by_hop;
use crate::index::Repository;
use crate::limits::Budget;
use crate::oci::{Algorithm, Digest, ErrorCode, TagOrDigest, media_type};
use crate::upstream::{Upstream, manifest_uri, question};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// How many repositories, and how many callers of each, are remembered.
const REPOSITORIES_REMEMBERED: u64 = 10_000;
const CALLERS_REMEMBERED: usize = 1_000;

/// How many manifests are asked for to show that a repository without the subject can be read.
/// Always this many, so that the time of an answer does not tell whether there are links.
pub const WITNESSES: usize = 3;

/// How long a question waits for its turn.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks the upstream, and remembers for a while who may read what.
#[derive(Debug)]
pub struct Access {
    upstream: Arc<Upstream>,
    readable: Cache<Repository, Arc<Mutex<HashMap<CredentialsHash, Instant>>>>,
    lifetime: Duration,
    salt: [u64; 2],
    manifest_limit: usize,
    questions: Budget,
}

type CredentialsHash = [u8; 32];

/// Whose rights count in a query: the credentials it came with.
#[derive(Debug)]
pub struct Caller {
    headers: HeaderMap,
    hash: CredentialsHash,
}

/// What the upstream says of a manifest to a caller.
#[derive(Debug)]
pub enum Answer<T> {
    /// It is there and may be read.
    Present(T),
    /// It is not there, or not for this caller.
    Absent,
    /// The answer to be passed on: log in, no right, too many requests, not now.
    Refused(Response<Body>),
}

impl<T> Answer<T> {
    /// The same answer about something made of what is there.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Self::Present(there) => Answer::Present(change(there)),
            Self::Absent => Answer::Absent,
            Self::Refused(response) => Answer::Refused(response),
        }
    }
}

/// A manifest as the upstream gave it.
#[derive(Debug)]
pub struct Fetched {
    /// All of it.
    pub bytes: Bytes,
    /// The type it came with.
    pub content_type: Option<String>,
}

/// What is known of a caller's right to read a repository.
#[derive(Debug)]
pub enum Verdict {
    /// The upstream gave this caller a manifest of it.
    Readable,
    /// The upstream neither gave one nor refused.
    Unproven,
    /// The answer to be passed on.
    Refused(Response<Body>),
}

impl Access {
    /// Nothing remembered; a yes lives for `lifetime`.
    #[must_use]
    pub fn new(
        upstream: Arc<Upstream>,
        lifetime: Duration,
        manifest_limit: usize,
        questions: Budget,
    ) -> Self {
        let seed = RandomState::new();
        Self {
            upstream,
            readable: Cache::builder().max_capacity(REPOSITORIES_REMEMBERED).time_to_live(lifetime).build(),
            lifetime,
            salt: [seed.hash_one(0), seed.hash_one(1)],
            manifest_limit,
            questions,
        }
    }

    /// The caller that a request's header speaks for.
    #[must_use]
    pub fn caller(&self, request: &HeaderMap) -> Caller {
        let mut hash = Sha256::new();
        hash.update(self.salt[0].to_be_bytes());
        hash.update(self.salt[1].to_be_bytes());
        let mut headers = HeaderMap::new();
        for name in [AUTHORIZATION, COOKIE] {
            for value in request.get_all(&name) {
                hash.update((value.len() as u64).to_be_bytes());
                hash.update(value.as_bytes());
                headers.append(&name, value.clone());
            }
            hash.update(u64::MAX.to_be_bytes());
        }
        for name in [USER_AGENT, X_REQUEST_ID] {
            if let Some(value) = request.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        Caller { headers, hash: hash.finalize().into() }
    }

    /// Whether the caller may read the repository: by what is remembered, else by asking for the
    /// subject.
    pub async fn may_read(
        &self,
        caller: &Caller,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Verdict, Error> {
        if self.remembers(caller, repository) {
            return Ok(Verdict::Readable);
        }
        Ok(match self.head(caller, repository, &TagOrDigest::Digest(subject.clone())).await? {
            Answer::Present(_) => Verdict::Readable,
            Answer::Absent => Verdict::Unproven,
            Answer::Refused(response) => Verdict::Refused(response),
        })
    }

    /// Whether the caller may read a repository: by what is remembered, else by one of the referrers about
    /// to be listed.
    pub async fn may_list(
        &self,
        caller: &Caller,
        repository: &Repository,
        referrers: impl Iterator<Item = Digest>,
    ) -> Result<Verdict, Error> {
        if self.remembers(caller, repository) {
            return Ok(Verdict::Readable);
        }
        self.may_read_one_of(caller, repository, referrers).await
    }

    /// Whether one of the referrers about to be listed shows that the caller may read the
    /// repository.
    pub async fn may_read_one_of(
        &self,
        caller: &Caller,
        repository: &Repository,
        referrers: impl Iterator<Item = Digest>,
    ) -> Result<Verdict, Error> {
        let nobodys = Digest::Sha256([0; 32]);
        let witnesses = referrers.chain(std::iter::repeat(nobodys)).take(WITNESSES);
        let questions = witnesses
            .map(|witness| async move { self.head(caller, repository, &TagOrDigest::Digest(witness)).await });
        let mut verdict = Verdict::Unproven;
        for answer in join_all(questions).await {
            match answer? {
                Answer::Present(_) => return Ok(Verdict::Readable),
                Answer::Absent => {}
                Answer::Refused(response) => verdict = Verdict::Refused(response),
            }
        }
        Ok(verdict)
    }

    /// Whether the upstream gives one of these manifests to the caller even now, whatever is remembered: only
    /// then does a 404 that came before mean that something is gone.
    pub async fn still_reads(
        &self,
        caller: &Caller,
        repository: &Repository,
        manifests: impl Iterator<Item = TagOrDigest>,
    ) -> bool {
        for manifest in manifests.take(WITNESSES) {
            if let Ok(Answer::Present(_)) = self.head(caller, repository, &manifest).await {
                return true;
            }
        }
        false
    }

    /// The digest that a tag, or a digest, has in the repository now. A yes is remembered.
    pub async fn resolve(
        &self,
        caller: &Caller,
        repository: &Repository,
        manifest: &TagOrDigest,
    ) -> Result<Answer<Digest>, Error> {
        match self.head(caller, repository, manifest).await? {
            Answer::Present(None) => {
                let manifest = self.fetch(caller, repository, manifest).await?;
                Ok(manifest.map(|manifest| Digest::of(Algorithm::Sha256, &manifest.bytes)))
            }
            Answer::Present(Some(digest)) => Ok(Answer::Present(digest)),
            Answer::Absent => Ok(Answer::Absent),
            Answer::Refused(response) => Ok(Answer::Refused(response)),
        }
    }

    /// Whether the upstream gives this manifest to this caller, and under which digest if it says so.
    pub async fn head(
        &self,
        caller: &Caller,
        repository: &Repository,
        manifest: &TagOrDigest,
    ) -> Result<Answer<Option<Digest>>, Error> {
        let answer = self.ask(Method::HEAD, caller, repository, manifest).await?;
        Ok(answer.map(|response| content_digest(response.headers())))
    }

    /// A manifest, if the upstream gives it to this caller.
    pub async fn fetch(
        &self,
        caller: &Caller,
        repository: &Repository,
        manifest: &TagOrDigest,
    ) -> Result<Answer<Fetched>, Error> {
        match self.ask(Method::GET, caller, repository, manifest).await? {
            Answer::Present(response) => {
                let content_type = content_type(response.headers()).map(str::to_owned);
                Ok(Answer::Present(Fetched { bytes: self.whole(response).await?, content_type }))
            }
            Answer::Absent => Ok(Answer::Absent),
            Answer::Refused(response) => Ok(Answer::Refused(response)),
        }
    }

    /// Whatever the upstream answers to a GET of something else than a manifest.
    pub async fn get(
        &self,
        caller: &Caller,
        uri: Uri,
        accept: &'static str,
    ) -> Result<Response<Incoming>, Error> {
        self.send(asked_by(caller, Method::GET, uri, accept)).await
    }

    /// The body of an answer, which may be as long as a manifest.
    pub async fn whole(&self, response: Response<Incoming>) -> Result<Bytes, Error> {
        // The guard of the question goes with the head.
        let (_head, body) = response.into_parts();
        let body = Body::from_upstream(body, self.upstream.body_idle());
        let whole = Limited::new(body, self.manifest_limit).collect().await;
        Ok(whole.map_err(|_| Error::UpstreamBody)?.to_bytes())
    }

    /// Forgets what is remembered of a repository, since it is being written to.
    pub fn forget(&self, repository: &Repository) {
        self.readable.invalidate(repository);
    }

    async fn ask(
        &self,
        method: Method,
        caller: &Caller,
        repository: &Repository,
        manifest: &TagOrDigest,
    ) -> Result<Answer<Response<Incoming>>, Error> {
        let uri = manifest_uri(&repository.name, manifest).map_err(|_| Error::Handler)?;
        let request = asked_by(caller, method, uri, media_type::ACCEPT_EVERY_MANIFEST);
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::OK => {
                self.remember(caller, repository);
                Ok(Answer::Present(response))
            }
            StatusCode::NOT_FOUND => Ok(Answer::Absent),
            status => refusal(&response).map(Answer::Refused).ok_or(Error::Undecided(status)),
        }
    }

    /// The answer keeps its place among the questions until it is dropped.
    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let guard = self.questions.wait_for_one(PATIENCE).await?;
        let mut response = self.upstream.send(request).await?;
        response.extensions_mut().insert(Arc::new(guard));
        Ok(response)
    }

    fn remembers(&self, caller: &Caller, repository: &Repository) -> bool {
        self.readable.get(repository).is_some_and(|callers| {
            let callers = callers.lock().unwrap_or_else(PoisonError::into_inner);
            callers.get(&caller.hash).is_some_and(|since| since.elapsed() < self.lifetime)
        })
    }

    fn remember(&self, caller: &Caller, repository: &Repository) {
        let callers = self.readable.get_with_by_ref(repository, Arc::default);
        let mut callers = callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= CALLERS_REMEMBERED {
            callers.clear();
        }
        callers.insert(caller.hash, Instant::now());
    }
}

/// `Docker-Content-Digest`, if it holds a digest.
#[must_use]
pub fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

/// `Content-Type`, if it is text.
#[must_use]
pub fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE)?.to_str().ok()
}

/// A refusal that is to be passed on (log in, no right, too many requests, not now): the upstream's status
/// and header, the challenge above all, with a body of refshim's own, since the answer to a HEAD has none.
#[must_use]
pub fn refusal(response: &Response<Incoming>) -> Option<Response<Body>> {
    let code = match response.status() {
        StatusCode::UNAUTHORIZED => ErrorCode::Unauthorized,
        StatusCode::FORBIDDEN => ErrorCode::Denied,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => ErrorCode::Unavailable,
        _ => return None,
    };
    let mut refusal = error_response(response.status(), code, "the registry does not answer this caller");
    for (name, value) in response.headers() {
        if ![CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING, TRANSFER_ENCODING].contains(name) {
            refusal.headers_mut().append(name, value.clone());
        }
    }
    strip_hop_by_hop(refusal.headers_mut());
    Some(refusal)
}

fn asked_by(caller: &Caller, method: Method, uri: Uri, accept: &'static str) -> Request<Body> {
    let mut request = question(method, uri);
    *request.headers_mut() = caller.headers.clone();
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static(accept));
    request
}
