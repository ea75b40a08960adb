//! Connections to the registry are used again, however an answer ends, and one that the registry closed is no failure.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::{Method, StatusCode};

use crate::support::Refshim;

/// Each way in which an answer ends: its path, status and all behind the status line.
const ANSWERS: [(&str, u16, &str); 8] = [
    ("length", 200, "content-length: 5\r\n\r\nhello"),
    ("chunked", 200, "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    (
        "trailers",
        200,
        "transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n",
    ),
    ("empty", 200, "content-length: 0\r\n\r\n"),
    ("none", 204, "\r\n"),
    ("unchanged", 304, "content-length: 5\r\n\r\n"),
    ("denied", 401, "www-authenticate: Basic\r\ncontent-length: 2\r\n\r\n{}"),
    ("missing", 404, "content-length: 2\r\n\r\n{}"),
];

/// A registry that keeps its connections, or closes each after its answer without saying so.
struct Registry {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Registry {
    fn start(keeps: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || serve(&stream, keeps));
            }
        });
        Self { address, connections }
    }
}

/// Serves a connection until its end.
fn serve(mut stream: &TcpStream, keeps: bool) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let begin = head.len();
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
            let line = head[begin..].to_ascii_lowercase();
            length = line.strip_prefix("content-length:").map_or(length, |it| it.trim().parse().unwrap());
        }
        reader.by_ref().take(length).read_to_end(&mut Vec::new()).ok()?;
        let path = head.split(' ').nth(1)?;
        let answer = ANSWERS.iter().find(|(name, ..)| path.contains(name)).unwrap_or(&ANSWERS[3]);
        let (_, status, rest) = answer;
        let rest = if head.starts_with("HEAD") { rest.split_inclusive("\r\n\r\n").next()? } else { rest };
        stream.write_all(format!("HTTP/1.1 {status} OK\r\n{rest}").as_bytes()).ok()?;
        if !keeps {
            return None;
        }
    }
}

async fn ask_everything(registry: &Registry) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let mut requests = 0;
    for (name, status, _) in ANSWERS {
        for round in 0..3 {
            let paths = ["/v2/", "/v2/a/manifests/", "/v2/a/blobs/"].map(|path| format!("{path}{name}"));
            for path in paths {
                for method in [Method::GET, Method::HEAD] {
                    let answer = client.send(client.request(method.clone(), &path)).await;
                    assert_eq!(answer.status.as_u16(), status, "{method} {path} {round} {answer:?}");
                    if method == Method::GET && ["length", "chunked", "trailers"].contains(&name) {
                        assert_eq!(answer.body, b"hello", "{path}");
                    }
                    requests += 1;
                }
            }
        }
    }
    requests
}

#[tokio::test]
async fn however_an_answer_ends_its_connection_is_used_again() {
    let registry = Registry::start(true);
    let requests = ask_everything(&registry).await;
    let connections = registry.connections.load(Ordering::SeqCst);
    // The readiness probe asks at the same time.
    assert!(connections <= 3, "{connections} connections for {requests} requests");
}

#[tokio::test]
async fn a_registry_that_closes_without_a_word_is_no_failure() {
    ask_everything(&Registry::start(false)).await;
}

#[tokio::test]
async fn what_a_client_sends_goes_by_a_kept_connection_too() {
    let registry = Registry::start(true);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    for round in 0..20 {
        let upload = client.request(Method::PATCH, "/v2/a/blobs/uploads/length").body(vec![7; 100_000]);
        let answer = client.send(upload).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"hello"[..]), "{round}");
    }
    let connections = registry.connections.load(Ordering::SeqCst);
    assert!(connections <= 3, "{connections} connections");
}
