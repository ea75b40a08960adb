//! Clients that do not read what they are sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
/// `GET /v2/`, all of it, on the first stream.
const GET: &[u8] = b"\0\0\x0b\x01\x05\0\0\0\x01\x82\x86\x04\x04/v2/\x01\x01h";
const HEADERS: u8 = 1;

#[tokio::test]
async fn clients_that_have_writes_wait_make_room_for_others() {
    const PLACES: usize = 3;
    let upstream = Scripted::start(|exchange| exchange.answer_status("200 OK"));
    for face in [Face::Http2, Face::TlsHttp2] {
        let settings = [("LIMITS_CONNECTIONS", "3"), ("TIMEOUTS_BODY_IDLE", NO_TIME_OUT)];
        let scene = face.before(upstream.address, &settings).await;
        let written = Arc::new(AtomicUsize::new(0));
        let mut floods = Vec::new();
        for _ in 0..PLACES {
            let mut stream = after(&scene, [PREFACE, SETTINGS].concat()).await;
            let (written, pings) = (Arc::clone(&written), PING.repeat(1_000));
            floods.push(tokio::spawn(async move {
                while stream.write_all(&pings).await.is_ok() {
                    written.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        // Until nothing more is read of any, as each has an answer to wait with.
        let (mut before, mut same) = (0, 0);
        while before == 0 || same < 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = written.load(Ordering::Relaxed);
            same = if now == before { same + 1 } else { 0 };
            before = now;
        }
        for flood in floods {
            let answer = scene.another_client().get("/v2/").await;
            assert_eq!(answer.status, StatusCode::OK, "{face:?}");
            flood.abort();
        }
    }
}

#[tokio::test]
async fn the_end_of_an_answer_of_unknown_length_waits_for_its_client_up_to_a_limit() {
    let upstream = Scripted::start(|exchange| {
        if exchange.request.line.contains("/blobs/") {
            exchange
                .answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n");
        } else {
            exchange.answer_status("200 OK");
        }
    });
    for face in [Face::Http2, Face::TlsHttp2] {
        let settings = [("TIMEOUTS_BODY_IDLE", SHORT), ("LIMITS_REQUESTS_PER_CLIENT", "1")];
        let scene = face.before(upstream.address, &settings).await;
        let (mut sender, _connection) = scene.http2(1).await.unwrap();
        let get = request(Method::GET, "/v2/a/blobs/x", empty());
        let answer = sender.send_request(get).await.unwrap();
        // As long as it is a request in progress, it is the only one.
        while scene.another_client().get("/v2/").await.status != StatusCode::OK {}
        assert!(answer.into_body().collect().await.is_err(), "{face:?}");
    }
}

#[tokio::test]
async fn a_client_of_http2_with_a_request_in_progress_need_not_answer_pings() {
    let (go, wait) = channel();
    let wait = Mutex::new(wait);
    let upstream = Scripted::start(move |exchange| {
        wait.lock().unwrap().recv().unwrap();
        exchange.answer_status("200 OK");
    });
    for face in [Face::Http2, Face::TlsHttp2] {
        let settings = [("TIMEOUTS_CLIENT_HEADERS", SHORT), ("TIMEOUTS_BODY_IDLE", SHORT)];
        let scene = face.before(upstream.address, &settings).await;
        let mut asking = after(&scene, [PREFACE, SETTINGS, GET].concat()).await;
        for _ in 0..4 {
            closed(after(&scene, "").await).await;
        }
        go.send(()).unwrap();
        let mut head = [0; 9];
        while head[3] != HEADERS {
            asking.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            asking.read_exact(&mut vec![0; length]).await.unwrap();
        }
    }
}
