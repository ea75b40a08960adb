//! One bad moment of a registry costs nothing for good, and one good moment shows nothing for good: what it does
//! not show is left out as long as it does not, and no longer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::referrers::{referrers_tag, signature};
use crate::support::{
    Client, Content, DOCKER_LIST, IMAGE_INDEX, IMAGE_MANIFEST, Refshim, Said, Scripted, Shelf, Target, about,
    put, shelf_registry, take,
};

/// What is said instead of the right answer to questions for this target; an empty status hangs up.
type Mood = Arc<Mutex<Option<(Option<Target>, String)>>>;

struct Scene {
    shelf: Shelf,
    mood: Mood,
    upstream: Scripted,
    refshim: Refshim,
    client: Client,
    image: Content,
    _directory: tempfile::TempDir,
}

async fn scene(settings: &[(&'static str, &str)]) -> Scene {
    let (shelf, mood) = (Shelf::default(), Mood::default());
    let image = Content::image("{}", "x");
    put(&shelf, "a", &["latest"], &image);
    let moody = Arc::clone(&mood);
    let upstream = shelf_registry(&shelf, move |turn| match &*moody.lock().unwrap() {
        Some((target, said)) if target.is_none_or(|target| target == turn.target) => match said.as_str() {
            "" => None,
            "page" => Some(Said::typed("text/html", "<html>log in</html>")),
            "other bytes" => Some(turn.right.clone().without("docker-content-digest").holding("{}")),
            status => Some(Said::status(status).with("retry-after", "7")),
        },
        _ => Some(turn.right.clone()),
    });
    let directory = tempfile::tempdir().unwrap();
    let mut refshim = Refshim::prepare(upstream.address, directory.path());
    for (name, value) in settings {
        refshim = refshim.with(name, value);
    }
    let refshim = refshim.launch().await;
    let client = refshim.client();
    Scene { shelf, mood, upstream, refshim, client, image, _directory: directory }
}

/// How often a query, or an entry of one, was answered from what the registry said earlier.
async fn answered_stale(scene: &Scene) -> u64 {
    let metrics = Client::new(scene.refshim.admin).text("/metrics").await;
    let counts = metrics.lines().filter(|line| line.starts_with("refshim_queries_stale_total{"));
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

impl Scene {
    fn says(&self, target: Option<Target>, said: &str) {
        *self.mood.lock().unwrap() = Some((target, said.to_owned()));
    }

    fn is_well(&self) {
        *self.mood.lock().unwrap() = None;
    }

    async fn listed(&self) -> Vec<String> {
        self.client.referrers("a", &self.image.digest, "").await
    }

    /// Waits until the list is this one.
    async fn lists(&self, expected: &[&Content]) {
        let expected: Vec<String> = expected.iter().map(|content| content.digest.clone()).collect();
        while self.listed().await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn asked(&self) -> usize {
        self.upstream.requests().len()
    }

    /// A referrers tag that lists these, put there behind refshim's back.
    fn tag(&self, listed: &[&Content]) {
        let entries: Vec<_> = listed.iter().map(|content| content.descriptor()).collect();
        let list = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries});
        put(&self.shelf, "a", &[&referrers_tag(&self.image)], &Content::new(IMAGE_INDEX, &list));
    }
}

#[tokio::test]
async fn a_registry_that_shows_nothing_for_a_while_after_its_201_costs_no_link() {
    for query in ["", "?inline=true", "?kind=reference&inline=true"] {
        let scene = scene(&[]).await;
        let (late, other) =
            (about(&scene.image, &scene.image, "late"), about(&scene.image, &scene.image, "other"));
        scene.client.push("a", &other).await;
        scene.client.push("a", &late).await;
        take(&scene.shelf, "a", &late.digest);
        // Every way in which refshim or a client can be told so.
        for _ in 0..3 {
            scene.client.referrers("a", &scene.image.digest, query).await;
            scene.client.referrers("a", &scene.image.digest, "?inline=true").await;
            let got = scene.client.get(&format!("/v2/a/manifests/{}", late.digest)).await;
            assert_eq!(got.status, StatusCode::NOT_FOUND);
        }
        assert_eq!(scene.listed().await, [other.digest.clone()]);
        put(&scene.shelf, "a", &[], &late);
        scene.lists(&[&other, &late]).await;
    }
}

#[tokio::test]
async fn what_a_client_was_told_is_not_there_is_not_in_the_next_list() {
    for method in [Method::GET, Method::HEAD, Method::DELETE] {
        for by_tag in [false, true] {
            let scene = scene(&[]).await;
            let [gone, kept] =
                ["gone", "kept"].map(|name| signature(&scene.image, &scene.image, "application/x", name));
            if by_tag {
                for content in [&gone, &kept] {
                    put(&scene.shelf, "a", &[], content);
                }
                scene.tag(&[&gone, &kept]);
            } else {
                for content in [&gone, &kept] {
                    scene.client.push("a", content).await;
                }
            }
            scene.lists(&[&gone, &kept]).await;
            take(&scene.shelf, "a", &gone.digest);
            let path = format!("/v2/a/manifests/{}", gone.digest);
            let told = scene.client.send(scene.client.request(method.clone(), &path)).await;
            assert_eq!(told.status, StatusCode::NOT_FOUND);
            assert_eq!(scene.listed().await, [kept.digest.clone()], "{method}, by tag: {by_tag}");
            let referrers = scene.client.get(&format!("/v2/a/referrers/{}", scene.image.digest)).await;
            let index = referrers.json();
            assert_eq!(index["manifests"].as_array().unwrap().len(), 1, "{method}, by tag: {by_tag}");
            assert_eq!(index["manifests"][0]["digest"], kept.digest);
            put(&scene.shelf, "a", &[], &gone);
            scene.lists(&[&gone, &kept]).await;
        }
    }
}

/// Nobody has to write anything for a listed manifest to be asked for again.
#[tokio::test]
async fn an_entry_of_the_referrers_tag_that_was_not_there_once_is_asked_for_again() {
    for moment in ["404 Not Found", "page", "other bytes", "410 Gone", "400 Bad Request"] {
        let scene = scene(&[("REFERRERS_UPSTREAM_TTL", "0s")]).await;
        let entry = signature(&scene.image, &scene.image, "application/x", "entry");
        put(&scene.shelf, "a", &[], &entry);
        scene.tag(&[&entry]);
        // The subject is shown all the same.
        scene.client.get("/v2/a/manifests/latest/references").await;
        scene.says(Some(Target::Digest), moment);
        let during = scene.client.get("/v2/a/manifests/latest/references").await;
        assert_eq!(during.status, StatusCode::OK, "{moment}");
        scene.is_well();
        scene.lists(&[&entry]).await;
    }
}

#[tokio::test]
async fn a_tag_that_lists_thousands_that_are_gone_costs_thousands_of_questions_once() {
    let scene = scene(&[("REFERRERS_UPSTREAM_TTL", "0s"), ("REFERENCES_CONCURRENCY", "64")]).await;
    let gone: Vec<Content> =
        (0..1_000).map(|n| signature(&scene.image, &scene.image, "application/x", &n.to_string())).collect();
    let kept = signature(&scene.image, &scene.image, "application/x", "kept");
    put(&scene.shelf, "a", &[], &kept);
    scene.tag(&gone.iter().chain([&kept]).collect::<Vec<_>>());
    // Of the requests, those for the entries that are gone: when access is asked for again is not of this rule.
    let asked = || {
        let requests = scene.upstream.requests();
        let is_gone = |line: &str| {
            line.contains("/manifests/sha256:")
                && ![&scene.image, &kept].iter().any(|there| line.contains(&there.digest))
        };
        requests.iter().filter(|request| is_gone(&request.line)).count()
    };
    assert_eq!(scene.listed().await, [kept.digest.clone()]);
    assert_eq!(asked(), gone.len());
    // Once their first pause is over, all are due.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..5 {
        let before = asked();
        assert_eq!(scene.listed().await, [kept.digest.clone()]);
        assert_eq!(asked() - before, 64);
    }
}

/// What somebody says of bytes in a PUT that the registry does not take.
#[tokio::test]
async fn what_a_put_claims_that_the_registry_did_not_take_never_becomes_the_truth() {
    let refusals = [
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "405 Method Not Allowed",
        "409 Conflict",
        "413 Payload Too Large",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "503 Service Unavailable",
        "302 Found",
        "page",
        "",
    ];
    for refusal in refusals {
        for is_known in [true, false] {
            let scene = scene(&[]).await;
            let other = Content::image("{}", "other");
            put(&scene.shelf, "a", &[], &other);
            // An image manifest to all who read it rightly; as an index it would be a parent of the other.
            let referrer = signature(&scene.image, &scene.image, "application/x", "1")
                .changed(|manifest| manifest["manifests"] = json!([other.descriptor()]));
            if is_known {
                scene.client.push("a", &referrer).await;
            } else {
                put(&scene.shelf, "a", &[], &referrer);
            }
            scene.says(None, refusal);
            for media_type in [IMAGE_INDEX, DOCKER_LIST, "text/html", "application/vnd.example"] {
                let claimed = Content { media_type: media_type.to_owned(), ..referrer.clone() };
                for reference in [referrer.digest.as_str(), "tag"] {
                    scene.client.put_manifest("a", reference, &claimed).await;
                }
            }
            scene.is_well();
            let context = format!("{refusal}, known before: {is_known}");
            assert_eq!(
                scene.client.referrers("a", &other.digest, "").await,
                Vec::<String>::new(),
                "{context}"
            );
            scene.client.get(&format!("/v2/a/manifests/{}", referrer.digest)).await;
            scene.lists(&[&referrer]).await;
            let entries = scene.client.references("a", &scene.image.digest, "").await;
            assert_eq!(entries[0]["mediaType"], IMAGE_MANIFEST, "{context}");
            assert_eq!(entries[0]["artifactType"], "application/x", "{context}");
            assert_eq!(
                scene.client.referrers("a", &other.digest, "").await,
                Vec::<String>::new(),
                "{context}"
            );
        }
    }
}

/// A login page with 200 has neither taken nor deleted anything.
#[tokio::test]
async fn a_page_in_place_of_an_answer_to_a_write_changes_no_list() {
    for said in ["page", "302 Found", "200 OK", "303 See Other"] {
        let scene = scene(&[]).await;
        let [there, not_there] = ["there", "not there"].map(|name| about(&scene.image, &scene.image, name));
        scene.client.push("a", &there).await;
        scene.says(None, said);
        scene.client.delete(&format!("/v2/a/manifests/{}", there.digest)).await;
        for reference in [&*not_there.digest, "tag", &format!("{}.sig", referrers_tag(&scene.image))] {
            scene.client.put_manifest("a", reference, &not_there).await;
        }
        scene.is_well();
        for _ in 0..2 {
            assert_eq!(scene.listed().await, [there.digest.clone()], "{said}");
        }
    }
}

/// Whoever may not write must not make refshim ask everything anew.
#[tokio::test]
async fn a_refused_write_leaves_what_is_remembered() {
    let scene = scene(&[("REFERENCES_ACCESS_TTL", "5m"), ("REFERRERS_UPSTREAM_TTL", "5m")]).await;
    let content = about(&scene.image, &scene.image, "1");
    scene.listed().await;
    for refusal in
        ["401 Unauthorized", "403 Forbidden", "404 Not Found", "429 Too Many Requests", "302 Found"]
    {
        scene.says(None, refusal);
        scene.client.put_manifest("a", &content.digest, &content).await;
        scene.client.delete(&format!("/v2/a/manifests/{}", content.digest)).await;
        scene.client.delete("/v2/a/manifests/latest").await;
        scene.is_well();
        let before = scene.asked();
        scene.listed().await;
        assert_eq!(scene.asked(), before, "{refusal}");
    }
    // One that may have been done is another thing.
    for unknown in ["500 Internal Server Error", ""] {
        scene.says(None, unknown);
        scene.client.delete(&format!("/v2/a/manifests/{}", content.digest)).await;
        scene.is_well();
        let before = scene.asked();
        scene.listed().await;
        assert!(scene.asked() > before, "{unknown}");
    }
}

#[tokio::test]
async fn while_a_registry_throttles_or_fails_its_lists_the_last_complete_one_is_the_answer() {
    let moods = [
        "429 Too Many Requests",
        "503 Service Unavailable",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "504 Gateway Timeout",
        "",
    ];
    for mood in moods {
        for target in [Target::Api, Target::ReferrersTag] {
            let scene = scene(&[("REFERRERS_UPSTREAM_TTL", "0s"), ("REFERENCES_ACCESS_TTL", "5m")]).await;
            let [pushed, listed] =
                ["pushed", "listed"].map(|name| signature(&scene.image, &scene.image, "application/x", name));
            scene.client.push("a", &pushed).await;
            put(&scene.shelf, "a", &[], &listed);
            scene.tag(&[&listed]);
            let context = format!("{mood:?} from {target:?}");
            let path = format!("/v2/a/referrers/{}", scene.image.digest);
            // Before there was a complete list there is none to stand in.
            scene.says(Some(target), mood);
            assert!(!scene.client.get(&path).await.status.is_success(), "{context}");
            scene.is_well();
            let complete = scene.client.get(&path).await;
            assert_eq!(complete.status, StatusCode::OK, "{context}");
            scene.says(Some(target), mood);
            for _ in 0..3 {
                let answer = scene.client.get(&path).await;
                assert_eq!((answer.status, &answer.body), (StatusCode::OK, &complete.body), "{context}");
            }
            assert_eq!(answered_stale(&scene).await, 3, "{context}");
            // Once something is written, what was complete is complete no more.
            let next = signature(&scene.image, &scene.image, "application/x", "next");
            scene.client.push("a", &next).await;
            assert!(!scene.client.get(&path).await.status.is_success(), "{context}");
        }
    }
    let scene = scene(&[("REFERRERS_UPSTREAM_TTL", "0s"), ("REFERRERS_STALE_FOR", "0s")]).await;
    scene.listed().await;
    scene.says(Some(Target::Api), "429 Too Many Requests");
    let answer = scene.client.get(&format!("/v2/a/referrers/{}", scene.image.digest)).await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "7"));
    let metrics = Client::new(scene.refshim.admin).text("/metrics").await;
    let refused = r#"refshim_queries_refused_total{upstream="default",reason="throttled"} 1"#;
    assert!(metrics.contains(refused), "{metrics}");
}

/// Whoever may ask for a manifest can raise a doubt about it, so a doubt must not make a failing registry's errors
/// the query's. A claim that was never confirmed is another matter: to list it would let anybody list anything.
#[tokio::test]
async fn what_was_there_is_listed_while_the_registry_cannot_be_asked_for_it() {
    let moods = ["429 Too Many Requests", "503 Service Unavailable", "500 Internal Server Error", ""];
    for (mood, was_confirmed) in moods.into_iter().flat_map(|mood| [(mood, true), (mood, false)]) {
        let scene = scene(&[("REFERENCES_ACCESS_TTL", "5m")]).await;
        let [sure, unsure] =
            ["sure", "unsure"].map(|name| signature(&scene.image, &scene.image, "application/x", name));
        scene.client.push("a", &sure).await;
        let path = format!("/v2/a/manifests/{}", unsure.digest);
        if was_confirmed {
            scene.client.push("a", &unsure).await;
            take(&scene.shelf, "a", &unsure.digest);
            assert_eq!(scene.client.get(&path).await.status, StatusCode::NOT_FOUND);
        } else {
            scene.says(Some(Target::Digest), "");
            let lost = scene.client.put_manifest("a", &unsure.digest, &unsure).await;
            assert_eq!(lost.status, StatusCode::BAD_GATEWAY);
        }
        put(&scene.shelf, "a", &[], &unsure);
        scene.says(Some(Target::Digest), mood);
        let context = format!("{mood:?}, was confirmed: {was_confirmed}");
        let answer = scene.client.get("/v2/a/manifests/latest/references").await;
        assert_eq!(answer.status.is_success(), was_confirmed, "{context}");
        if was_confirmed {
            assert_eq!(answer.json()["manifests"].as_array().unwrap().len(), 2, "{context}");
            let filtered = scene.client.referrers("a", "latest", "?artifactType=none").await;
            assert_eq!(filtered, [] as [String; 0], "{context}");
            assert!(answered_stale(&scene).await > 0, "{context}");
        }
        scene.is_well();
        scene.lists(&[&sure, &unsure]).await;
    }
}

/// A deletion whose answer was lost, and one that is answered 404, may have been done: what it was for is not listed
/// on the strength of having been there.
#[tokio::test]
async fn what_may_have_been_deleted_is_not_listed_while_the_registry_cannot_be_asked_for_it() {
    let lost = ["", "500 Internal Server Error", "503 Service Unavailable"];
    for (answer, mood) in lost.into_iter().chain(["404 Not Found"]).flat_map(|answer| {
        ["429 Too Many Requests", "503 Service Unavailable", ""].map(|mood| (answer, mood))
    }) {
        let scene = scene(&[("REFERENCES_ACCESS_TTL", "5m")]).await;
        let [deleted, kept] =
            ["deleted", "kept"].map(|name| signature(&scene.image, &scene.image, "application/x", name));
        for content in [&deleted, &kept] {
            scene.client.push("a", content).await;
        }
        scene.says(Some(Target::Digest), answer);
        let delete = scene.client.request(Method::DELETE, &format!("/v2/a/manifests/{}", deleted.digest));
        assert!(!scene.client.send(delete).await.status.is_success());
        scene.says(Some(Target::Digest), mood);
        let context = format!("{answer:?}, then {mood:?}");
        let listed = scene.client.get("/v2/a/manifests/latest/references").await;
        assert!(!listed.status.is_success(), "{context}: {listed:?}");
        // It was not done after all.
        scene.is_well();
        scene.lists(&[&deleted, &kept]).await;
        // And is again what it was: a 404 to a read is no deletion.
        take(&scene.shelf, "a", &deleted.digest);
        scene.client.get(&format!("/v2/a/manifests/{}", deleted.digest)).await;
        scene.says(Some(Target::Digest), mood);
        assert!(scene.client.get("/v2/a/manifests/latest/references").await.status.is_success(), "{context}");
    }
}

#[tokio::test]
async fn links_of_what_stays_away_are_removed_only_after_their_time() {
    for (forget_after, left) in [("100ms", 1), ("1h", 2)] {
        let scene = scene(&[("INDEX_FORGET_AFTER", forget_after)]).await;
        let [gone, kept] = ["gone", "kept"].map(|name| about(&scene.image, &scene.image, name));
        for content in [&gone, &kept] {
            scene.client.push("a", content).await;
        }
        take(&scene.shelf, "a", &gone.digest);
        scene.client.referrers("a", &scene.image.digest, "?inline=true").await;
        let admin = Client::new(scene.refshim.admin);
        let count = async || {
            let metrics = admin.text("/metrics").await;
            let line = metrics.lines().find(|line| line.starts_with("refshim_index_referrers ")).unwrap();
            line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
        };
        assert_eq!(count().await, 2);
        if left == 1 {
            while count().await > left {
                assert_eq!(scene.listed().await, [kept.digest.clone()]);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        } else {
            // It was asked for again, more than once.
            let before = scene.asked();
            while scene.asked() < before + 4 {
                assert_eq!(scene.listed().await, [kept.digest.clone()]);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(count().await, left);
        }
    }
}

/// A page of another origin reads the queries where it may read the registry.
#[tokio::test]
async fn other_origins_read_queries_as_they_read_the_registry() {
    let shelf = Shelf::default();
    let image = Content::image("{}", "x");
    put(&shelf, "a", &["latest"], &image);
    let preflights = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&preflights);
    let upstream = shelf_registry(&shelf, move |turn| {
        let allowed = |said: Said| {
            said.with("access-control-allow-origin", "https://ui.example")
                .with("access-control-allow-credentials", "true")
                .with("access-control-expose-headers", "Docker-Content-Digest")
                .with("vary", "Origin")
        };
        if turn.request.line.starts_with("OPTIONS") {
            seen.fetch_add(1, Ordering::SeqCst);
            return Some(allowed(Said::status("204 No Content")));
        }
        let is_ours = turn.request.header("origin") == Some("https://ui.example");
        Some(if is_ours { allowed(turn.right.clone()) } else { turn.right.clone() })
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    for client in [refshim.client(), Client::http2(refshim.address)] {
        for path in [
            format!("/v2/a/referrers/{}", image.digest),
            format!("/v2/a/manifests/{}/references", image.digest),
            "/v2/a/manifests/latest/references".to_owned(),
            "/v2/a/manifests/none/references".to_owned(),
            format!("/v2/a/manifests/{}/references?kind=none", image.digest),
        ] {
            for round in ["cold", "warm"] {
                let request = client.request(Method::GET, &path).header("origin", "https://ui.example");
                let answer = client.send(request).await;
                let allowed = answer.header("access-control-allow-origin");
                assert_eq!(allowed, "https://ui.example", "{path}, {round}");
                assert_eq!(answer.header("access-control-expose-headers"), "Docker-Content-Digest");
                assert_eq!(answer.header("vary"), "Origin");
                let other = client.request(Method::GET, &path).header("origin", "https://evil.example");
                let answer = client.send(other).await;
                assert!(!answer.headers.contains_key("access-control-allow-origin"), "{path}, {round}");
            }
            let preflight = client.send(client.request(Method::OPTIONS, &path)).await;
            assert_eq!(preflight.status, StatusCode::NO_CONTENT, "{path}");
        }
    }
    assert_eq!(preflights.load(Ordering::SeqCst), 10);
}
