//! An upstream that speaks HTTP/2 and ends connections, or refuses streams, while requests are on their way: what
//! it did not process is sent again, and what it did is not.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use h2::{Reason, RecvStream, server};
use http::{Method, Request, Response};
use reqwest::{Body, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Content, Face, about};

/// What an upstream processed: how often each request, and with how long a body.
type Processed = Arc<Mutex<HashMap<String, Vec<usize>>>>;

/// How the upstream treats its clients.
#[derive(Clone, Copy, Debug)]
struct Manner {
    /// The streams of a connection that are processed before it ends.
    streams: Option<usize>,
    /// Whether those that are on their way then are processed, too (RFC 9113, section 6.8).
    is_graceful: bool,
    /// One in so many streams is refused.
    refused: Option<usize>,
    /// How many streams may be open.
    at_once: Option<u32>,
}

impl Manner {
    /// A request that waits for a stream when the connection ends may have been sent or not. So may one that is being
    /// sent when the upstream says that it ends but goes on: hyper reports that end also for what h2 sends behind it.
    fn may_process_what_was_queued(self) -> bool {
        self.streams.is_some() && (self.at_once.is_some() || self.is_graceful)
    }
}

struct Upstream {
    address: SocketAddr,
    processed: Processed,
}

impl Upstream {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let processed = Processed::default();
        let kept = Arc::clone(&processed);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (ours, theirs) = tokio::io::duplex(1 << 16);
                tokio::spawn(serve(theirs, manner, Arc::clone(&kept)));
                tokio::spawn(end_after(stream, ours, manner));
            }
        });
        Self { address, processed }
    }
}

/// Serves a connection with HTTP/2.
async fn serve(stream: tokio::io::DuplexStream, manner: Manner, processed: Processed) {
    let mut builder = server::Builder::new();
    if let Some(at_once) = manner.at_once {
        builder.max_concurrent_streams(at_once);
    }
    let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let mut count = 0;
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if !request.headers().contains_key("x-name") {
            // refshim itself asks now and then whether the registry is there.
            respond.send_reset(Reason::CANCEL);
            continue;
        }
        count += 1;
        if manner.refused.is_some_and(|one_in| count % one_in == 0) {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        let processed = Arc::clone(&processed);
        tokio::spawn(async move {
            // Without all of it, nothing comes of it.
            let Some((name, length)) = read(request).await else { return };
            processed.lock().unwrap().entry(name).or_default().push(length);
            let created = Response::builder().status(201).body(()).unwrap();
            let _gone = respond.send_response(created, true);
        });
    }
}

async fn read(request: Request<RecvStream>) -> Option<(String, usize)> {
    let name = request.headers()["x-name"].to_str().unwrap().to_owned();
    let mut body = request.into_body();
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        length += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    Some((name, length))
}

const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const PREFACE: usize = 24;

/// The next frame whole, its type, and its stream.
async fn frame(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(Bytes, u8, u32)> {
    let mut frame = BytesMut::zeroed(HEAD);
    from.read_exact(&mut frame).await?;
    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
    let (kind, stream) = (frame[3], u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]));
    frame.resize(HEAD + length, 0);
    from.read_exact(&mut frame[HEAD..]).await?;
    Ok((frame.freeze(), kind, stream & 0x7fff_ffff))
}

/// Passes frames both ways. After so many streams it says that there are no further ones, as nginx does after
/// `keepalive_requests`, and nothing of these reaches the server.
async fn end_after(client: TcpStream, server: tokio::io::DuplexStream, manner: Manner) {
    let (mut from_client, to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let to_client = Arc::new(tokio::sync::Mutex::new(to_client));
    let back = Arc::clone(&to_client);
    tokio::spawn(async move {
        while let Ok((frame, ..)) = frame(&mut from_server).await {
            if back.lock().await.write_all(&frame).await.is_err() {
                break;
            }
        }
    });
    let mut preface = [0; PREFACE];
    from_client.read_exact(&mut preface).await.unwrap();
    to_server.write_all(&preface).await.unwrap();
    let (mut count, mut last) = (0, u32::MAX);
    while let Ok((frame, kind, stream)) = frame(&mut from_client).await {
        if stream > last {
            let unread = u32::try_from(frame.len() - HEAD).unwrap();
            if kind == DATA && unread > 0 {
                // What is discarded counts for the connection all the same (RFC 9113, section 6.8).
                let update = [&[0, 0, 4, WINDOW_UPDATE, 0, 0, 0, 0, 0], &unread.to_be_bytes()[..]].concat();
                let _gone = to_client.lock().await.write_all(&update).await;
            }
            continue;
        }
        if to_server.write_all(&frame).await.is_err() {
            break;
        }
        count += usize::from(kind == HEADERS);
        if kind == HEADERS && Some(count) == manner.streams {
            last = if manner.is_graceful { u32::MAX >> 1 } else { stream };
            let mut goaway = vec![0, 0, 8, GOAWAY, 0, 0, 0, 0, 0];
            goaway.extend(last.to_be_bytes());
            goaway.extend(u32::from(Reason::NO_ERROR).to_be_bytes());
            if to_client.lock().await.write_all(&goaway).await.is_err() {
                break;
            }
        }
    }
}

/// What a client sends: with no body, whole ones that are recorded or not, and streams.
fn request(client: &crate::support::Client, number: usize) -> (reqwest::RequestBuilder, usize) {
    let image = Content::image("config", "layer");
    let streamed = |pieces: usize| {
        let pieces = (0..pieces).map(|_| Ok::<_, std::io::Error>(vec![7; 1000]));
        Body::wrap_stream(futures_util::stream::iter(pieces.collect::<Vec<_>>()))
    };
    let upload = "/v2/a/blobs/uploads/1";
    let (request, length) = match number % 6 {
        0 => (client.request(Method::POST, "/v2/a/blobs/uploads/"), 0),
        1 => {
            let manifest = about(&image, &image, &number.to_string());
            let put = client.request(Method::PUT, &format!("/v2/a/manifests/{}", manifest.digest));
            let length = manifest.bytes.len();
            (put.header("content-type", manifest.media_type).body(manifest.bytes), length)
        }
        2 => (client.request(Method::PUT, &format!("{upload}?digest=x")), 0),
        3 => (client.request(Method::PATCH, upload).body(vec![1; 5_000]), 5_000),
        4 => (client.request(Method::PATCH, upload).body(streamed(10)), 10_000),
        _ => (client.request(Method::DELETE, "/v2/a/blobs/x"), 0),
    };
    (request.header("x-name", number.to_string()), length)
}

async fn check(face: Face, manner: Manner) {
    let upstream = Upstream::start(manner).await;
    let scene = face.before(upstream.address, &[("UPSTREAMS_DEFAULT_HTTP2", "always")]).await;
    let count = 180;
    let unknown = AtomicUsize::new(0);
    for wave in 0..3 {
        let (numbers, unknown) = (wave * count / 3..(wave + 1) * count / 3, &unknown);
        let answered = join_all(numbers.map(async |number| {
            let (request, length) = request(&scene.client, number);
            let answer = scene.client.send(request).await;
            if manner.may_process_what_was_queued() && length == 0 && answer.status == StatusCode::BAD_GATEWAY
            {
                unknown.fetch_add(1, Ordering::Relaxed);
                return;
            }
            assert_eq!(answer.status, StatusCode::CREATED, "{face:?} {manner:?} {number}: {answer:?}");
        }));
        answered.await;
    }
    let processed = upstream.processed.lock().unwrap();
    assert!(processed.len() + unknown.into_inner() >= count, "{face:?} {manner:?}");
    for (name, lengths) in &*processed {
        let (_, length) = request(&scene.client, name.parse().unwrap());
        // A head without a body that waited for a stream may still be sent after h2 said that the connection ends:
        // of such a request nobody can tell whether it was processed.
        let once =
            if manner.may_process_what_was_queued() && length == 0 { &lengths[..1] } else { &lengths[..] };
        assert_eq!(once, [length], "{face:?} {manner:?} {name}");
    }
}

const FRONTS: [Face; 4] = [Face::Http1, Face::Http2, Face::TlsHttp1, Face::TlsHttp2];

#[tokio::test]
async fn what_an_upstream_did_not_process_before_its_goaway_is_sent_again() {
    for face in FRONTS {
        for (streams, at_once) in [(25, None), (100, Some(16))] {
            check(face, Manner { streams: Some(streams), is_graceful: false, refused: None, at_once }).await;
        }
    }
}

#[tokio::test]
async fn what_was_queued_when_an_upstream_said_that_it_ends_is_not_processed_twice() {
    for face in FRONTS {
        for (streams, at_once) in [(25, None), (10, Some(4))] {
            check(face, Manner { streams: Some(streams), is_graceful: true, refused: None, at_once }).await;
        }
    }
}

#[tokio::test]
async fn what_an_upstream_refused_is_sent_again() {
    for face in FRONTS {
        for (refused, at_once) in [(3, None), (4, Some(8))] {
            check(face, Manner { streams: None, is_graceful: false, refused: Some(refused), at_once }).await;
        }
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_all_is_a_502() {
    let upstream =
        Upstream::start(Manner { streams: None, is_graceful: false, refused: Some(1), at_once: None }).await;
    for face in [Face::Http1, Face::TlsHttp2] {
        let scene = face.before(upstream.address, &[("UPSTREAMS_DEFAULT_HTTP2", "always")]).await;
        let answered = (0..6).map(async |number| {
            let answer = scene.client.send(request(&scene.client, number).0).await;
            let found = (answer.status, &*answer.error_code());
            assert_eq!(found, (StatusCode::BAD_GATEWAY, "UNAVAILABLE"), "{face:?} {number}");
        });
        join_all(answered).await;
    }
    assert!(upstream.processed.lock().unwrap().is_empty());
}
