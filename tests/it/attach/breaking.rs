//! The registry answers each step of an attachment in each odd way, and clients go away at each moment: nothing is listed
//! that is not whole, each upload that was begun is cancelled or closed, and the client learns why.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{FORM, SBOM, SPDX, Scene, attach, form, no_upload_is_left, path, post};
use crate::support::{Client, Content, Face, Pattern, Refshim, Request, Scripted, by_environment};

/// What the registry is asked, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Resolve,
    Fetch,
    Begin,
    Send,
    Close,
    LookForConfig,
    BeginConfig,
    CloseConfig,
    Manifest,
}

const STEPS: [Step; 9] = [
    Step::Resolve,
    Step::Fetch,
    Step::Begin,
    Step::Send,
    Step::Close,
    Step::LookForConfig,
    Step::BeginConfig,
    Step::CloseConfig,
    Step::Manifest,
];

/// How it answers that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Odd {
    Status(&'static str),
    /// Something that is no registry's.
    Page,
    Redirect,
    HangUp,
}

const ANSWERS: [Odd; 11] = [
    Odd::Status("400 Bad Request"),
    Odd::Status("401 Unauthorized"),
    Odd::Status("403 Forbidden"),
    Odd::Status("404 Not Found"),
    Odd::Status("413 Content Too Large"),
    Odd::Status("429 Too Many Requests"),
    Odd::Status("500 Internal Server Error"),
    Odd::Status("503 Service Unavailable"),
    Odd::Page,
    Odd::Redirect,
    Odd::HangUp,
];

fn target(request: &Request) -> &str {
    request.line.split(' ').nth(1).unwrap()
}

/// Which step a request is; of an upload, whether the empty config is sent shows in the number of uploads.
fn step_of(request: &Request, uploads: usize) -> Option<Step> {
    let (method, target) = (request.line.split(' ').next().unwrap(), target(request));
    let is_upload = target.contains("/blobs/uploads/");
    Some(match method {
        "POST" if is_upload => {
            if uploads == 0 {
                Step::Begin
            } else {
                Step::BeginConfig
            }
        }
        "PATCH" => Step::Send,
        "PUT" if is_upload => {
            if uploads <= 1 {
                Step::Close
            } else {
                Step::CloseConfig
            }
        }
        "PUT" => Step::Manifest,
        "HEAD" if target.contains("/blobs/") => Step::LookForConfig,
        "HEAD" if target.ends_with("/v1") => Step::Resolve,
        "GET" if target.contains("/manifests/sha256:") => Step::Fetch,
        _ => return None,
    })
}

/// A registry of one image that takes uploads, and answers one step oddly.
fn registry(image: Content, odd: Arc<Mutex<Option<(Step, Odd)>>>) -> Scripted {
    let uploads = Mutex::new(0);
    Scripted::start(move |exchange| {
        let request = exchange.request.clone();
        let mut uploads_begun = uploads.lock().unwrap();
        let step = step_of(&request, *uploads_begun);
        if step == Some(Step::Resolve) {
            // The next attachment begins.
            *uploads_begun = 0;
        }
        if matches!(step, Some(Step::Begin | Step::BeginConfig)) {
            *uploads_begun += 1;
        }
        let number = *uploads_begun;
        drop(uploads_begun);
        let odd = odd.lock().unwrap().filter(|(at, _)| step == Some(*at));
        match odd.map(|(_, odd)| odd) {
            Some(Odd::Status(status)) => return exchange.answer_status(status),
            Some(Odd::Page) => {
                exchange.read_body();
                return exchange.answer(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
                );
            }
            Some(Odd::Redirect) => {
                return exchange.answer(
                    "HTTP/1.1 307 Temporary Redirect\r\nconnection: close\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n",
                );
            }
            Some(Odd::HangUp) => return,
            None => {}
        }
        exchange.read_body();
        let location = |of: &str| {
            format!(
                "HTTP/1.1 202 Accepted\r\nconnection: close\r\nlocation: /v2/app/blobs/uploads/{number}?_state={of}\r\n\
                 content-length: 0\r\n\r\n"
            )
        };
        match step {
            Some(Step::Resolve) => exchange.answer_manifest(&image),
            Some(Step::Fetch) if target(&request).ends_with(&image.digest) => {
                exchange.answer_manifest(&image);
            }
            Some(Step::Begin | Step::BeginConfig) => exchange.answer(&location("begun")),
            Some(Step::Send) => exchange.answer(&location("sent")),
            Some(Step::Close | Step::CloseConfig | Step::Manifest) => exchange.answer_status("201 Created"),
            _ if request.line.starts_with("DELETE") => exchange.answer_status("204 No Content"),
            _ if [&*image.digest, "/v1"].iter().any(|it| target(&request).ends_with(it)) => {
                exchange.answer_manifest(&image);
            }
            _ => exchange.answer_status("404 Not Found"),
        }
    })
}

/// The uploads that were begun, and those that came to an end.
fn uploads(requests: &[Request]) -> (usize, usize) {
    let count = |method: &str| {
        requests
            .iter()
            .filter(|request| request.line.starts_with(method) && target(request).contains("/blobs/uploads/"))
            .count()
    };
    (count("POST"), count("PUT") + count("DELETE"))
}

#[tokio::test]
async fn each_odd_answer_to_each_step_leaves_nothing() {
    let image = Content::image("config", "layer");
    for face in Face::ALL {
        let odd = Arc::new(Mutex::new(None));
        let upstream = registry(image.clone(), Arc::clone(&odd));
        let scene = face.before(upstream.address, &[]).await;
        let whole = attach(&scene.client, &path("app", "v1", "")).await;
        assert_eq!(whole.status, StatusCode::CREATED, "{face:?}: {whole:?} {:?}", upstream.requests());
        assert_eq!(uploads(&upstream.requests()), (2, 2));
        let mut attached = 1;
        for step in STEPS {
            for answer in ANSWERS {
                let before = upstream.requests().len();
                *odd.lock().unwrap() = Some((step, answer));
                let of = format!(
                    "&annotation=of%3D{step:?}-{}",
                    ANSWERS.iter().position(|it| *it == answer).unwrap()
                );
                let got = attach(&scene.client, &path("app", "v1", &of)).await;
                *odd.lock().unwrap() = None;
                let asked = upstream.requests().split_off(before);
                let told = format!("{face:?} {step:?} {answer:?}: {} {got:?} {asked:?}", got.status);
                if goes_on(step, answer) {
                    assert_eq!(got.status, StatusCode::CREATED, "{told}");
                    attached += 1;
                    continue;
                }
                assert!(!got.status.is_success(), "{told}");
                match answer {
                    Odd::Status(status) if passes_on(step, status) => {
                        assert_eq!(got.status.as_str(), &status[..3], "{told}");
                    }
                    Odd::Status(_) | Odd::Page | Odd::Redirect | Odd::HangUp => {
                        assert!([400, 401, 404, 502].contains(&got.status.as_u16()), "{told}");
                    }
                }
                let (begun, ended) = uploads(&asked);
                // A request to close an upload is no end of it, if it failed.
                let failed = usize::from([Step::Close, Step::CloseConfig].contains(&step));
                // Nor is there one to cancel where beginning it failed.
                let refused = usize::from([Step::Begin, Step::BeginConfig].contains(&step));
                // A connection that broke may be tried again where that does no harm.
                assert!(begun - refused.min(begun) <= ended - failed.min(ended), "{told}");
                let listed = scene.client.get(&format!("/v2/app/referrers/{}", image.digest)).await;
                let listed = listed.json()["manifests"].as_array().unwrap().len();
                assert_eq!(listed, attached, "{told}");
            }
        }
    }
}

/// Whether an odd answer to a step is none: what HEAD does not tell, GET does; a config that is not there is sent.
fn goes_on(step: Step, answer: Odd) -> bool {
    match step {
        Step::Resolve => !matches!(
            answer,
            Odd::Status(
                "401 Unauthorized"
                    | "403 Forbidden"
                    | "404 Not Found"
                    | "429 Too Many Requests"
                    | "503 Service Unavailable"
            )
        ),
        Step::LookForConfig => true,
        Step::Fetch
        | Step::Begin
        | Step::Send
        | Step::Close
        | Step::BeginConfig
        | Step::CloseConfig
        | Step::Manifest => false,
    }
}

/// Whether the client gets the registry's own status.
fn passes_on(step: Step, status: &str) -> bool {
    match step {
        Step::Resolve | Step::Fetch => ["401", "403", "404", "429", "503"].contains(&&status[..3]),
        Step::Begin
        | Step::Send
        | Step::Close
        | Step::LookForConfig
        | Step::BeginConfig
        | Step::CloseConfig
        | Step::Manifest => true,
    }
}

#[tokio::test]
async fn an_upload_at_another_host_is_refused_and_no_credentials_go_there() {
    let other = Scripted::answering("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n");
    let image = Content::image("config", "layer");
    let (at, served) = (other.address, image.clone());
    let upstream = Scripted::start(move |exchange| {
        exchange.read_body();
        match exchange.request.line.split(' ').next().unwrap() {
            "POST" => exchange.answer(&format!(
                "HTTP/1.1 202 Accepted\r\nconnection: close\r\nlocation: http://{at}/v2/app/blobs/uploads/1\r\n\
                 content-length: 0\r\n\r\n"
            )),
            _ => exchange.answer_manifest(&served),
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client().as_user("alice", "secret");
    let answer = attach(&client, &path("app", "v1", "")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.body).contains("another host"));
    assert!(other.requests().is_empty(), "{:?}", other.requests());
}

#[tokio::test]
async fn each_request_to_the_registry_has_the_clients_credentials_and_no_others() {
    let image = Content::image("config", "layer");
    let upstream = registry(image, Arc::default());
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "its-own").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path())
        .with("UPSTREAMS_DEFAULT_SERVICE_USER", "refshim")
        .with("UPSTREAMS_DEFAULT_SERVICE_PASSWORD_FILE", password.path().to_str().unwrap())
        .launch()
        .await;
    let client = refshim.client().as_user("alice", "secret");
    let request = post(&client, &path("app", "v1", ""), SPDX, SBOM)
        .header("x-http-method-override", "DELETE")
        .header("content-language", "de")
        .header("if-none-match", "*");
    assert_eq!(client.send(request).await.status, StatusCode::CREATED);
    let requests = upstream.requests();
    let (alice, others) = requests
        .iter()
        .partition::<Vec<_>, _>(|request| request.header("authorization") == Some("Basic YWxpY2U6c2VjcmV0"));
    assert!(alice.len() >= 9, "{requests:?}");
    // Its own: whether the registry is there, how far it is known.
    assert!(others.iter().all(|request| !target(request).contains("/app/")), "{others:?}");
    for request in alice {
        for name in ["x-http-method-override", "content-language", "if-none-match", "expect"] {
            assert!(request.header(name).is_none(), "{request:?}");
        }
    }
}

/// The body of an attachment, in the ways in which one can be sent, so far that the registry has some of it.
fn parts() -> Vec<(&'static str, String, Vec<u8>)> {
    let some = vec![b'x'; 300_000];
    let whole = form(&[(Some("a"), None, &some), (Some("b"), None, &some)]);
    vec![
        ("sized", format!("content-type: {SPDX}\r\ncontent-length: 1000000\r\n"), some.clone()),
        (
            "chunked",
            format!("content-type: {SPDX}\r\ntransfer-encoding: chunked\r\n"),
            [b"493e0\r\n".as_slice(), &some, b"\r\n"].concat(),
        ),
        (
            "in a file",
            format!("content-type: {FORM}\r\ncontent-length: 1000000\r\n"),
            whole[..200_000].to_vec(),
        ),
        (
            "in the second file",
            format!("content-type: {FORM}\r\ncontent-length: 1000000\r\n"),
            whole[..400_000].to_vec(),
        ),
        (
            "before the end",
            format!("content-type: {FORM}\r\ncontent-length: 1000000\r\n"),
            whole[..whole.len() - 6].to_vec(),
        ),
        ("without a byte", format!("content-type: {SPDX}\r\ncontent-length: 1000000\r\n"), Vec::new()),
    ]
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing() {
    let scene = Scene::start().await;
    for (what, head, body) in parts() {
        for pause in [Duration::ZERO, Duration::from_millis(300)] {
            let mut stream = TcpStream::connect(scene.refshim.address).await.unwrap();
            let head = format!("POST {} HTTP/1.1\r\nhost: refshim\r\n{head}\r\n", path("app", "v1", ""));
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&body).await.unwrap();
            tokio::time::sleep(pause).await;
            drop(stream);
            // Long enough for the registry to have begun, and for refshim to have cleared up.
            tokio::time::sleep(Duration::from_millis(200)).await;
            no_upload_is_left(&scene.registry).await;
            assert_eq!(scene.listed().await, Vec::<String>::new(), "{what}");
        }
    }
}

#[tokio::test]
async fn a_client_that_falls_silent_is_told_and_leaves_nothing() {
    let scene = Scene::start().await;
    let directory = tempfile::tempdir().unwrap();
    let refshim =
        Refshim::before(&scene.registry, directory.path()).with("TIMEOUTS_BODY_IDLE", "500ms").launch().await;
    for (what, head, body) in parts() {
        let mut stream = TcpStream::connect(refshim.address).await.unwrap();
        let head = format!("POST {} HTTP/1.1\r\nhost: refshim\r\n{head}\r\n", path("app", "v1", ""));
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        let answer = crate::support::RawAnswer::read(&mut stream).await.unwrap();
        assert_eq!(answer.status, 408, "{what}: {answer:?}");
        no_upload_is_left(&scene.registry).await;
        assert_eq!(scene.listed().await, Vec::<String>::new(), "{what}");
    }
}

#[tokio::test]
async fn a_killed_refshim_leaves_nothing_listed() {
    let scene = Scene::start().await;
    for (what, head, body) in parts() {
        let directory = tempfile::tempdir().unwrap();
        let refshim = Refshim::before(&scene.registry, directory.path()).launch().await;
        let mut stream = TcpStream::connect(refshim.address).await.unwrap();
        let head = format!("POST {} HTTP/1.1\r\nhost: refshim\r\n{head}\r\n", path("app", "v1", ""));
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        refshim.kill();
        assert_eq!(scene.listed().await, Vec::<String>::new(), "{what}");
        let again = Refshim::before(&scene.registry, directory.path()).launch().await;
        let listed = again.client().references("app", "v1", "").await;
        assert!(listed.is_empty(), "{what}: {listed:?}");
    }
}

#[tokio::test]
async fn what_is_attached_may_be_large_and_takes_no_memory() {
    const LIMIT: u64 = 48 << 20;
    let bytes = by_environment("LARGE_BYTES", 256 << 20);
    let scene = Scene::start().await;
    let client: &Client = &scene.client;
    let head = "--b0\r\nContent-Disposition: form-data; name=\"f\"; filename=\"f\"\r\n\r\n";
    let whole = |part: &'static str| futures_util::stream::iter([Ok(Bytes::from_static(part.as_bytes()))]);
    let bodies = [
        ("text/plain", reqwest::Body::wrap_stream(Pattern::stream(bytes))),
        (
            FORM,
            reqwest::Body::wrap_stream(
                whole(head).chain(Pattern::stream(bytes)).chain(whole("\r\n--b0--\r\n")),
            ),
        ),
    ];
    for (media_type, body) in bodies {
        let request = client.request(Method::POST, &path("app", "v1", "")).header("content-type", media_type);
        let answer = client.send(request.body(body)).await;
        let digest = super::attached(&answer, "app", &scene.image.digest);
        let manifest: Value = serde_json::from_slice(&super::manifest(client, "app", &digest).await).unwrap();
        assert_eq!(manifest["layers"][0]["size"], bytes);
        let peak = scene.refshim.peak_memory() - scene.refshim.program_memory();
        println!("attached {bytes} bytes as {media_type}: at most {} KiB", peak >> 10);
        assert!(peak < LIMIT, "{media_type}: {peak} bytes");
        let led = client.get(&format!("/v2/app/manifests/v1/references/{digest}?content")).await;
        let mut content = client.request(Method::GET, led.header("location")).send().await.unwrap();
        let mut expected = Pattern::default();
        while let Some(chunk) = content.chunk().await.unwrap() {
            expected.expect(&chunk);
        }
        assert_eq!(expected.passed(), bytes);
    }
}
