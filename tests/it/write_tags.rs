//! `referrers.write_tags = "push"`: soon after a push through refshim its referrer is on the list in the bare registry,
//! whatever happens in between.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    Client, Content, IMAGE_INDEX, Random, Refshim, Registry, Said, Shelf, Start, Target, USER, put,
    shelf_registry,
};

/// Time enough for a machine that does something else as well. In practice it is a fraction of a second.
const SOON: Duration = Duration::from_secs(180);
const WRITTEN: &str = "refshim_referrers_tags_written_total{upstream=\"default\"}";

fn writing(start: Start<'_>) -> Start<'_> {
    start.with("REFERRERS_WRITE_TAGS", "push")
}

/// What says in its `subject` that it is about an image.
fn about(image: &Content, name: &str) -> Content {
    image.changed(|manifest| {
        manifest["subject"] = image.descriptor();
        manifest["artifactType"] = json!("application/vnd.example.signature");
        manifest["annotations"] = json!({"name": name});
    })
}

fn tag(subject: &Content) -> String {
    subject.digest.replace(':', "-")
}

/// The list at a subject's referrers tag.
async fn list(client: &Client, repository: &str, subject: &Content) -> Vec<Value> {
    let path = format!("/v2/{repository}/manifests/{}", tag(subject));
    let answer = client.send(client.request(Method::GET, &path).header("accept", IMAGE_INDEX)).await;
    match answer.status {
        StatusCode::OK => answer.json()["manifests"].as_array().unwrap().clone(),
        // docker-registry answers 500 while it is written.
        _ => Vec::new(),
    }
}

fn digests<'a>(entries: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    entries.into_iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect()
}

fn of<'a>(contents: impl IntoIterator<Item = &'a Content>) -> BTreeSet<String> {
    contents.into_iter().map(|content| content.digest.clone()).collect()
}

/// Waits until exactly these are on the list.
async fn lists(client: &Client, repository: &str, subject: &Content, expected: &BTreeSet<String>) {
    let began = Instant::now();
    loop {
        let found = digests(&list(client, repository, subject).await);
        if found == *expected {
            return;
        }
        assert!(began.elapsed() < SOON, "{found:?} and not {expected:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The value of a metric; 0 where it was never counted.
async fn metric(admin: SocketAddr, name: &str) -> u64 {
    let text = Client::new(admin).text("/metrics").await;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

async fn failures(refshim: &Refshim, reason: &str) -> u64 {
    let labels = format!("upstream=\"default\",reason=\"{reason}\",dropped=\"false\"");
    metric(refshim.admin, &format!("refshim_referrers_tag_failures_total{{{labels}}}")).await
}

/// Waits until nothing waits.
async fn worked_off(refshim: &Refshim) {
    let began = Instant::now();
    while metric(refshim.admin, "refshim_referrers_tags_waiting{upstream=\"default\"}").await > 0 {
        assert!(began.elapsed() < SOON, "{}", refshim.lines().join("\n"));
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_is_pushed_is_on_the_list_of_the_bare_registry() {
    let (registry, data) = (Registry::start(), tempfile::tempdir().unwrap());
    let image = registry.client().image("team/app", "image").await;
    registry.client().push_as("team/app", "v1", &image).await;
    // What was there before, of others, stays; and an entry without annotations gets them when it is pushed.
    let (theirs, ours, poor) = (about(&image, "theirs"), about(&image, "ours"), about(&image, "poor"));
    for content in [&theirs, &poor] {
        registry.client().push("team/app", content).await;
    }
    registry.client().push_as("team/app", &tag(&image), &Content::index(&[&theirs, &poor])).await;
    let refshim = writing(Refshim::before(&registry, data.path())).launch().await;
    for content in [&ours, &poor] {
        let answer = refshim.client().put_manifest("team/app", &content.digest, content).await;
        assert_eq!((answer.status, answer.header("oci-subject")), (StatusCode::CREATED, &*image.digest));
    }
    lists(&registry.client(), "team/app", &image, &of([&theirs, &ours, &poor])).await;
    worked_off(&refshim).await;
    let entries = list(&registry.client(), "team/app", &image).await;
    let told = |content: &Content| {
        let entry = entries.iter().find(|entry| entry["digest"] == *content.digest).unwrap();
        (entry["artifactType"].clone(), entry["annotations"]["name"].clone())
    };
    for (content, name) in [(&ours, "ours"), (&poor, "poor")] {
        assert_eq!(told(content), (json!("application/vnd.example.signature"), json!(name)));
    }
    let written = metric(refshim.admin, WRITTEN).await;
    assert!((1..=2).contains(&written), "{written}");
    // The same once more changes nothing, and nothing is written.
    refshim.client().push("team/app", &ours).await;
    worked_off(&refshim).await;
    assert_eq!(metric(refshim.admin, WRITTEN).await, written);
}

#[tokio::test]
async fn by_default_refshim_writes_nothing() {
    let (registry, data) = (Registry::start(), tempfile::tempdir().unwrap());
    let image = registry.client().image("app", "image").await;
    registry.client().push("app", &image).await;
    let refshim = Refshim::before(&registry, data.path()).launch().await;
    refshim.client().push("app", &about(&image, "ours")).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(list(&registry.client(), "app", &image).await, Vec::<Value>::new());
    assert!(!data.path().join("referrers-tags").exists());
}

#[tokio::test]
async fn a_kill_between_the_answer_and_the_tag_loses_no_tag() {
    let (registry, data) = (Registry::start(), tempfile::tempdir().unwrap());
    let client = registry.client();
    let (mut random, mut pushed, mut unlisted) = (Random::new(14), Vec::new(), 0);
    for round in 0..10 {
        let name = format!("image {round}");
        let image = client.image("app", &name).await;
        client.push("app", &image).await;
        let refshim = writing(Refshim::before(&registry, data.path())).launch_unready();
        let ours = about(&image, &name);
        refshim.client().push("app", &ours).await;
        // The first is killed at once, so that one at least has not written it.
        sleep(Duration::from_millis(random.below(4 * round + 1))).await;
        refshim.kill();
        unlisted += usize::from(list(&client, "app", &image).await.is_empty());
        pushed.push((image, ours));
    }
    assert!(unlisted > 0, "all of them were written before the kill");
    let refshim = writing(Refshim::before(&registry, data.path())).launch().await;
    for (image, ours) in &pushed {
        lists(&client, "app", image, &of([ours])).await;
    }
    worked_off(&refshim).await;
    // A file is removed after what is in it is counted as done.
    let began = Instant::now();
    while std::fs::read_dir(data.path().join("referrers-tags/default")).unwrap().count() > 0 {
        assert!(began.elapsed() < SOON, "what is done stays on disk");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Pushes as clients did before the referrers API: the referrer, and then the list that was read a moment ago.
async fn push_with_list(client: &Client, image: &Content, ours: &Content) {
    client.push("app", ours).await;
    let mut entries = list(client, "app", image).await;
    entries.push(ours.descriptor());
    sleep(Duration::from_millis(5)).await;
    let index = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries});
    let index = Content::new(IMAGE_INDEX, &index);
    let began = Instant::now();
    // docker-registry answers 500 while somebody else writes the same tag.
    while client.put_manifest("app", &tag(image), &index).await.status != StatusCode::CREATED {
        assert!(began.elapsed() < SOON);
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn of_many_who_push_at_once_and_write_the_list_themselves_nobody_is_lost() {
    let (registry, data) = (Registry::start(), tempfile::tempdir().unwrap());
    let image = registry.client().image("app", "image").await;
    registry.client().push_as("app", "v1", &image).await;
    let refshim = writing(Refshim::before(&registry, data.path())).launch().await;
    let contents: Vec<Content> = (0..48).map(|number| about(&image, &format!("{number}"))).collect();
    let pushes = contents.chunks(4).enumerate().map(|(number, contents)| {
        let (client, image) = (refshim.client(), &image);
        async move {
            for content in contents {
                match number % 2 {
                    0 => client.push("app", content).await,
                    _ => push_with_list(&client, image, content).await,
                }
            }
        }
    });
    join_all(pushes).await;
    lists(&registry.client(), "app", &image, &of(&contents)).await;
    worked_off(&refshim).await;
    assert_eq!(digests(&list(&registry.client(), "app", &image).await), of(&contents));
    // Many pushes, few writes.
    let written = metric(refshim.admin, WRITTEN).await;
    assert!(written < contents.len() as u64, "{written}");
}

#[tokio::test]
async fn a_registry_that_takes_no_tags_for_a_while_gets_them_later() {
    let (shelf, data) = (Shelf::default(), tempfile::tempdir().unwrap());
    let (image, is_frozen) = (Content::image("config", "layer"), Arc::new(AtomicBool::new(true)));
    put(&shelf, "app", &["v1"], &image);
    let frozen = Arc::clone(&is_frozen);
    let registry = shelf_registry(&shelf, move |turn| {
        let is_write = !turn.is_read() && turn.target == Target::ReferrersTag;
        let is_refused = is_write && frozen.load(Ordering::Relaxed);
        Some(if is_refused { Said::status("405 Method Not Allowed") } else { turn.right.clone() })
    });
    let refshim = writing(Refshim::prepare(registry.address, data.path())).launch().await;
    let ours = about(&image, "ours");
    refshim.client().push("app", &ours).await;
    refshim.logs("a referrers tag could not be written after a push; it is tried again", 1).await;
    assert!(failures(&refshim, "failed").await > 0);
    assert_eq!(metric(refshim.admin, "refshim_referrers_tags_waiting{upstream=\"default\"}").await, 1);
    is_frozen.store(false, Ordering::Relaxed);
    worked_off(&refshim).await;
    let list = shelf.lock().unwrap()[&("app".to_owned(), tag(&image))].value.clone();
    assert_eq!(digests(list["manifests"].as_array().unwrap()), of([&ours]));
}

#[tokio::test]
async fn in_a_registry_with_the_referrers_api_nothing_is_written() {
    let (shelf, data) = (Shelf::default(), tempfile::tempdir().unwrap());
    let image = Content::image("config", "layer");
    put(&shelf, "app", &["v1"], &image);
    let registry = shelf_registry(&shelf, |turn| {
        let empty = Content::index(&[]).bytes;
        let is_api = turn.target == Target::Api;
        Some(if is_api { Said::typed(IMAGE_INDEX, empty) } else { turn.right.clone() })
    });
    let refshim = writing(Refshim::prepare(registry.address, data.path())).launch().await;
    refshim.client().push("app", &about(&image, "ours")).await;
    worked_off(&refshim).await;
    assert!(!shelf.lock().unwrap().contains_key(&("app".to_owned(), tag(&image))));
    assert_eq!(metric(refshim.admin, WRITTEN).await, 0);
}

/// A file with the password of the registry's user.
fn password(directory: &Path) -> String {
    let file = directory.join("password");
    std::fs::write(&file, USER.1).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn without_credentials_the_setting_is_named_and_with_them_it_goes_on() {
    let (registry, data) = (Registry::with_user(), tempfile::tempdir().unwrap());
    let as_user = |client: Client| client.as_user(USER.0, USER.1);
    let client = as_user(registry.client());
    let image = client.image("app", "image").await;
    client.push("app", &image).await;
    let ours = [about(&image, "one"), about(&image, "two")];
    let refshim = writing(Refshim::before(&registry, data.path())).launch().await;
    as_user(refshim.client()).push("app", &ours[0]).await;
    let line = refshim.logs("a referrers tag could not be written after a push", 1).await;
    assert!(line.contains("upstreams.NAME.service"), "{line}");
    assert!(failures(&refshim, "denied").await > 0);
    refshim.stop();
    assert_eq!(list(&client, "app", &image).await, Vec::<Value>::new());
    let file = password(data.path());
    let refshim = writing(Refshim::before(&registry, data.path()))
        .with("UPSTREAMS_DEFAULT_SERVICE_USER", USER.0)
        .with("UPSTREAMS_DEFAULT_SERVICE_PASSWORD_FILE", &file)
        .launch()
        .await;
    as_user(refshim.client()).push("app", &ours[1]).await;
    lists(&client, "app", &image, &of(&ours)).await;
    assert_eq!(refshim.count("a referrers tag could not be written"), 0);
}
