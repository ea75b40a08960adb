//! Copies of what docker buildx writes: an index of platforms with an attestation for each, which the index lists.

use serde_json::{Value, json};

use super::{SIGNATURE, Scene, Shell};
use crate::support::{Content, Registry, digest_of};

/// How the attestations say what they are about.
#[derive(Clone, Copy, Debug)]
enum Style {
    /// By the index alone (`oci-artifact=false`).
    Index,
    /// By `subject` as well (`oci-artifact=true`).
    Subject,
}

/// Two platforms and their attestations, different in each round, so that their digests come in any order.
async fn buildx(scene: &Scene, repository: &str, round: usize, style: Style) -> Content {
    let mut images = Vec::new();
    for architecture in ["amd64", "arm64"] {
        images.push(scene.client.image(repository, &format!("{architecture} {round} {style:?}")).await);
    }
    let mut attestations = Vec::new();
    for image in &images {
        let statement = format!(r#"{{"of":"{}"}}"#, image.digest);
        let digest = scene.client.push_blob(repository, statement.as_bytes()).await;
        attestations.push(image.changed(|manifest| {
            manifest["layers"] = json!([{
                "mediaType": "application/vnd.in-toto+json", "digest": digest, "size": statement.len(),
                "annotations": {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2"},
            }]);
            if let Style::Subject = style {
                manifest["subject"] = image.descriptor();
            }
        }));
    }
    for content in images.iter().chain(&attestations) {
        scene.client.push(repository, content).await;
    }
    let index =
        Content::index(&[&images[0], &images[1], &attestations[0], &attestations[1]]).changed(|index| {
            for (at, architecture) in [(0, "amd64"), (1, "arm64")] {
                index["manifests"][at]["platform"] = json!({"os": "linux", "architecture": architecture});
                index["manifests"][at + 2]["platform"] = json!({"os": "unknown", "architecture": "unknown"});
                index["manifests"][at + 2]["annotations"] = json!({
                    "vnd.docker.reference.type": "attestation-manifest",
                    "vnd.docker.reference.digest": images[at].digest,
                });
            }
        });
    scene.client.push_as(repository, "v1", &index).await;
    index
}

fn digests(tree: &Value) -> usize {
    let below = ["children", "referrers"].into_iter().flat_map(|part| tree[part].as_array().unwrap());
    1 + below.map(digests).sum::<usize>()
}

#[tokio::test]
async fn an_index_with_attestations_is_copied_with_them_wherever_it_goes() {
    let scene = Scene::new().await;
    let bare = Registry::start();
    for round in 0..2 {
        for style in [Style::Index, Style::Subject] {
            let repository = format!("a{round}{style:?}").to_lowercase();
            let index = buildx(&scene, &repository, round, style).await;
            scene.shell.write("f", format!("{round} {style:?}"));
            let name = scene.at(&format!("{repository}:v1"));
            scene.shell.ok(&["attach", &name, "f", "--artifact-type", SIGNATURE]);
            for (from, to) in [
                (name.clone(), format!("{}/{repository}:v1", bare.address)),
                (scene.behind(&format!("{repository}:v1")), scene.at(&format!("{repository}/b:v1"))),
                (name.clone(), format!("oci:layout{repository}:v1")),
                (format!("oci:layout{repository}:v1"), format!("{}/{repository}/c:v1", bare.address)),
            ] {
                let jobs = if round == 0 { "1" } else { "8" };
                let printed = scene.shell.ok(&["copy", &from, &to, "--references", "--jobs", jobs]);
                assert_eq!(printed, index.digest);
                let tree = scene.shell.json(&["tree", &to, "--json"]);
                // Index, two platforms, an attestation each; the signature where the source showed it.
                let signed = usize::from(!from.starts_with(&scene.behind("")));
                assert_eq!(digests(&tree), 5 + signed, "{from} {to} {tree}");
            }
        }
    }
}

#[tokio::test]
async fn an_attestation_that_hangs_on_nothing_in_its_index_is_copied_all_the_same() {
    let scene = Scene::new().await;
    let bare = Registry::start();
    for round in 0..4 {
        let image = scene.client.image("a", &format!("image {round}")).await;
        let named = |name: &str| {
            image.changed(|manifest| manifest["annotations"] = json!({"name": format!("{name} {round}")}))
        };
        // One about what is not in the index, and one about another attestation.
        let (stray, first, second) = (named("stray"), named("first"), named("second"));
        for content in [&image, &stray, &first, &second] {
            scene.client.push("a", content).await;
        }
        let about = [digest_of(b"elsewhere"), image.digest.clone(), first.digest.clone()];
        let index = Content::index(&[&image, &stray, &first, &second]).changed(|index| {
            for (at, about) in about.iter().enumerate() {
                index["manifests"][at + 1]["annotations"] = json!({
                    "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": about,
                });
            }
        });
        scene.client.push_as("a", "v1", &index).await;
        for to in [format!("{}/a{round}:v1", bare.address), format!("oci:layout{round}:v1")] {
            assert_eq!(scene.shell.ok(&["copy", &scene.at("a:v1"), &to, "--references"]), index.digest);
        }
    }
}

#[tokio::test]
async fn an_attestation_that_is_not_there_is_missing_from_its_index() {
    let scene = Scene::new().await;
    let index = buildx(&scene, "a", 0, Style::Index).await;
    scene.shell.ok(&["copy", &scene.at("a:v1"), "oci:layout:v1", "--references"]);
    let gone = index.value["manifests"][2]["digest"].as_str().unwrap().trim_start_matches("sha256:");
    std::fs::remove_file(scene.shell.path(&format!("layout/blobs/sha256/{gone}"))).unwrap();
    let copy = ["copy", "oci:layout:v1", "oci:other:v1", "--references"];
    scene.shell.run(&copy).failed(3, &["lists what is not there", gone]);
    let tree = scene.shell.ok(&["tree", "oci:layout:v1"]);
    assert!(tree.lines().any(|line| line.contains(&gone[..12]) && line.ends_with("not there")), "{tree}");
}

#[tokio::test]
async fn a_referrer_that_vanished_is_left_out_with_a_warning() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    for file in ["one", "two"] {
        scene.shell.write(file, file);
    }
    let attach =
        |image: &str, file: &str| scene.shell.ok(&["attach", image, file, "--artifact-type", SIGNATURE]);
    // Listed by refshim, and behind it by the referrers tag.
    let (at, behind) = (scene.at("a:v1"), scene.behind("a:v1"));
    let digests = [attach(&behind, "one"), attach(&behind, "two")];
    let deleted = scene.registry.client().delete(&format!("/v2/a/manifests/{}", digests[0])).await;
    assert_eq!(deleted.status, 202);

    let bare = Registry::start();
    for (round, source) in [&at, &behind].into_iter().enumerate() {
        let to = format!("{}/a{round}:v1", bare.address);
        for command in [
            vec!["copy", source, &to, "--references"],
            vec!["copy", source, "oci:layout:v1", "--references", "--json"],
            vec!["tree", source],
            vec!["references", source],
            vec!["references", source, "--json"],
            vec!["references", source, "--format", "json"],
            vec!["tree", source, "--format", "json"],
            vec!["fetch", source, "--artifact-type", SIGNATURE],
        ] {
            let ended = scene.shell.run(&command);
            assert_eq!(ended.code, 0, "{command:?} {ended:?}");
            if *source == behind {
                let is_json = command.contains(&"--json") || command.contains(&"json");
                let before = if is_json { r#"{"warning":""# } else { "warning: " };
                let warning = format!("{before}{}", digests[0]);
                assert_eq!(ended.err.matches(&warning).count(), 1, "{command:?} {ended:?}");
            }
        }
        let listed = scene.shell.ok(&["references", &to, "--format", "digest"]);
        assert_eq!(listed, digests[1], "the other one is copied");
        assert_eq!(scene.shell.run(&["tree", source, "--quiet"]).err, "");
    }
    assert_eq!(image.digest, scene.manifest("a", "v1").await.digest);
}

#[test]
fn a_referrer_that_the_registry_refuses_to_show_is_a_failure() {
    let image = Content::image("{}", "x");
    let referrer = image.changed(|manifest| manifest["subject"] = image.descriptor());
    for status in ["401 Unauthorized", "403 Forbidden", "429 Too Many Requests", "500 Oops", "503 Busy"] {
        let (image, referrer) = (image.clone(), referrer.clone());
        let registry = crate::support::Scripted::start(move |exchange| {
            let line = exchange.request.line.clone();
            let path = line.split(' ').nth(1).unwrap();
            let (media_type, body) = if path.contains(&referrer.digest) {
                return exchange.answer_status(status);
            } else if path.ends_with("/manifests/v1")
                || path.ends_with(&format!("/manifests/{}", image.digest))
            {
                (&*image.media_type, image.bytes.clone())
            } else if path.contains("/referrers/") {
                (crate::support::IMAGE_INDEX, Content::index(&[&referrer]).bytes)
            } else {
                return exchange.answer_status("404 Not Found");
            };
            let (length, body) = (body.len(), String::from_utf8(body).unwrap());
            exchange.answer(&format!(
                "HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            ));
        });
        let name = format!("{}/a:v1", registry.address);
        for command in [&["tree"][..], &["fetch", "--all"]] {
            let failed = Shell::new().run(&[command, &[&name]].concat());
            assert!([1, 4].contains(&failed.code) && failed.out.is_empty(), "{status} {failed:?}");
        }
    }
}
