//! The modes of an upstream: with `learn` and `pass` a client cannot tell that refshim is there, what `learn` saw is
//! listed in mode `full`, and clients of two modes share one registry.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use reqwest::{Method, StatusCode};

use crate::referrers::{digests, referrers_tag, signature};
use crate::support::put as put_on;
use crate::support::{
    Answer, Client, Content, IMAGE_MANIFEST, Refshim, Registry, Said, Shelf, binary, shelf_registry,
};

const MODE: &str = "UPSTREAMS_DEFAULT_MODE";

/// Fields that differ between two answers of the same registry, or that belong to one connection.
const NOT_COMPARED: [&str; 4] = ["date", "docker-upload-uuid", "transfer-encoding", "connection"];
/// The same in two registries: both answer for it, and only one of them is where the client is.
const HERE: &str = "HERE";

/// How a client speaks to refshim; the registry alone speaks HTTP/1.1 only.
#[derive(Clone, Copy, Debug)]
enum Way {
    Http1,
    Http2,
}

impl Way {
    const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    fn client(self, address: SocketAddr) -> Client {
        match self {
            Self::Http1 => Client::new(address),
            Self::Http2 => Client::http2(address),
        }
    }
}

/// One request of the script, and how its body is sent.
struct Step {
    method: Method,
    path: String,
    content: Option<Content>,
    is_chunked: bool,
}

fn step(method: Method, path: String) -> Step {
    Step { method, path, content: None, is_chunked: false }
}

fn put(reference: &str, content: &Content, is_chunked: bool) -> Step {
    let path = format!("/v2/a/manifests/{reference}");
    Step { method: Method::PUT, path, content: Some(content.clone()), is_chunked }
}

/// Pushes of every kind, queries of every kind, right and wrong, and deletions.
fn script(image: &Content) -> Vec<Step> {
    let signed = |name| signature(image, image, "application/x.signature", name);
    let (one, two, three) = (signed("one"), signed("two"), signed("three"));
    let lacks =
        image.changed(|manifest| manifest["layers"][0]["digest"] = format!("sha256:{:064}", 7).into());
    let no_json = Content { bytes: b"{\"subject\": ".to_vec(), ..image.clone() };
    let odd_subject = image.changed(|manifest| manifest["subject"] = "odd".into());
    let empty = Content { bytes: Vec::new(), ..image.clone() };
    let mut steps = vec![
        put("latest", image, false),
        put(&one.digest, &one, false),
        put(&two.digest, &two, true),
        put("signature", &three, false),
        put("lacks", &lacks, false),
        put("no-json", &no_json, false),
        put("odd", &odd_subject, true),
        put("empty", &empty, false),
        put(&one.digest, &two, false),
        put(&referrers_tag(image), &Content::index(&[&one, &two]), false),
    ];
    let about = &image.digest;
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::DELETE, Method::OPTIONS] {
        for path in [
            format!("/v2/a/referrers/{about}"),
            format!("/v2/a/referrers/{about}?artifactType=x&n=1"),
            "/v2/a/referrers/malformed".to_owned(),
            format!("/v2/A/referrers/{about}"),
            format!("/v2/a/manifests/{about}/references"),
            "/v2/a/manifests/latest/references?scope=registry".to_owned(),
            "/v2/a/manifests/none/references".to_owned(),
        ] {
            steps.push(step(method.clone(), path));
        }
    }
    for method in [Method::GET, Method::HEAD, Method::DELETE, Method::GET] {
        for reference in [&three.digest, "latest", "none", &format!("sha256:{:064}", 1)] {
            steps.push(step(method.clone(), format!("/v2/a/manifests/{reference}")));
        }
    }
    steps.push(step(Method::GET, "/v2/".to_owned()));
    steps.push(step(Method::GET, "/v2/a/tags/list".to_owned()));
    steps
}

/// An answer, with what differs by nature taken out.
async fn answered(
    client: &Client,
    step: &Step,
    here: SocketAddr,
) -> (StatusCode, Vec<(String, String)>, Vec<u8>) {
    let mut request = client.request(step.method.clone(), &step.path);
    if let Some(content) = &step.content {
        request = request.header("content-type", &content.media_type);
        request = if step.is_chunked {
            let pieces: Vec<_> =
                content.bytes.chunks(50).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
            request.body(reqwest::Body::wrap_stream(futures_util::stream::iter(pieces)))
        } else {
            request.body(content.bytes.clone())
        };
    }
    let Answer { status, headers, body } = client.send(request).await;
    let text = |value: &reqwest::header::HeaderValue| {
        // A location is made relative where the registry knows nothing of whom it is for.
        let value = value.to_str().unwrap().replace(&here.to_string(), HERE);
        value.replace(&format!("http://{HERE}"), "")
    };
    let is_compared = |name: &str| !NOT_COMPARED.contains(&name);
    let headers = headers.iter().filter(|(name, _)| is_compared(name.as_str()));
    let mut headers: Vec<_> = headers.map(|(name, value)| (name.to_string(), text(value))).collect();
    headers.sort();
    (status, headers, body)
}

#[tokio::test]
async fn with_learn_and_pass_every_answer_is_the_registrys() {
    for mode in ["learn", "pass"] {
        for way in Way::ALL {
            let (bare, behind) = (Registry::start(), Registry::start());
            let directory = tempfile::tempdir().unwrap();
            let refshim = Refshim::prepare(behind.address, directory.path()).with(MODE, mode).launch().await;
            let (alone, through) = (bare.client(), way.client(refshim.address));
            let image = alone.image("a", "image").await;
            through.image("a", "image").await;
            let steps = script(&image);
            let mut statuses = Vec::new();
            for step in &steps {
                let expected = answered(&alone, step, bare.address).await;
                let found = answered(&through, step, refshim.address).await;
                assert_eq!(found, expected, "{mode} {way:?} {} {}", step.method, step.path);
                statuses.push(expected.0);
            }
            // Or nothing would be compared that matters.
            for status in
                [StatusCode::CREATED, StatusCode::ACCEPTED, StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST]
            {
                assert!(statuses.contains(&status), "{status}");
            }
        }
    }
}

/// Pushes by every way, behind a refshim in this mode; what refers to the image then, and nothing else does.
async fn fill(refshim: &Refshim, registry: &Registry, image: &Content) -> Vec<String> {
    let mut expected = Vec::new();
    let bare = registry.client();
    for way in Way::ALL {
        let client = way.client(refshim.address);
        let signed =
            |name: &str| signature(image, image, "application/x.signature", &format!("{way:?} {name}"));
        let (pushed, chunked, tagged) = (signed("pushed"), signed("chunked"), signed("tagged"));
        let (pulled, deleted) = (signed("pulled"), signed("deleted"));
        client.push("a", &pushed).await;
        let answer = answered(&client, &put(&chunked.digest, &chunked, true), refshim.address).await;
        assert_eq!(answer.0, StatusCode::CREATED);
        client.push_as("a", "some-tag", &tagged).await;
        // A registry behind several doors: this one came by another, and is seen when somebody pulls it.
        bare.push("a", &pulled).await;
        client.served("a", &pulled.digest).await;
        client.push("a", &deleted).await;
        let gone = client.delete(&format!("/v2/a/manifests/{}", deleted.digest)).await;
        assert_eq!(gone.status, StatusCode::ACCEPTED);
        let refused =
            signed("refused").changed(|it| it["layers"][0]["digest"] = format!("sha256:{:064}", 7).into());
        assert_eq!(client.put_manifest("a", &refused.digest, &refused).await.status, StatusCode::BAD_REQUEST);
        expected.extend([pushed, chunked, tagged, pulled].map(|content| content.digest));
    }
    expected.sort();
    expected
}

async fn listed(client: &Client, image: &Content) -> (Vec<String>, bool) {
    let mut found = digests(client, "a", &image.digest, "").await;
    found.sort();
    let answer = client.get(&format!("/v2/a/referrers/{}", image.digest)).await;
    let warns = answer
        .headers
        .get("warning")
        .is_some_and(|warning| warning.to_str().unwrap().contains("links pushed before"));
    (found, warns)
}

fn backfill(refshim: &Refshim) {
    let admin = format!("http://{}", refshim.admin);
    let run = Command::new(binary()).args(["backfill", "--quiet", "--admin", &admin]).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

async fn start(registry: &Registry, mode: &str, data: &Path) -> Refshim {
    Refshim::prepare(registry.address, data)
        .with(MODE, mode)
        .with("LOG_FILTER", "refshim=debug")
        .launch()
        .await
}

#[tokio::test]
async fn what_was_learnt_is_listed_in_mode_full() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let image = registry.client().image("a", "image").await;
    registry.client().push_as("a", "latest", &image).await;
    let refshim = start(&registry, "learn", directory.path()).await;
    backfill(&refshim);
    let expected = fill(&refshim, &registry, &image).await;
    let asked = refshim.client().get(&format!("/v2/a/referrers/{}", image.digest)).await;
    assert_eq!(asked.status, StatusCode::NOT_FOUND);
    // Pulls are recorded behind their clients.
    refshim.logs("recorded the links of a pulled manifest", Way::ALL.len()).await;
    refshim.stop();
    let refshim = start(&registry, "full", directory.path()).await;
    assert_eq!(listed(&refshim.client(), &image).await, (expected, false), "complete since the backfill");
}

#[tokio::test]
async fn what_only_passed_is_not_listed_and_lists_say_that_they_may_miss_it() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let image = registry.client().image("a", "image").await;
    registry.client().push_as("a", "latest", &image).await;
    let refshim = start(&registry, "full", directory.path()).await;
    backfill(&refshim);
    assert_eq!(listed(&refshim.client(), &image).await, (Vec::new(), false));
    refshim.stop();
    let refshim = start(&registry, "pass", directory.path()).await;
    let pushed = fill(&refshim, &registry, &image).await;
    refshim.stop();
    let refshim = start(&registry, "full", directory.path()).await;
    assert_eq!(listed(&refshim.client(), &image).await, (Vec::new(), true));
    backfill(&refshim);
    // Without tags of their own, a backfill finds only those that have one.
    let (found, warns) = listed(&refshim.client(), &image).await;
    assert!(found.len() == 1 && pushed.contains(&found[0]) && !warns, "{found:?}");
}

/// Clients of a host of their own, in this mode, beside those that are answered.
async fn shared(registry: &Registry, mode: &str, data: &Path) -> Refshim {
    Refshim::prepare(registry.address, data)
        // Whatever is remembered would be seen.
        .with("REFERRERS_UPSTREAM_TTL", "5m")
        .with("REFERENCES_ACCESS_TTL", "5m")
        .with("UPSTREAMS_WATCHED_URL", &registry.url())
        .with("UPSTREAMS_WATCHED_HOSTS", "watched.example.com")
        .with("UPSTREAMS_WATCHED_MODE", mode)
        .with("UPSTREAMS_WATCHED_SHARES", "default")
        .launch()
        .await
}

async fn at_watched(client: &Client, method: Method, reference: &str, content: Option<&Content>) -> Answer {
    let request =
        client.request(method, &format!("/v2/a/manifests/{reference}")).header("host", "watched.example.com");
    client
        .send(match content {
            Some(content) => request.header("content-type", &content.media_type).body(content.bytes.clone()),
            None => request,
        })
        .await
}

#[tokio::test]
async fn what_one_learns_another_lists_at_once() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = shared(&registry, "learn", directory.path()).await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push_as("a", "latest", &image).await;
    assert_eq!(digests(&client, "a", &image.digest, "").await, Vec::<String>::new());
    let signed = |name| signature(&image, &image, "application/x.signature", name);
    let (first, second) = (signed("first"), signed("second"));
    for round in 0..3 {
        let put = at_watched(&client, Method::PUT, &first.digest, Some(&first)).await;
        assert_eq!(put.status, StatusCode::CREATED);
        assert_eq!(digests(&client, "a", &image.digest, "").await, [first.digest.clone()], "{round}");
        let gone = at_watched(&client, Method::DELETE, &first.digest, None).await;
        assert_eq!(gone.status, StatusCode::ACCEPTED);
        assert_eq!(digests(&client, "a", &image.digest, "").await, Vec::<String>::new(), "{round}");
    }
    client.push("a", &second).await;
    // It is not answered there.
    let asked = client.request(Method::GET, &format!("/v2/a/referrers/{}", image.digest));
    let asked = client.send(asked.header("host", "watched.example.com")).await;
    assert_eq!(asked.status, StatusCode::NOT_FOUND);
    assert!(!asked.headers.contains_key("x-request-id"));
    backfill(&refshim);
    assert!(!listed(&client, &image).await.1, "all that passes is recorded");
}

#[tokio::test]
async fn what_only_passes_by_one_ends_what_the_other_remembers() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = shared(&registry, "pass", directory.path()).await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push_as("a", "latest", &image).await;
    let signed = signature(&image, &image, "application/x.signature", "one");
    assert_eq!(listed(&client, &image).await, (Vec::new(), true));
    let tag = referrers_tag(&image);
    for (reference, content) in [(&signed.digest, &signed), (&tag, &Content::index(&[&signed]))] {
        let put = at_watched(&client, Method::PUT, reference, Some(content)).await;
        assert_eq!(put.status, StatusCode::CREATED);
    }
    // By the tag, which was known to be absent for five minutes.
    assert_eq!(listed(&client, &image).await, (vec![signed.digest], true));
    backfill(&refshim);
    assert!(listed(&client, &image).await.1, "not all that passes is recorded");
}

#[tokio::test]
async fn a_shadow_passes_what_it_cannot_record_and_lists_say_so() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let start = Refshim::prepare(registry.address, directory.path()).with(MODE, "learn").surviving_limits();
    let refshim = start.launch().await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push_as("a", "latest", &image).await;
    backfill(&refshim);
    let signed = |name| signature(&image, &image, "application/x.signature", name);
    client.push("a", &signed("recorded")).await;
    refshim.limit_file_size(1);
    client.push("a", &signed("lost")).await;
    refshim.logs("could not be recorded", 1).await;
    refshim.stop();
    let refshim = self::start(&registry, "full", directory.path()).await;
    assert_eq!(listed(&refshim.client(), &image).await, (vec![signed("recorded").digest], true));
}

#[tokio::test]
async fn what_the_registry_may_have_taken_is_asked_for() {
    let shelf = Shelf::default();
    let kept = Arc::clone(&shelf);
    // It fails after it has stored one, and before it stores the other.
    let upstream = shelf_registry(&shelf, move |turn| {
        let body = String::from_utf8_lossy(&turn.request.body);
        if turn.is_read() || !body.contains("subject") {
            return Some(turn.right.clone());
        }
        if body.contains("stored") {
            let value = serde_json::from_slice(&turn.request.body).unwrap();
            put_on(&kept, "a", &[], &Content::new(IMAGE_MANIFEST, &value));
        }
        Some(Said::status("500 Internal Server Error"))
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path()).with(MODE, "learn").launch().await;
    let image = Content::image("{}", "layer");
    refshim.client().push_as("a", "latest", &image).await;
    let signed = |name| signature(&image, &image, "application/x.signature", name);
    for name in ["stored", "lost"] {
        let answer = refshim.client().put_manifest("a", &signed(name).digest, &signed(name)).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    refshim.stop();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    assert_eq!(digests(&refshim.client(), "a", &image.digest, "").await, [signed("stored").digest]);
}

#[tokio::test]
async fn the_mode_is_told() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(registry.address, directory.path())
        .with(MODE, "learn")
        .with("REFERRERS_STALE_FOR", "1s")
        .launch()
        .await;
    refshim.logs("the upstream default is in mode learn", 1).await;
    refshim.logs("the settings of [referrers] have no effect in the modes of the upstreams", 1).await;
    let admin = Client::new(refshim.admin);
    assert!(admin.text("/readyz").await.contains("upstream (mode learn): ok\n"));
    let metrics = admin.text("/metrics").await;
    assert!(metrics.contains("refshim_upstream_mode{upstream=\"default\",mode=\"learn\"} 1\n"), "{metrics}");
}
