//! All tags of a repository, with what refers to them: whatever was there, is killed, or is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::exporting::{about, failed, referrers_tag, tagged};
use super::super::{Shell, manifest};
use super::stored_blobs;
use crate::support::{Client, Content, Registry, descriptor};

/// The tags of a repository, and the digests that they lead to.
async fn tags(client: &Client, repository: &str) -> BTreeMap<String, String> {
    let list = client.get(&format!("/v2/{repository}/tags/list")).await.json();
    let mut tags = BTreeMap::new();
    for tag in list["tags"].as_array().unwrap() {
        let tag = tag.as_str().unwrap();
        tags.insert(tag.to_owned(), manifest(client, repository, tag).await.digest);
    }
    tags
}

/// The same without the digests of the lists of referrers, which say the same in other words.
fn alike(mut tags: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let lists = tags.iter_mut().filter(|(tag, _)| tag.starts_with("sha256-") && !tag.contains('.'));
    lists.for_each(|(_, digest)| digest.clear());
    tags
}

/// An image with a big layer of its own, and a signature of it on the list at its referrers tag.
async fn signed(client: &Client, number: u8) -> (Content, Content) {
    let layer: Vec<u8> = (0..256_u32 << 10).map(|at| number ^ at.to_le_bytes()[1]).collect();
    client.push_blob("a", &layer).await;
    let image = client.image("a", "small").await;
    let image = image.changed(|manifest| manifest["layers"] = json!([descriptor("a/b", &layer)]));
    client.push_as("a", &format!("v{number}"), &image).await;
    let signature = about(&image, &format!("signature {number}"));
    client.push("a", &signature).await;
    client.push_as("a", &referrers_tag(&image.digest), &Content::index(&[&signature])).await;
    (image, signature)
}

fn copying<'a>(from: &'a str, to: &'a str) -> [&'a str; 6] {
    ["copy", "--all-tags", "--references", from, to, "--json"]
}

fn counts(report: &Value) -> [u64; 3] {
    ["copied", "skipped", "manifests"].map(|name| report[name].as_u64().unwrap())
}

#[tokio::test]
async fn a_repository_is_the_same_at_the_other_end_and_what_was_there_stays() {
    let (here, there, shell) = (Registry::start(), Registry::start(), Shell::new());
    let (image, signature) = signed(&here.client(), 1).await;
    let (other, _) = signed(&here.client(), 2).await;
    let cosign = image.changed(|manifest| manifest["annotations"] = json!({"name": "cosign"}));
    let tag = format!("{}.sig", referrers_tag(&image.digest));
    here.client().push_as("a", &tag, &cosign).await;
    // At the other end somebody signed the same image.
    let (_, _) = signed(&there.client(), 1).await;
    let theirs = about(&image, "theirs");
    there.client().push("a", &theirs).await;
    there.client().push_as("a", &referrers_tag(&image.digest), &Content::index(&[&theirs])).await;

    let (from, to) = (format!("{}/a", here.address), format!("{}/a", there.address));
    let report = shell.json(&copying(&from, &to));
    assert_eq!(report["failed"], json!([]));
    let images: Vec<&str> =
        report["images"].as_array().unwrap().iter().map(|image| image["tag"].as_str().unwrap()).collect();
    let (last, first) = (&images[2..], &images[..2]);
    assert_eq!((first, last[0]), (&["v1", "v2"][..], &*tag), "first what the others are about");
    assert_eq!(alike(tags(&there.client(), "a").await), alike(tags(&here.client(), "a").await));
    let listed: BTreeSet<String> =
        tagged(&there.client(), "a", &image.digest).await.unwrap().into_keys().collect();
    assert_eq!(listed, BTreeSet::from([theirs.digest, signature.digest]));
    assert_eq!(tagged(&there.client(), "a", &other.digest).await.unwrap().len(), 1);
    // Once more: everything is there.
    assert_eq!(counts(&shell.json(&copying(&from, &to))), [0, 5, 0]);
    // What is signed later is copied, although no tag of the image moved.
    let late = about(&other, "late");
    here.client().push("a", &late).await;
    let both = Content::index(&[&about(&other, "signature 2"), &late]);
    here.client().push_as("a", &referrers_tag(&other.digest), &both).await;
    assert_eq!(counts(&shell.json(&copying(&from, &to)))[2], 1);
    assert_eq!(tagged(&there.client(), "a", &other.digest).await.unwrap().len(), 2);
}

#[tokio::test]
async fn without_references_the_lists_are_copied_as_they_are() {
    let (here, there, shell) = (Registry::start(), Registry::start(), Shell::new());
    for number in 1..=2 {
        signed(&here.client(), number).await;
    }
    let (from, to) = (format!("{}/a", here.address), format!("{}/a", there.address));
    let printed = shell.ok(&["copy", "--all-tags", &from, &to]);
    assert_eq!(printed.lines().count(), 4, "{printed}");
    assert_eq!(tags(&there.client(), "a").await, tags(&here.client(), "a").await);
    let ended = shell.run(&["copy", "--all-tags", &from, &to]);
    assert!(ended.err.contains("0 tags copied, 4 were there, 0 failed"), "{ended:?}");
}

#[tokio::test]
async fn a_copy_of_all_tags_that_is_killed_again_and_again_goes_on() {
    let (here, there, shell) = (Registry::start(), Registry::start(), Shell::new());
    for number in 0..24 {
        signed(&here.client(), number).await;
    }
    let (from, to) = (format!("{}/a", here.address), format!("{}/a", there.address));
    let mut kills = 0;
    for round in 1..=3 {
        let mut copy = shell.command(&copying(&from, &to)).spawn().unwrap();
        while stored_blobs(&there) < round * 6 && copy.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        kills += u32::from(copy.try_wait().unwrap().is_none());
        copy.kill().unwrap();
        copy.wait().unwrap();
    }
    assert_eq!(kills, 3, "it ended before it was killed");
    let report = shell.json(&copying(&from, &to));
    let [copied, skipped, manifests] = counts(&report);
    assert_eq!((copied + skipped, &report["failed"]), (48, &json!([])), "{report}");
    assert!(skipped >= 16 && manifests <= 48 - 2 * 16, "what was there was sent again: {report}");
    assert!(report["bytes"].as_u64().unwrap() <= 9 << 18, "{report}");
    assert_eq!(alike(tags(&there.client(), "a").await), alike(tags(&here.client(), "a").await));
}

#[tokio::test]
async fn a_tag_that_is_broken_is_told_and_all_others_are_copied() {
    let (here, there, shell) = (Registry::start(), Registry::start(), Shell::new());
    let client = here.client();
    signed(&client, 1).await;
    signed(&client, 2).await;
    let part = client.image("a", "gone").await;
    client.push("a", &part).await;
    client.push_as("a", "broken", &Content::index(&[&part])).await;
    client.delete(&format!("/v2/a/manifests/{}", part.digest)).await;
    let (from, to) = (format!("{}/a", here.address), format!("{}/a", there.address));
    for _ in 0..2 {
        let ended = shell.run(&copying(&from, &to));
        let report = failed(&ended, &["broken: ", &part.digest, "1 tags failed; all else is copied"]);
        assert_eq!(report["failed"].as_array().unwrap().len(), 1, "{report}");
        assert_eq!(report["failed"][0]["tag"], "broken");
    }
    let mut expected = alike(tags(&client, "a").await);
    assert!(expected.remove("broken").is_some());
    assert_eq!(alike(tags(&there.client(), "a").await), expected);
}
