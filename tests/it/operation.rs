//! What an operator sees: health, readiness, metrics, logs, and the end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Client, Refshim, Registry, Scripted, about};

#[tokio::test]
async fn readiness_tells_of_the_upstream_and_health_does_not() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let admin = Client::new(refshim.admin);
    let ready = admin.get("/readyz").await;
    assert_eq!((ready.status, ready.body), (StatusCode::OK, b"index: ok\nupstream: ok\n".to_vec()));
    assert_eq!(admin.get("/nothing").await.status, StatusCode::NOT_FOUND);
    assert_eq!(
        admin.send(admin.request(Method::POST, "/healthz")).await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
    drop(refshim);

    registry.stop();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refshim = Refshim::start(closed, directory.path()).await;
    let admin = Client::new(refshim.admin);
    let ready = admin.get("/readyz").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(String::from_utf8(ready.body).unwrap().contains("upstream: the registry cannot be reached"));
    assert_eq!(admin.get("/healthz").await.status, StatusCode::OK);
}

/// An upstream that answers `/v2/` with what stands here at the time.
fn changing(answer: &Arc<Mutex<String>>) -> Scripted {
    let answer = Arc::clone(answer);
    Scripted::probed(move |exchange| {
        let answer = answer.lock().unwrap().clone();
        exchange.answer(&answer);
    })
}

fn answer(head: &str, body: &str) -> String {
    format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn only_a_registry_is_ready() {
    let html = "200 OK\r\ncontent-type: text/html";
    let api = "docker-distribution-api-version: registry/2.0";
    for (head, body, ready) in [
        (format!("200 OK\r\n{api}"), "{}", true),
        (format!("401 Unauthorized\r\n{api}"), "", true),
        ("401 Unauthorized\r\nwww-authenticate: Bearer realm=\"https://x\"".to_owned(), "{}", true),
        ("401 Unauthorized\r\nwww-authenticate: Basic realm=\"x\"".to_owned(), "<html>", true),
        ("200 OK\r\ncontent-type: application/json".to_owned(), "{}", true),
        (html.to_owned(), "<html>Welcome to nginx!</html>", false),
        (html.to_owned(), "", false),
        ("401 Unauthorized\r\ncontent-type: text/html".to_owned(), "<html>log in</html>", false),
        ("200 OK\r\ncontent-type: application/xml".to_owned(), "<ListBucketResult/>", false),
        ("302 Found\r\nlocation: https://login.example/".to_owned(), "", false),
        ("404 Not Found\r\ncontent-type: text/html".to_owned(), "<html>", false),
        (format!("502 Bad Gateway\r\n{api}"), "", false),
    ] {
        let upstream = changing(&Arc::new(Mutex::new(answer(&head, body))));
        let directory = tempfile::tempdir().unwrap();
        let refshim = Refshim::start(upstream.address, directory.path()).await;
        let admin = Client::new(refshim.admin);
        for _ in 0..2 {
            let found = admin.get("/readyz").await;
            assert_eq!(found.status == StatusCode::OK, ready, "{head} {body}: {found:?}");
        }
        if !ready {
            let line = refshim.logs("the upstream default is not ready", 1).await;
            assert!(line.contains("WARN") && line.contains("answered /v2/ with"), "{line}");
        }
        // An answer that passed shows no more than one that was asked for.
        refshim.client().get("/v2/").await;
        assert_eq!(admin.get("/readyz").await.status == StatusCode::OK, ready, "{head} {body}");
        assert_eq!(refshim.count("is not ready"), usize::from(!ready));
    }
}

#[tokio::test]
async fn the_log_tells_each_change_of_readiness() {
    let (registry, page) = (answer("200 OK", "{}"), answer("200 OK\r\ncontent-type: text/html", "<html>"));
    let says = Arc::new(Mutex::new(page.clone()));
    let upstream = changing(&says);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    refshim.logs("the upstream default is not ready", 1).await;
    let admin = Client::new(refshim.admin);
    for round in 1..=3 {
        for _ in 0..2 {
            admin.get("/readyz").await;
        }
        registry.clone_into(&mut says.lock().unwrap());
        for _ in 0..2 {
            assert_eq!(admin.get("/readyz").await.status, StatusCode::OK);
        }
        refshim.logs("the upstream default is ready again", round).await;
        page.clone_into(&mut says.lock().unwrap());
        assert_eq!(admin.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
        refshim.logs("the upstream default is not ready", round + 1).await;
    }
    // Each change once, however often somebody asked.
    assert_eq!((refshim.count("is ready again"), refshim.count("is not ready")), (3, 4));
}

#[tokio::test]
async fn an_upstream_that_goes_and_comes_is_told_without_anybody_asking() {
    let registry = answer("200 OK\r\ndocker-distribution-api-version: registry/2.0", "{}");
    let says = Arc::new(Mutex::new(registry.clone()));
    let upstream = changing(&says);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    // It answered just now: this alone does not make it ready.
    assert_eq!(client.get("/v2/").await.status, StatusCode::OK);
    says.lock().unwrap().clear();
    assert_eq!(client.get("/v2/").await.status, StatusCode::BAD_GATEWAY);
    let line = refshim.logs("the upstream default is not ready", 1).await;
    assert!(line.contains("WARN") && line.contains("broke before it answered"), "{line}");
    let admin = Client::new(refshim.admin);
    let is_ready = |ready: u8| format!("refshim_upstream_ready{{upstream=\"default\"}} {ready}\n");
    assert!(admin.text("/metrics").await.contains(&is_ready(0)));
    registry.clone_into(&mut says.lock().unwrap());
    refshim.logs("the upstream default is ready again", 1).await;
    assert!(admin.text("/metrics").await.contains(&is_ready(1)));
}

#[tokio::test]
async fn the_first_lines_say_what_runs_and_what_it_has() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let image = client.image("a", "one").await;
    client.push("a", &image).await;
    client.push("a", &about(&image, &image, "sig")).await;
    assert!(refshim.stop().success());

    let file = directory.path().join("refshim.toml");
    std::fs::write(&file, "[upstreams.hub]\nurl = \"http://127.0.0.1:9\"\nprefixes = [\"hub\"]\n").unwrap();
    let with_file = format!(r#"exec "$0" "$@" --config {}"#, file.display());
    let start = Refshim::prepare(registry.address, directory.path()).under(["bash", "-c", &with_file]);
    let refshim = start.launch().await;
    let line: serde_json::Value = serde_json::from_str(&refshim.logs("\"serving\"", 1).await).unwrap();
    for (field, expected) in [
        ("version", env!("CARGO_PKG_VERSION")),
        ("config_file", file.to_str().unwrap()),
        ("index", directory.path().to_str().unwrap()),
        ("upstream", &registry.url()),
        ("further_upstreams", "hub=http://127.0.0.1:9"),
    ] {
        assert_eq!(line[field].as_str().unwrap().trim_end_matches('/'), expected, "{line}");
    }
    let line: serde_json::Value = serde_json::from_str(&refshim.logs("the index is open", 1).await).unwrap();
    assert_eq!((&line["referrers"], &line["links"]), (&1.into(), &1.into()), "{line}");
    assert!(line["seconds"].as_f64().unwrap() >= 0.0);
    let line = refshim.logs("the upstream hub is not ready", 1).await;
    assert!(line.contains("WARN"), "{line}");
}

#[tokio::test]
async fn a_registry_that_wants_to_be_reached_over_https_is_ready() {
    let upstream = Scripted::probed(|exchange| match exchange.request.header("x-forwarded-proto") {
        Some("https") => exchange.answer(&answer("200 OK", "{}")),
        _ => exchange.answer(&answer("308 Permanent Redirect\r\nlocation: https://x/v2/", "")),
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    assert_eq!(Client::new(refshim.admin).get("/readyz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn metrics_count_requests_and_links() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let image = client.image("a", "one").await;
    client.push("a", &image).await;
    client.push("a", &about(&image, &image, "sig")).await;
    let refused = about(&image, &image, "x").changed(|manifest| manifest["layers"] = 5.into());
    assert_eq!(client.put_manifest("a", "latest", &refused).await.status, StatusCode::BAD_REQUEST);
    client.referrers("a", &image.digest, "").await;
    let metrics = Client::new(refshim.admin).text("/metrics").await;
    for line in [
        r#"refshim_requests_total{upstream="default",class="manifests",status="201"} 2"#,
        r#"refshim_requests_total{upstream="default",class="manifests",status="400"} 1"#,
        r#"refshim_requests_total{upstream="default",class="references",status="200"} 1"#,
        r#"refshim_links_total{upstream="default",kind="reference",outcome="recorded"} 1"#,
        r#"refshim_links_total{upstream="default",kind="reference",outcome="refused"} 1"#,
        "refshim_index_referrers 1",
        "refshim_index_links 1",
        "refshim_index_pending 0",
        r#"refshim_query_seconds_count{upstream="default"} 1"#,
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }
    refshim.logs("recorded a manifest's links", 1).await;
}

#[tokio::test]
async fn secrets_are_not_logged() {
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let directory = tempfile::tempdir().unwrap();
    let refshim =
        Refshim::prepare(upstream.address, directory.path()).with("LOG_FILTER", "trace,h2=off,hyper=off");
    let refshim = refshim.launch().await;
    let client = refshim.client().as_user("alice", "s3cret-password");
    let path = "/v2/a/blobs/uploads/1?_state=s3cret-state";
    client.send(client.request(Method::GET, path).header("cookie", "sid=s3cret-cookie")).await;
    client.get("/v2/a/manifests/latest/references?token=s3cret-query").await;
    refshim.logs("/v2/a/blobs/uploads/1", 1).await;
    assert!(!refshim.logged("s3cret"));
}

#[tokio::test]
async fn a_request_under_way_comes_to_its_end_before_the_process_does() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let upstream = Scripted::start(move |exchange| {
        held.lock().unwrap().recv().unwrap();
        exchange.answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\nlate");
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    let answer = tokio::spawn({
        let client = client.clone();
        async move { client.get("/v2/slow").await }
    });
    while upstream.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    refshim.terminate();
    while !refshim.logged("draining") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(client.try_send(client.request(Method::GET, "/v2/")).await.is_err(), "accepted after SIGTERM");
    release.send(()).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!((answer.status, answer.body), (StatusCode::OK, b"late".to_vec()));
    assert!(tokio::task::spawn_blocking(move || refshim.wait()).await.unwrap().success());
}

#[tokio::test]
async fn draining_has_a_limit() {
    let upstream = Scripted::start(|_| std::thread::sleep(Duration::from_secs(600)));
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path()).with("TIMEOUTS_SHUTDOWN", "200ms");
    let refshim = refshim.launch().await;
    let client = refshim.client();
    let request = tokio::spawn(async move { client.try_send(client.request(Method::GET, "/v2/")).await });
    while upstream.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(tokio::task::spawn_blocking(move || refshim.stop()).await.unwrap().success());
    assert!(request.await.unwrap().is_err());
}

/// The request of a client that has just connected may be on its way, or half of it there.
#[tokio::test]
async fn a_client_that_has_just_connected_is_answered_before_the_end() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let head = b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut connected = Vec::new();
    for sent in [0, 1, 10, head.len() - 1] {
        let mut stream = TcpStream::connect(refshim.address).await.unwrap();
        stream.write_all(&head[..sent]).await.unwrap();
        connected.push((sent, stream));
    }
    // Connections are accepted in their order.
    refshim.client().get("/v2/").await;
    refshim.terminate();
    refshim.logs("draining", 1).await;
    for (sent, mut stream) in connected {
        stream.write_all(&head[sent..]).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "after {sent} bytes: {answer}");
    }
    assert!(tokio::task::spawn_blocking(move || refshim.wait()).await.unwrap().success());
}
