//! A client of several replicas: what it asks for, what it knows, and what it finds wrong.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

use super::REPLICAS;
use super::outages::{Outages, Way};
use crate::random::Random;
use crate::support::{Answer, Client, Content, IMAGE_MANIFEST, about};

/// Referrers of each worker's image.
const REFERRERS: usize = 12;
/// A worker that finds so much wrong ends early.
const FINDINGS: usize = 10;

/// After a request that failed.
const PAUSE: Duration = Duration::from_millis(20);

/// What a worker knows of one referrer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Yes,
    No,
    /// The answer to a push or a delete was lost, or the index may not know of a delete.
    Unknown,
}

pub(super) struct Worker {
    balanced: Client,
    direct: [Client; REPLICAS],
    registry: Client,
    repository: String,
    image: Content,
    referrers: Vec<(Content, Held)>,
    random: Random,
    outages: Arc<Outages<REPLICAS>>,
    pub(super) found: Found,
}

/// What came of a worker's requests.
#[derive(Default)]
pub(super) struct Found {
    pub(super) requests: u64,
    pub(super) excused: u64,
    pub(super) acknowledged: u64,
    pub(super) deleted: u64,
    pub(super) refused: u64,
    pub(super) races: u64,
    /// Lists that were right.
    pub(super) lists: u64,
    pub(super) lost: Vec<String>,
    pub(super) wrong: Vec<String>,
}

impl Worker {
    /// In a repository of its own.
    pub(super) async fn start(
        repository: String,
        (balanced, direct): (Client, [Client; REPLICAS]),
        registry: Client,
        seed: u64,
        outages: Arc<Outages<REPLICAS>>,
    ) -> Self {
        let image = registry.image(&repository, &repository).await;
        registry.push_as(&repository, "image", &image).await;
        let referrer = |n: usize| {
            let in_two_ways = |manifest: &mut Value| manifest["subject"] = image.descriptor();
            (about(&image, &image, &n.to_string()).changed(in_two_ways), Held::No)
        };
        let referrers = (0..REFERRERS).map(referrer).collect();
        let (random, found) = (Random::new(seed), Found::default());
        Self { balanced, direct, registry, repository, image, referrers, random, outages, found }
    }

    pub(super) async fn work(mut self, until: Instant) -> Self {
        while Instant::now() < until && self.found.wrong.len() + self.found.lost.len() < FINDINGS {
            let n = self.random.place(REFERRERS - 1);
            match self.random.below(20) {
                0..=9 => self.turn(n).await,
                10..=13 => {
                    let way = self.way();
                    self.query(way).await;
                }
                14 => self.pull(n).await,
                15 => self.push_what_is_refused().await,
                _ => self.race(n).await,
            }
        }
        self
    }

    /// Half of the requests go through the load balancer.
    fn way(&mut self) -> Way {
        if self.random.coin() { Way::Balanced } else { Way::Direct(self.random.place(REPLICAS - 1)) }
    }

    fn client(&self, way: Way) -> &Client {
        match way {
            Way::Balanced => &self.balanced,
            Way::Direct(n) => &self.direct[n],
        }
    }

    fn path(&self, n: usize) -> String {
        format!("/v2/{}/manifests/{}", self.repository, self.referrers[n].0.digest)
    }

    fn put(&self, way: Way, content: &Content) -> RequestBuilder {
        let path = format!("/v2/{}/manifests/{}", self.repository, content.digest);
        let put = self.client(way).request(Method::PUT, &path).header("content-type", &content.media_type);
        put.body(content.bytes.clone())
    }

    fn delete(&self, way: Way, n: usize) -> RequestBuilder {
        self.client(way).request(Method::DELETE, &self.path(n))
    }

    /// The answer if it is as expected; none if it is another one and an outage excuses that.
    async fn ask(&mut self, way: Way, request: RequestBuilder, expected: &[u16]) -> Option<Answer> {
        let since = Instant::now();
        self.found.requests += 1;
        let answer = match self.client(way).try_send(request).await {
            Ok(answer) if expected.contains(&answer.status.as_u16()) => return Some(answer),
            answer => answer,
        };
        let is_failure = answer.as_ref().map_or(true, |answer| answer.status.is_server_error());
        if is_failure && self.outages.excuse(way, since) {
            self.found.excused += 1;
            tokio::time::sleep(PAUSE).await;
        } else {
            self.found.wrong.push(format!("{} by {way:?}: {answer:?}", self.repository));
        }
        None
    }

    /// Pushes what is not there, pushes again or deletes what is, and settles what is unknown.
    async fn turn(&mut self, n: usize) {
        let (content, held) = self.referrers[n].clone();
        let way = self.way();
        let pushes = held == Held::No || self.random.coin();
        let since = Instant::now();
        let after = if pushes {
            match self.ask(way, self.put(way, &content), &[201]).await {
                Some(_) => {
                    self.found.acknowledged += 1;
                    Held::Yes
                }
                // What was acknowledged once stays so.
                None if held == Held::Yes => Held::Yes,
                None => Held::Unknown,
            }
        } else {
            let expected: &[u16] = if held == Held::Yes { &[202] } else { &[202, 404] };
            let answer = self.ask(way, self.delete(way, n), expected).await;
            self.found.deleted += u64::from(answer.is_some());
            match answer {
                Some(_) if !self.outages.lacked_the_database(since) => Held::No,
                Some(_) | None => Held::Unknown,
            }
        };
        self.referrers[n].1 = after;
        self.query_all().await;
    }

    /// A push through one replica and a delete through another, at the same time: what the registry has then, all list.
    async fn race(&mut self, n: usize) {
        let content = self.referrers[n].0.clone();
        let (pushing, deleting) = (self.way(), self.way());
        let since = Instant::now();
        let put = self.client(pushing).try_send(self.put(pushing, &content));
        let delete = self.client(deleting).try_send(self.delete(deleting, n));
        let (put, delete) = tokio::join!(put, delete);
        // The registry itself may fail when the two meet.
        let put = put.is_ok_and(|answer| answer.status == StatusCode::CREATED);
        let delete = delete.is_ok_and(|answer| matches!(answer.status.as_u16(), 202 | 404));
        self.found.acknowledged += u64::from(put);
        self.found.races += 1;
        self.referrers[n].1 = if !put || !delete || self.outages.lacked_the_database(since) {
            Held::Unknown
        } else if self.is_in_registry(n).await {
            Held::Yes
        } else {
            Held::No
        };
        self.query_all().await;
    }

    async fn is_in_registry(&self, n: usize) -> bool {
        let head = self.registry.request(Method::HEAD, &self.path(n)).header("accept", IMAGE_MANIFEST);
        self.registry.send(head).await.status == StatusCode::OK
    }

    /// A referrer with a layer that the registry does not have; no list may ever name it.
    async fn push_what_is_refused(&mut self) {
        let nowhere = format!("sha256:{:064x}", self.random.next());
        let content = self.referrers[0].0.changed(|it| it["layers"][0]["digest"] = nowhere.into());
        let way = self.way();
        if self.ask(way, self.put(way, &content), &[400, 404]).await.is_some() {
            self.found.refused += 1;
            self.query_all().await;
        }
    }

    /// The next query at each replica: all of them know the same.
    async fn query_all(&mut self) {
        for n in 0..REPLICAS {
            self.query(Way::Direct(n)).await;
        }
    }

    async fn query(&mut self, way: Way) {
        let image = &self.image.digest;
        let path = match self.random.below(3) {
            0 => format!("/v2/{}/referrers/{image}", self.repository),
            1 => format!("/v2/{}/manifests/{image}/references", self.repository),
            _ => format!("/v2/{}/manifests/image/references?inline=true", self.repository),
        };
        let request = self.client(way).request(Method::GET, &path);
        let Some(answer) = self.ask(way, request, &[200]).await else { return };
        let index = answer.json();
        let manifests = index["manifests"].as_array().unwrap();
        let digest = |entry: &Value| entry["digest"].as_str().unwrap().to_owned();
        let listed: BTreeSet<String> = manifests.iter().map(digest).collect();
        let mut wrong = Vec::new();
        if listed.len() != manifests.len() {
            wrong.push(format!("{path} by {way:?}: listed twice: {index}"));
        }
        for (content, held) in &self.referrers {
            let digest = &content.digest;
            match (held, listed.contains(digest)) {
                (Held::Yes, false) => {
                    self.found.lost.push(format!("{path} by {way:?}: {digest} is not listed"));
                }
                (Held::No, true) => wrong.push(format!("{path} by {way:?}: {digest} is listed")),
                (Held::Yes, true) | (Held::No, false) | (Held::Unknown, _) => {}
            }
        }
        let known = |digest: &String| self.referrers.iter().any(|(content, _)| content.digest == *digest);
        let foreign = listed.iter().filter(|digest| !known(digest));
        wrong.extend(foreign.map(|digest| format!("{path} by {way:?}: {digest} was refused and is listed")));
        self.found.lists += u64::from(wrong.is_empty());
        self.found.wrong.append(&mut wrong);
    }

    async fn pull(&mut self, n: usize) {
        let (content, held) = self.referrers[n].clone();
        let way = self.way();
        let pull = self.client(way).request(Method::GET, &self.path(n)).header("accept", IMAGE_MANIFEST);
        let Some(answer) = self.ask(way, pull, &[200, 404]).await else { return };
        let is_right = match answer.status {
            StatusCode::OK => held != Held::No && answer.body == content.bytes,
            _ => held != Held::Yes,
        };
        if !is_right {
            self.found.wrong.push(format!("{} by {way:?}: {held:?}: {answer:?}", self.path(n)));
        }
    }

    /// When nothing is broken any more and no request under way: all replicas list just what the registry has.
    pub(super) async fn finish(&mut self) {
        for n in 0..REFERRERS {
            if self.referrers[n].1 == Held::Unknown {
                self.referrers[n].1 = if self.is_in_registry(n).await { Held::Yes } else { Held::No };
            }
            // A delete that the index may not know of: a client that meets a 404 tells it.
            if self.referrers[n].1 == Held::No {
                self.pull(n).await;
            }
        }
        for _ in 0..3 {
            self.query_all().await;
        }
    }
}
