//! Nobody learns of a link in a repository that the registry would not let them read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::StatusCode;

use crate::support::{Client, Content, Refshim, Registry, Scripted, USER, about, digest_of};

#[tokio::test]
async fn without_rights_nothing_is_told_and_the_challenge_is_the_registrys() {
    let registry = Registry::with_user();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let alice = refshim.client().as_user(USER.0, USER.1);
    let image = alice.image("a", "image").await;
    alice.push_as("a", "latest", &image).await;
    let signature = about(&image, &image, "signature");
    alice.push("a", &signature).await;
    // What is remembered of alice must not help anyone else.
    assert_eq!(alice.referrers("a", "latest", "").await, [signature.digest.clone()]);
    assert_eq!(alice.referrers("a", &image.digest, "").await, [signature.digest.clone()]);

    let expected = registry.client().get(&format!("/v2/a/manifests/{}", image.digest)).await;
    let challenge = expected.header("www-authenticate");
    let strangers = [
        refshim.client(),
        refshim.client().as_user(USER.0, "wrong"),
        refshim.client().as_user("bob", USER.1),
        refshim.client().as_user("", ""),
    ];
    let unknown = digest_of(b"unknown");
    for stranger in &strangers {
        for reference in ["latest", "none", &image.digest, &unknown] {
            for query in
                ["", "?kind=reference", "?n=1", "?inline=true", "?annotation=name", "?last=0000000000000000"]
            {
                let answer = stranger.get(&format!("/v2/a/manifests/{reference}/references{query}")).await;
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
                assert_eq!(answer.header("www-authenticate"), challenge);
                assert_eq!(answer.error_code(), "UNAUTHORIZED");
                assert!(!String::from_utf8(answer.body).unwrap().contains(&signature.digest));
            }
        }
        let head = stranger.head(&format!("/v2/a/manifests/{}/references", image.digest)).await;
        assert_eq!((head.status, head.header("www-authenticate")), (StatusCode::UNAUTHORIZED, challenge));
    }
    assert_eq!(alice.referrers("a", "latest", "?inline=true").await, [signature.digest]);
}

/// A registry that shows its manifests to `alice` alone, and to others says what the test wants.
fn for_alice(others: &'static str, present: &[&Content]) -> Scripted {
    let present: Vec<Content> = present.iter().copied().cloned().collect();
    Scripted::start(move |exchange| {
        exchange.read_body();
        let is_alice = exchange.request.header("authorization") == Some("Basic YWxpY2U6YQ==");
        let status = match (is_alice, &exchange.request.line) {
            (false, _) => others,
            (true, line) if line.starts_with("PUT") => "201 Created",
            (true, line) => match present.iter().find(|content| line.contains(&content.digest)) {
                Some(content) => return exchange.answer_manifest(content),
                None => "404 Not Found",
            },
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nx-said-by: upstream\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
        exchange.answer(&answer);
    })
}

struct Scene {
    upstream: Scripted,
    refshim: Refshim,
    alice: Client,
    stranger: Client,
    image: Content,
    signature: Content,
    _directory: tempfile::TempDir,
}

async fn scene(others: &'static str, subject_is_there: bool) -> Scene {
    let image = Content::image("{}", "x");
    let signature = about(&image, &image, "signature");
    let present = if subject_is_there { vec![&image, &signature] } else { vec![&signature] };
    let upstream = for_alice(others, &present);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let alice = refshim.client().as_user("alice", "a");
    assert_eq!(alice.put_manifest("a", "sig", &signature).await.status, StatusCode::CREATED);
    let stranger = refshim.client().as_user("bob", "b");
    Scene { upstream, refshim, alice, stranger, image, signature, _directory: directory }
}

#[tokio::test]
async fn a_403_is_passed_on() {
    let scene = scene("403 Forbidden", true).await;
    let answer = scene.stranger.get(&format!("/v2/a/manifests/{}/references", scene.image.digest)).await;
    assert_eq!((answer.status, answer.error_code().as_str()), (StatusCode::FORBIDDEN, "DENIED"));
    assert_eq!(answer.header("x-said-by"), "upstream");
}

#[tokio::test]
async fn a_429_is_passed_on() {
    let scene = scene("429 Too Many Requests\r\nretry-after: 7", true).await;
    let answer = scene.stranger.get(&format!("/v2/a/manifests/{}/references", scene.image.digest)).await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "7"));
}

#[tokio::test]
async fn a_failing_upstream_is_no_verdict() {
    let scene = scene("500 Internal Server Error", true).await;
    let answer = scene.stranger.get(&format!("/v2/a/manifests/{}/references", scene.image.digest)).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(scene.alice.referrers("a", &scene.image.digest, "").await, [scene.signature.digest]);
}

#[tokio::test]
async fn a_registry_that_hides_by_404_tells_strangers_nothing_either() {
    for subject_is_there in [true, false] {
        let scene = scene("404 Not Found", subject_is_there).await;
        let digest = &scene.image.digest;
        for query in ["", "?inline=true", "?n=1", "?kind=reference"] {
            assert_eq!(scene.stranger.referrers("a", digest, query).await, Vec::<String>::new());
        }
        let tag = scene.stranger.get("/v2/a/manifests/sig/references").await;
        assert_eq!(tag.status, StatusCode::NOT_FOUND);
        assert_eq!(scene.alice.referrers("a", digest, "").await, [scene.signature.digest.clone()]);
        assert_eq!(scene.stranger.referrers("a", digest, "").await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn as_many_questions_are_asked_whether_there_are_links_or_not() {
    let scene = scene("404 Not Found", true).await;
    let asked = async |digest: &str| {
        let before = scene.upstream.requests().len();
        scene.stranger.referrers("a", digest, "").await;
        scene.upstream.requests().len() - before
    };
    assert_eq!(asked(&scene.image.digest).await, asked(&digest_of(b"nothing")).await);
}

#[tokio::test]
async fn a_yes_is_remembered_for_these_credentials_only_and_not_for_long() {
    let open = Arc::new(AtomicBool::new(true));
    let door = Arc::clone(&open);
    let image = Content::image("{}", "x");
    let stored = image.clone();
    let upstream = Scripted::start(move |exchange| {
        exchange.read_body();
        match door.load(Ordering::SeqCst) {
            true if exchange.request.line.starts_with("PUT") => exchange.answer_status("201 Created"),
            true if exchange.request.line.contains(&stored.digest) => exchange.answer_manifest(&stored),
            true => exchange.answer_status("404 Not Found"),
            false => exchange.answer_status("401 Unauthorized"),
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path()).with("REFERENCES_ACCESS_TTL", "1s");
    let refshim = refshim.launch().await;
    let alice = refshim.client().as_user("alice", "a");
    let signature = about(&image, &image, "signature");
    alice.put_manifest("a", "sig", &signature).await;
    let path = format!("/v2/a/manifests/{}/references", image.digest);
    assert_eq!(alice.get(&path).await.status, StatusCode::OK);
    let before = upstream.requests().len();
    assert_eq!(alice.get(&path).await.status, StatusCode::OK);
    assert_eq!(upstream.requests().len(), before, "a second question within the time");

    open.store(false, Ordering::SeqCst);
    let other_repository = format!("/v2/b/manifests/{}/references", image.digest);
    assert_eq!(alice.get(&other_repository).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refshim.client().get(&path).await.status, StatusCode::UNAUTHORIZED);
    let cookie = refshim.client().request(reqwest::Method::GET, &path).header("cookie", "sid=1");
    assert_eq!(refshim.client().send(cookie).await.status, StatusCode::UNAUTHORIZED);
    while alice.get(&path).await.status == StatusCode::OK {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(alice.get(&path).await.status, StatusCode::UNAUTHORIZED);
    // A refusal is never remembered.
    open.store(true, Ordering::SeqCst);
    assert_eq!(alice.get(&path).await.status, StatusCode::OK);
    drop(refshim);
}

#[tokio::test]
async fn a_write_that_passes_ends_what_is_remembered() {
    let scene = scene("401 Unauthorized", true).await;
    let path = format!("/v2/a/manifests/{}/references", scene.image.digest);
    scene.alice.get(&path).await;
    let asked = async || {
        let before = scene.upstream.requests().len();
        scene.alice.get(&path).await;
        scene.upstream.requests().len() - before
    };
    assert_eq!(asked().await, 0);
    scene.alice.put_manifest("a", "sig", &scene.signature).await;
    // For the right to read, for the referrers tag and for a referrers API.
    assert_eq!(asked().await, 3);
    assert!(!scene.refshim.logged("Basic"));
}

#[tokio::test]
async fn nothing_but_a_200_is_a_yes() {
    for others in [
        "204 No Content",
        "206 Partial Content",
        "302 Found\r\nlocation: /v2/",
        "304 Not Modified",
        "400 Bad Request",
        "500 Internal Server Error",
        "504 Gateway Timeout",
    ] {
        let scene = scene(others, true).await;
        let references = format!("/v2/a/manifests/{}/references", scene.image.digest);
        for path in [
            references.clone(),
            format!("{references}?inline=true"),
            references.clone(),
            "/v2/a/manifests/sig/references".to_owned(),
            format!("/v2/a/referrers/{}", scene.image.digest),
        ] {
            let answer = scene.stranger.get(&path).await;
            assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{others}: {path}");
            assert!(!String::from_utf8(answer.body).unwrap().contains(&scene.signature.digest));
        }
        assert_eq!(scene.alice.referrers("a", &scene.image.digest, "").await, [scene.signature.digest]);
    }
}

#[tokio::test]
async fn a_yes_of_one_upstream_is_none_of_another() {
    let image = Content::image("{}", "x");
    let stored = image.clone();
    let open = Scripted::start(move |exchange| exchange.answer_manifest(&stored));
    let closed =
        Scripted::answering("HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let directory = tempfile::tempdir().unwrap();
    let url = format!("http://{}", closed.address);
    let refshim = Refshim::prepare(open.address, directory.path())
        .with("UPSTREAMS_CLOSED_URL", &url)
        .with("UPSTREAMS_CLOSED_PREFIXES", "closed")
        .with("UPSTREAMS_CLOSED_STRIP_PREFIX", "true")
        .with("REFERENCES_ACCESS_TTL", "5m");
    let refshim = refshim.launch().await;
    let alice = refshim.client().as_user("alice", "a");
    let of = |repository: &str| format!("/v2/{repository}/manifests/{}/references", image.digest);
    for _ in 0..2 {
        assert_eq!(alice.get(&of("a")).await.status, StatusCode::OK);
        assert_eq!(alice.get(&of("closed/a")).await.status, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn a_cursor_of_another_repository_lists_nothing_of_it() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let mut pushed = Vec::new();
    for (repository, name) in [("a", "1"), ("b", "2"), ("a", "3"), ("b", "4"), ("a", "5")] {
        let image = client.image(repository, "image").await;
        client.push_as(repository, "latest", &image).await;
        let signature = about(&image, &image, name);
        client.push(repository, &signature).await;
        pushed.push(signature.digest);
    }
    let first = client.get("/v2/a/manifests/latest/references?n=1").await;
    let (_, last) = first.header("link").split_once("last=").unwrap();
    let last = last.split_once('>').unwrap().0;
    let behind = async |query: &str| client.referrers("b", "latest", &format!("?{query}last={last}")).await;
    assert_eq!(behind("").await, [pushed[1].clone(), pushed[3].clone()]);
    assert_eq!(behind("n=1&").await, [pushed[1].clone()]);
    let forged = "scope=registry&beyond=00000000000000000000000000000000&";
    let answer = client.get(&format!("/v2/b/manifests/latest/references?{forged}last={last}")).await;
    assert_eq!((answer.status, answer.error_code().as_str()), (StatusCode::BAD_REQUEST, "UNSUPPORTED"));
}
