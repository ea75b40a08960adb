//! Many clients at once: idle ones, and ones whose requests are all under way at the same time. By hand,
//! `MANY_IDLE=5000 MANY_BUSY=500` makes them more, and `TEST_BINARY` names a release build to measure.

use std::sync::{Condvar, Mutex};

use futures_util::future::join_all;
use tokio::net::TcpStream;

use crate::support::{Authority, Refshim, Scripted, TlsClient, by_environment, exchange};

const REQUEST: &str = "GET /v2/ HTTP/1.1\r\nhost: h\r\n\r\n";
const HELD: &str = "GET /v2/a/blobs/held HTTP/1.1\r\nhost: h\r\n\r\n";
const NOTHING: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

fn idle() -> u64 {
    by_environment("MANY_IDLE", 1_000)
}

fn busy() -> u64 {
    by_environment("MANY_BUSY", 100)
}

/// An upstream that answers no held request before all of them are there.
fn holding() -> Scripted {
    let (held, all_are_there) = (Mutex::new(0), Condvar::new());
    Scripted::start(move |exchange| {
        if exchange.request.line.contains("held") {
            let mut held = held.lock().unwrap();
            *held += 1;
            all_are_there.notify_all();
            drop(all_are_there.wait_while(held, |held| *held < busy()).unwrap());
        }
        exchange.answer(NOTHING);
    })
}

/// Prints what one idle connection holds, and bounds it.
fn expect_little_memory(refshim: &Refshim, before: u64, what: &str, at_most: u64) {
    let each = refshim.memory().saturating_sub(before) / idle();
    println!("{what}: {each} bytes for each of {} idle connections, {} KiB before", idle(), before >> 10);
    assert!(each < at_most, "{what}: {each} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_refused_while_many_are_idle_and_many_are_busy() {
    rlimit::increase_nofile_limit(rlimit::INFINITY).unwrap();
    let upstream = holding();
    let directory = tempfile::tempdir().unwrap();
    let start = Refshim::prepare(upstream.address, directory.path()).with("TIMEOUTS_CLIENT_HEADERS", "10m");
    let refshim = start.launch().await;
    let connect = async || TcpStream::connect(refshim.address).await.unwrap();
    assert_eq!(exchange(&mut connect().await, REQUEST).await.unwrap().status, 200);
    let before = refshim.memory();
    let mut kept = Vec::new();
    for _ in 0..idle() {
        let mut stream = connect().await;
        assert_eq!(exchange(&mut stream, REQUEST).await.unwrap().status, 200);
        kept.push(stream);
    }
    expect_little_memory(&refshim, before, "plain", 48 << 10);

    let held = (0..busy()).map(async |_| exchange(&mut connect().await, HELD).await.unwrap().status);
    assert!(join_all(held).await.iter().all(|status| *status == 200));
    for stream in &mut kept {
        assert_eq!(exchange(stream, REQUEST).await.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_over_tls_hold_little_and_go_on() {
    rlimit::increase_nofile_limit(rlimit::INFINITY).unwrap();
    let authority = Authority::new();
    let upstream = Scripted::answering(NOTHING);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path())
        .with("TIMEOUTS_CLIENT_HEADERS", "10m")
        .with_tls(&authority.server("refshim", &["127.0.0.1"]))
        .launch()
        .await;
    let client = TlsClient::trusting(&authority);
    assert_eq!(client.get(refshim.address, "127.0.0.1").await.unwrap().status, 200);
    let before = refshim.memory();
    let mut kept = Vec::new();
    for _ in 0..idle() {
        let mut connection = client.connect(refshim.address, "127.0.0.1").await.unwrap();
        assert_eq!(connection.get().await.unwrap().status, 200);
        kept.push(connection);
    }
    expect_little_memory(&refshim, before, "TLS", 96 << 10);
    for connection in &mut kept {
        assert_eq!(connection.get().await.unwrap().status, 200);
    }
}
