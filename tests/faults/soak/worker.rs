//! A client of the soak: what it asks for, what it knows, and what it finds wrong.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

use super::storms::{Moment, Storms};
use crate::random::Random;
use crate::support::{Answer, Client, Content, IMAGE_MANIFEST, Refshim, Registry, about};

/// Referrers of each worker's image.
const REFERRERS: usize = 40;
const BLOBS: u64 = 10;
const BLOB_BYTES: usize = 200_000;
/// What a registry that answers oddly may say instead of what is right.
const ODD: [u16; 4] = [307, 404, 405, 429];

/// What a worker knows of one referrer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Yes,
    No,
    /// The answer to a push or a delete was lost.
    Unknown,
}

pub(super) struct Worker {
    pub(super) client: Client,
    refshim: std::net::SocketAddr,
    repository: String,
    image: Content,
    referrers: Vec<(Content, Held)>,
    random: Random,
    storms: Option<Arc<Storms>>,
    pub(super) found: Found,
}

/// What came of a worker's requests.
#[derive(Default)]
pub(super) struct Found {
    pub(super) requests: u64,
    pub(super) excused: u64,
    pub(super) acknowledged: u64,
    /// Not listed while the registry did not show it, or soon after.
    pub(super) lacking: u64,
    pub(super) gone_away: u64,
    pub(super) lost: Vec<String>,
    pub(super) wrong: Vec<String>,
}

impl Worker {
    /// In a repository of the registry, which refshim has below `prefix`.
    pub(super) async fn start(
        (refshim, prefix): (&Refshim, &str),
        (registry, name): (&Registry, &str),
        seed: u64,
        storms: Option<Arc<Storms>>,
    ) -> Self {
        let (client, behind) = (refshim.client(), registry.client());
        let repository = format!("{prefix}{name}");
        let image = client.image(&repository, &repository).await;
        client.push_as(&repository, "image", &image).await;
        let referrer = |n: usize| {
            let in_two_ways = |manifest: &mut Value| manifest["subject"] = image.descriptor();
            (about(&image, &image, &n.to_string()).changed(in_two_ways), Held::No)
        };
        let mut referrers: Vec<(Content, Held)> = (0..REFERRERS).map(referrer).collect();
        // One that is known from the referrers tag alone, and stays.
        let (listed, _) = referrer(REFERRERS);
        behind.push(name, &listed).await;
        behind.push_as(name, &image.digest.replace(':', "-"), &Content::index(&[&listed])).await;
        referrers.push((listed, Held::Yes));
        Self {
            client,
            refshim: refshim.address,
            repository,
            image,
            referrers,
            random: Random::new(seed),
            storms,
            found: Found::default(),
        }
    }

    pub(super) async fn work(mut self, until: Instant) -> Self {
        while Instant::now() < until && self.found.wrong.len() < 10 {
            let n = self.random.place(REFERRERS - 1);
            match self.random.below(20) {
                0..=8 => self.turn(n).await,
                9..=14 => self.query().await,
                15..=16 => self.pull(n).await,
                17..=18 => self.blob().await,
                _ => self.go_away(n),
            }
        }
        self
    }

    fn now(&self) -> Moment {
        self.storms.as_ref().map(|storms| storms.now()).unwrap_or_default()
    }

    /// The answer with one of these statuses; none if it is another one and a storm excuses that.
    async fn ask(&mut self, request: RequestBuilder, expected: &[u16]) -> Option<Answer> {
        let before = self.now();
        self.found.requests += 1;
        let answer = match self.client.try_send(request).await {
            Ok(answer) if expected.contains(&answer.status.as_u16()) => return Some(answer),
            answer => answer,
        };
        let after = self.now();
        let is_broken = answer.as_ref().map_or(true, |answer| answer.status.is_server_error());
        // Only reads get odd answers: pushes and deletes have no such excuse.
        let is_read = expected.contains(&200);
        let is_odd = |answer: &Answer| {
            is_read && (ODD.contains(&answer.status.as_u16()) || answer.status.is_server_error())
        };
        let is_odd = answer.as_ref().is_ok_and(is_odd);
        if (is_broken && before.broke_until(after)) || (is_odd && before.was_odd_until(after)) {
            self.found.excused += 1;
        } else {
            self.found.wrong.push(format!("{}: {before:?}: {answer:?}", self.repository));
        }
        None
    }

    /// Pushes what is not there, deletes what is, and settles what is unknown.
    async fn turn(&mut self, n: usize) {
        let (content, held) = self.referrers[n].clone();
        let path = format!("/v2/{}/manifests/{}", self.repository, content.digest);
        let pushes = match held {
            Held::Yes => false,
            Held::No => true,
            Held::Unknown if self.now().is_storm() => return,
            Held::Unknown => self.random.coin(),
        };
        let answered = if pushes {
            let put = self.client.request(Method::PUT, &path).header("content-type", &content.media_type);
            self.ask(put.body(content.bytes), &[201]).await
        } else {
            let expected: &[u16] = if held == Held::Yes { &[202] } else { &[202, 404] };
            self.ask(self.client.request(Method::DELETE, &path), expected).await
        };
        self.referrers[n].1 = match (answered, pushes) {
            (None, _) => Held::Unknown,
            (Some(_), true) => Held::Yes,
            (Some(_), false) => Held::No,
        };
        let is_acknowledged = self.referrers[n].1 == Held::Yes;
        self.found.acknowledged += u64::from(is_acknowledged);
        if is_acknowledged && self.random.coin() {
            self.pull(n).await;
        }
    }

    pub(super) async fn query(&mut self) {
        let image = &self.image.digest;
        let path = match self.random.below(3) {
            0 => format!("/v2/{}/referrers/{image}", self.repository),
            1 => format!("/v2/{}/manifests/{image}/references", self.repository),
            _ => format!("/v2/{}/manifests/image/references?inline=true", self.repository),
        };
        let before = self.now();
        let Some(answer) = self.ask(self.client.request(Method::GET, &path), &[200]).await else { return };
        let may_lack = before.may_lack_until(self.now());
        let index = answer.json();
        let manifests = index["manifests"].as_array().unwrap();
        let digest = |entry: &Value| entry["digest"].as_str().unwrap().to_owned();
        let listed: BTreeSet<String> = manifests.iter().map(digest).collect();
        if listed.len() != manifests.len() {
            self.found.wrong.push(format!("{path}: listed twice: {index}"));
        }
        for (content, held) in &self.referrers {
            match (held, listed.contains(&content.digest)) {
                (Held::Yes, false) if may_lack => self.found.lacking += 1,
                (Held::Yes, false) => {
                    self.found.lost.push(format!("{path}: {before:?}: {} is not listed", content.digest));
                }
                (Held::No, true) => self.found.wrong.push(format!("{path}: {} is listed", content.digest)),
                (Held::Yes, true) | (Held::No, false) | (Held::Unknown, _) => {}
            }
        }
        let known = |digest: &String| self.referrers.iter().any(|(content, _)| content.digest == *digest);
        let foreign = listed.iter().filter(|digest| !known(digest));
        self.found.wrong.extend(foreign.map(|digest| format!("{path}: {digest} is listed")));
    }

    async fn pull(&mut self, n: usize) {
        let (content, held) = self.referrers[n].clone();
        let path = format!("/v2/{}/manifests/{}", self.repository, content.digest);
        let method = if self.random.below(4) == 0 { Method::HEAD } else { Method::GET };
        let is_head = method == Method::HEAD;
        let pull = self.client.request(method, &path).header("accept", IMAGE_MANIFEST);
        let before = self.now();
        let Some(answer) = self.ask(pull, &[200, 404]).await else { return };
        let is_right = match answer.status {
            StatusCode::OK => held != Held::No && (is_head || unpacked(&answer) == content.bytes),
            _ => held != Held::Yes,
        };
        let is_denial =
            answer.status == StatusCode::NOT_FOUND || answer.header("content-type") == "text/html";
        if is_right {
            return;
        }
        if is_denial && before.was_odd_until(self.now()) {
            self.found.excused += 1;
        } else {
            self.found.wrong.push(format!("{path}: {before:?}: {held:?}: {answer:?}"));
        }
    }

    /// Pushes a blob and pulls it.
    async fn blob(&mut self) {
        let seed = self.random.below(BLOBS);
        let content = Random::new(1 + seed).bytes(BLOB_BYTES);
        let digest = crate::support::digest_of(&content);
        let start = self.client.request(Method::POST, &format!("/v2/{}/blobs/uploads/", self.repository));
        let Some(started) = self.ask(start, &[202]).await else { return };
        let place = format!("{}&digest={digest}", started.header("location"));
        let put = self.client.request(Method::PUT, &place).body(content.clone());
        if self.ask(put, &[201]).await.is_none() {
            return;
        }
        let path = format!("/v2/{}/blobs/{digest}", self.repository);
        let pulled = self.ask(self.client.request(Method::GET, &path), &[200]).await;
        if pulled.is_some_and(|pulled| pulled.body != content) {
            self.found.wrong.push(format!("{path}: other bytes"));
        }
    }

    /// Begins a push and hangs up before its end.
    fn go_away(&mut self, n: usize) {
        let content = &self.referrers[n].0;
        let head = format!(
            "PUT /v2/{}/manifests/{} HTTP/1.1\r\nhost: h\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
            self.repository,
            content.digest,
            content.media_type,
            content.bytes.len()
        );
        let request = [head.as_bytes(), &content.bytes].concat();
        let sent = self.random.place(request.len() - 1);
        let mut stream = TcpStream::connect(self.refshim).unwrap();
        stream.write_all(&request[..sent]).unwrap();
        self.found.gone_away += 1;
    }
}

/// The body without gzip, if it came with that.
fn unpacked(answer: &Answer) -> Vec<u8> {
    if answer.headers.get("content-encoding").is_none_or(|coding| coding != "gzip") {
        return answer.body.clone();
    }
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut bytes).unwrap();
    bytes
}
