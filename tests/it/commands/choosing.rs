//! How a manifest is named by the beginning of its digest, which of many are fetched, and what checks them.

use serde_json::json;

use super::{SBOM, SIGNATURE, Scene, created, read, short};
use crate::support::{Content, about, digest_of};

fn attach(scene: &Scene, name: &str, content: &str, artifact_type: &str, year: u16) -> String {
    scene.shell.write("f.json", content);
    let time = format!("{year}-01-01T00:00:00Z");
    let attach = ["attach", name, "f.json", "--artifact-type", artifact_type];
    scene.shell.ok(&[&attach[..], &created(&time)].concat())
}

#[tokio::test]
async fn the_beginning_of_a_digest_is_enough() {
    let scene = Scene::new().await;
    let index = scene.graph("a").await;
    scene.image("a", "other").await;
    let tree = scene.shell.json(&["tree", &scene.at("a:v1"), "--json"]);
    let sbom = tree["children"][0]["referrers"][0]["digest"].as_str().unwrap().to_owned();
    let resolve = |name: &str| scene.shell.run(&["resolve", name]);
    scene.shell.ok(&["copy", &scene.at("a:v1"), "oci:layout:v1", "--references"]);
    for place in [scene.at("a"), "oci:layout".to_owned()] {
        for digest in [&index.digest, &sbom] {
            for name in [format!("{place}@{}", short(digest)), format!("{place}:v1@{}", short(digest))] {
                assert_eq!(resolve(&name).ok(), *digest, "{name}");
            }
        }
    }
    let whole = format!("{}@{sbom}", scene.at("a"));
    let tree = scene.shell.ok(&["tree", &format!("{}@{}", scene.at("a"), short(&sbom))]);
    assert!(tree.starts_with(&whole), "{tree}");
    resolve(&scene.at(&format!("a:other@{}", short(&sbom))))
        .failed(3, &["nothing below other", "whole digest"]);
    resolve(&scene.at("a@sha256:0000000")).failed(3, &["nothing below any tag"]);
    resolve(&scene.at("a@sha256:00000")).failed(2, &["lower-case hex digits"]);
    // Where something is written, a digest is whole.
    let to = scene.at(&format!("b@{}", short(&index.digest)));
    scene.shell.run(&["copy", &scene.at("a:v1"), &to]).failed(2, &["the whole digest"]);
    let detached = ["detach", &scene.at(&format!("a:v1@{}", short(&sbom))), "sha256:0000000", "--yes"];
    scene.shell.run(&detached).failed(3, &["does not refer"]);
    let signature = scene.shell.ok(&["references", &whole, "--format", "digest"]);
    assert_eq!(scene.shell.ok(&["detach", &whole, short(&signature), "--yes"]), signature);
}

#[tokio::test]
async fn digests_of_a_tree_are_whole_if_wanted_and_a_manifest_is_drawn_once() {
    let scene = Scene::new().await;
    let (one, two) = (scene.client.image("a", "one").await, scene.client.image("a", "two").await);
    for image in [&one, &two] {
        scene.client.push("a", image).await;
    }
    scene.client.push_as("a", "v1", &Content::index(&[&one, &two])).await;
    // One signature of both, with one below it.
    let shared = about(&one, &one, "shared").changed(|manifest| manifest["subject"] = two.descriptor());
    scene.client.push("a", &shared).await;
    let below = attach(&scene, &scene.at(&format!("a@{}", shared.digest)), "below", SIGNATURE, 2024);
    let tree = scene.shell.ok(&["tree", &scene.at("a:v1"), "--no-trunc"]);
    assert_eq!(tree.matches(&shared.digest).count(), 2, "{tree}");
    assert_eq!(tree.matches("(above)").count(), 1, "{tree}");
    assert_eq!(tree.matches(&below).count(), 1, "{tree}");
    assert!(tree.ends_with("\n4 manifests: 1 signature, 3 images"), "{tree}");
}

#[tokio::test]
async fn what_is_fetched_is_chosen_in_any_way() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    let name = scene.at("a:v1");
    let sboms = [2021, 2023, 2022].map(|year| attach(&scene, &name, &year.to_string(), SBOM, year));
    let signature = attach(&scene, &name, "signed", SIGNATURE, 2020);
    let run = |more: &[&str]| scene.shell.run(&[&["fetch", &name], more].concat());
    let to_output = |more: &[&str]| run(&[more, &["-o", "-"]].concat()).ok();
    assert_eq!(to_output(&["--artifact-type", "sbom", "--latest"]), "2022");
    assert_eq!(to_output(&["--artifact-type", "sbom", "--latest", "--sort", "created"]), "2023");
    assert_eq!(to_output(&["--referrer", &sboms[0]]), "2021");
    assert_eq!(to_output(&["--referrer", short(&signature)]), "signed");
    assert_eq!(to_output(&["--latest"]), "signed");
    assert_eq!(run(&["--all", "-o", "all"]).ok().lines().count(), 4);
    assert_eq!(run(&["--kind", "subject", "--limit", "3", "-o", "three"]).ok().lines().count(), 3);
    assert_eq!(read(scene.shell.path("all/f.json")), b"2021");
    let fetched = scene.shell.json(&["fetch", &name, "--referrer", short(&signature), "-o", "one", "--json"]);
    assert_eq!(
        fetched,
        json!([{
            "path": "one/f.json", "digest": digest_of(b"signed"), "artifact": signature,
            "reference": scene.at(&format!("a@{signature}")),
        }])
    );
    run(&[]).failed(2, &["--artifact-type", "--all"]);
    run(&["--all", "--referrer", &signature]).failed(2, &["cannot be used with"]);
    run(&["--all", "-o", "-"]).failed(2, &["4 files"]);
    run(&["--referrer", "sha256:0000000"]).failed(3, &["nothing of that kind"]);
    run(&["--kind", "cosign"]).failed(3, &["nothing of that kind"]);
}

#[tokio::test]
async fn a_list_is_verified_entry_by_entry() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let verify = |name: &str| scene.shell.run(&["verify-references", name]);
    let none = verify(&scene.at("a:v1"));
    assert_eq!((none.code, none.out.as_str()), (0, ""), "{none:?}");
    assert!(none.err.contains("nothing refers to"), "{none:?}");

    // Behind refshim the referrers tag is the list, and says what it was told.
    let behind = scene.behind("a:v1");
    let good = attach(&scene, &behind, "good", SIGNATURE, 2024);
    let gone = attach(&scene, &behind, "gone", SIGNATURE, 2024);
    let well = verify(&behind);
    assert_eq!((well.code, well.out.matches("  ok").count()), (0, 2), "{well:?}");
    let listed = [scene.manifest("a", &good).await, scene.manifest("a", &gone).await];
    let stranger = image.changed(|manifest| manifest["annotations"] = json!({"a": "b"}));
    scene.registry.client().push("a", &stranger).await;
    let list = Content::index(&[&listed[0], &stranger, &listed[1]])
        .changed(|list| list["manifests"][0]["size"] = json!(1));
    let tag = image.digest.replace(':', "-");
    scene.registry.client().push_as("a", &tag, &list).await;
    let deleted = scene.registry.client().delete(&format!("/v2/a/manifests/{gone}")).await;
    assert_eq!(deleted.status, 202);
    let ended = verify(&behind);
    assert_eq!(ended.code, 6, "{ended:?}");
    for (digest, said) in [
        (&good, "and is listed with 1"),
        (&stranger.digest, "does not refer to the image"),
        (&gone, "it is not there"),
    ] {
        let line = ended.out.lines().find(|line| line.contains(digest)).unwrap();
        assert!(line.ends_with(said), "{line}");
    }
    assert!(ended.err.contains("3 listed, 3 of them not as they should be"), "{ended:?}");
    let told = scene.shell.run(&["verify-references", &behind, "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(told[1]["reference"], scene.behind(&format!("a@{}", stranger.digest)));
    assert!(told[1]["problem"].is_string(), "{told}");
}

#[tokio::test]
async fn tags_and_digests_are_told() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    scene.client.push_as("a", "v2", &image).await;
    for command in ["tags", "ls"] {
        assert_eq!(scene.shell.ok(&[command, &scene.at("a")]), "v1\nv2");
    }
    let tags = scene.shell.json(&["tags", &scene.at("a"), "--json"]);
    assert_eq!(tags[1], json!({"reference": scene.at("a:v2"), "tag": "v2"}));
    scene.shell.run(&["tags", &scene.at("a:v1")]).failed(2, &["without a tag"]);
    assert_eq!(scene.shell.ok(&["resolve", &scene.at("a:v1")]), image.digest);
    let reference = ["resolve", &scene.at("a:v1"), "--format", "template={{ reference }}"];
    assert_eq!(scene.shell.ok(&reference), scene.at(&format!("a@{}", image.digest)));
    let version = scene.shell.ok(&["version"]);
    assert_eq!(version, scene.shell.ok(&["--version"]));
    assert_eq!(scene.shell.json(&["version", "--json"])["version"], version.split_once(' ').unwrap().1);
}

#[tokio::test]
async fn a_copy_is_rehearsed_and_gets_several_tags() {
    let scene = Scene::new().await;
    let index = scene.graph("a").await;
    let copy =
        ["cp", &scene.at("a:v1"), "oci:layout:v1", "--references", "--tag", "latest", "--tag", "stable"];
    let rehearsed = scene.shell.json(&[&copy[..], &["--dry-run", "--json"]].concat());
    assert!(!scene.shell.path("layout").exists());
    let said = scene.shell.run(&[&copy[..], &["--dry-run"]].concat());
    assert!(said.err.contains("dry run, would have sent"), "{said:?}");
    let copied = scene.shell.json(&[&copy[..], &["--json"]].concat());
    assert_eq!(rehearsed["dry_run"], true);
    for member in ["manifests", "blobs", "bytes", "tags", "images"] {
        assert_eq!(rehearsed[member], copied[member], "{member}");
    }
    assert_eq!(copied["tags"], 3);
    assert_eq!(scene.shell.ok(&["tags", "oci:layout"]), "v1\nlatest\nstable");
    assert_eq!(scene.shell.ok(&["resolve", "oci:layout:stable"]), index.digest);
    let again = scene.shell.json(&[&copy[..], &["--dry-run", "--json"]].concat());
    assert_eq!([&again["manifests"], &again["blobs"], &again["tags"]], [0, 0, 0]);
    let all = ["copy", "--all-tags", &scene.at("a"), "oci:all", "--dry-run"];
    scene.shell.run(&all).failed(2, &["cannot be used with"]);
    for progress in ["auto", "plain", "none"] {
        let shown = scene.shell.run(&["copy", &scene.at("a:v1"), "oci:again:v1", "--progress", progress]);
        assert_eq!((shown.code, shown.err.lines().count()), (0, 1), "{shown:?}");
    }
}
