//! What is logged of a request says which one it is about, wherever in refshim it is logged.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Content, Face, Refshim, Scripted, Shelf, about, put, shelf_registry};

/// What the first line with this in it says of its request.
async fn span(refshim: &Refshim, part: &str) -> Value {
    let line: Value = serde_json::from_str(&refshim.logs(part, 1).await).unwrap();
    line["span"].clone()
}

#[tokio::test]
async fn every_warning_names_its_request() {
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
        if exchange.request.line.contains("manifests") {
            exchange.answer_status("500 Internal Server Error");
        }
    });
    let image = Content::image("config", "layer");
    let manifest = about(&image, &image, "x");
    for face in [Face::Http1, Face::Http2, Face::TlsHttp1, Face::TlsHttp2] {
        let scene = face.before(upstream.address, &[]).await;
        let get = scene.client.request(Method::GET, "/outside").header("x-request-id", "first");
        let answer = scene.client.send(get).await;
        assert_eq!(
            (answer.status, answer.header("x-request-id")),
            (StatusCode::BAD_GATEWAY, "first"),
            "{face:?}"
        );
        let expected = json!({"name": "request", "request_id": "first", "upstream": "default"});
        assert_eq!(span(&scene.refshim, "a request failed").await, expected, "{face:?}");

        // What outlives its client is logged by a task of its own.
        let put = scene.client.request(Method::PUT, &format!("/v2/a/b/manifests/{}", manifest.digest));
        let put = put.header("content-type", &manifest.media_type).body(manifest.bytes.clone());
        let answer = scene.client.send(put).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{face:?}");
        let id = answer.header("x-request-id");
        let expected =
            json!({"name": "request", "request_id": id, "upstream": "default", "repository": "a/b"});
        assert_eq!(span(&scene.refshim, "did not say whether it accepted").await, expected, "{face:?}");
        let sent = upstream.requests();
        assert!(sent.iter().any(|request| request.header("x-request-id") == Some(id)), "{face:?}");
    }
}

/// W3C Trace Context: the trace goes on through refshim, also with its own questions.
#[tokio::test]
async fn the_context_of_a_trace_reaches_the_upstream() {
    let image = Content::image("config", "layer");
    let shelf = Shelf::default();
    put(&shelf, "a", &["v1"], &image);
    let upstream = shelf_registry(&shelf, |turn| Some(turn.right.clone()));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for face in [Face::Http1, Face::Http2] {
        let scene = face.before(upstream.address, &[]).await;
        let before = upstream.requests().len();
        for path in ["/v2/a/manifests/v1", "/v2/a/manifests/v1/references"] {
            let get = scene.client.request(Method::GET, path).header("traceparent", trace);
            let answer = scene.client.send(get.header("tracestate", "vendor=1")).await;
            assert_eq!(answer.status, StatusCode::OK, "{face:?} {path}");
        }
        let sent = upstream.requests().split_off(before);
        assert!(sent.len() > 1, "{face:?}");
        for request in sent {
            let context = (request.header("traceparent"), request.header("tracestate"));
            assert_eq!(context, (Some(trace), Some("vendor=1")), "{face:?} {}", request.line);
        }
    }
}

#[tokio::test]
async fn an_id_of_any_length_passes_and_is_logged_in_part() {
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
    });
    let scene = Face::Http1.before(upstream.address, &[]).await;
    let id = "i".repeat(10_000);
    let get = scene.client.request(Method::GET, "/outside").header("x-request-id", &id);
    assert_eq!(scene.client.send(get).await.header("x-request-id"), id);
    let sent = upstream.requests();
    assert!(sent.iter().any(|request| request.header("x-request-id") == Some(&*id)));
    let logged = span(&scene.refshim, "a request failed").await;
    assert_eq!(logged["request_id"].as_str().unwrap().len(), 128);
}

#[tokio::test]
async fn an_id_cannot_be_read_as_another_field() {
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
    });
    let scene = Face::Http1.before(upstream.address, &[]).await;
    let id = "1/a+b= upstream=other";
    let get = scene.client.request(Method::GET, "/outside").header("x-request-id", id);
    assert_eq!(scene.client.send(get).await.header("x-request-id"), id);
    assert_eq!(span(&scene.refshim, "a request failed").await["request_id"], "1/a+b=");
}
