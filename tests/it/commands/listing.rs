//! `references` and `tree`.

use std::collections::BTreeSet;

use serde_json::json;

use super::{SBOM, Scene, Shell, created, short};
use crate::support::{Content, about};

/// Attaches nothing but links, one of each kind, the last two by a client that knows no refshim.
async fn every_kind(scene: &Scene, image: &Content) -> Vec<(&'static str, Content)> {
    let named =
        |name: &'static str| image.changed(|manifest| manifest["annotations"] = json!({"name": name}));
    let subject = |name| {
        named(name).changed(|manifest| {
            manifest["subject"] = image.descriptor();
            manifest["artifactType"] = json!(SBOM);
        })
    };
    let (cosign, attestation) = (named("cosign"), named("attestation"));
    let (own, listed) = (subject("own"), subject("listed"));
    let tag = image.digest.replace(':', "-");
    let reference = about(image, image, "reference");
    for content in [&reference, &own, &attestation] {
        scene.client.push("a", content).await;
    }
    scene.client.push_as("a", &format!("{tag}.sig"), &cosign).await;
    let parent = Content::index(&[image, &attestation]).changed(|index| {
        index["manifests"][1]["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image.digest,
        });
    });
    scene.client.push_as("a", "parent", &parent).await;
    scene.registry.client().push("a", &listed).await;
    scene.registry.client().push_as("a", &tag, &Content::index(&[&listed])).await;
    vec![
        ("reference", reference),
        ("subject", own),
        ("cosign", cosign),
        ("attestation", attestation),
        ("parent", parent),
        ("fallback", listed),
    ]
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn references_lists_every_kind_and_narrows_it_down() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let kinds = every_kind(&scene, &image).await;
    let list = |arguments: &[&str]| {
        let name = scene.at("a:v1");
        let command = ["references", &name, "--format", "digest"];
        lines(&scene.shell.ok(&[&command[..], arguments].concat()))
    };
    let digests = |wanted: &[&str]| -> BTreeSet<String> {
        let wanted = kinds.iter().filter(|(kind, _)| wanted.contains(kind));
        wanted.map(|(_, content)| content.digest.clone()).collect()
    };
    assert_eq!(list(&[]), kinds.iter().map(|(_, content)| content.digest.clone()).collect());
    for kind in ["reference", "subject", "cosign", "attestation", "parent", "fallback"] {
        assert_eq!(list(&["--kind", kind]), digests(&[kind]), "{kind}");
    }
    assert_eq!(list(&["--kind", "parent", "--kind", "cosign"]), digests(&["parent", "cosign"]));
    assert_eq!(list(&["--artifact-type", SBOM]), digests(&["subject", "fallback"]));
    assert_eq!(list(&["--annotation", "name=own"]), digests(&["subject"]));
    assert_eq!(list(&["--annotation", "name", "--kind", "reference"]), digests(&["reference"]));
    assert_eq!(list(&["--artifact-type", "application/none"]), BTreeSet::new());
}

#[tokio::test]
async fn a_bare_registry_is_asked_by_the_means_that_it_has() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let kinds = every_kind(&scene, &image).await;
    let found = scene.shell.json(&["references", &scene.behind("a:v1"), "--json"]);
    let mut found: Vec<_> =
        found.as_array().unwrap().iter().map(|one| (one["kinds"].clone(), one["digest"].clone())).collect();
    found.sort_by_key(|(kinds, _)| kinds.to_string());
    let digest = |wanted: &str| json!(kinds.iter().find(|(kind, _)| *kind == wanted).unwrap().1.digest);
    assert_eq!(
        found,
        [(json!(["cosign"]), digest("cosign")), (json!(["subject", "fallback"]), digest("fallback")),]
    );
    // What the index tells is seen from the index.
    let tree = scene.shell.ok(&["tree", &scene.behind("a:parent")]);
    let attestation = &kinds.iter().find(|(kind, _)| *kind == "attestation").unwrap().1;
    let line = tree.lines().find(|line| line.contains(short(&attestation.digest))).unwrap();
    assert!(line.starts_with("   ├─ ") || line.starts_with("   └─ "), "{tree}");
    assert!(line.ends_with("attestation"), "{tree}");
}

#[tokio::test]
async fn a_table_has_a_line_for_each_referrer() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    scene.shell.write("sbom.json", "{}");
    let image = scene.at("a:v1");
    let attach = ["attach", &image, "sbom.json:application/json", "--artifact-type", SBOM];
    let digest = scene.shell.ok(&[&attach[..], &created("2020-01-01T00:00:00Z")].concat());
    let table = scene.shell.ok(&["references", &image]);
    let (head, line) = table.split_once('\n').unwrap();
    assert_eq!(head.split_whitespace().collect::<Vec<_>>(), ["KIND", "TYPE", "SIZE", "AGE", "DIGEST"]);
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(&cells[..3], ["reference,subject", "SBOM", "(SPDX)"]);
    let [.., age, last] = cells[..] else { panic!("{table}") };
    assert!(age.ends_with('y') && last == digest, "{table}");
}

#[tokio::test]
async fn a_tree_shows_the_children_of_an_index_and_what_is_attached_to_each() {
    let scene = Scene::new().await;
    let index = scene.graph("a").await;
    let tree = scene.shell.ok(&["tree", &scene.at("a:v1")]);
    let labels: Vec<&str> =
        tree.lines().skip(1).map(|line| line.split("  sha256:").next().unwrap().trim_end()).collect();
    assert_eq!(
        labels,
        [
            "├─ linux/amd64",
            "│  └─ SBOM (SPDX)",
            "│     └─ signature",
            "├─ linux/arm64",
            "│  └─ SBOM (SPDX)",
            "│     └─ signature",
            "└─ signature",
            "7 manifests: 3 signatures, 2 SBOMs, 2 images",
        ]
    );
    let root = format!("{}@{}  index  ", scene.at("a:v1"), index.digest);
    assert!(tree.starts_with(&root), "{tree}");
    assert!(tree.lines().nth(7).unwrap().ends_with("reference,subject"), "{tree}");
    assert!(!tree.contains('\x1b'), "a pipe gets no colours: {tree}");

    let one = scene.shell.ok(&["tree", &scene.at("a:v1"), "--platform", "linux/arm64", "--depth", "1"]);
    assert_eq!(one.lines().count(), 3, "{one}");
    assert!(
        one.contains("  image  ") && one.lines().nth(1).unwrap().starts_with("└─ SBOM (SPDX)  "),
        "{one}"
    );
    let bare = scene.shell.ok(&["tree", &scene.at("a:v1"), "--depth", "0"]);
    assert_eq!(bare.lines().count(), 4, "{bare}");
}

#[tokio::test]
async fn a_tree_says_which_children_are_not_there() {
    let scene = Scene::new().await;
    let (here, gone) = (scene.image("a", "v1").await, Content::image("{}", "gone"));
    let index = Content::index(&[&here, &gone]);
    // The registry does not take it, and some hold it all the same.
    let shell = Shell::new();
    let blobs = |digest: &str| format!("layout/blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    shell.write("layout/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    shell.write("layout/index.json", Content::index(&[&index]).bytes);
    shell.write(&blobs(&index.digest), &index.bytes);
    shell.write(&blobs(&here.digest), &here.bytes);
    let tree = shell.ok(&["tree", &format!("oci:layout@{}", index.digest)]);
    let line = tree.lines().find(|line| line.contains(short(&gone.digest))).unwrap();
    assert!(line.ends_with("not there"), "{tree}");
}

#[tokio::test]
async fn tags_that_refer_in_a_circle_end_the_tree() {
    let scene = Scene::new().await;
    let (one, two) = (scene.client.image("a", "one").await, scene.client.image("a", "two").await);
    for (content, other) in [(&one, &two), (&two, &one)] {
        scene.client.push_as("a", &format!("{}.sig", other.digest.replace(':', "-")), content).await;
    }
    let tree = scene.shell.ok(&["tree", &scene.at(&format!("a@{}", one.digest))]);
    assert_eq!(tree.lines().count(), 3, "{tree}");
    assert!(tree.lines().nth(1).unwrap().contains(short(&two.digest)), "{tree}");
}

#[tokio::test]
async fn what_a_registry_says_commands_no_terminal() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let blob = scene.client.push_blob("a", b"{}").await;
    let hostile = image.changed(|manifest| {
        manifest["subject"] = image.descriptor();
        manifest["artifactType"] = json!("a/b\u{1b}[2J\u{9b}2J\u{7}");
        let annotations = json!({"org.opencontainers.image.title": "file\u{1b}]0;x\u{7}"});
        manifest["layers"] =
            json!([{"mediaType": SBOM, "size": 2, "digest": blob, "annotations": annotations}]);
    });
    let index = Content::index(&[&image]).changed(|index| {
        index["manifests"][0]["platform"] = json!({"os": "linux\u{1b}[2J", "architecture": "x"});
    });
    scene.client.push("a", &hostile).await;
    scene.client.push_as("a", "index", &index).await;
    let mut said = String::new();
    for name in [scene.at("a:v1"), scene.behind("a:v1"), scene.at("a:index")] {
        for command in [&["tree"][..], &["references"], &["references", "--json"], &["tree", "--json"]] {
            said += &scene.shell.ok(&[command, &[&name]].concat());
        }
    }
    let output = ["fetch", &scene.at("a:v1"), "--artifact-type", "a/b\u{1b}[2J\u{9b}2J\u{7}", "-o", "found"];
    said += &scene.shell.ok(&output);
    said += &scene.shell.run(&["tree", &scene.at("a:no\u{1b}[2Jtag")]).err;
    assert!(said.contains("a/b\\u001b[2J\\u009b2J"), "{said}");
    assert!(said.contains("linux\\u001b[2J"), "{said}");
    assert!(said.chars().all(|character| character == '\n' || !character.is_control()), "{said:?}");
    let names = std::fs::read_dir(scene.shell.path("found")).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, [blob.trim_start_matches("sha256:")]);
}

#[tokio::test]
async fn what_the_table_calls_a_type_finds_it() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let index = Content::index(&[&image]).changed(|index| index["subject"] = image.descriptor());
    let copy = about(&image, &image, "copy");
    let sbom = image.changed(|manifest| {
        manifest["artifactType"] = json!(SBOM);
        manifest["subject"] = image.descriptor();
    });
    for content in [&copy, &index, &sbom] {
        scene.client.push("a", content).await;
    }
    scene
        .registry
        .client()
        .push_as("a", &image.digest.replace(':', "-"), &Content::index(&[&index, &sbom]))
        .await;
    let find = |name: &str, types: &[&str]| {
        let types: Vec<&str> = types.iter().flat_map(|name| ["--artifact-type", name]).collect();
        let kinds = ["--kind", "reference", "--kind", "subject", "--format", "digest"];
        lines(&scene.shell.ok(&[&["references", name], &kinds[..], &types].concat()))
    };
    let digests = |contents: &[&Content]| contents.iter().map(|content| content.digest.clone()).collect();
    let (at, behind) = (scene.at("a:v1"), scene.behind("a:v1"));
    for (types, expected) in [
        (&["image"][..], &[&copy][..]),
        (&["Image"], &[&copy]),
        (&["application/vnd.oci.image.config.v1+json"], &[&copy]),
        (&["index"], &[&index]),
        (&["index", SBOM], &[&index, &sbom]),
        (&["image", "index"], &[&copy, &index]),
        (&[SBOM], &[&sbom]),
        (&["none/none"], &[]),
    ] {
        let expected: BTreeSet<String> = digests(expected);
        assert_eq!(find(&at, types), expected, "{types:?}");
        let subjects: BTreeSet<String> =
            expected.into_iter().filter(|digest| *digest != copy.digest).collect();
        assert_eq!(find(&behind, types), subjects, "{types:?}");
    }
    let fetched = ["fetch", &at, "--artifact-type", "image", "-o", "out"];
    assert_eq!(scene.shell.ok(&fetched).lines().count(), 1);
}
