//! Large blobs: the same bytes, and constant memory. By hand, `LARGE_BYTES=10737418240` makes them larger,
//! and `TEST_BINARY` names a release build.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Body, Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Face, IMAGE_MANIFEST, Pattern, Refshim, Registry, Scripted, by_environment, digest_of};

/// Besides the program itself, of which a debug build has 30 MiB.
const MEMORY_LIMIT: u64 = 48 << 20;

/// Of the layer that a real client copies.
fn layer_bytes() -> u64 {
    by_environment("LARGE_BYTES", 1 << 30)
}

/// Of each blob that passes in one of many ways.
fn blob_bytes() -> u64 {
    by_environment("LARGE_BYTES", 64 << 20)
}

#[track_caller]
fn expect_constant_memory(refshim: &Refshim, what: &str) {
    let peak = refshim.peak_memory() - refshim.program_memory();
    println!("{what}: at most {} KiB", peak >> 10);
    assert!(peak < MEMORY_LIMIT, "{what}: {peak} bytes");
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An OCI layout with one image, whose one layer is a sparse file.
fn layout(directory: &Path) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let layer = directory.join("layer");
    File::create(&layer).unwrap().set_len(layer_bytes()).unwrap();
    let sum = run("sha256sum", &[layer.to_str().unwrap()]);
    let sum = sum.split_whitespace().next().unwrap();
    std::fs::rename(&layer, blobs.join(sum)).unwrap();
    let store = |media_type: &str, value: &Value| {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = digest_of(&bytes);
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), &bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": store("application/vnd.oci.image.config.v1+json", &config),
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{sum}"),
            "size": layer_bytes(),
        }],
    });
    let mut manifest = store(IMAGE_MANIFEST, &manifest);
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[tokio::test]
async fn a_layer_goes_in_and_out_by_a_real_client_in_constant_memory() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, &directory.path().join("data")).await;
    let (source, back) = (directory.path().join("source"), directory.path().join("back"));
    std::fs::create_dir(&source).unwrap();
    layout(&source);
    let remote = format!("docker://{}/big:v1", refshim.address);
    let local = |path: &Path| format!("oci:{}:v1", path.display());
    let copy = |arguments: &[&str]| {
        let mut all =
            vec!["copy", "--insecure-policy", "--preserve-digests", "--dest-oci-accept-uncompressed-layers"];
        all.extend(arguments);
        run("skopeo", &all);
    };
    copy(&["--dest-tls-verify=false", &local(&source), &remote]);
    copy(&["--src-tls-verify=false", &remote, &local(&back)]);
    let digest = |image: &str| {
        let inspected = run("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", image]);
        inspected.trim().to_owned()
    };
    assert_eq!(digest(&local(&back)), digest(&local(&source)));
    assert_eq!(digest(&remote), digest(&local(&source)));
    expect_constant_memory(&refshim, "skopeo");
}

const CREATED: &str = "HTTP/1.1 201 Created\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// An upstream that takes such blobs and gives them, chunked or with a length as the request is.
fn storage() -> Scripted {
    Scripted::start(|exchange| {
        let is_chunked = exchange.request.line.contains("chunked");
        if exchange.request.line.starts_with("PATCH") {
            assert_eq!(exchange.request.header("content-length").is_none(), is_chunked);
            let length = exchange.copy_body(&mut Pattern::default()).unwrap();
            assert_eq!(length, blob_bytes());
            return exchange.answer(CREATED);
        }
        let framing = if is_chunked {
            "transfer-encoding: chunked".to_owned()
        } else {
            format!("content-length: {}", blob_bytes())
        };
        exchange.answer(&format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{framing}\r\n\r\n"));
        // A client that is gone is the test's to notice.
        let _gone = Pattern::default().write_to(exchange.stream, blob_bytes(), is_chunked);
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_goes_in_and_out_as_it_is_whatever_tells_its_end() {
    let storage = storage();
    for face in [Face::Http1, Face::Http2, Face::Http2Upstream] {
        for framing in ["chunked", "length"] {
            let what = format!("{face:?}, {framing}");
            let scene = face.before(storage.address, &[]).await;
            let upload = scene.client.request(Method::PATCH, &format!("/v2/a/blobs/uploads/{framing}"));
            let upload =
                if framing == "length" { upload.header("content-length", blob_bytes()) } else { upload };
            let body = Body::wrap_stream(Pattern::stream(blob_bytes()));
            let answer = scene.client.send(upload.body(body)).await;
            assert_eq!(answer.status, StatusCode::CREATED, "{what}");
            expect_constant_memory(&scene.refshim, &format!("up: {what}"));

            let scene = face.before(storage.address, &[]).await;
            let path = format!("/v2/a/blobs/{framing}");
            let mut download = scene.client.request(Method::GET, &path).send().await.unwrap();
            assert_eq!(download.content_length(), (framing == "length").then(blob_bytes), "{what}");
            let mut pattern = Pattern::default();
            while let Some(chunk) = download.chunk().await.unwrap() {
                pattern.expect(&chunk);
            }
            assert_eq!(pattern.passed(), blob_bytes(), "{what}");
            expect_constant_memory(&scene.refshim, &format!("down: {what}"));
        }
    }
}

/// Longer than all limits but the one on pauses within a body.
const PAUSE: Duration = Duration::from_secs(3);
const SHORT_LIMITS: [(&str, &str); 4] = [
    ("TIMEOUTS_CLIENT_HEADERS", "1s"),
    ("TIMEOUTS_RESPONSE", "1s"),
    ("TIMEOUTS_POOL_IDLE", "1s"),
    ("TIMEOUTS_CONNECT", "1s"),
];

async fn reads_slowly_and_stops_for_a_while(face: Face, storage: &Scripted) {
    let scene = face.before(storage.address, &SHORT_LIMITS).await;
    let mut download = scene.client.request(Method::GET, "/v2/a/blobs/length").send().await.unwrap();
    let mut pattern = Pattern::default();
    // A MiB a second, for as long again as the limits.
    let mut second = tokio::time::interval(Duration::from_secs(1));
    for slow in 0..=2 {
        second.tick().await;
        while pattern.passed() < slow << 20 {
            pattern.expect(&download.chunk().await.unwrap().unwrap());
        }
    }
    tokio::time::sleep(PAUSE).await;
    while let Some(chunk) = download.chunk().await.unwrap() {
        pattern.expect(&chunk);
    }
    assert_eq!(pattern.passed(), blob_bytes(), "{face:?}");
    expect_constant_memory(&scene.refshim, &format!("slowly: {face:?}"));
}

#[tokio::test]
async fn a_client_that_reads_slowly_and_stops_for_a_while_gets_it_all() {
    let storage = storage();
    let faces = [Face::Http1, Face::Http2, Face::TlsHttp1, Face::Http2Upstream];
    join_all(faces.map(|face| reads_slowly_and_stops_for_a_while(face, &storage))).await;
}

/// Connections at a time, more than may have large or medium buffers.
const MANY: u64 = 300;
/// The first of them, which have large buffers.
const FEW: u64 = 16;

/// What many connections may hold together, if each holds as much besides its read buffer.
fn held_by_many(besides: u64) -> u64 {
    FEW * (1280 << 10) + MANY * ((128 << 10) + besides)
}

/// What it holds besides the program, once that does not change any more.
async fn settled(refshim: &Refshim) -> u64 {
    let mut before = 0;
    while before != refshim.memory() {
        before = refshim.memory();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    before - refshim.program_memory()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_that_stop_reading_hold_little() {
    let storage = storage();
    // With TLS as much again waits to be encrypted and sent.
    for (face, besides) in [(Face::Http1, 32 << 10), (Face::TlsHttp1, 160 << 10)] {
        for framing in ["chunked", "length"] {
            let scene = face.before(storage.address, &[("LIMITS_REQUESTS_PER_CLIENT", "1000")]).await;
            let path = format!("/v2/a/blobs/{framing}");
            let before = settled(&scene.refshim).await;
            let begun = join_all((0..MANY).map(|_| scene.client.request(Method::GET, &path).send())).await;
            let held = settled(&scene.refshim).await - before;
            println!("stopped: {face:?}, {framing}: {} KiB", held >> 10);
            assert!(held < held_by_many(besides), "{face:?}, {framing}: {held} bytes");
            // What was held comes whole and in its order.
            let mut download = begun.into_iter().last().unwrap().unwrap();
            let mut pattern = Pattern::default();
            while let Some(chunk) = download.chunk().await.unwrap() {
                pattern.expect(&chunk);
            }
            assert_eq!(pattern.passed(), blob_bytes(), "{face:?}, {framing}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_uploads_that_the_registry_does_not_read_hold_little() {
    const BYTES: u64 = 8 << 20;
    for (face, besides) in [(Face::Http1, 0), (Face::TlsHttp1, 64 << 10)] {
        let reads = Arc::new(AtomicBool::new(false));
        let storage = Scripted::start({
            let reads = Arc::clone(&reads);
            move |exchange| {
                while !reads.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(20));
                }
                // Of the uploads that were given up it gets a part.
                if exchange.copy_body(&mut Pattern::default()).is_ok_and(|length| length == BYTES) {
                    exchange.answer(CREATED);
                }
            }
        });
        let scene = face.before(storage.address, &[("LIMITS_REQUESTS_PER_CLIENT", "1000")]).await;
        let before = settled(&scene.refshim).await;
        let mut uploads: Vec<_> = (0..MANY)
            .map(|_| {
                let upload = scene.client.request(Method::PATCH, "/v2/a/blobs/uploads/1");
                let upload =
                    upload.header("content-length", BYTES).body(Body::wrap_stream(Pattern::stream(BYTES)));
                tokio::spawn(upload.send())
            })
            .collect();
        while storage.requests().len() < usize::try_from(MANY).unwrap() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let held = settled(&scene.refshim).await - before;
        println!("not read: {face:?}: {} KiB", held >> 10);
        assert!(held < held_by_many(besides), "{face:?}: {held} bytes");
        // What was held comes whole and in its order.
        let last = uploads.pop().unwrap();
        uploads.iter().for_each(tokio::task::JoinHandle::abort);
        reads.store(true, Ordering::Relaxed);
        assert_eq!(last.await.unwrap().unwrap().status(), StatusCode::CREATED, "{face:?}");
    }
}

#[tokio::test]
async fn connections_that_uploaded_hold_little_while_they_are_idle() {
    const BYTES: usize = 2 << 20;
    let storage = Scripted::start(|exchange| {
        exchange.copy_body(&mut std::io::sink()).unwrap();
        exchange.answer(CREATED);
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(storage.address, directory.path()).await;
    let before = settled(&refshim).await;
    let upload = || {
        let mut connection = TcpStream::connect(refshim.address).unwrap();
        let head =
            format!("PUT /v2/a/blobs/uploads/1 HTTP/1.1\r\nhost: a\r\ncontent-length: {BYTES}\r\n\r\n");
        connection.write_all(head.as_bytes()).unwrap();
        connection.write_all(&vec![0; BYTES]).unwrap();
        let mut answer = [0; 16];
        connection.read_exact(&mut answer).unwrap();
        assert_eq!(&answer[..12], b"HTTP/1.1 201");
        connection
    };
    let idle: Vec<_> = (0..MANY).map(|_| upload()).collect();
    let held = settled(&refshim).await - before;
    println!("idle after an upload: {} KiB", held >> 10);
    assert!(held < held_by_many(32 << 10), "{held} bytes");
    drop(idle);
}
