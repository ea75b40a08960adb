//! A client that knows nothing of references cannot tell that refshim is there.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use reqwest::{Method, StatusCode};

use crate::support::{Client, Content, Refshim, Registry, Scripted};

/// Fields that differ between two answers of the same registry, or that refshim documents.
const NOT_COMPARED: [&str; 3] = ["date", "x-request-id", "docker-upload-uuid"];

async fn check_same(alone: &Client, through: &Client, method: Method, path: &str, range: Option<&str>) {
    let ask = async |client: &Client| {
        let mut request = client.request(method.clone(), path);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let answer = request.send().await.unwrap();
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        for name in NOT_COMPARED {
            headers.remove(name);
        }
        // docker-registry breaks off the body of some of its own errors.
        (status, headers, answer.bytes().await.ok())
    };
    assert_eq!(ask(through).await, ask(alone).await, "{method} {path} {range:?}");
}

#[tokio::test]
async fn answers_are_those_of_the_registry() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let (alone, through) = (registry.client(), refshim.client());
    let image = through.image("a/b", "one").await;
    through.push_as("a/b", "v1", &image).await;
    through.push_as("a/b", "v2", &image).await;
    let layer = image.value["layers"][0]["digest"].as_str().unwrap();
    let gone = format!("sha256:{}", "0".repeat(64));

    for (method, path) in [
        (Method::GET, "/v2/".to_owned()),
        (Method::GET, "/v2".to_owned()),
        (Method::GET, "/".to_owned()),
        (Method::GET, "/not/of/a/registry?x=%2F".to_owned()),
        (Method::GET, "/v2/_catalog?n=1".to_owned()),
        (Method::GET, "/v2/a/b/tags/list?n=1".to_owned()),
        (Method::GET, "/v2/a/b/manifests/v1".to_owned()),
        (Method::HEAD, "/v2/a/b/manifests/v1".to_owned()),
        (Method::GET, format!("/v2/a/b/manifests/{}", image.digest)),
        (Method::GET, "/v2/a/b/manifests/none".to_owned()),
        (Method::GET, format!("/v2/a/b/manifests/{gone}")),
        (Method::GET, "/v2/a/b/manifests/sha256:XYZ".to_owned()),
        (Method::GET, "/v2/a/manifests/manifests/references".to_owned()),
        (Method::GET, format!("/v2/a/b/blobs/{layer}")),
        (Method::HEAD, format!("/v2/a/b/blobs/{layer}")),
        (Method::HEAD, format!("/v2/a/b/blobs/{gone}")),
        (Method::PATCH, "/v2/a/b/manifests/v1".to_owned()),
        (Method::OPTIONS, "/v2/".to_owned()),
        (Method::DELETE, format!("/v2/a/b/manifests/{gone}")),
        (Method::from_bytes(b"PROPFIND").unwrap(), "/v2/".to_owned()),
        (Method::GET, "/v2/A//..%2F/manifests".to_owned()),
    ] {
        check_same(&alone, &through, method, &path, None).await;
    }
    for range in ["bytes=0-3", "bytes=4-", "bytes=-2", "bytes=1000-", "bytes=9-3"] {
        check_same(&alone, &through, Method::GET, &format!("/v2/a/b/blobs/{layer}"), Some(range)).await;
    }
}

#[tokio::test]
async fn blobs_go_up_in_every_way_and_down_again() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    for client in [refshim.client(), Client::http2(refshim.address)] {
        let start = async || {
            let started = client.send(client.request(Method::POST, "/v2/x/blobs/uploads/")).await;
            assert_eq!(started.status, StatusCode::ACCEPTED);
            started.header("location").to_owned()
        };
        let content: Vec<u8> = (0..3_000_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let digest = crate::support::digest_of(&content);

        let location = start().await;
        let put = client.request(Method::PUT, &format!("{location}&digest={digest}")).body(content.clone());
        assert_eq!(client.send(put).await.status, StatusCode::CREATED);
        let got = client.get(&format!("/v2/x/blobs/{digest}")).await;
        assert!(got.body == content);
        assert_eq!(client.delete(&format!("/v2/x/blobs/{digest}")).await.status, StatusCode::ACCEPTED);

        let mut location = start().await;
        for part in content.chunks(1_000_000) {
            let part = part.to_vec();
            let pieces = part.chunks(70_000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
            let stream = futures_util::stream::iter(pieces.collect::<Vec<_>>());
            let patch = client.request(Method::PATCH, &location).body(reqwest::Body::wrap_stream(stream));
            let patched = client.send(patch).await;
            assert_eq!(patched.status, StatusCode::ACCEPTED);
            location = patched.header("location").to_owned();
        }
        let end = client.request(Method::PUT, &format!("{location}&digest={digest}"));
        assert_eq!(client.send(end.header("content-length", "0")).await.status, StatusCode::CREATED);
        assert_eq!(client.head(&format!("/v2/x/blobs/{digest}")).await.header("content-length"), "3000000");

        let mount = format!("/v2/y/blobs/uploads/?mount={digest}&from=x");
        assert_eq!(client.send(client.request(Method::POST, &mount)).await.status, StatusCode::CREATED);
        assert_eq!(client.delete(&format!("/v2/x/blobs/{digest}")).await.status, StatusCode::ACCEPTED);
        assert_eq!(client.delete(&format!("/v2/y/blobs/{digest}")).await.status, StatusCode::ACCEPTED);
    }
}

const NOTHING: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn the_upstream_learns_who_asked_and_sees_no_hop_by_hop_field() {
    let upstream = Scripted::answering(NOTHING);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    let request = client
        .request(Method::GET, "/any%20path/?q=%2F&x")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("te", "trailers")
        .header("x-forwarded-for", "10.9.8.7")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "spoofed.example.com")
        .header("forwarded", "host=spoofed.example.com")
        .header("accept", "a/b, c/d")
        .header("authorization", "Bearer x")
        .header("x-request-id", "mine");
    let answer = client.send(request).await;
    assert_eq!(answer.header("x-request-id"), "mine");

    let requests = upstream.requests();
    let seen = requests.last().unwrap();
    assert_eq!(seen.line, "GET /any%20path/?q=%2F&x HTTP/1.1");
    assert_eq!(seen.header("host"), Some(upstream.address.to_string().as_str()));
    assert_eq!(seen.header("x-forwarded-host"), Some(refshim.address.to_string().as_str()));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("te"), Some("trailers"));
    assert_eq!(seen.header("accept"), Some("a/b, c/d"));
    assert_eq!(seen.header("authorization"), Some("Bearer x"));
    assert_eq!(seen.header("x-request-id"), Some("mine"));
    for absent in ["x-hop", "connection", "forwarded"] {
        assert_eq!(seen.header(absent), None);
    }
}

#[tokio::test]
async fn locations_and_links_of_the_upstream_lead_through_refshim() {
    let upstream = Scripted::start(|exchange| {
        let host = exchange.request.header("host").unwrap();
        let answer = format!(
            "HTTP/1.1 202 Accepted\r\nlocation: http://{host}/outside/v2?_state=a%3D\r\n\
             link: <http://{host}/v2/_catalog?n=1>; rel=\"next\"\r\ncontent-length: 0\r\n\r\n"
        );
        exchange.answer(&answer);
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let answer = refshim.client().get("/v2/x").await;
    assert_eq!(answer.header("location"), "/outside/v2?_state=a%3D");
    assert_eq!(answer.header("link"), "</v2/_catalog?n=1>; rel=\"next\"");

    let storage = Scripted::answering(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: https://storage.example.com/blob?sig=x\r\n\
         content-length: 0\r\n\r\n",
    );
    let refshim = Refshim::start(storage.address, tempfile::tempdir().unwrap().path()).await;
    let answer = refshim.client().get("/v2/x/blobs/y").await;
    assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(answer.header("location"), "https://storage.example.com/blob?sig=x");
}

/// Sends bytes to refshim, and gives what has come back when it closes the connection.
fn raw(refshim: &Refshim, request: &str) -> String {
    let mut stream = TcpStream::connect(refshim.address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let upstream = Scripted::answering(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 9\r\n\r\n",
    );
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let answer = raw(
        &refshim,
        "POST /x HTTP/1.1\r\nhost: h\r\nte: trailers\r\nconnection: te, close\r\ntransfer-encoding: chunked\r\n\
         trailer: x-mine\r\n\r\n2\r\nhi\r\n0\r\nx-mine: 7\r\n\r\n",
    );
    assert_eq!(String::from_utf8_lossy(&upstream.requests()[0].body), "2\r\nhi\r\n0\r\nx-mine: 7\r\n\r\n");
    assert!(answer.ends_with("3\r\nabc\r\n0\r\nx-sum: 9\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_refusal_does_not_wait_for_the_body_that_waits_for_100_continue() {
    let upstream = Scripted::start(|exchange| {
        exchange.answer("HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let answer = raw(
        &refshim,
        "PATCH /v2/a/blobs/uploads/1 HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
    );
    assert!(answer.contains("HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic\r\n"), "{answer}");
}

#[tokio::test]
async fn a_body_is_asked_for_when_the_upstream_asks_for_it() {
    let upstream = Scripted::start(|exchange| {
        exchange.answer("HTTP/1.1 100 Continue\r\n\r\n");
        exchange.read_body();
        exchange.answer(NOTHING);
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let mut stream = TcpStream::connect(refshim.address).unwrap();
    let head = "PATCH /x HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(upstream.requests()[0].body, b"hello");
}

#[tokio::test]
async fn an_empty_post_keeps_its_content_length() {
    let upstream = Scripted::answering(NOTHING);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    raw(
        &refshim,
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(upstream.requests()[0].header("content-length"), Some("0"));
}

#[tokio::test]
async fn a_manifest_pushed_in_chunks_arrives_whole() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let image: Content = client.image("a", "one").await;
    let pieces: Vec<_> =
        image.bytes.chunks(10).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let put = client.request(Method::PUT, "/v2/a/manifests/latest").header("content-type", &image.media_type);
    let put = put.body(reqwest::Body::wrap_stream(futures_util::stream::iter(pieces)));
    let answer = client.send(put).await;
    assert_eq!(
        (answer.status, answer.header("docker-content-digest")),
        (StatusCode::CREATED, &*image.digest)
    );
}
