//! Pushes, pulls, queries and deletes at the machine's limit, on two registries at once. The way to one of
//! them breaks again and again, and clients go away; only what was under way then may fail, no answer may
//! be wrong, and neither memory nor file descriptors may grow.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::door::{Door, Weather};
use crate::random::Random;
use crate::support::{Answer, Client, Content, IMAGE_MANIFEST, Refshim, Registry, about, by_environment};
use crate::table::Row;

/// Clients of each registry.
const WORKERS: u64 = 12;
/// Referrers of each worker's image.
const REFERRERS: usize = 40;
const BLOBS: u64 = 10;
const BLOB_BYTES: usize = 200_000;
const CALM: Duration = Duration::from_secs(3);
const STORM: Duration = Duration::from_secs(1);
/// How long connections that a storm ended may go on to be found dead.
const AFTERMATH: Duration = Duration::from_millis(500);
/// How much larger the last third may be than the second.
const MEMORY_MARGIN: u64 = 24 << 20;
const DESCRIPTOR_MARGIN: u64 = 64;

/// Odd while connections break.
#[derive(Default)]
struct Storms(AtomicU64);

impl Storms {
    fn change(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What a worker knows of one referrer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Yes,
    No,
    /// The answer to a push or a delete was lost.
    Unknown,
}

struct Worker {
    client: Client,
    refshim: std::net::SocketAddr,
    repository: String,
    image: Content,
    referrers: Vec<(Content, Held)>,
    random: Random,
    storms: Option<Arc<Storms>>,
    found: Found,
}

/// What came of a worker's requests.
#[derive(Default)]
struct Found {
    requests: u64,
    excused: u64,
    acknowledged: u64,
    gone_away: u64,
    lost: Vec<String>,
    wrong: Vec<String>,
}

impl Worker {
    async fn start(refshim: &Refshim, repository: String, seed: u64, storms: Option<Arc<Storms>>) -> Self {
        let client = refshim.client();
        let image = client.image(&repository, &repository).await;
        client.push_as(&repository, "image", &image).await;
        let referrer = |n: usize| {
            let in_two_ways = |manifest: &mut Value| manifest["subject"] = image.descriptor();
            (about(&image, &image, &n.to_string()).changed(in_two_ways), Held::No)
        };
        let referrers = (0..REFERRERS).map(referrer).collect();
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

    async fn work(mut self, until: Instant) -> Self {
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

    /// The answer with one of these statuses; none if it is another one and a storm excuses that.
    async fn ask(&mut self, request: RequestBuilder, expected: &[u16]) -> Option<Answer> {
        let before = self.storms.as_ref().map(|storms| storms.now());
        self.found.requests += 1;
        let answer = match self.client.try_send(request).await {
            Ok(answer) if expected.contains(&answer.status.as_u16()) => return Some(answer),
            answer => answer,
        };
        let after = self.storms.as_ref().map(|storms| storms.now());
        let is_broken = answer.as_ref().map_or(true, |answer| answer.status.is_server_error());
        if is_broken && (before != after || before.is_some_and(|number| number % 2 == 1)) {
            self.found.excused += 1;
        } else {
            self.found.wrong.push(format!("{}: {answer:?}", self.repository));
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
            Held::Unknown if self.is_storm() => return,
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
        self.found.acknowledged += u64::from(self.referrers[n].1 == Held::Yes);
    }

    fn is_storm(&self) -> bool {
        self.storms.as_ref().is_some_and(|storms| storms.now() % 2 == 1)
    }

    async fn query(&mut self) {
        let image = &self.image.digest;
        let path = match self.random.below(3) {
            0 => format!("/v2/{}/referrers/{image}", self.repository),
            1 => format!("/v2/{}/manifests/{image}/references", self.repository),
            _ => format!("/v2/{}/manifests/image/references?inline=true", self.repository),
        };
        let Some(answer) = self.ask(self.client.request(Method::GET, &path), &[200]).await else { return };
        let index = answer.json();
        let manifests = index["manifests"].as_array().unwrap();
        let digest = |entry: &Value| entry["digest"].as_str().unwrap().to_owned();
        let listed: BTreeSet<String> = manifests.iter().map(digest).collect();
        if listed.len() != manifests.len() {
            self.found.wrong.push(format!("{path}: listed twice: {index}"));
        }
        for (content, held) in &self.referrers {
            match (held, listed.contains(&content.digest)) {
                (Held::Yes, false) => {
                    self.found.lost.push(format!("{path}: {} is not listed", content.digest));
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
        let expected: &[u16] = match held {
            Held::Yes => &[200],
            Held::No => &[404],
            Held::Unknown => &[200, 404],
        };
        let get = self.client.request(Method::GET, &path).header("accept", IMAGE_MANIFEST);
        let answer = self.ask(get, expected).await;
        if answer.is_some_and(|answer| answer.status == StatusCode::OK && answer.body != content.bytes) {
            self.found.wrong.push(format!("{path}: other bytes"));
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

/// How many files, sockets among them, the process has open.
fn descriptors(refshim: &Refshim) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", refshim.pid())).unwrap().count() as u64
}

/// Memory in bytes and open files, once a second.
async fn sample(refshim: &Refshim, until: Instant) -> Vec<(u64, u64)> {
    let mut samples = Vec::new();
    while Instant::now() < until {
        samples.push((refshim.memory(), descriptors(refshim)));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    samples
}

/// `FAULT_SOAK` is for how many seconds.
#[tokio::test(flavor = "multi_thread")]
async fn for_as_long_as_it_is_under_load_nothing_is_lost_and_nothing_grows() {
    let (sound, broken) = (Registry::start(), Registry::start());
    let door = Door::before(broken.address).await;
    let directory = tempfile::tempdir().unwrap();
    let start = || {
        Refshim::prepare(sound.address, directory.path())
            .with("UPSTREAMS_BROKEN_URL", &format!("http://{}", door.address))
            .with("UPSTREAMS_BROKEN_PREFIXES", "broken")
            .with("UPSTREAMS_BROKEN_STRIP_PREFIX", "true")
            .with("INDEX_SEGMENT_BYTES", "1MiB")
            .with("INDEX_COMPACT_BYTES", "4MiB")
            .with("LOG_FILTER", "warn,refshim::cli=info")
    };
    let refshim = start().launch().await;
    let storms = Arc::new(Storms::default());
    let seed = by_environment("FAULT_SEED", 1);
    let mut workers = Vec::new();
    for n in 0..WORKERS {
        let storms = Arc::clone(&storms);
        workers.push(Worker::start(&refshim, format!("w{n}"), seed + n, None).await);
        workers.push(Worker::start(&refshim, format!("broken/w{n}"), seed + n, Some(storms)).await);
    }
    let mut row = Row::new("connections break and clients go away under mixed load");
    let until = Instant::now() + Duration::from_secs(by_environment("FAULT_SOAK", 12));
    let mut load: JoinSet<Worker> = workers.into_iter().map(|worker| worker.work(until)).collect();
    let weather = async {
        for storm in Weather::STORMS.into_iter().cycle() {
            tokio::time::sleep(CALM).await;
            if Instant::now() >= until {
                break;
            }
            storms.change();
            door.set(storm);
            tokio::time::sleep(STORM).await;
            door.set(Weather::Calm);
            tokio::time::sleep(AFTERMATH).await;
            storms.change();
            refshim.hang_up();
            row.tried += 1;
        }
    };
    let (samples, ()) = tokio::join!(sample(&refshim, until), weather);
    let mut workers = Vec::new();
    while let Some(worker) = load.join_next().await {
        workers.push(worker.unwrap());
    }
    for worker in &mut workers {
        worker.query().await;
    }
    if refshim.logged("\"level\":\"ERROR\"") {
        row.mistake(refshim.lines().join("\n"));
    }
    refshim.kill();
    let refshim = start().launch().await;
    let mut all = Found::default();
    for mut worker in workers {
        worker.client = refshim.client();
        worker.query().await;
        all.requests += worker.found.requests;
        all.excused += worker.found.excused;
        row.tried += worker.found.gone_away;
        row.acknowledged += worker.found.acknowledged;
        worker.found.lost.into_iter().for_each(|finding| row.lose(finding));
        worker.found.wrong.into_iter().for_each(|finding| row.mistake(finding));
    }
    let thirds: Vec<&[(u64, u64)]> = samples.chunks(samples.len().div_ceil(3)).collect();
    let most =
        |of: fn(&(u64, u64)) -> u64| thirds.iter().map(move |third| third.iter().map(of).max().unwrap());
    let memory: Vec<u64> = most(|sample| sample.0).collect();
    let descriptors: Vec<u64> = most(|sample| sample.1).collect();
    let (requests, excused) = (all.requests, all.excused);
    println!(
        "{requests} requests, {excused} of them broken by a storm; the most memory (bytes) in each third:"
    );
    println!("{memory:?}, and descriptors: {descriptors:?}");
    assert!(memory[2] <= memory[1] + MEMORY_MARGIN, "memory grows");
    assert!(descriptors[2] <= descriptors[1] + DESCRIPTOR_MARGIN, "descriptors grow");
    row.close();
}
