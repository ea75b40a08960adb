//! `copy`: between registries and OCI layouts, with all that hangs on an image.

mod tags;

use std::time::Duration;

use serde_json::{Value, json};

use super::{SBOM, Scene, Shell, manifest, read};
use crate::support::{Content, Refshim, Registry, digest_of};

/// Each digest of a tree once, in the order of the tree.
fn digests(tree: &Value) -> Vec<String> {
    let below = ["children", "referrers"].into_iter().flat_map(|part| tree[part].as_array().unwrap());
    std::iter::once(tree["digest"].as_str().unwrap().to_owned()).chain(below.flat_map(digests)).collect()
}

/// How many uploads a registry began.
fn uploads(report: &Value) -> (u64, u64, u64) {
    let count = |name: &str| report[name].as_u64().unwrap();
    (count("blobs"), count("blobs_mounted"), count("blobs_already"))
}

#[tokio::test]
async fn a_graph_is_the_same_at_every_stop_of_its_journey() {
    let here = Scene::new().await;
    let there = Scene::new().await;
    let shell = &here.shell;
    here.graph("a").await;
    let tree = shell.tree_below(&here.at("a:v1"));
    assert_eq!(tree.lines().count(), 8, "{tree}");
    let stops = [here.at("a:v1"), there.at("b/c:v1"), "oci:layout:v1".to_owned(), here.at("back:again")];
    for pair in stops.windows(2) {
        shell.ok(&["copy", &pair[0], &pair[1], "--references"]);
        assert_eq!(shell.tree_below(&pair[1]), tree, "{}", pair[1]);
    }
    for digest in digests(&shell.json(&["tree", &stops[0], "--json"])) {
        let first = here.manifest("a", &digest).await.bytes;
        assert_eq!(there.manifest("b/c", &digest).await.bytes, first);
        assert_eq!(here.manifest("back", &digest).await.bytes, first);
        let kept = format!("layout/blobs/sha256/{}", digest.trim_start_matches("sha256:"));
        assert_eq!(read(shell.path(&kept)), first);
    }
    // And nothing of it is sent twice.
    for pair in stops.windows(2) {
        let report = shell.json(&["copy", &pair[0], &pair[1], "--references", "--json"]);
        assert_eq!(
            (uploads(&report), &report["manifests"], &report["bytes"]),
            ((0, 0, 10), &json!(0), &json!(0))
        );
    }
}

#[tokio::test]
async fn a_layout_is_what_other_tools_take() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    scene.shell.write("f", "f");
    scene.shell.ok(&["attach", &scene.at("a:v1"), "f", "--artifact-type", SBOM]);
    scene.shell.ok(&["copy", &scene.at("a:v1"), "oci:layout:v1", "--references"]);
    let inspect = std::process::Command::new("skopeo")
        .args(["inspect", "--raw", "oci:layout:v1"])
        .current_dir(scene.shell.path(""))
        .output()
        .unwrap();
    assert_eq!(digest_of(&inspect.stdout), image.digest, "{}", String::from_utf8_lossy(&inspect.stderr));
    let marker: Value = serde_json::from_slice(&read(scene.shell.path("layout/oci-layout"))).unwrap();
    assert_eq!(marker, json!({"imageLayoutVersion": "1.0.0"}));
}

#[tokio::test]
async fn what_other_tools_wrote_into_the_index_of_a_layout_stays() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    scene.shell.ok(&["copy", &scene.at("a:v1"), "oci:layout:v1"]);
    let index = || -> Value { serde_json::from_slice(&read(scene.shell.path("layout/index.json"))).unwrap() };
    let mut written = index();
    written["annotations"] = json!({"org.example.by": "me"});
    written["artifactType"] = json!("application/vnd.example");
    written["org.example.other"] = json!([1, null]);
    scene.shell.write("layout/index.json", written.to_string());

    scene.shell.write("f", "f");
    let attached = scene.shell.ok(&["attach", "oci:layout:v1", "f", "--artifact-type", SBOM]);
    let mut with_attached = index();
    assert_eq!(with_attached["manifests"][1]["digest"], attached);
    with_attached["manifests"].as_array_mut().unwrap().pop();
    assert_eq!(with_attached, written);
    scene.shell.ok(&["detach", "oci:layout:v1", &attached, "--yes"]);
    assert_eq!(index(), written);
    assert_eq!(index()["manifests"][0]["digest"], image.digest);
}

#[tokio::test]
async fn blobs_are_mounted_within_a_registry() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    let report = scene.shell.json(&["copy", &scene.at("a:v1"), &scene.at("b:v1"), "--json"]);
    assert_eq!(uploads(&report), (0, 2, 0));
    assert_eq!(scene.manifest("b", "v1").await.digest, report["images"][0]["digest"]);
}

#[tokio::test]
async fn without_references_only_the_image_is_copied_and_a_depth_is_kept_to() {
    let scene = Scene::new().await;
    scene.graph("a").await;
    let copied = |arguments: &[&str], to: &str| {
        let (from, to) = (scene.at("a:v1"), scene.at(&format!("{to}:v1")));
        scene.shell.ok(&[&["copy", &from, &to], arguments].concat());
        digests(&scene.shell.json(&["tree", &to, "--json"])).len()
    };
    assert_eq!(copied(&[], "b"), 3);
    assert_eq!(copied(&["--references=1"], "c"), 6);
    assert_eq!(copied(&["--references", "--platform", "linux/arm64"], "d"), 3);
    let digest = scene.shell.json(&["tree", &scene.at("d:v1"), "--json"])["digest"].clone();
    assert_eq!(scene.manifest("a", "v1").await.value["manifests"][1]["digest"], digest);
}

#[tokio::test]
async fn all_tags_are_copied_each_with_what_hangs_on_it() {
    let scene = Scene::new().await;
    let one = scene.image("a", "one").await;
    let two = scene.client.image("a", "two").await;
    scene.client.push_as("a", "two", &two).await;
    scene.shell.write("f", "f");
    scene.shell.ok(&["attach", &scene.at("a:two"), "f", "--artifact-type", SBOM]);
    let printed = scene.shell.ok(&["copy", "--all-tags", "--references", &scene.at("a"), "oci:layout"]);
    assert_eq!(printed, format!("{} one\n{} two", one.digest, two.digest));
    scene.shell.ok(&["copy", "--all-tags", "--references", "oci:layout", &scene.at("b")]);
    for (tag, image) in [("one", &one), ("two", &two)] {
        assert_eq!(scene.manifest("b", tag).await.digest, image.digest);
    }
    assert_eq!(scene.client.referrers("b", "two", "").await.len(), 1);
    scene
        .shell
        .run(&["copy", "--all-tags", &scene.at("a:one"), &scene.at("b")])
        .failed(2, &["without a tag"]);
}

#[tokio::test]
async fn a_registry_that_lists_no_referrers_gets_the_tags_that_do() {
    let scene = Scene::new().await;
    scene.graph("a").await;
    let bare = Registry::start();
    let to = format!("{}/a:v1", bare.address);
    scene.shell.ok(&["copy", &scene.at("a:v1"), &to, "--references"]);
    let tree = scene.shell.tree_below(&scene.at("a:v1"));
    assert_eq!(scene.shell.tree_below(&to), tree);
    // Three subjects have one each: the index, and both SBOMs; so have both images.
    let tags = bare.client().get("/v2/a/tags/list").await.json();
    let lists =
        tags["tags"].as_array().unwrap().iter().filter(|tag| tag.as_str().unwrap().starts_with("sha256-"));
    assert_eq!(lists.count(), 5);

    // A copy from there, and to there once more, changes nothing.
    scene.shell.ok(&["copy", &to, &scene.at("back:v1"), "--references"]);
    assert_eq!(scene.shell.tree_below(&scene.at("back:v1")), tree);
    let report = scene.shell.json(&["copy", &scene.at("a:v1"), &to, "--references", "--json"]);
    assert_eq!((uploads(&report), &report["manifests"]), ((0, 0, 10), &json!(0)));
}

#[tokio::test]
async fn the_links_that_tags_make_are_copied_with_their_tags() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let signature = image.changed(|manifest| manifest["annotations"] = json!({"name": "signature"}));
    let tag = format!("{}.sig", image.digest.replace(':', "-"));
    scene.client.push_as("a", &tag, &signature).await;
    for (from, to) in
        [(scene.at("a:v1"), "oci:layout:v1".to_owned()), ("oci:layout:v1".to_owned(), scene.at("b:v1"))]
    {
        scene.shell.ok(&["copy", &from, &to, "--references"]);
    }
    assert_eq!(scene.manifest("b", &tag).await.digest, signature.digest);
    let kinds = scene.shell.json(&["references", "oci:layout:v1", "--json"]);
    assert_eq!((&kinds[0]["digest"], &kinds[0]["kinds"]), (&json!(signature.digest), &json!(["cosign"])));
}

#[tokio::test]
async fn a_copy_that_was_killed_goes_on_with_what_is_missing() {
    let scene = Scene::new().await;
    // Eight layers of 2 MiB, one at a time: the kill falls between the first and the last.
    let layers: Vec<Vec<u8>> =
        (0..8u8).map(|seed| (0..2 << 20).map(|at: u32| seed ^ at.to_le_bytes()[1]).collect()).collect();
    let mut image = scene.client.image("a", "big").await;
    for layer in &layers {
        scene.client.push_blob("a", layer).await;
    }
    image = image.changed(|manifest| {
        manifest["layers"] = layers.iter().map(|layer| crate::support::descriptor("a/b", layer)).collect();
    });
    scene.client.push_as("a", "big", &image).await;

    let there = Registry::start();
    let to = format!("{}/a:big", there.address);
    let arguments = ["copy", &scene.at("a:big"), &to, "--jobs", "1", "--json"];
    let mut copy = scene.shell.command(&arguments).spawn().unwrap();
    let stored = || stored_blobs(&there);
    while stored() < 3 {
        assert!(copy.try_wait().unwrap().is_none(), "it ended before it was killed");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    copy.kill().unwrap();
    copy.wait().unwrap();
    let before = stored() as u64;
    let report = scene.shell.json(&arguments);
    let (sent, mounted, already) = uploads(&report);
    assert_eq!((sent + already, mounted), (9, 0), "{report}");
    assert!(already >= before.min(8) && sent <= 9 - before && sent > 0, "{before} were there: {report}");
    assert_eq!(manifest(&there.client(), "a", "big").await.digest, image.digest);
}

/// Blobs that a registry has whole.
fn stored_blobs(registry: &Registry) -> usize {
    let links = registry.root().join("docker/registry/v2/repositories/a/_layers/sha256");
    std::fs::read_dir(links).map_or(0, Iterator::count)
}

#[test]
fn an_index_that_lists_what_is_not_there_is_neither_copied_nor_made_to_refer() {
    let shell = Shell::new();
    let registry = Registry::start();
    let here = Content::image("{}", "x");
    let index = Content::index(&[&here, &Content::image("{}", "gone")]);
    let blob = |digest: &str| format!("layout/blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    shell.write("layout/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    shell.write("layout/index.json", Content::index(&[&index]).bytes);
    shell.write(&blob(&index.digest), &index.bytes);
    for content in [&here.bytes[..], b"{}", b"x"] {
        shell.write(&blob(&digest_of(content)), content);
    }
    let from = format!("oci:layout@{}", index.digest);
    for to in ["oci:out:v1", &format!("{}/a:v1", registry.address)] {
        for command in ["copy", "ref"] {
            let ended = shell.run(&[command, &from, to]);
            ended.failed(3, &["lists what is not there", "--platform"]);
        }
    }
    assert!(!shell.path("out").exists(), "something was written before");
}

#[tokio::test]
async fn a_copy_to_a_tag_moves_it() {
    let scene = Scene::new().await;
    let (old, new) = (scene.image("a", "v1").await, scene.image("b", "v1").await);
    for to in [scene.at("c:v1"), "oci:layout:v1".to_owned()] {
        for (from, image) in [("a:v1", &old), ("b:v1", &new)] {
            assert_eq!(scene.shell.ok(&["copy", &scene.at(from), &to]), image.digest);
            assert_eq!(scene.shell.json(&["tree", &to, "--json"])["digest"], image.digest);
        }
    }
    let index: Value = serde_json::from_slice(&read(scene.shell.path("layout/index.json"))).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1, "{index}");
}

#[tokio::test]
async fn a_copy_keeps_to_one_upstream_behind_two_shims() {
    // Both sides are the same registry under two addresses: nothing can be mounted, and all is there.
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    let data = tempfile::tempdir().unwrap();
    let second = Refshim::start(scene.registry.address, data.path()).await;
    let report =
        scene.shell.json(&["copy", &scene.at("a:v1"), &format!("{}/a:v2", second.address), "--json"]);
    assert_eq!(uploads(&report), (0, 0, 2));
    assert_eq!(scene.manifest("a", "v2").await.digest, report["images"][0]["digest"]);
}
