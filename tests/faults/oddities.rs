//! A registry that answers oddly for a while: the real one behind a proxy that alters some of its answers, or
//! gives others, as registries and what stands in front of them do. Deletes and blobs are left alone.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use crate::random::Random;
use crate::support::AnyBody;

/// For how long a registry may lag behind its own 201.
const LAG: Duration = Duration::from_millis(500);
const MOVED: &str = "moved=1";
const PAGE: &str = "<!doctype html><title>Log in</title>";

/// One way to answer oddly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Oddity {
    /// HEAD of a manifest gets this status although GET is answered.
    Head(StatusCode),
    /// The referrers tag of any image gets this status, with `Retry-After`.
    ReferrersTag(StatusCode),
    /// The referrers API gets this status, with `Retry-After`.
    ReferrersApi(StatusCode),
    /// A 200 with a page instead of a manifest.
    LoginPage,
    /// Half of the manifests get 404 while the storm lasts.
    Absent,
    /// A manifest gets 404 right after its 201.
    AbsentAfterPush,
    /// A manifest is handed out by 307, from the same host.
    Moved,
    /// Manifests are sent with `Content-Encoding: gzip`.
    Packed,
    NoDigest,
}

impl Oddity {
    const ALL: [Self; 13] = [
        Self::Head(StatusCode::METHOD_NOT_ALLOWED),
        Self::Head(StatusCode::NOT_FOUND),
        Self::Head(StatusCode::INTERNAL_SERVER_ERROR),
        Self::ReferrersTag(StatusCode::TOO_MANY_REQUESTS),
        Self::ReferrersTag(StatusCode::SERVICE_UNAVAILABLE),
        Self::ReferrersApi(StatusCode::TOO_MANY_REQUESTS),
        Self::ReferrersApi(StatusCode::SERVICE_UNAVAILABLE),
        Self::LoginPage,
        Self::Absent,
        Self::AbsentAfterPush,
        Self::Moved,
        Self::Packed,
        Self::NoDigest,
    ];

    /// Some of them, at least one.
    pub(crate) fn some(random: &mut Random) -> Vec<Self> {
        let mut some = Self::ALL.to_vec();
        some.retain(|_| random.below(3) == 0);
        if some.is_empty() {
            some.push(Self::ALL[random.place(Self::ALL.len() - 1)]);
        }
        some
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Manifest,
    ReferrersTag,
    ReferrersApi,
    Other,
}

/// What of a request decides how it is answered.
struct Asked {
    method: Method,
    path: String,
    target: Target,
    is_moved: bool,
}

impl Asked {
    fn of(request: &Request<Incoming>) -> Self {
        let path = request.uri().path().to_owned();
        let target = match path.rsplit_once('/') {
            Some((before, _)) if before.ends_with("/referrers") => Target::ReferrersApi,
            Some((before, name)) if before.ends_with("/manifests") => {
                if name.starts_with("sha256-") {
                    Target::ReferrersTag
                } else {
                    Target::Manifest
                }
            }
            _ => Target::Other,
        };
        let is_moved = request.uri().query().is_some_and(|query| query.contains(MOVED));
        Self { method: request.method().clone(), path, target, is_moved }
    }

    fn is_manifest(&self) -> bool {
        matches!(self.target, Target::Manifest | Target::ReferrersTag)
    }
}

/// What goes on at present.
struct Storm {
    oddities: Vec<Oddity>,
    random: Random,
    /// What is [`Oddity::Absent`] depends on it and on the path.
    seed: u64,
    stored: HashMap<String, Instant>,
}

impl Storm {
    fn oddity(&mut self, asked: &Asked) -> Option<Oddity> {
        let (is_get, is_head) = (asked.method == Method::GET, asked.method == Method::HEAD);
        let reads = (is_get || is_head) && asked.is_manifest();
        let hash = |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte));
        let is_hidden = || Random::new(asked.path.bytes().fold(self.seed, hash)).coin();
        let befalls = |oddity: &Oddity| match oddity {
            Oddity::Head(_) => is_head && asked.is_manifest(),
            Oddity::ReferrersTag(_) => reads && asked.target == Target::ReferrersTag,
            Oddity::ReferrersApi(_) => asked.target == Target::ReferrersApi,
            Oddity::LoginPage => reads,
            Oddity::Absent => reads && is_hidden(),
            Oddity::AbsentAfterPush => {
                reads && self.stored.get(&asked.path).is_some_and(|stored| stored.elapsed() < LAG)
            }
            Oddity::Moved => is_get && reads && !asked.is_moved,
            Oddity::Packed => is_get && reads,
            Oddity::NoDigest => asked.is_manifest(),
        };
        let possible: Vec<Oddity> = self.oddities.iter().copied().filter(befalls).collect();
        let absent = possible.iter().find(|it| matches!(it, Oddity::Absent | Oddity::AbsentAfterPush));
        if let Some(absent) = absent {
            return Some(*absent);
        }
        let is_hit = !possible.is_empty() && self.random.below(4) > 0;
        is_hit.then(|| possible[self.random.place(possible.len() - 1)])
    }
}

/// A registry with moods.
pub(crate) struct Oddities {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    registry: SocketAddr,
    client: Client<HttpConnector, Incoming>,
    storm: Mutex<Storm>,
    dealt: [AtomicU64; Oddity::ALL.len()],
}

impl Oddities {
    pub(crate) async fn before(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        let calm = Storm { oddities: Vec::new(), random: Random::new(1), seed: 1, stored: HashMap::new() };
        let shared =
            Arc::new(Shared { registry, client, storm: Mutex::new(calm), dealt: Default::default() });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                let service = hyper::service::service_fn(move |request| {
                    let shared = Arc::clone(&shared);
                    async move { shared.answer(request).await }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    // Storms break connections.
                    let _broken = connection.await;
                });
            }
        });
        Self { address, shared }
    }

    /// Answers so from now on.
    pub(crate) fn set(&self, oddities: Vec<Oddity>, seed: u64) {
        let storm = Storm { oddities, random: Random::new(seed), seed, stored: HashMap::new() };
        *self.shared.storm.lock().unwrap() = storm;
    }

    /// How often each was dealt.
    pub(crate) fn dealt(&self) -> String {
        let mut told = String::new();
        for (oddity, dealt) in Oddity::ALL.iter().zip(&self.shared.dealt) {
            writeln!(told, "{:>8} {oddity:?}", dealt.load(Ordering::Relaxed)).unwrap();
        }
        told
    }
}

impl Shared {
    fn count(&self, oddity: Oddity) {
        let place = Oddity::ALL.iter().position(|it| *it == oddity).unwrap();
        self.dealt[place].fetch_add(1, Ordering::Relaxed);
    }

    async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<AnyBody>> {
        let asked = Asked::of(&request);
        let oddity = self.storm.lock().unwrap().oddity(&asked);
        if let Some((oddity, said)) = oddity.and_then(|oddity| Some((oddity, instead(oddity, &asked)?))) {
            self.count(oddity);
            return Ok(said);
        }
        let mut right = self.ask(request).await?;
        if asked.method == Method::PUT && asked.is_manifest() && right.status() == StatusCode::CREATED {
            self.storm.lock().unwrap().stored.insert(asked.path, Instant::now());
        }
        match oddity {
            Some(Oddity::Packed) if right.status() == StatusCode::OK => {
                self.count(Oddity::Packed);
                packed(right).await
            }
            Some(Oddity::NoDigest) if right.headers_mut().remove("docker-content-digest").is_some() => {
                self.count(Oddity::NoDigest);
                Ok(right)
            }
            _ => Ok(right),
        }
    }

    async fn ask(&self, mut request: Request<Incoming>) -> io::Result<Response<AnyBody>> {
        let uri = format!("http://{}{}", self.registry, request.uri());
        *request.uri_mut() = uri.parse().unwrap();
        let answer = self.client.request(request).await.map_err(io::Error::other)?;
        Ok(answer.map(|body| body.map_err(io::Error::other).boxed()))
    }
}

/// What is said in place of the registry's answer.
fn instead(oddity: Oddity, asked: &Asked) -> Option<Response<AnyBody>> {
    let said = |status: StatusCode, name, value: &str, body: &'static str| {
        let mut said = Response::new(whole(body));
        *said.status_mut() = status;
        said.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
        Some(said)
    };
    match oddity {
        Oddity::Head(status) => said(status, CONTENT_TYPE, "text/plain", ""),
        Oddity::ReferrersTag(status) | Oddity::ReferrersApi(status) => said(status, RETRY_AFTER, "1", ""),
        Oddity::LoginPage => said(StatusCode::OK, CONTENT_TYPE, "text/html", PAGE),
        Oddity::Absent | Oddity::AbsentAfterPush => {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not now"}]}"#;
            said(StatusCode::NOT_FOUND, CONTENT_TYPE, "application/json", body)
        }
        Oddity::Moved => {
            let location = format!("{}?{MOVED}", asked.path);
            said(StatusCode::TEMPORARY_REDIRECT, LOCATION, &location, "")
        }
        Oddity::Packed | Oddity::NoDigest => None,
    }
}

fn whole(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

async fn packed(right: Response<AnyBody>) -> io::Result<Response<AnyBody>> {
    let (mut head, body) = right.into_parts();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&body.collect().await?.to_bytes())?;
    head.headers.remove(CONTENT_LENGTH);
    head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    Ok(Response::from_parts(head, whole(encoder.finish()?)))
}
