//! The access log: one line for each request, whatever became of it.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{
    Client, Content, Face, Refshim, Said, Scene, Scripted, Shelf, about, exchange, json_lines, put,
    shelf_registry,
};

const AGENT: &str = "test/1 (access log)";

/// The fields of a line whose values a test knows before.
fn known(line: &Value) -> Value {
    let mut line = line.as_object().unwrap().clone();
    let time: jiff::Timestamp = line.remove("time").unwrap().as_str().unwrap().parse().unwrap();
    assert!(time.as_second() > 1_700_000_000);
    assert!(line.remove("seconds").unwrap().as_f64().unwrap() >= 0.0);
    line.into()
}

/// A scene whose access log is in a file of this directory.
async fn scene(face: Face, upstream: &Scripted, directory: &tempfile::TempDir) -> Scene {
    let file = directory.path().join("access.log");
    face.before(upstream.address, &[("ACCESS_LOG_OUTPUT", file.to_str().unwrap())]).await
}

#[tokio::test]
async fn each_request_has_a_line_with_what_the_client_got() {
    let image = Content::image("config", "layer");
    let signature = about(&image, &image, "signature");
    for face in Face::ALL {
        let shelf = Shelf::default();
        put(&shelf, "team/app", &["v1"], &image);
        let upstream = shelf_registry(&shelf, |turn| {
            let is_secret = turn.path().contains("/secret/");
            Some(if is_secret { Said::status("403 Forbidden") } else { turn.right.clone() })
        });
        let directory = tempfile::tempdir().unwrap();
        let scene = scene(face, &upstream, &directory).await;
        let protocol = if face.is_http2() { "HTTP/2.0" } else { "HTTP/1.1" };
        let manifest = format!("/v2/team/app/manifests/{}", signature.digest);
        let query = format!("/v2/team/app/referrers/{}", image.digest);
        let mut expected = Vec::new();
        for (method, path, class, status) in [
            (Method::GET, "/v2/team/app/manifests/v1", "manifests", StatusCode::OK),
            (Method::HEAD, "/v2/team/app/manifests/v1", "manifests", StatusCode::OK),
            (Method::PUT, &manifest, "manifests", StatusCode::CREATED),
            (Method::GET, &query, "referrers", StatusCode::OK),
            (Method::GET, "/v2/team/app/manifests/v1/references", "references", StatusCode::OK),
            (Method::GET, "/v2/secret/manifests/v1/references", "references", StatusCode::FORBIDDEN),
            (
                Method::PUT,
                "/v2/team/app/manifests/v1/references",
                "references",
                StatusCode::METHOD_NOT_ALLOWED,
            ),
            (Method::GET, "/v2/UPPER/manifests/v1/references", "references", StatusCode::BAD_REQUEST),
            (Method::GET, "/v2/team/app/manifests/none", "manifests", StatusCode::NOT_FOUND),
        ] {
            let request = scene.client.request(method.clone(), &format!("{path}?n=1&token=s3cret"));
            let request = request.header("user-agent", AGENT).header("x-request-id", "id-1");
            let request = match method {
                Method::PUT => {
                    request.header("content-type", &signature.media_type).body(signature.bytes.clone())
                }
                _ => request,
            };
            let answer = scene.client.send(request).await;
            assert_eq!(answer.status, status, "{face:?} {method} {path}");
            expected.push(json!({
                "client": "127.0.0.1", "method": method.as_str(), "path": path, "protocol": protocol,
                "status": status.as_u16(), "bytes": answer.body.len(), "upstream": "default", "class": class,
                "agent": AGENT, "request_id": "id-1", "complete": true,
            }));
        }
        let lines = json_lines(&directory.path().join("access.log"), expected.len()).await;
        assert_eq!(lines.iter().map(known).collect::<Vec<_>>(), expected, "{face:?}");
        let text = std::fs::read_to_string(directory.path().join("access.log")).unwrap();
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn what_is_refused_before_it_has_an_upstream_has_a_line() {
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let directory = tempfile::tempdir().unwrap();
    let scene = scene(Face::Http1, &upstream, &directory).await;
    let mut stream = scene.connect().await.unwrap();
    let answer = exchange(&mut stream, "GET /v2/ HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n").await.unwrap();
    assert_eq!(answer.status, 400);
    let mut stream = scene.connect().await.unwrap();
    let connect = "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n";
    assert_eq!(exchange(&mut stream, connect).await.unwrap().status, 501);
    let lines = json_lines(&directory.path().join("access.log"), 2).await;
    let seen: Vec<_> =
        lines.iter().map(|line| [&line["status"], &line["upstream"], &line["complete"]]).collect();
    assert_eq!(seen, [[&json!(400), &Value::Null, &json!(true)], [&json!(501), &Value::Null, &json!(true)]]);
}

#[tokio::test]
async fn an_answer_that_the_upstream_breaks_off_is_not_complete() {
    for face in Face::ALL {
        let upstream = Scripted::start(|exchange| {
            exchange.answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 10\r\n\r\n1234");
        });
        let directory = tempfile::tempdir().unwrap();
        let scene = scene(face, &upstream, &directory).await;
        assert!(scene.client.try_send(scene.client.request(Method::GET, "/v2/a/blobs/x")).await.is_err());
        let line = json_lines(&directory.path().join("access.log"), 1).await.swap_remove(0);
        assert_eq!((&line["status"], &line["complete"]), (&json!(200), &json!(false)), "{face:?}");
        assert!(line["bytes"].as_u64().unwrap() <= 4, "{face:?} {line}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_a_line() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let upstream = Scripted::start(move |exchange| {
        if exchange.request.line.contains("/slow") {
            let _released = held.lock().unwrap().recv();
        } else {
            // More than all buffers on the way take.
            exchange.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1000000000\r\n\r\n");
            let piece = vec![b'x'; 1 << 20];
            while std::io::Write::write_all(exchange.stream, &piece).is_ok() {}
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let scene = scene(Face::Http1, &upstream, &directory).await;
    let file = directory.path().join("access.log");
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");

    let mut waiting = TcpStream::connect(scene.refshim.address).await.unwrap();
    waiting.write_all(get("/v2/a/blobs/slow").as_bytes()).await.unwrap();
    while upstream.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(waiting);
    let line = json_lines(&file, 1).await.swap_remove(0);
    let expected = (&Value::Null, &json!(0), &json!(false), &json!("blobs"), &json!("default"));
    assert_eq!(
        (&line["status"], &line["bytes"], &line["complete"], &line["class"], &line["upstream"]),
        expected
    );
    release.send(()).unwrap();

    let mut reading = TcpStream::connect(scene.refshim.address).await.unwrap();
    reading.write_all(get("/v2/a/blobs/long").as_bytes()).await.unwrap();
    let mut first = vec![0; 4 << 20];
    reading.read_exact(&mut first).await.unwrap();
    drop(reading);
    let line = json_lines(&file, 2).await.swap_remove(1);
    assert_eq!((&line["status"], &line["complete"]), (&json!(200), &json!(false)));
    let bytes = line["bytes"].as_u64().unwrap();
    assert!((3 << 20..1_000_000_000).contains(&bytes), "{line}");
}

#[tokio::test]
async fn what_a_client_writes_cannot_forge_a_line() {
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let directory = tempfile::tempdir().unwrap();
    let scene = scene(Face::Http1, &upstream, &directory).await;
    let mut stream = scene.connect().await.unwrap();
    let request = b"GET /v2/a\"b HTTP/1.1\r\nhost: a\r\nx-request-id: 1 complete=no\r\n\
        user-agent: x\" \xc2\x9b2J \x80\xff \tend\r\n\r\n";
    assert_eq!(exchange(&mut stream, request).await.unwrap().status, 200);
    let long = "l".repeat(20_000);
    let request = format!("GET /v2/{long} HTTP/1.1\r\nhost: a\r\nuser-agent: {long}\r\n\r\n");
    let mut stream = scene.connect().await.unwrap();
    assert_eq!(exchange(&mut stream, request).await.unwrap().status, 200);
    let lines = json_lines(&directory.path().join("access.log"), 2).await;
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["path"], r"/v2/a\x22b");
    assert_eq!(lines[0]["agent"], r"x\x22 \xC2\x9B2J \x80\xFF \x09end");
    assert_eq!(lines[0]["request_id"], "1");
    assert!(lines[1].to_string().len() < 4_000);
}

#[tokio::test]
async fn the_file_is_opened_anew_after_a_signal() {
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let directory = tempfile::tempdir().unwrap();
    let scene = scene(Face::Http1, &upstream, &directory).await;
    let (file, rotated) = (directory.path().join("access.log"), directory.path().join("access.log.1"));
    scene.client.get("/v2/first").await;
    json_lines(&file, 1).await;
    std::fs::rename(&file, &rotated).unwrap();
    scene.refshim.hang_up();
    let mut sent = 1;
    while !file.exists() {
        scene.client.get("/v2/between").await;
        sent += 1;
        assert!(sent < 100_000, "no new file");
    }
    scene.client.get("/v2/last").await;
    sent += 1;
    // Not one was lost on the way.
    let last = loop {
        let (old, new) = (json_lines(&rotated, 1).await, json_lines(&file, 1).await);
        if old.len() + new.len() == sent {
            break new.last().unwrap().clone();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(last["path"], "/v2/last");
}

#[tokio::test]
async fn a_full_disk_stops_no_request_and_is_told_once_and_counted() {
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path()).with("ACCESS_LOG_OUTPUT", "/dev/full");
    let refshim = refshim.launch().await;
    for _ in 0..5 {
        assert_eq!(refshim.client().get("/v2/").await.status, StatusCode::OK);
    }
    let admin = Client::new(refshim.admin);
    while !admin.text("/metrics").await.contains("refshim_log_lines_lost_total{log=\"access\"} 5\n") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(refshim.count("the access log cannot be written"), 1);
}

#[tokio::test]
async fn when_a_full_disk_has_room_again_lines_are_whole_again() {
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("access.log");
    let start = Refshim::prepare(upstream.address, directory.path()).surviving_limits();
    let refshim = start.with("ACCESS_LOG_OUTPUT", file.to_str().unwrap()).launch().await;
    let client = refshim.client();
    client.get("/v2/first").await;
    json_lines(&file, 1).await;
    // Room for a part of a line.
    refshim.limit_file_size(std::fs::metadata(&file).unwrap().len() + 20);
    for _ in 0..3 {
        assert_eq!(client.get("/v2/lost").await.status, StatusCode::OK);
    }
    refshim.logs("the access log cannot be written", 1).await;
    refshim.limit_file_size(1 << 40);
    client.get("/v2/last").await;
    let line = refshim.logs("the access log can be written again", 1).await;
    assert!(line.contains("INFO"), "{line}");
    let text = std::fs::read_to_string(&file).unwrap();
    let whole = |line: &str| serde_json::from_str::<Value>(line).is_ok();
    let lines: Vec<bool> = text.lines().map(whole).collect();
    assert_eq!((lines.first(), lines.last()), (Some(&true), Some(&true)), "{text}");
    assert_eq!(lines.iter().filter(|is_whole| !**is_whole).count(), 1, "{text}");
    assert_eq!(refshim.count("the access log cannot be written"), 1);
}

#[test]
fn a_file_that_cannot_be_opened_is_a_failure_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("missing").join("access.log");
    let start = Refshim::prepare("127.0.0.1:9".parse().unwrap(), directory.path());
    let output = start.with("ACCESS_LOG_OUTPUT", file.to_str().unwrap()).command().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("missing/access.log: No such file"), "{said}");
}
