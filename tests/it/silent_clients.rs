//! Many connections that do nothing, or as little as they can, while others are served. By hand, `SILENT=10000`
//! and `SLOW=1000` make them more.

use std::io;

use futures_util::StreamExt as _;
use futures_util::stream::{FuturesUnordered, iter};
use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Content, Face, Registry, Scene, Stream, about, by_environment};

const FRONTS: [Face; 4] = [Face::Http1, Face::Http2, Face::TlsHttp1, Face::TlsHttp2];
/// Connections that are opened at a time.
const AT_ONCE: usize = 50;
/// How many connections are opened from one look at the others' requests to the next.
const STEPS: u64 = 8;
const MEMORY_LIMIT: u64 = 256 << 20;
const BLOB_BYTES: usize = 4 << 20;

/// What a connection does not do.
#[derive(Clone, Copy, Debug)]
enum Omission {
    /// It asks for nothing.
    Silent,
    /// It begins to push a manifest, and goes on no further.
    Dribbling,
    /// It asks for much and reads nothing.
    NotReading,
}

/// Whatever keeps a connection open.
type Held = Box<dyn Stream>;

/// What others do meanwhile.
struct Others {
    repository: String,
    image: Content,
    blob: String,
    path: String,
}

impl Others {
    async fn new(scene: &Scene, face: Face) -> Self {
        let repository = format!("{face:?}").to_lowercase();
        let image = scene.client.image(&repository, "image").await;
        scene.client.push(&repository, &image).await;
        let blob = scene.client.push_blob(&repository, &vec![b'x'; BLOB_BYTES]).await;
        let path = format!("/v2/{repository}/manifests/{}/references", image.digest);
        Self { repository, image, blob, path }
    }

    /// A push, a pull and a query, each of which has to be served.
    async fn work(&self, scene: &Scene, name: &str) {
        let client = scene.another_client();
        let referrer = about(&self.image, &self.image, name);
        client.push(&self.repository, &referrer).await;
        assert!(client.referrers(&self.repository, &self.image.digest, "").await.contains(&referrer.digest));
        assert_eq!(
            client.get(&format!("/v2/{}/blobs/{}", self.repository, self.blob)).await.body.len(),
            BLOB_BYTES
        );
    }
}

/// HTTP/2 byte for byte: the preface, settings without a window, and the beginning of a request.
fn http2_request(method: &Method, path: &str, window: u32, body: &[u8]) -> Vec<u8> {
    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }
    // Literal fields that are not indexed (RFC 7541, section 6.2.2): no table is needed for them.
    let mut block = vec![0x86];
    for (name, value) in [(":method", method.as_str()), (":path", path), (":authority", "h")] {
        for text in [name, value] {
            assert!(text.len() < 127);
            if text == name {
                block.push(0);
            }
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
    let ends = if body.is_empty() && *method == Method::GET { 0x5 } else { 0x4 };
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    all.extend(frame(4, 0, 0, &settings));
    all.extend(frame(1, ends, 1, &block));
    for part in body.chunks(16_000) {
        all.extend(frame(0, 0, 1, part));
    }
    all
}

impl Omission {
    /// What such a connection says.
    fn says(self, face: Face, others: &Others, number: u64) -> Vec<u8> {
        let http2 = face.is_http2();
        let path = if number.is_multiple_of(2) {
            others.path.clone()
        } else {
            format!("/v2/{}/blobs/{}", others.repository, others.blob)
        };
        match self {
            Self::Silent => {
                let said: [&[u8]; 4] =
                    [b"", b"GET /v2/ HT", b"PRI * HTTP", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];
                said[usize::try_from(number % 4).unwrap()].to_vec()
            }
            Self::Dribbling if http2 => {
                http2_request(&Method::PUT, "/v2/a/manifests/x", 65_535, &vec![b'x'; 30_000])
            }
            Self::Dribbling => {
                let head = "PUT /v2/a/manifests/x HTTP/1.1\r\nhost: h\r\ncontent-length: 4000000\r\n\r\n";
                [head.as_bytes(), &vec![b'x'; 30_000]].concat()
            }
            Self::NotReading if http2 => http2_request(&Method::GET, &path, 0, b""),
            Self::NotReading => format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n").into_bytes(),
        }
    }
}

async fn open(scene: &Scene, says: &[u8]) -> io::Result<Held> {
    let mut stream = scene.connect().await?;
    stream.write_all(says).await?;
    stream.flush().await?;
    Ok(stream)
}

/// Opens them, and looks every now and then whether others are served.
async fn hold(scene: &Scene, face: Face, omission: Omission, count: u64, others: &Others) -> Vec<Held> {
    let mut held = Vec::new();
    for step in 0..STEPS {
        let numbers = (step * count / STEPS)..((step + 1) * count / STEPS);
        let opening = iter(numbers).map(async |number| {
            let says = omission.says(face, others, number);
            open(scene, &says).await
        });
        // One that was closed to make room before it had said all is one of the expected.
        held.extend(
            opening
                .buffer_unordered(AT_ONCE)
                .filter_map(async |opened| opened.ok())
                .collect::<Vec<_>>()
                .await,
        );
        others.work(scene, &format!("{omission:?} {step}")).await;
    }
    held
}

/// Waits for the end of all of them.
async fn closed(held: Vec<Held>) {
    let ends =
        held.into_iter().map(async |mut stream| while let Ok(1..) = stream.read(&mut [0; 1 << 14]).await {});
    let mut ends: FuturesUnordered<_> = ends.collect();
    while ends.next().await.is_some() {}
}

async fn check(omission: Omission, count: u64, settings: &[(&'static str, &str)]) {
    rlimit::increase_nofile_limit(rlimit::INFINITY).unwrap();
    let registry = Registry::start();
    // A process may have some ten thousand files open.
    let fronts_at_once = if count > 2_000 { 1 } else { FRONTS.len() };
    let checks = FRONTS.map(|face| check_front(&registry, face, omission, count, settings));
    iter(checks).buffer_unordered(fronts_at_once).collect::<()>().await;
}

async fn check_front(
    registry: &Registry,
    face: Face,
    omission: Omission,
    count: u64,
    settings: &[(&'static str, &str)],
) {
    let scene = face.before(registry.address, settings).await;
    let others = Others::new(&scene, face).await;
    others.work(&scene, "before").await;
    let before = scene.refshim.memory();
    let held = hold(&scene, face, omission, count, &others).await;
    let during = scene.refshim.memory();
    // refshim lets go of them by itself. The allocator gives memory back only while it is asked for some.
    while scene.refshim.memory() > MEMORY_LIMIT / 2 {
        scene.another_client().get("/v2/").await;
    }
    let open = held.len();
    closed(held).await;
    others.work(&scene, "after").await;
    let peak = scene.refshim.peak_memory();
    println!(
        "{omission:?} over {face:?}: {open} of {count} opened, memory {} MiB before, {} during, {} at most",
        before >> 20,
        during >> 20,
        peak >> 20
    );
    assert!(peak < MEMORY_LIMIT, "{omission:?} over {face:?}: {peak} bytes");
}

#[tokio::test]
async fn others_are_served_beside_silent_connections_that_take_every_place() {
    let count = by_environment("SILENT", 400);
    let places = (count / 2).to_string();
    check(Omission::Silent, count, &[("LIMITS_CONNECTIONS", &places), ("TIMEOUTS_CLIENT_HEADERS", "10s")])
        .await;
}

#[tokio::test]
async fn others_are_served_beside_manifests_that_never_come_whole() {
    let count = by_environment("SLOW", 100);
    let settings = [
        ("LIMITS_MANIFEST_BYTES", "4MiB"),
        ("TIMEOUTS_BODY_IDLE", "10s"),
        ("TIMEOUTS_CLIENT_HEADERS", "10s"),
    ];
    check(Omission::Dribbling, count, &settings).await;
}

#[tokio::test]
async fn others_are_served_beside_clients_that_do_not_read() {
    let count = by_environment("SLOW", 100);
    let settings = [("TIMEOUTS_BODY_IDLE", "10s"), ("TIMEOUTS_CLIENT_HEADERS", "10s")];
    check(Omission::NotReading, count, &settings).await;
}
