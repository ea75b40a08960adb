//! The configuration is loaded again while refshim serves: what changes, what is refused, and that no request is lost.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use reqwest::{Method, StatusCode};

use crate::support::{Answer, Authority, Client, Refshim, Registry, Scripted, TlsClient, about, exchange};

const SUCCESSFUL: &str = "refshim_config_last_reload_successful ";

/// A refshim with a file, in front of an upstream that answers what is asked for at once.
struct Scene {
    refshim: Refshim,
    admin: Client,
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Scene {
    async fn new(upstream: std::net::SocketAddr, text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("refshim.toml");
        std::fs::write(&file, text).unwrap();
        let data = directory.path().join("data");
        let start = Refshim::prepare(upstream, &data).with("CONFIG", file.to_str().unwrap());
        let refshim = start.launch().await;
        let admin = Client::new(refshim.admin);
        Self { refshim, admin, file, _directory: directory }
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.file, text).unwrap();
    }

    async fn post_reload(&self) -> Answer {
        self.admin.send(self.admin.request(Method::POST, "/reload")).await
    }

    /// Takes this over.
    async fn reload(&self, text: &str) -> String {
        self.write(text);
        let answer = self.post_reload().await;
        let told = String::from_utf8(answer.body).unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{told}");
        told
    }

    /// Refuses this.
    async fn refused(&self, text: &str) -> String {
        self.write(text);
        let answer = self.post_reload().await;
        let told = String::from_utf8(answer.body).unwrap();
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{told}");
        told
    }

    async fn metric(&self, name: &str) -> String {
        let metrics = self.admin.text("/metrics").await;
        metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned()
    }
}

const NOTHING: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn a_signal_loads_the_configuration_again_and_says_so() {
    let upstream = Scripted::answering(NOTHING);
    let scene = Scene::new(upstream.address, "").await;
    assert_eq!(scene.metric(SUCCESSFUL).await, "1");
    let began: u64 =
        scene.metric("refshim_config_last_reload_success_timestamp_seconds ").await.parse().unwrap();
    assert!(began > 1_700_000_000);
    scene.refshim.hang_up();
    scene.refshim.logs("the configuration was loaded again, nothing changed", 1).await;
    scene.write("limits.requests_per_client = 7\ntimeouts.response = \"9s\"\n");
    scene.refshim.hang_up();
    let line = scene.refshim.logs("the configuration was loaded again", 2).await;
    assert!(line.contains("timeouts.response, limits.requests_per_client"), "{line}");
    scene.write("limits.requests_per_client = -7\nnonsense = 1\n");
    scene.refshim.hang_up();
    let place = scene.file.display();
    scene
        .refshim
        .logs(&format!("the configuration is not taken over: {place}:1: limits.requests_per_client"), 1)
        .await;
    scene
        .refshim
        .logs(&format!("the configuration is not taken over: {place}:2: nonsense: unknown key"), 1)
        .await;
    assert_eq!(scene.metric(SUCCESSFUL).await, "0");
}

#[tokio::test]
async fn a_signal_that_means_nothing_to_refshim_does_not_end_it() {
    let upstream = Scripted::answering(NOTHING);
    let scene = Scene::new(upstream.address, "").await;
    for signal in ["-USR1", "-USR2"] {
        scene.refshim.signal(signal);
        let line = format!("SIG{} does nothing", signal.trim_start_matches('-'));
        scene.refshim.logs(&line, 1).await;
    }
    assert_eq!(scene.admin.get("/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn limits_and_trust_are_others_for_the_next_request_of_the_same_connection() {
    let upstream = Scripted::start(|exchange| {
        let told = exchange.request.header("x-forwarded-for").unwrap().to_owned();
        exchange.answer(&format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{told}",
            told.len()
        ));
    });
    let scene = Scene::new(upstream.address, "").await;
    let mut stream = tokio::net::TcpStream::connect(scene.refshim.address).await.unwrap();
    let ask = "GET /v2/a/blobs/x HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 192.0.2.1\r\n\r\n";
    let mut asked = async || {
        let answer = exchange(&mut stream, ask.as_bytes()).await.unwrap();
        String::from_utf8(answer.body).unwrap()
    };
    assert_eq!(asked().await, "127.0.0.1");
    let told = scene.reload("trusted_proxies = [\"127.0.0.1\"]\n").await;
    assert_eq!(told, "changed: trusted_proxies\n");
    assert_eq!(asked().await, "192.0.2.1, 127.0.0.1");
    scene.reload("").await;
    assert_eq!(asked().await, "127.0.0.1");
}

/// Begins its answer to what is `/slow` and never ends it.
fn slow() -> Scripted {
    Scripted::start(|exchange| {
        if exchange.request.line.contains("/slow") {
            exchange.answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345");
        } else if !exchange.request.line.contains("/silent") {
            return exchange.answer(NOTHING);
        }
        let _closed = exchange.stream.read(&mut [0]);
    })
}

#[tokio::test]
async fn requests_that_are_counted_already_count_in_a_new_limit() {
    let upstream = slow();
    let scene = Scene::new(upstream.address, "").await;
    let client = scene.refshim.client();
    let held = client.request(Method::GET, "/v2/a/blobs/slow").send().await.unwrap();
    scene.reload("limits.requests_per_client = 1\n").await;
    assert_eq!(client.get("/v2/").await.status, StatusCode::TOO_MANY_REQUESTS);
    scene.reload("limits.requests_per_client = 2\n").await;
    assert_eq!(client.get("/v2/").await.status, StatusCode::OK);
    drop(held);
}

#[tokio::test]
async fn connections_that_are_open_count_in_a_new_limit() {
    let upstream = slow();
    let scene = Scene::new(upstream.address, "").await;
    let client = || scene.refshim.client();
    let held = client().request(Method::GET, "/v2/a/blobs/slow").send().await.unwrap();
    scene.reload("limits.connections = 1\n").await;
    assert_eq!(client().get("/v2/").await.status, StatusCode::SERVICE_UNAVAILABLE);
    scene.reload("limits.connections = 2\n").await;
    assert_eq!(client().get("/v2/").await.status, StatusCode::OK);
    drop(held);
}

#[tokio::test]
async fn a_time_out_of_the_upstream_counts_for_the_next_request() {
    let upstream = slow();
    let scene = Scene::new(upstream.address, "").await;
    let client = scene.refshim.client();
    scene.reload("timeouts.response = \"1ms\"\n").await;
    assert_eq!(client.get("/v2/a/blobs/silent").await.status, StatusCode::GATEWAY_TIMEOUT);
    scene.reload("upstreams.default.response = \"1h\"\ntimeouts.response = \"1ms\"\n").await;
    assert_eq!(client.get("/v2/a/blobs/x").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_wrong_file_changes_nothing_and_every_mistake_is_told() {
    let upstream = Scripted::answering(NOTHING);
    let scene = Scene::new(upstream.address, "limits.requests_per_client = 9\n").await;
    let place = scene.file.display().to_string();
    let told = scene
        .refused(
            "trusted_proxies = [\"10.0.0.0/99\"]\nlog.filter = \"loud\"\nlisten = \"127.0.0.1:1\"\n\
             [upstreams.default]\nca = \"/missing\"\n",
        )
        .await;
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 3, "{told}");
    for part in [":1: trusted_proxies: ", ":2: log.filter: ", ":5: upstreams.default.ca: "] {
        assert!(told.contains(&format!("{place}{part}")), "no {part} in {told}");
    }
    assert_eq!(scene.metric(SUCCESSFUL).await, "0");
    std::fs::remove_file(&scene.file).unwrap();
    let answer = scene.post_reload().await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(scene.reload("limits.requests_per_client = 9\n").await, "nothing changed\n");
    assert_eq!(scene.metric(SUCCESSFUL).await, "1");
}

#[tokio::test]
async fn what_takes_a_restart_is_named_and_nothing_is_taken_over() {
    let upstream = slow();
    let scene = Scene::new(upstream.address, "").await;
    let text = "limits.requests_per_client = 1\nindex.forget_after = \"2h\"\n\
                [upstreams.hub]\nurl = \"http://hub\"\nhosts = [\"hub\"]\n";
    let told = scene.refused(text).await;
    assert!(told.contains("takes a restart: index.forget_after, upstreams.hub.url ("), "{told}");
    let client = scene.refshim.client();
    let held = client.request(Method::GET, "/v2/a/blobs/slow").send().await.unwrap();
    assert_eq!(client.get("/v2/").await.status, StatusCode::OK);
    drop(held);
    let authority = Authority::new();
    let identity = authority.server("refshim", &["127.0.0.1"]);
    let [certificate, key] = [&identity.certificate, &identity.key].map(|path| path.to_str().unwrap());
    let told =
        scene.refused(&format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\" }}\n")).await;
    assert!(told.contains("takes a restart: tls.certificate"), "{told}");
}

#[tokio::test]
async fn another_certificate_is_shown_by_the_same_listener() {
    let upstream = Scripted::answering(NOTHING);
    let authority = Authority::new();
    let [one, other] = ["one", "other"].map(|name| authority.server(name, &["127.0.0.1"]));
    let text = |identity: &crate::support::Identity| {
        format!(
            "tls = {{ certificate = \"{}\", key = \"{}\" }}\n",
            identity.certificate.display(),
            identity.key.display()
        )
    };
    let scene = Scene::new(upstream.address, &text(&one)).await;
    let client = TlsClient::trusting(&authority);
    let mut open = client.connect(scene.refshim.address, "127.0.0.1").await.unwrap();
    assert_eq!(open.shown(), one.der());
    scene.reload(&text(&other)).await;
    let new = client.connect(scene.refshim.address, "127.0.0.1").await.unwrap();
    assert_eq!(new.shown(), other.der());
    assert_eq!(open.get().await.unwrap().status, 200);
}

#[tokio::test]
async fn no_request_is_lost_however_often_the_configuration_changes() {
    let registry = Registry::start();
    let scene = Scene::new(registry.address, "").await;
    let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let (is_over, answered) = (Arc::clone(&is_over), Arc::clone(&answered));
            let client = scene.refshim.client();
            tokio::spawn(async move {
                // One for each: docker-registry answers 500 for a manifest that somebody else is just pushing.
                let repository = format!("repository{worker}");
                let image = client.image(&repository, "one").await;
                client.push(&repository, &image).await;
                let mut pushed = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let referrer = about(&image, &image, &pushed.len().to_string());
                    client.push(&repository, &referrer).await;
                    pushed.push(referrer.digest.clone());
                    // What was pushed is listed, whatever was in force then.
                    assert_eq!(client.referrers(&repository, &image.digest, "").await, pushed);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for round in 0..30 {
        let before = answered.load(Ordering::Relaxed);
        let (ttl, idle) = (1 + round % 3, 50 + round % 2);
        let text = format!(
            "timeouts.pool_idle = \"{idle}s\"\nreferences.access_ttl = \"{ttl}s\"\nlimits.questions = {}\n",
            100 + round
        );
        scene.reload(&text).await;
        while answered.load(Ordering::Relaxed) < before + 2 {
            assert!(!workers.iter().all(tokio::task::JoinHandle::is_finished), "a request failed");
            tokio::task::yield_now().await;
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }
}

#[tokio::test]
async fn the_log_filter_is_changed_until_the_configuration_is_loaded_again() {
    let upstream = Scripted::answering(NOTHING);
    let scene = Scene::new(upstream.address, "").await;
    let put = async |filter: &str| {
        let request = scene.admin.request(Method::PUT, "/log-filter").body(filter.to_owned());
        let answer = scene.admin.send(request).await;
        (answer.status, String::from_utf8(answer.body).unwrap())
    };
    let client = scene.refshim.client();
    assert_eq!(scene.admin.text("/log-filter").await, "info\n");
    client.get("/v2/before").await;
    assert_eq!(put(" info,refshim=debug\n").await, (StatusCode::OK, "info,refshim=debug\n".to_owned()));
    client.get("/v2/debugged").await;
    scene.refshim.logs("/v2/debugged", 1).await;
    assert!(!scene.refshim.logged("/v2/before"));
    let (status, told) = put("loud").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(told.contains("not a log filter: \"loud\""), "{told}");
    assert_eq!(scene.admin.text("/log-filter").await, "info,refshim=debug\n");
    assert_eq!(scene.reload("").await, "nothing changed\n");
    assert_eq!(scene.admin.text("/log-filter").await, "info\n");
    scene.reload("log.filter = \"warn\"\n").await;
    assert_eq!(scene.admin.text("/log-filter").await, "warn\n");
}

#[tokio::test]
async fn nobody_from_elsewhere_and_no_web_page_changes_anything() {
    let upstream = Scripted::answering(NOTHING);
    let scene = Scene::new(upstream.address, "").await;
    for (method, path) in
        [(Method::POST, "/reload"), (Method::GET, "/log-filter"), (Method::PUT, "/log-filter")]
    {
        for (name, value) in [
            ("origin", "http://page.example"),
            ("origin", "null"),
            ("host", "refshim.example:5001"),
            ("x-forwarded-for", "192.0.2.1"),
            ("via", "1.1 proxy"),
        ] {
            let request = scene.admin.request(method.clone(), path).header(name, value);
            assert_eq!(
                scene.admin.send(request).await.status,
                StatusCode::FORBIDDEN,
                "{method} {path} {name}"
            );
        }
    }
    for (method, path) in [(Method::GET, "/reload"), (Method::POST, "/log-filter")] {
        let answer = scene.admin.send(scene.admin.request(method, path)).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    }
}
