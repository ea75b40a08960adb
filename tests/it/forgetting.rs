//! What makes a link vanish, and what does not.

use std::sync::{Arc, Mutex};

use reqwest::StatusCode;
use serde_json::json;

use crate::referrers::{digests, referrers_tag, signature};
use crate::support::{Client, Content, IMAGE_INDEX, Refshim, Registry, Scripted, about, digest_of};

/// A scripted registry that has these manifests under these names, takes every PUT, and says what it is
/// told to instead of an answer to anything, if it is told: nothing to hang up.
struct Moody {
    upstream: Scripted,
    mood: Arc<Mutex<Option<&'static str>>>,
}

const MOODS: [&str; 11] = [
    "404 Not Found",
    "401 Unauthorized",
    "403 Forbidden",
    "405 Method Not Allowed",
    "410 Gone",
    "429 Too Many Requests",
    "500 Internal Server Error",
    "502 Bad Gateway",
    "503 Service Unavailable",
    "307 Temporary Redirect\r\nlocation: http://127.0.0.1:9/",
    "",
];

impl Moody {
    fn with(present: Vec<(String, Content)>) -> Self {
        let mood = Arc::new(Mutex::new(None));
        let told = Arc::clone(&mood);
        let upstream = Scripted::start(move |exchange| {
            exchange.read_body();
            let told: Option<&'static str> = *told.lock().unwrap();
            let line = exchange.request.line.clone();
            let found = present.iter().find(|(name, _)| line.contains(&format!("/manifests/{name} ")));
            match (told, found) {
                (Some(""), _) => {}
                (Some(status), _) => exchange.answer_status(status),
                (None, _) if line.starts_with("PUT") => exchange.answer_status("201 Created"),
                (None, None) => exchange.answer_status("404 Not Found"),
                (None, Some((_, content))) => exchange.answer_manifest(content),
            }
        });
        Self { upstream, mood }
    }

    fn says(&self, mood: Option<&'static str>) {
        *self.mood.lock().unwrap() = mood;
    }
}

/// Whoever was let in a moment ago, be it somebody whose rights ended or the owner of a registry that is
/// down or lost its disk.
#[tokio::test]
async fn nothing_vanishes_by_the_answers_of_a_registry_that_shows_nothing_any_more() {
    let image = Content::image("{}", "x");
    let named = |content: &Content| (content.digest.clone(), content.clone());
    let pushed = about(&image, &image, "pushed");
    let listed = signature(&image, &image, "application/x", "listed");
    let list = Content::new(
        IMAGE_INDEX,
        &json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [listed.descriptor()]}),
    );
    let present = vec![named(&image), named(&pushed), named(&listed), (referrers_tag(&image), list)];
    let registry = Moody::with(present);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(registry.upstream.address, directory.path())
        .with("REFERENCES_ACCESS_TTL", "5m")
        .with("REFERRERS_UPSTREAM_TTL", "0s");
    let refshim = refshim.launch().await;
    let alice = refshim.client().as_user("alice", "a");
    let bob = refshim.client().as_user("bob", "b");
    assert_eq!(alice.put_manifest("a", &pushed.digest, &pushed).await.status, StatusCode::CREATED);
    let expected = [pushed.digest.clone(), listed.digest.clone()];
    for mood in MOODS {
        for asking in [&alice, &bob] {
            registry.says(None);
            assert_eq!(asking.referrers("a", &image.digest, "").await, expected, "before {mood}");
            registry.says(Some(mood));
            let path = format!("/v2/a/manifests/{}/references", image.digest);
            for query in
                ["", "?kind=reference", "?inline=true", "?inline=true&kind=reference", "?scope=registry"]
            {
                asking.get(&format!("{path}{query}")).await;
            }
            asking.get(&format!("/v2/a/referrers/{}", image.digest)).await;
            asking.get(&format!("/v2/a/manifests/{}", pushed.digest)).await;
            asking.delete(&format!("/v2/a/manifests/{}", pushed.digest)).await;
            asking.put_manifest("a", &pushed.digest, &pushed).await;
            registry.says(None);
            assert_eq!(alice.referrers("a", &image.digest, "").await, expected, "after {mood}");
        }
    }
}

#[tokio::test]
async fn what_is_gone_is_forgotten_once_the_registry_shows_something_else() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(registry.address, directory.path())
        .with("REFERRERS_UPSTREAM_TTL", "0s")
        .with("INDEX_FORGET_AFTER", "100ms");
    let refshim = refshim.launch().await;
    let (client, behind) = (refshim.client(), registry.client());
    let image = client.image("a", "image").await;
    client.push_as("a", "latest", &image).await;
    let kept = about(&image, &image, "kept");
    let gone = about(&image, &image, "gone");
    for content in [&kept, &gone] {
        client.push("a", content).await;
    }
    // By a tag alone.
    let listed = signature(&image, &image, "application/x", "listed");
    behind.push("a", &listed).await;
    let list = Content::new(
        IMAGE_INDEX,
        &json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [listed.descriptor()]}),
    );
    behind.push_as("a", &referrers_tag(&image), &list).await;
    assert_eq!(digests(&client, "a", &image.digest, "").await, [listed.digest.clone()]);

    for content in [&gone, &listed, &list] {
        let deleted = behind.delete(&format!("/v2/a/manifests/{}", content.digest)).await;
        assert_eq!(deleted.status, StatusCode::ACCEPTED);
    }
    assert_eq!(client.referrers("a", "latest", "?inline=true").await, [kept.digest.clone()]);
    assert_eq!(client.referrers("a", "latest", "").await, [kept.digest.clone()]);
    let admin = Client::new(refshim.admin);
    while !admin.text("/metrics").await.contains("refshim_index_referrers 1") {
        assert_eq!(client.referrers("a", "latest", "").await, [kept.digest.clone()]);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }

    // The subject is gone as well: what else there is shows that the repository can be read.
    let newest = about(&image, &image, "newest");
    client.push("a", &newest).await;
    for content in [&image, &kept] {
        behind.delete(&format!("/v2/a/manifests/{}", content.digest)).await;
    }
    assert_eq!(client.referrers("a", &image.digest, "?inline=true").await, [newest.digest.clone()]);
    assert_eq!(client.referrers("a", &image.digest, "").await, [newest.digest]);
    assert_eq!(client.referrers("a", &digest_of(b"nothing"), "").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_delete_counts_if_the_registry_did_it_and_else_not() {
    let image = Content::image("{}", "x");
    let referrer = about(&image, &image, "referrer");
    let named = |content: &Content| (content.digest.clone(), content.clone());
    let registry = Moody::with(vec![named(&image), named(&referrer)]);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.upstream.address, directory.path()).await;
    let client = refshim.client();
    client.put_manifest("a", &referrer.digest, &referrer).await;
    let path = format!("/v2/a/manifests/{}", referrer.digest);
    for mood in MOODS {
        registry.says(Some(mood));
        client.delete(&path).await;
        client.delete(&path.replace(':', "%3A")).await;
        registry.says(None);
        let listed = client.referrers("a", &image.digest, "").await;
        assert_eq!(listed, [referrer.digest.clone()], "{mood}");
    }
    registry.says(Some("202 Accepted"));
    // Of a subject, of a tag, in another repository: none of them is the referrer.
    for other in [
        format!("/v2/a/manifests/{}", image.digest),
        "/v2/a/manifests/latest".to_owned(),
        path.replace("/v2/a/", "/v2/b/"),
        format!("{path}/"),
    ] {
        assert_eq!(client.delete(&other).await.status, StatusCode::ACCEPTED);
    }
    registry.says(None);
    assert_eq!(client.referrers("a", &image.digest, "").await, [referrer.digest.clone()]);
    registry.says(Some("202 Accepted"));
    assert_eq!(client.delete(&path.replace(':', "%3A")).await.status, StatusCode::ACCEPTED);
    registry.says(None);
    assert_eq!(client.referrers("a", &image.digest, "").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_delete_without_an_answer_is_asked_about() {
    let image = Content::image("{}", "x");
    let named = |content: &Content| (content.digest.clone(), content.clone());
    let mut lost = 0;
    for mood in MOODS {
        let [kept, deleted] = ["kept", "deleted"].map(|name| about(&image, &image, name));
        // It has what was deleted no more.
        let registry = Moody::with(vec![named(&image), named(&kept)]);
        let directory = tempfile::tempdir().unwrap();
        let refshim = Refshim::start(registry.upstream.address, directory.path()).await;
        let client = refshim.client();
        for content in [&kept, &deleted] {
            client.put_manifest("a", &content.digest, content).await;
        }
        registry.says(Some(mood));
        client.delete(&format!("/v2/a/manifests/{}", deleted.digest)).await;
        registry.says(None);
        let listed = client.referrers("a", &image.digest, "").await;
        // A 404 tells the client that it is not there, which a list must not contradict.
        if mood.starts_with('4') && !mood.starts_with("404") {
            assert_eq!(listed, [kept.digest, deleted.digest], "{mood}");
        } else {
            assert_eq!(listed, [kept.digest], "{mood}");
            lost += 1;
        }
    }
    assert_eq!(lost, 6);
}
