//! `refshim export`: who takes refshim away finds in the registry what was listed through it.

mod races;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Ended, SIGNATURE, Shell};
use crate::support::{
    Client, Content, DOCKER_LIST, DOCKER_MANIFEST, Filled, IMAGE_INDEX, IMAGE_MANIFEST, Random, Refshim,
    Registry, Said, Shelf, Target, fill, listed, put, shelf_registry,
};

const SEED: u64 = 15;

/// By repository and subject: the entries, by digest.
type Lists = BTreeMap<(String, String), BTreeMap<String, Value>>;

impl Shell {
    pub(super) fn export(&self, registry: &str, data_dir: &Path, more: &[&str]) -> Ended {
        let arguments =
            ["export", "--upstream", registry, "--data-dir", data_dir.to_str().unwrap(), "--json"];
        self.run(&[&arguments, more].concat())
    }
}

#[track_caller]
pub(super) fn report(ended: Ended) -> Value {
    serde_json::from_str(&ended.ok()).unwrap()
}

/// The report of a run that failed like this.
#[track_caller]
pub(super) fn failed(ended: &Ended, said: &[&str]) -> Value {
    assert_eq!(ended.code, 1, "{ended:?}");
    for part in said {
        assert!(ended.err.contains(part), "no {part:?} in\n{}", ended.err);
    }
    serde_json::from_str(&ended.out).unwrap()
}

pub(super) fn by_digest(index: &Value) -> BTreeMap<String, Value> {
    let entries = index["manifests"].as_array().unwrap().iter();
    entries.map(|entry| (entry["digest"].as_str().unwrap().to_owned(), entry.clone())).collect()
}

pub(super) fn referrers_tag(subject: &str) -> String {
    subject.replace(':', "-")
}

/// Whether a registry has a manifest.
pub(super) async fn has(client: &Client, repository: &str, digest: &str) -> bool {
    let request = client.request(Method::GET, &format!("/v2/{repository}/manifests/{digest}"));
    let accept = [IMAGE_MANIFEST, IMAGE_INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", ");
    let status = client.send(request.header("accept", accept)).await.status;
    assert!(status == StatusCode::OK || status == StatusCode::NOT_FOUND, "{status}");
    status == StatusCode::OK
}

/// The lists that are not alike.
#[track_caller]
fn check(found: &Lists, expected: &Lists) {
    for (key, list) in found {
        assert_eq!(list, &expected[key], "{key:?}");
    }
}

/// The list at a referrers tag; none if there is no such tag.
pub(super) async fn tagged(
    client: &Client,
    repository: &str,
    subject: &str,
) -> Option<BTreeMap<String, Value>> {
    let path = format!("/v2/{repository}/manifests/{}", referrers_tag(subject));
    let answer = client.send(client.request(Method::GET, &path).header("accept", IMAGE_INDEX)).await;
    match answer.status {
        StatusCode::NOT_FOUND => None,
        StatusCode::OK => {
            assert_eq!(answer.header("content-type"), IMAGE_INDEX);
            Some(by_digest(&answer.json()))
        }
        _ => panic!("{answer:?}"),
    }
}

/// What refshim lists, by the API of OCI.
async fn through(client: &Client, filled: &Filled) -> Lists {
    let mut lists = Lists::new();
    for (name, repository) in &filled.repositories {
        for subject in repository.links.keys() {
            let answer = client.get(&format!("/v2/{name}/referrers/{subject}")).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            lists.insert((name.clone(), subject.clone()), by_digest(&answer.json()));
        }
    }
    lists
}

/// What the registry alone lists of the same.
async fn alone(client: &Client, lists: &Lists) -> Lists {
    let mut found = Lists::new();
    for (name, subject) in lists.keys() {
        let list = tagged(client, name, subject).await.unwrap_or_default();
        found.insert((name.clone(), subject.clone()), list);
    }
    found
}

/// A registry full of links, a refshim that knew them and is gone, and what it listed.
async fn full(tags: usize, data_dir: &Path) -> (Registry, Lists) {
    let registry = Registry::start();
    let refshim = Refshim::start(registry.address, data_dir).await;
    let filled = fill(&refshim.client(), tags / 12, tags, SEED).await;
    assert_eq!(listed(&refshim.client(), &filled).await, filled.links());
    let lists = through(&refshim.client(), &filled).await;
    refshim.stop();
    (registry, lists)
}

pub(super) fn about(subject: &Content, name: &str) -> Content {
    subject.changed(|manifest| {
        manifest["subject"] = subject.descriptor();
        manifest["artifactType"] = json!(SIGNATURE);
        manifest["annotations"] = json!({"name": name});
    })
}

/// Pushes this through a refshim, which is gone afterwards.
pub(super) async fn pushed(registry: SocketAddr, data_dir: &Path, contents: &[(&str, &Content)]) {
    let refshim = Refshim::start(registry, data_dir).await;
    for (repository, content) in contents {
        refshim.client().push(repository, content).await;
    }
    refshim.stop();
}

/// A real registry with an image, and this many signatures of it that only a refshim knows of that is gone.
async fn signed(data_dir: &Path, signatures: usize) -> (Registry, Content, Vec<Content>) {
    let registry = Registry::start();
    let image = registry.client().image("app", "image").await;
    registry.client().push_as("app", "v1", &image).await;
    let signatures: Vec<Content> = (0..signatures).map(|n| about(&image, &format!("ours {n}"))).collect();
    let contents: Vec<_> = signatures.iter().map(|signature| ("app", signature)).collect();
    pushed(registry.address, data_dir, &contents).await;
    (registry, image, signatures)
}

fn digests(contents: &[Content]) -> Vec<String> {
    let mut digests: Vec<String> = contents.iter().map(|content| content.digest.clone()).collect();
    digests.sort();
    digests
}

fn keys(list: Option<BTreeMap<String, Value>>) -> Vec<String> {
    list.unwrap_or_default().into_keys().collect()
}

#[tokio::test]
async fn the_registry_alone_lists_what_was_listed_through_refshim() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let (registry, lists) = full(150, data.path()).await;
    let (url, client) = (registry.url(), registry.client());
    let before = alone(&client, &lists).await;
    assert!(before != lists);

    let checked = failed(&shell.export(&url, data.path(), &["--check"]), &["does not list"]);
    assert!(!checked["missing"].as_array().unwrap().is_empty(), "{checked}");
    let dry = report(shell.export(&url, data.path(), &["--dry-run"]));
    assert!(alone(&client, &lists).await == before, "nothing is written by either");
    let done = report(shell.export(&url, data.path(), &[]));
    check(&alone(&client, &lists).await, &lists);
    for count in ["subjects", "written", "added", "corrected", "removed"] {
        assert_eq!(dry[count], done[count], "{count}");
    }
    assert_eq!(dry["would_write"].as_array().unwrap().len() as u64, done["written"].as_u64().unwrap());
    for count in ["added", "corrected"] {
        assert!(done[count].as_u64().unwrap() > 0, "{count}: {done}");
    }
    assert!(!done["removed"].as_array().unwrap().is_empty(), "lies: {done}");

    let again = report(shell.export(&url, data.path(), &[]));
    assert_eq!((&again["written"], &again["subjects"]), (&json!(0), &done["subjects"]));
    report(shell.export(&url, data.path(), &["--check"]));
    // And a client that knows the tag finds them.
    for ((name, subject), list) in lists.iter().filter(|(_, list)| !list.is_empty()).take(5) {
        if !has(&client, name, subject).await {
            continue;
        }
        let image = format!("{}/{name}@{subject}", registry.address);
        let found = shell.ok(&["references", &image, "--kind", "subject", "--format", "digest"]);
        let mut found: Vec<&str> = found.lines().collect();
        found.sort_unstable();
        assert_eq!(found, list.keys().collect::<Vec<_>>(), "{image}");
    }
}

#[tokio::test]
async fn an_export_that_is_killed_is_repeated() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let (registry, lists) = full(100, data.path()).await;
    let url = registry.url();
    let arguments =
        ["export", "--upstream", &url, "--data-dir", data.path().to_str().unwrap(), "--jobs", "1"];
    let mut random = Random::new(SEED);
    for _ in 0..10 {
        let mut run = shell.command(&arguments).spawn().unwrap();
        // At whatever it does then.
        tokio::time::sleep(Duration::from_millis(20 + random.below(400))).await;
        run.kill().unwrap();
        run.wait().unwrap();
    }
    report(shell.export(&url, data.path(), &[]));
    check(&alone(&registry.client(), &lists).await, &lists);
}

#[tokio::test]
async fn referrers_with_a_tag_survive_a_garbage_collection_of_what_has_none() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let (registry, image, signatures) = signed(data.path(), 3).await;
    let there = async |registry: &Registry, contents: &[Content]| {
        let mut there = Vec::new();
        for content in contents {
            there.push(has(&registry.client(), "app", &content.digest).await);
        }
        there
    };
    let kept = shell.path("keep");
    let kept = kept.to_str().unwrap();
    let arguments = ["export", "--upstream", &registry.url(), "--data-dir", data.path().to_str().unwrap()];
    let lines: Vec<String> = digests(&signatures).iter().map(|digest| format!("app@{digest}")).collect();
    let printed = shell.ok(&[&arguments[..], &["--keep-list"]].concat());
    assert_eq!(printed.lines().collect::<Vec<_>>(), lines);
    assert_eq!(shell.ok(&[&arguments[..], &["--keep-list", kept]].concat()), "");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), format!("{printed}\n"));
    assert_eq!(tagged(&registry.client(), "app", &image.digest).await, None, "nothing is written");

    let done = report(shell.export(&registry.url(), data.path(), &["--tag-referrers"]));
    assert_eq!((&done["added"], &done["tagged"]), (&json!(3), &json!(3)));
    let again = report(shell.export(&registry.url(), data.path(), &["--tag-referrers"]));
    assert_eq!((&again["written"], &again["tagged"]), (&json!(0), &json!(0)));
    registry.collect_untagged();
    assert_eq!(there(&registry, &signatures).await, [true; 3]);
    assert_eq!(keys(tagged(&registry.client(), "app", &image.digest).await), digests(&signatures));

    // Without the export they are lost.
    let other = tempfile::tempdir().unwrap();
    let (registry, _, signatures) = signed(other.path(), 3).await;
    assert_eq!(there(&registry, &signatures).await, [true; 3]);
    registry.collect_untagged();
    assert_eq!(there(&registry, &signatures).await, [false; 3]);
    let done = report(shell.export(&registry.url(), other.path(), &[]));
    assert_eq!((&done["written"], &done["failed"]), (&json!(0), &json!([])), "what is lost is not listed");
    assert_eq!(done["absent"], json!(3));
}

/// Else no old image would ever be removed.
#[tokio::test]
async fn the_keep_list_names_what_is_attached_with_its_parts_and_no_image() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let registry = Registry::start();
    let image = registry.client().image("app", "image").await;
    let [part, other] =
        ["part", "other"].map(|name| image.changed(|part| part["annotations"] = json!({"n": name})));
    let cosign = image.changed(|manifest| manifest["annotations"] = json!({"name": "cosign"}));
    let platforms = Content::index(&[&image, &other]);
    let bundle = Content::index(&[&part]).changed(|index| index["subject"] = image.descriptor());
    let reference = image.changed(|manifest| manifest["reference"] = image.descriptor());
    for content in [&image, &part, &other] {
        registry.client().push("app", content).await;
    }
    let refshim = Refshim::start(registry.address, data.path()).await;
    for content in [&platforms, &bundle, &reference] {
        refshim.client().push("app", content).await;
    }
    refshim.client().push_as("app", &format!("{}.sig", referrers_tag(&image.digest)), &cosign).await;
    refshim.client().push_as("other", "v1", &refshim.client().image("other", "image").await).await;
    refshim.stop();
    let keep =
        ["export", "--upstream", &registry.url(), "--data-dir", data.path().to_str().unwrap(), "--keep-list"];
    let kept = shell.ok(&keep);
    let expected: Vec<String> = digests(&[bundle, part, reference, cosign])
        .into_iter()
        .map(|digest| format!("app@{digest}"))
        .collect();
    assert_eq!(kept.lines().collect::<Vec<_>>(), expected);
    assert_eq!(shell.ok(&[&keep[..], &["-", "--repository", "other*"]].concat()), "");
    let into_nothing = shell.run(&[&keep[..], &["none/list"]].concat());
    into_nothing.failed(3, &["none/list"]);
    for wrong in [&["--check"][..], &["--dry-run"], &["--json"]] {
        assert_eq!(shell.run(&[&keep[..], wrong].concat()).code, 2, "{wrong:?}");
    }
}

#[tokio::test]
async fn a_registry_that_takes_no_writes_says_so_and_keeps_what_it_has() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let (registry, image, _) = signed(data.path(), 2).await;
    let other = registry.client().image("other", "other").await;
    let signature = about(&other, "other");
    registry.client().push_as("other", "v1", &other).await;
    pushed(registry.address, data.path(), &[("other", &signature)]).await;
    let list = Content::index(&[&signature]).changed(|index| {
        index["manifests"][0]["artifactType"] = json!(SIGNATURE);
        index["manifests"][0]["annotations"] = json!({"name": "other"});
    });
    registry.client().push_as("other", &referrers_tag(&other.digest), &list).await;
    let closed = Registry::variant().read_only(&registry).start();
    let ended = shell.export(&closed.url(), data.path(), &[]);
    let told = failed(&ended, &["1 failed", "405"]);
    assert_eq!((&told["subjects"], &told["written"]), (&json!(2), &json!(0)));
    assert_eq!(told["failed"][0]["what"], format!("app@{}", image.digest));
    assert_eq!(tagged(&closed.client(), "app", &image.digest).await, None);
    report(shell.export(&registry.url(), data.path(), &[]));
}

#[tokio::test]
async fn a_list_that_no_registry_would_take_is_not_begun() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let registry = Registry::start();
    let (long, short) =
        (registry.client().image("app", "long").await, registry.client().image("app", "short").await);
    let mut contents = vec![about(&short, "short")];
    for n in 0..3 {
        let note = format!("{n}").repeat(3 << 19);
        contents.push(about(&long, "long").changed(|manifest| manifest["annotations"]["note"] = json!(note)));
    }
    registry.client().push_as("app", "long", &long).await;
    registry.client().push_as("app", "short", &short).await;
    let pushes: Vec<_> = contents.iter().map(|content| ("app", content)).collect();
    pushed(registry.address, data.path(), &pushes).await;
    let told = failed(&shell.export(&registry.url(), data.path(), &[]), &["4 MiB"]);
    assert_eq!(told["failed"][0]["what"], format!("app@{}", long.digest));
    assert_eq!(tagged(&registry.client(), "app", &long.digest).await, None);
    assert_eq!(keys(tagged(&registry.client(), "app", &short.digest).await), digests(&contents[..1]));
}

#[tokio::test]
async fn what_is_at_the_tag_and_is_no_list_stays() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let (registry, image, _) = signed(data.path(), 1).await;
    let tag = referrers_tag(&image.digest);
    let other = registry.client().image("app", "other").await;
    registry.client().push_as("app", &tag, &other).await;
    failed(&shell.export(&registry.url(), data.path(), &[]), &["is no list of referrers", &tag]);
    assert_eq!(registry.client().served("app", &tag).await.2, other.digest);
}

/// What cannot be read now stays on the list as it is, and what the registry does not show is not added.
#[tokio::test]
async fn a_list_is_never_written_from_what_could_not_be_read() {
    let (content, data, shell) = (Shelf::default(), tempfile::tempdir().unwrap(), Shell::new());
    let images = ["fails", "throttles", "hides"].map(|name| Content::image(name, "layer"));
    let [fails, throttles, hides] = &images;
    let others = images.each_ref().map(|image| about(image, "others"));
    for (image, other) in images.iter().zip(&others) {
        put(&content, "app", &["v1"], image);
        put(&content, "app", &[], other);
        put(&content, "app", &[&referrers_tag(&image.digest)], &Content::index(&[other]));
    }
    let ours = images.each_ref().map(|image| about(image, "ours"));
    let fair = shelf_registry(&content, |turn| Some(turn.right.clone()));
    let pushes: Vec<_> = ours.iter().map(|content| ("app", content)).collect();
    pushed(fair.address, data.path(), &pushes).await;
    let puts = std::sync::atomic::AtomicU32::new(0);
    let (failing, hidden) = (referrers_tag(&fails.digest), others[2].digest.clone());
    let (slow, gone) = (referrers_tag(&throttles.digest), ours[2].digest.clone());
    let odd = shelf_registry(&content, move |turn| {
        let path = turn.path();
        let is_put = turn.request.line.starts_with("PUT ");
        let asked = puts.load(std::sync::atomic::Ordering::Relaxed);
        Some(match path.rsplit('/').next().unwrap() {
            tag if tag == failing => Said::status("501 Not Implemented"),
            tag if tag == slow && is_put && asked < 2 => {
                puts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let status = if asked == 0 { "429 Too Many Requests" } else { "503 Service Unavailable" };
                Said::status(status).with("retry-after", "1")
            }
            digest if digest == hidden => Said::status("403 Forbidden"),
            digest if digest == gone => Said::status("404 Not Found"),
            _ => turn.right.clone(),
        })
    });
    let url = format!("http://{}", odd.address);
    let ended = shell.export(&url, data.path(), &[]);
    let told = failed(&ended, &["2 failed", "501", "403"]);
    assert_eq!(told["written"], json!(1), "{told}");
    let list = |image: &Content| {
        let content = content.lock().unwrap();
        let list = &content[&("app".to_owned(), referrers_tag(&image.digest))];
        list.value.clone()
    };
    assert_eq!(list(fails), Content::index(&[&others[0]]).value);
    assert_eq!(
        list(hides),
        Content::index(&[&others[2]]).value,
        "ours is not there, and theirs is not denied"
    );
    let both = by_digest(&list(throttles));
    assert_eq!(both.len(), 2);
    assert_eq!(both[&ours[1].digest]["annotations"], json!({"name": "ours"}));
    assert_eq!(
        both[&others[1].digest]["annotations"],
        json!({"name": "others"}),
        "an old entry is corrected"
    );
    let written = odd.requests().iter().filter(|request| request.line.starts_with("PUT ")).count();
    assert_eq!(written, 3, "the third was taken");
}

#[tokio::test]
async fn a_registry_with_the_api_is_told_what_it_lacks_and_nothing_is_written() {
    let (content, data, shell) = (Shelf::default(), tempfile::tempdir().unwrap(), Shell::new());
    let images = ["whole", "short"].map(|name| Content::image(name, "layer"));
    let signatures = images.each_ref().map(|image| [about(image, "one"), about(image, "two")]);
    let pushes: Vec<_> = signatures.iter().flatten().map(|content| ("app", content)).collect();
    for image in &images {
        put(&content, "app", &["v1"], image);
    }
    let fair = shelf_registry(&content, |turn| Some(turn.right.clone()));
    pushed(fair.address, data.path(), &pushes).await;
    let lists: BTreeMap<String, Content> = images
        .iter()
        .zip([&signatures[0][..], &signatures[1][..1]])
        .map(|(image, listed)| (image.digest.clone(), Content::index(&listed.iter().collect::<Vec<_>>())))
        .collect();
    let registry = shelf_registry(&content, move |turn| match turn.target {
        Target::Api => lists.get(turn.path().rsplit('/').next().unwrap()).map(Said::manifest),
        Target::Digest | Target::Tag | Target::ReferrersTag | Target::Other => Some(turn.right.clone()),
    });
    let url = format!("http://{}", registry.address);
    for arguments in [&[][..], &["--check"], &["--dry-run"]] {
        let told =
            failed(&shell.export(&url, data.path(), arguments), &["its referrers API does not list it"]);
        let missing = told["missing"].as_array().unwrap();
        assert_eq!((missing.len(), &told["written"]), (1, &json!(0)), "{told}");
        assert_eq!(missing[0]["what"], format!("app@{}", images[1].digest));
        assert!(missing[0]["reason"].as_str().unwrap().contains(&signatures[1][1].digest));
    }
    assert!(registry.requests().iter().all(|request| !request.line.starts_with("PUT ")));
}
