//! An upstream that is gone, silent or breaks off: the client hears of it, and nothing is sent twice.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};

use crate::support::{Face, Refshim, Scripted};

/// Longer than any test takes: only the end of the connection ends the wait.
const FOR_EVER: Duration = Duration::from_secs(600);

#[tokio::test]
async fn an_upstream_that_is_gone_is_a_502() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(closed, directory.path()).await;
    let answer = refshim.client().get("/v2/").await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.error_code(), "UNAVAILABLE");
}

#[tokio::test]
async fn a_silent_upstream_is_a_504() {
    let upstream = Scripted::start(|_| std::thread::sleep(FOR_EVER));
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path()).with("TIMEOUTS_RESPONSE", "200ms");
    let refshim = refshim.launch().await;
    let client = refshim.client();
    let answer = client.get("/v2/").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(answer.error_code(), "UNAVAILABLE");
    let upload = client.request(Method::PATCH, "/v2/a/blobs/uploads/1").body(vec![0; 32 << 20]);
    assert_eq!(client.send(upload).await.status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_slow_client_is_not_a_silent_upstream() {
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
        exchange.answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path()).with("TIMEOUTS_RESPONSE", "200ms");
    let refshim = refshim.launch().await;
    let mut stream = TcpStream::connect(refshim.address).unwrap();
    stream
        .write_all(b"PATCH /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\nconnection: close\r\n\r\n")
        .unwrap();
    for byte in *b"slow" {
        std::thread::sleep(Duration::from_millis(300));
        stream.write_all(&[byte]).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_client_that_pauses_for_too_long_is_a_408() {
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path()).with("TIMEOUTS_BODY_IDLE", "200ms");
    let refshim = refshim.launch().await;
    for path in ["/v2/a/blobs/uploads/1", "/v2/a/manifests/latest"] {
        let mut stream = TcpStream::connect(refshim.address).unwrap();
        let head =
            format!("PUT {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\nconnection: close\r\n\r\nab");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_body_that_stalls_or_breaks_off_is_never_passed_as_whole() {
    let stalls = Scripted::start(|exchange| {
        exchange.answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 100\r\n\r\nabc");
        std::thread::sleep(FOR_EVER);
    });
    let breaks =
        Scripted::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 100\r\n\r\nabc");
    for upstream in [stalls, breaks] {
        let directory = tempfile::tempdir().unwrap();
        let refshim =
            Refshim::prepare(upstream.address, directory.path()).with("TIMEOUTS_BODY_IDLE", "200ms");
        let refshim = refshim.launch().await;
        let client = refshim.client();
        let answer = client.try_send(client.request(Method::GET, "/v2/a/blobs/x")).await;
        assert!(answer.is_err(), "{answer:?}");
    }
}

/// As docker-registry breaks off its own 416, so many at once that the connection's task is kept busy.
#[tokio::test]
async fn an_answer_whose_body_breaks_off_at_once_keeps_its_status_and_what_came_of_the_body() {
    let upstream = Scripted::answering(
        "HTTP/1.1 416 Range Not Satisfiable\r\nconnection: close\r\ncontent-length: 24\r\n\r\ninvalid",
    );
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        let asked = (0..100).map(async |_| {
            let response = scene.client.request(Method::GET, "/v2/a/blobs/x").send().await;
            let mut response = response.unwrap_or_else(|error| panic!("{face:?}: {error:?}"));
            assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
            assert_eq!(response.chunk().await.unwrap().unwrap(), "invalid", "{face:?}");
            assert!(response.chunk().await.is_err(), "{face:?}");
        });
        join_all(asked).await;
    }
}

#[tokio::test]
async fn a_request_that_was_sent_is_not_sent_again() {
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    for method in [Method::PATCH, Method::PUT, Method::POST] {
        let before = upstream.requests().len();
        let answer = client.send(client.request(method, "/v2/a/blobs/uploads/1").body("part")).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(upstream.requests().len(), before + 1);
    }
}

#[tokio::test]
async fn a_connection_that_the_upstream_closed_for_being_idle_is_no_failure() {
    let first = AtomicBool::new(true);
    let upstream = Scripted::start(move |exchange| {
        if !first.swap(false, Ordering::SeqCst) {
            exchange.answer_status("200 OK");
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    assert_eq!(refshim.client().get("/v2/").await.status, StatusCode::OK);
    assert_eq!(upstream.requests().len(), 2);
}
