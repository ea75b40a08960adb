//! What an operator sees: health, readiness, metrics, logs, and the end.

use std::time::Duration;

use reqwest::{Method, StatusCode};

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
    assert!(refshim.logged("recorded a manifest's links"));
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
    assert!(refshim.logged("/v2/a/blobs/uploads/1"));
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
