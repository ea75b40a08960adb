//! What is held in memory for clients, who may be slow to send or to take it: answers and manifests.

use futures_util::future::join_all;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::{FRONTS, SHORT, after, empty, endless, request};
use crate::support::{Face, RawAnswer, Registry, Scene, Scripted};

/// A list of this many bytes or more; its path.
async fn long_list(scene: &Scene, repository: &str, bytes: usize) -> String {
    const EACH: usize = 200_000;
    let image = scene.client.image(repository, "image").await;
    scene.client.push(repository, &image).await;
    for number in 0..bytes.div_ceil(EACH) {
        let referrer = image.changed(|manifest| {
            manifest["annotations"] = json!({"number": number.to_string(), "long": "x".repeat(EACH)});
            manifest["subject"] = image.descriptor();
        });
        scene.client.push(repository, &referrer).await;
    }
    format!("/v2/{repository}/manifests/{}/references", image.digest)
}

#[tokio::test]
async fn answers_that_are_not_taken_are_held_up_to_a_limit_and_not_for_ever() {
    let registry = Registry::start();
    join_all(FRONTS.map(|face| expect_limited_answers(&registry, face))).await;
}

async fn expect_limited_answers(registry: &Registry, face: Face) {
    // In HTTP/1.1 more than the system takes for a client that reads nothing; and more than half of a
    // client's quarter.
    let list_bytes = if face.is_http2() { 1 << 20 } else { 12 << 20 };
    let limit = (list_bytes * 7).to_string();
    let settings = [
        ("REFERENCES_PAGE_BYTES", "32MiB"),
        ("LIMITS_ANSWER_BYTES", &*limit),
        ("TIMEOUTS_BODY_IDLE", "20s"),
        ("TRUSTED_PROXIES", "127.0.0.1"),
    ];
    let scene = face.before(registry.address, &settings).await;
    let path = long_list(&scene, &format!("{face:?}").to_lowercase(), list_bytes).await;
    let ask = async |address: &str| {
        let get = scene.client.request(Method::GET, &path).header("x-forwarded-for", address);
        scene.client.send(get).await
    };
    assert!(ask("192.0.2.1").await.body.len() > list_bytes);
    let mut http1 = None;
    let mut http2 = None;
    if face.is_http2() {
        let (mut sender, connection) = scene.http2(1).await.unwrap();
        let mut get = request(Method::GET, &path, empty());
        get.headers_mut().insert("x-forwarded-for", "192.0.2.1".parse().unwrap());
        http2 = Some((sender.send_request(get).await.unwrap(), sender, connection));
    } else {
        let get = format!("GET {path} HTTP/1.1\r\nhost: h\r\nx-forwarded-for: 192.0.2.1\r\n\r\n");
        let mut stream = after(&scene, get).await;
        assert_eq!(stream.read_u8().await.unwrap(), b'H');
        http1 = Some(stream);
    }
    let refused = ask("192.0.2.1").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{face:?}");
    refused.header("retry-after");
    assert!(String::from_utf8(refused.body).unwrap().contains("limits.answer_bytes"));
    assert_eq!(ask("192.0.2.2").await.status, StatusCode::OK, "{face:?}");
    // Cut off, it holds nothing any more.
    while ask("192.0.2.1").await.status != StatusCode::OK {}
    drop((http1, http2));
}

#[tokio::test]
async fn dribbled_manifests_give_way_to_those_that_come_at_once() {
    const DRIBBLERS: usize = 24;
    const DECLARED: usize = 1 << 20;
    let registry = Registry::start();
    for face in FRONTS {
        let settings = [("MANIFESTS_MAX_BYTES", "1MiB"), ("LIMITS_MANIFEST_BYTES", "1MiB")];
        let scene = face.before(registry.address, &settings).await;
        let image = scene.client.image("a", "image").await;
        let head = format!("PUT /v2/a/manifests/x HTTP/1.1\r\nhost: h\r\ncontent-length: {DECLARED}\r\n\r\n");
        let part = "x".repeat(100_000);
        let mut dribbling = Vec::new();
        let mut streams = Vec::new();
        let http2 = if face.is_http2() { Some(scene.http2(65_535).await.unwrap()) } else { None };
        for number in 0..DRIBBLERS {
            if let Some((sender, _connection)) = &http2 {
                let mut sender = sender.clone();
                let put = request(Method::PUT, "/v2/a/manifests/x", endless(part.clone()));
                dribbling.push(tokio::spawn(async move { sender.send_request(put).await.unwrap() }));
            } else {
                streams.push(after(&scene, [&head, &part[..]].concat()).await);
            }
            let push = scene.another_client().put_manifest("a", &number.to_string(), &image).await;
            assert_eq!(push.status, StatusCode::CREATED, "{face:?} {number}");
        }
        // The first of them had to go, and were told why.
        for stream in dribbling.into_iter().take(DRIBBLERS - 10) {
            let answer = stream.await.unwrap();
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{face:?}");
            let told = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(String::from_utf8_lossy(&told).contains("limits.manifest_bytes"));
        }
        for stream in streams.iter_mut().take(DRIBBLERS - 10) {
            let answer = RawAnswer::read(stream).await.unwrap();
            assert_eq!(answer.status, 503, "{face:?}");
            assert!(String::from_utf8_lossy(&answer.body).contains("limits.manifest_bytes"));
        }
        // A large one that comes at once gets through as well.
        let large = image.changed(|manifest| manifest["x"] = "x".repeat(DECLARED - 10_000).into());
        let push = scene.another_client().put_manifest("a", "large", &large).await;
        assert_eq!(push.status, StatusCode::CREATED, "{face:?}");
    }
}

#[tokio::test]
async fn a_manifest_has_a_time_to_come_whole() {
    let upstream = Scripted::start(|exchange| exchange.answer_status("200 OK"));
    for face in FRONTS {
        let scene = face.before(upstream.address, &[("TIMEOUTS_MANIFEST", SHORT)]).await;
        let body = if face.is_http2() {
            let (mut sender, _connection) = scene.http2(65_535).await.unwrap();
            let put = request(Method::PUT, "/v2/a/manifests/x", endless("x"));
            let answer = sender.send_request(put).await.unwrap();
            assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT, "{face:?}");
            answer.into_body().collect().await.unwrap().to_bytes().to_vec()
        } else {
            let head = "PUT /v2/a/manifests/x HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nx";
            let mut stream = after(&scene, head).await;
            let answer = RawAnswer::read(&mut stream).await.unwrap();
            assert_eq!(answer.status, 408, "{face:?}");
            answer.body
        };
        assert!(String::from_utf8(body).unwrap().contains("timeouts.manifest"), "{face:?}");
    }
}
