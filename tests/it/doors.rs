//! Clients that do not go on: each thing that a client may leave undone ends after its time, and what was
//! taken for it is given back. Over plain HTTP and TLS, in HTTP/1.1 and HTTP/2.

mod held;
mod unread;

use std::io::{Read as _, Write as _};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{AnyBody, Content, Face, RawAnswer, Registry, Scene, Scripted, Stream, about, exchange};

/// The ways in which clients speak to refshim.
const FRONTS: [Face; 4] = [Face::Http1, Face::Http2, Face::TlsHttp1, Face::TlsHttp2];
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const SHORT: &str = "300ms";
const NO_TIME_OUT: &str = "1h";

fn empty() -> AnyBody {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn full(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// One piece, and then nothing for ever.
fn endless(bytes: impl Into<Bytes>) -> AnyBody {
    let first = futures_util::stream::iter([Ok(http_body::Frame::data(bytes.into()))]);
    let stream = futures_util::StreamExt::chain(first, futures_util::stream::pending());
    StreamBody::new(stream).boxed()
}

fn request(method: Method, path: &str, body: AnyBody) -> Request<AnyBody> {
    Request::builder().method(method).uri(format!("http://h{path}")).body(body).unwrap()
}

/// Reads to the connection's end, which is awaited for as long as the test may take.
async fn closed(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    // A reset is an end, too, and so is TLS without its own.
    let _end = stream.read_to_end(&mut all).await;
    all
}

async fn after(scene: &Scene, bytes: impl AsRef<[u8]>) -> Box<dyn Stream> {
    let mut stream = scene.connect().await.unwrap();
    stream.write_all(bytes.as_ref()).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_whatever_was_said_on_it() {
    let upstream = Scripted::start(|exchange| exchange.answer_status("200 OK"));
    for face in FRONTS {
        let scene = face.before(upstream.address, &[("TIMEOUTS_CLIENT_HEADERS", SHORT)]).await;
        let said: Vec<Vec<u8>> = vec![
            vec![],
            PREFACE[..10].to_vec(),
            b"GET /v2/ HT".to_vec(),
            b"GET /v2/ HTTP/1.1\r\nhost: h\r\nx: ".to_vec(),
            b"\r\n\r\n\r\n".to_vec(),
            PREFACE.to_vec(),
            [PREFACE, SETTINGS].concat(),
        ];
        join_all(said.iter().map(async |said| closed(after(&scene, said).await).await)).await;
        let asked = closed(after(&scene, "GET /v2/ HTTP/1.1\r\nhost: h\r\n\r\n").await).await;
        assert!(asked.starts_with(b"HTTP/1.1 200"), "{face:?}");
        // Without a handshake.
        closed(TcpStream::connect(scene.refshim.address).await.unwrap()).await;
        let mut half = TcpStream::connect(scene.refshim.address).await.unwrap();
        half.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        closed(half).await;
        let to_admin = async |said: &Vec<u8>| {
            let mut stream = TcpStream::connect(scene.refshim.admin).await.unwrap();
            stream.write_all(said).await.unwrap();
            closed(stream).await
        };
        join_all(said.iter().map(to_admin)).await;
    }
}

#[tokio::test]
async fn an_idle_http2_connection_that_answers_pings_is_told_to_go_and_closed() {
    let upstream = Scripted::start(|exchange| exchange.answer_status("200 OK"));
    for face in FRONTS.into_iter().filter(|face| face.is_http2()) {
        let scene = face.before(upstream.address, &[("TIMEOUTS_CLIENT_HEADERS", SHORT)]).await;
        let (mut sender, connection) = scene.http2(65_535).await.unwrap();
        let answer = sender.send_request(request(Method::GET, "/v2/", empty())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        // A connection that was closed without a word would be an error.
        connection.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_request_in_progress_outlasts_the_time_of_an_idle_connection() {
    let (go, wait) = channel();
    let wait = Mutex::new(wait);
    let upstream = Scripted::start(move |exchange| {
        wait.lock().unwrap().recv().unwrap();
        exchange.answer_status("200 OK");
    });
    for face in FRONTS {
        let scene = face.before(upstream.address, &[("TIMEOUTS_CLIENT_HEADERS", SHORT)]).await;
        let idle = after(&scene, "").await;
        let get = scene.client.get("/v2/");
        let waiting = async {
            // Longer than its time, as another connection tells.
            closed(idle).await;
            closed(after(&scene, "").await).await;
            go.send(()).unwrap();
        };
        let (answer, ()) = tokio::join!(get, waiting);
        assert_eq!(answer.status, StatusCode::OK, "{face:?}");
    }
}

#[tokio::test]
async fn idle_connections_make_room_for_new_ones_the_longest_idle_first() {
    let upstream = Scripted::start(|exchange| exchange.answer_status("200 OK"));
    for face in FRONTS {
        let settings = [("LIMITS_CONNECTIONS", "8"), ("TIMEOUTS_CLIENT_HEADERS", NO_TIME_OUT)];
        let scene = face.before(upstream.address, &settings).await;
        let said: [&[u8]; 4] = [b"", b"GET /v2/ HTTP/1.1\r\nhost: h\r\n\r\n", b"GET /v2/ HT", PREFACE];
        let mut held = Vec::new();
        for round in 0..20 {
            held.push(after(&scene, said[round % 4]).await);
            let answer = scene.another_client().get("/v2/").await;
            assert_eq!(answer.status, StatusCode::OK, "{face:?} {round}");
        }
        for stream in held.drain(..12) {
            closed(stream).await;
        }
    }
}

#[tokio::test]
async fn a_head_has_a_longest_length_and_unfinished_ones_hold_little_memory() {
    const HEADS: usize = 400;
    let upstream = Scripted::start(|exchange| exchange.answer_status("200 OK"));
    for face in [Face::Http1, Face::TlsHttp1] {
        let scene = face.before(upstream.address, &[("TIMEOUTS_CLIENT_HEADERS", NO_TIME_OUT)]).await;
        let head = |bytes: usize| format!("GET /v2/ HTTP/1.1\r\nhost: h\r\nx: {}", "x".repeat(bytes));
        let mut long = scene.connect().await.unwrap();
        let _closed_before_all_was_written = long.write_all(head(600_000).as_bytes()).await;
        assert_eq!(RawAnswer::read(&mut long).await.unwrap().status, 431, "{face:?}");
        let before = scene.refshim.memory();
        let mut unfinished = Vec::new();
        for _ in 0..HEADS {
            unfinished.push(after(&scene, head(120_000)).await);
        }
        assert_eq!(scene.another_client().get("/v2/").await.status, StatusCode::OK);
        // Far more than the unfinished heads may have in all, which is 8 MiB: buffers grow by doubling, and the
        // allocator keeps what was freed.
        let grown = scene.refshim.memory().saturating_sub(before);
        assert!(grown < 64 << 20, "{face:?}: {grown} bytes");
        // Most had to go; which ones depends on when refshim came to read them.
        let mut gone: JoinSet<_> = unfinished.into_iter().map(closed).collect();
        for _ in 0..HEADS / 2 {
            gone.join_next().await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn connect_is_refused_in_every_form() {
    let upstream = Scripted::start(|exchange| exchange.answer_status("200 OK"));
    for face in FRONTS {
        let scene = face.before(upstream.address, &[]).await;
        if face.is_http2() {
            let (mut sender, _connection) = scene.http2(65_535).await.unwrap();
            let connect = Request::builder().method(Method::CONNECT).uri("h:1").body(empty()).unwrap();
            let answer = sender.send_request(connect).await.unwrap();
            assert_eq!(answer.status(), StatusCode::NOT_IMPLEMENTED, "{face:?}");
        }
        for fields in ["", "connection: upgrade\r\nupgrade: echo/1\r\n", "content-length: 1\r\n"] {
            for target in ["h:1", "/v2/", "http://h/v2/"] {
                let head = format!("CONNECT {target} HTTP/1.1\r\nhost: h\r\n{fields}\r\n");
                let mut stream = scene.connect().await.unwrap();
                let status = exchange(&mut stream, head).await.map_or(400, |answer| answer.status);
                assert!([400, 501].contains(&status), "{face:?} {target} {fields}: {status}");
            }
        }
    }
    assert!(upstream.requests().is_empty());
}

/// An upstream that sends blobs without an end, and tells when each broke off.
fn endless_blobs() -> (Scripted, std::sync::mpsc::Receiver<()>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let upstream = Scripted::start(move |exchange| {
        exchange.read_body();
        if !exchange.request.line.contains("/blobs/") {
            return exchange.answer_status("200 OK");
        }
        let chunked = exchange.request.line.contains("chunked");
        let (head, block) = if chunked {
            ("transfer-encoding: chunked", [&b"10000\r\n"[..], &vec![b'x'; 1 << 16], b"\r\n"].concat())
        } else {
            ("content-length: 1000000000000", vec![b'x'; 1 << 16])
        };
        let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
        exchange.stream.write_all(head.as_bytes()).unwrap();
        while exchange.stream.write_all(&block).is_ok() {}
        tell.lock().unwrap().send(()).unwrap();
    });
    (upstream, told)
}

#[tokio::test]
async fn a_client_that_does_not_read_its_blob_is_cut_off_and_the_upstream_is_freed() {
    let (upstream, told) = endless_blobs();
    for face in FRONTS {
        let scene = face.before(upstream.address, &[("TIMEOUTS_BODY_IDLE", SHORT)]).await;
        for path in ["/v2/a/blobs/sized", "/v2/a/blobs/chunked"] {
            if face.is_http2() {
                for window in [0, 1, 100_000] {
                    let (mut sender, _connection) = scene.http2(window).await.unwrap();
                    let answer = sender.send_request(request(Method::GET, path, empty())).await.unwrap();
                    told.recv().unwrap();
                    // The other streams of the connection go on.
                    let other = sender.send_request(request(Method::GET, "/v2/", empty())).await.unwrap();
                    assert_eq!(other.status(), StatusCode::OK, "{face:?} {window}");
                    drop(answer);
                }
            } else {
                let mut stream = after(&scene, format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n")).await;
                told.recv().unwrap();
                let _rest = stream.read(&mut [0]).await;
            }
        }
    }
}

#[tokio::test]
async fn what_a_client_of_http2_takes_slowly_arrives_whole() {
    let blob: Vec<u8> = (0..=250).cycle().take(300_000).collect();
    let registry = Registry::start();
    for face in FRONTS.into_iter().filter(|face| face.is_http2()) {
        let scene = face.before(registry.address, &[]).await;
        let digest = scene.client.push_blob("a", &blob).await;
        for window in [1, 10_000, 65_536, 65_537, 1 << 20] {
            let (mut sender, _connection) = scene.http2(window).await.unwrap();
            let get = request(Method::GET, &format!("/v2/a/blobs/{digest}"), empty());
            let answer = sender.send_request(get).await.unwrap();
            assert_eq!(answer.headers()["content-length"], "300000");
            let got = if window == 1 { continue } else { answer.into_body().collect().await.unwrap() };
            assert!(got.to_bytes() == blob, "{face:?} {window}");
        }
    }
}

#[tokio::test]
async fn a_stream_whose_body_never_comes_ends() {
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
        exchange.answer_status("200 OK");
    });
    for face in FRONTS.into_iter().filter(|face| face.is_http2()) {
        let settings = [("TIMEOUTS_BODY_IDLE", SHORT), ("LIMITS_REQUESTS_PER_CLIENT", "4")];
        let scene = face.before(upstream.address, &settings).await;
        let (sender, _connection) = scene.http2(65_535).await.unwrap();
        let unending = |method: &'static Method, path: &'static str| {
            let mut sender = sender.clone();
            async move { sender.send_request(request(method.clone(), path, endless("x"))).await.unwrap() }
        };
        let answers = join_all([
            unending(&Method::PUT, "/v2/a/manifests/x"),
            unending(&Method::PATCH, "/v2/a/blobs/uploads/1"),
            unending(&Method::POST, "/v2/a/blobs/uploads/"),
        ])
        .await;
        for answer in answers {
            assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT, "{face:?}");
        }
        // A GET goes on without its body, as hyper sends none with it unless it has a length.
        let get = sender.clone().send_request(request(Method::GET, "/v2/", endless("x"))).await.unwrap();
        assert_eq!(get.status(), StatusCode::OK, "{face:?}");
        // The rest of their bodies was given up, and they count no longer.
        while scene.client.get("/v2/").await.status != StatusCode::OK {}
    }
}

#[tokio::test]
async fn a_tunnel_keeps_its_place_and_ends_when_it_is_silent() {
    let upstream = Scripted::start(|exchange| {
        if exchange.request.header("upgrade").is_none() {
            return exchange.answer_status("200 OK");
        }
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo/1\r\n\r\n";
        exchange.stream.write_all(agreed.as_bytes()).unwrap();
        let mut byte = [0];
        while let Ok(1) = exchange.stream.read(&mut byte) {
            exchange.stream.write_all(&byte).unwrap();
        }
    });
    let upgrade = "GET /v2/x HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: echo/1\r\n\r\n";
    for face in [Face::Http1, Face::TlsHttp1] {
        for (limit, status) in [("LIMITS_CONNECTIONS", 503), ("LIMITS_REQUESTS_PER_CLIENT", 429)] {
            let settings = [(limit, "1"), ("TIMEOUTS_BODY_IDLE", "5s"), ("TIMEOUTS_CLIENT_HEADERS", SHORT)];
            let scene = face.before(upstream.address, &settings).await;
            let mut tunnel = scene.connect().await.unwrap();
            assert_eq!(exchange(&mut tunnel, upgrade).await.unwrap().status, 101);
            // Longer than an idle connection lasts, as another one tells.
            for _ in 0..3 {
                closed(TcpStream::connect(scene.refshim.admin).await.unwrap()).await;
                tunnel.write_all(b"x").await.unwrap();
                assert_eq!(tunnel.read_u8().await.unwrap(), b'x');
                let answer = scene.another_client().get("/v2/").await;
                assert_eq!(answer.status.as_u16(), status, "{face:?} {limit}");
            }
            closed(tunnel).await;
            while scene.another_client().get("/v2/").await.status != StatusCode::OK {}
        }
    }
}

#[tokio::test]
async fn work_that_goes_on_without_its_client_counts_as_its_request() {
    const LIMIT: usize = 3;
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
        if exchange.request.line.starts_with("GET") {
            return exchange.answer_status("200 OK");
        }
        let _closed = exchange.stream.read(&mut [0]);
    });
    let subject = Content::image("{}", "subject");
    let signature = about(&subject, &subject, "signature");
    for face in FRONTS {
        for method in [Method::PUT, Method::DELETE] {
            let settings = [("LIMITS_REQUESTS_PER_CLIENT", "3"), ("TIMEOUTS_RESPONSE", NO_TIME_OUT)];
            let scene = face.before(upstream.address, &settings).await;
            let path = format!("/v2/a/manifests/{}", signature.digest);
            let body = if method == Method::PUT { signature.bytes.clone() } else { Vec::new() };
            let before = upstream.requests().len();
            for number in 1..=LIMIT {
                let has_come = async || {
                    while upstream.requests().len() < before + number {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                if face.is_http2() {
                    let (mut sender, connection) = scene.http2(65_535).await.unwrap();
                    let sent = sender.send_request(request(method.clone(), &path, full(body.clone())));
                    tokio::select! {
                        answer = sent => panic!("{answer:?}"),
                        () = has_come() => {}
                    }
                    connection.abort();
                } else {
                    let length = body.len();
                    let head =
                        format!("{method} {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n");
                    let stream = after(&scene, [head.as_bytes(), &body].concat()).await;
                    has_come().await;
                    drop(stream);
                }
            }
            for _ in 0..5 {
                let answer = scene.another_client().get("/v2/").await;
                assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{face:?} {method}");
            }
        }
    }
}
