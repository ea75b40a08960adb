//! refshim with its index in PostgreSQL, as operators and clients meet it when the database is gone, slow or odd.

mod disk;
mod locks;
mod outages;
mod pooled;
mod rights;
mod sql;
mod tls;

use std::time::{Duration, Instant};

use reqwest::StatusCode;

use crate::support::postgres::Postgres;
use crate::support::{Answer, Client, Content, Refshim, Registry, Start, about};

/// Long enough for a busy machine; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(60);
/// What the log says when the database cannot be used.
const GONE: &str = "the index cannot be used; queries";
/// And when it can again.
const BACK: &str = "the index in the database works again";

/// A registry, refshim in front of it, and an image that something refers to.
struct Scene {
    refshim: Refshim,
    registry: Registry,
    client: Client,
    admin: Client,
    image: Content,
    referrer: Content,
    _directory: tempfile::TempDir,
}

/// A refshim with its index at this URL, in front of the registry; not waited for.
fn refshim<'a>(registry: &Registry, url: &str, directory: &'a tempfile::TempDir) -> Start<'a> {
    Refshim::before(registry, directory.path())
        .with("INDEX_URL", url)
        .with("INDEX_MIGRATE", "true")
        .with("TIMEOUTS_INDEX", "2s")
}

impl Scene {
    /// With an index that works.
    async fn start(url: &str, change: impl FnOnce(Start<'_>) -> Start<'_>) -> Self {
        let registry = Registry::start();
        let directory = tempfile::tempdir().unwrap();
        let started = change(refshim(&registry, url, &directory)).launch().await;
        Self::of(registry, started, directory).await
    }

    async fn of(registry: Registry, refshim: Refshim, directory: tempfile::TempDir) -> Self {
        let (client, admin) = (refshim.client(), Client::new(refshim.admin));
        let image = client.image("a", "image").await;
        client.push_as("a", "latest", &image).await;
        let referrer = about(&image, &image, "first");
        Self { refshim, registry, client, admin, image, referrer, _directory: directory }
    }

    /// A query.
    async fn query(&self) -> Answer {
        self.client.get(&format!("/v2/a/manifests/{}/references", self.image.digest)).await
    }

    /// A PUT with a link.
    async fn put(&self, name: &str) -> (Content, Answer) {
        let referrer = about(&self.image, &self.image, name);
        let answer = self.client.put_manifest("a", &referrer.digest, &referrer).await;
        (referrer, answer)
    }

    /// The referrers are these.
    #[track_caller]
    fn lists<'a>(&'a self, expected: &'a [&Content]) -> impl Future<Output = ()> + 'a {
        let place = std::panic::Location::caller();
        async move {
            let listed = self.client.referrers("a", &self.image.digest, "").await;
            let expected: Vec<&str> = expected.iter().map(|one| one.digest.as_str()).collect();
            assert_eq!(listed, expected, "{place}");
        }
    }

    /// Queries and PUTs with links are answered 503 without waiting for the database, and everything else is done.
    async fn passes_and_refuses(&self, seed: &str) {
        let began = Instant::now();
        for _ in 0..5 {
            refused(&self.query().await);
            let referrers = self.client.get(&format!("/v2/a/referrers/{}", self.image.digest)).await;
            refused(&referrers);
            refused(&self.put("refused").await.1);
        }
        self.passes(seed).await;
        // If each of the fifteen waited for its time-out of 2 s, it would be more, however fast the machine is.
        assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    }

    /// What has nothing to do with links is done.
    async fn passes(&self, seed: &str) {
        assert_eq!(self.client.get("/v2/").await.status, StatusCode::OK);
        self.client.served("a", "latest").await;
        self.client.served("a", &self.image.digest).await;
        let image = self.client.image("b", seed).await;
        self.client.push_as("b", "latest", &image).await;
        self.client.served("b", "latest").await;
    }

    /// Waits until queries are answered again, and expects these.
    async fn comes_back(&self, expected: &[&Content]) {
        let began = Instant::now();
        loop {
            let answer = self.query().await;
            if answer.status == StatusCode::OK {
                break;
            }
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(began.elapsed() < LIMIT, "{}", self.refshim.lines().join("\n"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.lists(expected).await;
        self.ready_with("index: ok").await;
    }

    /// Waits until `/readyz` says this.
    async fn ready_with(&self, part: &str) -> StatusCode {
        ready_with(&self.refshim, &self.admin, part).await
    }

    async fn metric(&self, line: &str) {
        let metrics = self.admin.text("/metrics").await;
        assert!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
}

async fn ready_with(refshim: &Refshim, admin: &Client, part: &str) -> StatusCode {
    let began = Instant::now();
    loop {
        let ready = admin.get("/readyz").await;
        let text = String::from_utf8(ready.body).unwrap();
        if text.contains(part) {
            return ready.status;
        }
        assert!(began.elapsed() < LIMIT, "no {part} in {text}{}", refshim.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// It says to try again, with an OCI error body.
#[track_caller]
fn refused(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    assert_eq!(answer.header("retry-after"), "5");
    assert_eq!(answer.error_code(), "UNAVAILABLE");
}

#[track_caller]
fn created(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
}

/// With a time-out that a busy machine does not reach, for what must not fail at all: each new connection has to prove
/// its password, which takes long in a build for tests.
async fn patient_scene() -> (Postgres, Scene) {
    let postgres = Postgres::start_fast();
    let scene = Scene::start(&postgres.url(), |start| start.with("TIMEOUTS_INDEX", "60s")).await;
    (postgres, scene)
}

/// As `launch` does, with a database that works.
async fn scene() -> (Postgres, Scene) {
    let postgres = Postgres::start_fast();
    let scene = Scene::start(&postgres.url(), |start| start).await;
    (postgres, scene)
}
