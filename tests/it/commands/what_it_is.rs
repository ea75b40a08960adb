//! What `references` and `tree` say that something is, how they choose from many, and in which form they print it.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{CREATED, SBOM, SIGNATURE, Scene, Shell, created, short};
use crate::support::{Content, IMAGE_INDEX, Registry, Scripted, about};

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const IN_TOTO: &str = "application/vnd.in-toto+json";

/// Referrers of an image as the tools of the field make them, and what they are called.
async fn field(scene: &Scene, image: &Content) -> Vec<(&'static str, Content)> {
    let blob = scene.client.push_blob("a", b"{}").await;
    let layer = |media_type: &str, predicate: Option<&str>| {
        let annotations = predicate.map_or(json!({}), |it| json!({"in-toto.io/predicate-type": it}));
        json!({"mediaType": media_type, "size": 2, "digest": blob, "annotations": annotations})
    };
    let with_layers = |layers: Vec<Value>| image.changed(|manifest| manifest["layers"] = json!(layers));
    let artifact = |artifact_type: &str, annotations: Value| {
        image.changed(|manifest| {
            manifest["subject"] = image.descriptor();
            manifest["artifactType"] = json!(artifact_type);
            manifest["annotations"] = annotations;
        })
    };
    let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let provenance = json!({"dev.sigstore.bundle.predicateType": "https://slsa.dev/provenance/v1"});
    let found = vec![
        ("signature (cosign)", with_layers(vec![layer(SIMPLE_SIGNING, None)])),
        (
            "attestation (SLSA provenance v1, SPDX)",
            with_layers(vec![
                layer(IN_TOTO, Some("https://spdx.dev/Document")),
                layer(IN_TOTO, Some("https://slsa.dev/provenance/v1")),
            ]),
        ),
        ("signature (notation)", artifact("application/vnd.cncf.notary.signature", json!({}))),
        ("SBOM (SPDX)", artifact(SBOM, json!({}))),
        ("SBOM (CycloneDX)", artifact("application/vnd.cyclonedx+json", json!({}))),
        ("attestation (SLSA provenance v1)", artifact(bundle, provenance)),
        ("application/x", artifact("application/x", json!({}))),
    ];
    for (_, content) in &found {
        scene.client.push("a", content).await;
    }
    let tag = |suffix: &str| format!("{}.{suffix}", image.digest.replace(':', "-"));
    scene.client.push_as("a", &tag("sig"), &found[0].1).await;
    let index = Content::index(&[image, &found[1].1]).changed(|index| {
        index["manifests"][1]["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image.digest,
        });
    });
    scene.client.push_as("a", "index", &index).await;
    found
}

#[tokio::test]
async fn a_type_says_what_it_is_and_finds_it() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let found = field(&scene, &image).await;
    let name = scene.at("a:v1");
    let table = scene.shell.ok(&["references", &name, "--wide"]);
    let tree = scene.shell.ok(&["tree", &scene.at("a:index")]);
    for (label, content) in &found {
        let line = table.lines().find(|line| line.ends_with(&content.digest)).unwrap();
        assert!(line.contains(&format!("  {label}  ")), "{label}: {table}");
        let line = tree.lines().find(|line| line.contains(short(&content.digest))).unwrap();
        assert!(line.contains(&format!("─ {label}  ")), "{label}: {tree}");
    }
    assert!(table.contains("  application/vnd.cncf.notary.signature  "), "{table}");
    assert!(
        tree.ends_with("8 manifests: 2 signatures, 2 SBOMs, 2 attestations, 1 image, 1 artifact"),
        "{tree}"
    );

    let listed = |words: &[&str]| -> Vec<String> {
        let words = words.iter().flat_map(|word| ["--artifact-type", word]);
        let command = ["references", &name, "--format", "digest", "--kind", "subject", "--kind", "cosign"];
        let command: Vec<&str> = command.into_iter().chain(["--kind", "attestation"]).chain(words).collect();
        let mut listed: Vec<String> = scene.shell.ok(&command).lines().map(str::to_owned).collect();
        listed.sort();
        listed
    };
    let called = |labels: &[&str]| {
        let called = found.iter().filter(|(label, _)| labels.contains(label));
        let mut digests: Vec<String> = called.map(|(_, content)| content.digest.clone()).collect();
        digests.sort();
        digests
    };
    let attested = "attestation (SLSA provenance v1, SPDX)";
    let provenance = "attestation (SLSA provenance v1)";
    assert_eq!(listed(&["signature"]), called(&["signature (cosign)", "signature (notation)"]));
    assert_eq!(listed(&["sbom"]), called(&["SBOM (SPDX)", "SBOM (CycloneDX)", attested]));
    assert_eq!(listed(&["attestation"]), called(&[attested, provenance]));
    assert_eq!(listed(&["provenance", SBOM]), called(&[attested, provenance, "SBOM (SPDX)"]));

    let entries = scene.shell.json(&["references", &name, "--json", "--artifact-type", SBOM]);
    let sbom = &entries.as_array().unwrap()[0];
    assert_eq!(
        [&sbom["type"], &sbom["artifactType"], &sbom["reference"]],
        [
            &json!("SBOM (SPDX)"),
            &json!(SBOM),
            &json!(scene.at(&format!("a@{}", called(&["SBOM (SPDX)"])[0])))
        ]
    );
}

/// Attaches a signature a year, the youngest first.
fn yearly(scene: &Scene, name: &str) -> Vec<String> {
    let attach = |year: usize| {
        scene.shell.write("f", year.to_string());
        let time = format!("{year}-01-01T00:00:00Z");
        scene.shell.ok(&[&["attach", name, "f", "--artifact-type", SIGNATURE][..], &created(&time)].concat())
    };
    (2020..2024).rev().map(attach).collect()
}

#[tokio::test]
async fn the_newest_are_chosen_by_either_order() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    let name = scene.at("a:v1");
    let pushed = yearly(&scene, &name);
    let created: Vec<String> = pushed.iter().rev().cloned().collect();
    let list = |more: &[&str]| -> Vec<String> {
        let command = [&["references", &name, "--format", "digest"], more].concat();
        scene.shell.ok(&command).lines().map(str::to_owned).collect()
    };
    assert_eq!(list(&[]), pushed);
    assert_eq!(list(&["--sort", "created"]), created);
    assert_eq!(list(&["--limit", "2"]), pushed[2..]);
    assert_eq!(list(&["--limit", "9"]), pushed);
    assert_eq!(list(&["--latest", "--sort", "created"]), created[3..]);
    for (wrong, said) in [
        (&["--limit", "0"][..], "at least one"),
        (&["--limit", "1", "--latest"], "cannot be used with"),
        (&["--sort", "size"], "created, pushed"),
    ] {
        scene.shell.run(&[&["references", &name], wrong].concat()).failed(2, &[said]);
    }
}

#[tokio::test]
async fn a_list_is_printed_in_the_form_that_was_asked_for() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    let name = scene.at("a:v1");
    let digests = yearly(&scene, &name);
    let print = |more: &[&str]| scene.shell.ok(&[&["references", &name, "--latest"], more].concat());
    let reference = scene.at(&format!("a@{}", digests[3]));
    assert_eq!(
        print(&["--format", "template={{ reference }}\t{{ type }} {{ kinds[0] }}"]),
        format!("{reference}\tsignature reference")
    );
    let template =
        format!("template={{{{ annotations['{CREATED}'] | upper }}}}{{% if data %}}!{{% endif %}}");
    assert_eq!(print(&["--format", &template]), "2020-01-01T00:00:00Z");
    assert_eq!(print(&["--format", "json"]), print(&["--json"]));
    let bare = print(&["--no-headers", "--annotations"]);
    assert_eq!(bare.lines().count(), 1);
    assert!(bare.ends_with(&format!("{}  {CREATED}=2020-01-01T00:00:00Z", digests[3])), "{bare}");
    let tree = |more: &[&str]| scene.shell.ok(&[&["tree", &name], more].concat());
    assert_eq!(tree(&["--format", "digest"]).lines().count(), 5);
    assert_eq!(
        tree(&["--format", "template={{ type }}"]).lines().collect::<Vec<_>>(),
        ["image", "signature", "signature", "signature", "signature"]
    );
    let root = scene.shell.json(&["tree", &name, "--json"]);
    assert_eq!(root["referrers"][0]["reference"], reference);

    let wrong = |more: &[&str], code, said| {
        scene.shell.run(&[&["references", &name], more].concat()).failed(code, &[said]);
    };
    wrong(&["--json", "--format", "table"], 2, "cannot be used with");
    wrong(&["--format", "template={{ x"], 2, "invalid value");
    wrong(&["--format", "yaml"], 2, "template=TEXT");
    wrong(&["--format", "template={{ refrence }}"], 2, "rendering the template");
}

#[tokio::test]
async fn an_error_is_json_where_the_result_would_be() {
    let scene = Scene::new().await;
    let name = scene.at("a:none");
    for command in [
        &["references", &name, "--json"][..],
        &["tree", &name, "--format", "json"],
        &["fetch", &name, "--all", "--json"],
    ] {
        let ended = scene.shell.run(command);
        assert_eq!((ended.code, ended.out.as_str()), (3, ""));
        let told: Value = serde_json::from_str(&ended.err).unwrap();
        assert_eq!((&told["error"]["kind"], &told["exit_code"]), (&json!("not_found"), &json!(3)));
        assert!(told["message"].as_str().unwrap().contains("there is no such manifest"), "{told}");
        assert!(told["error"]["advice"].is_string(), "{told}");
    }
    scene.shell.run(&["references", &name]).failed(3, &["refshim: reading none"]);
}

#[tokio::test]
async fn nothing_is_said_to_be_nothing() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    let name = scene.at("a:v1");
    let run = |more: &[&str]| scene.shell.run(&[&["references", &name], more].concat());
    let said = format!("refshim: nothing refers to {name}");
    for more in [&[][..], &["--format", "digest"], &["--artifact-type", "sbom"]] {
        let ended = run(more);
        assert_eq!((ended.code, ended.out.as_str()), (0, ""), "{ended:?}");
        assert!(ended.err.starts_with(&said), "{ended:?}");
    }
    let json = run(&["--json", "--exit-code"]);
    assert_eq!((json.code, json.out.trim_end(), json.err.as_str()), (5, "[]", ""));
    run(&["--exit-code"]).failed(5, &[&said]);
    assert_eq!(run(&["--quiet"]).err, "");
    yearly(&scene, &name);
    assert_eq!(run(&["--exit-code"]).code, 0);
}

#[tokio::test]
async fn references_of_other_repositories_are_found_through_refshim_alone() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    scene.client.push("a", &about(&image, &image, "here")).await;
    scene.shell.ok(&["ref", &scene.at("a:v1"), &scene.at("b/c:ref")]);
    let list = ["references", &scene.at("a:v1"), "--scope", "registry"];
    let table = scene.shell.ok(&list);
    assert!(table.lines().next().unwrap().contains("REPOSITORY"), "{table}");
    let mut places: Vec<&str> =
        table.lines().skip(1).map(|line| line.split_whitespace().rev().nth(1).unwrap()).collect();
    places.sort_unstable();
    assert_eq!(places, ["a", "b/c"], "{table}");
    let references = scene.shell.ok(&[&list[..], &["--format", "template={{ reference }}"]].concat());
    let elsewhere = references.lines().find(|line| line.contains("/b/c@sha256:")).unwrap();
    assert_eq!(scene.shell.ok(&["tree", elsewhere, "--depth", "0"]).lines().count(), 1);
    assert_eq!(scene.shell.ok(&["references", &scene.at("a:v1")]).lines().count(), 2);
    let behind = ["references", &scene.behind("a:v1"), "--scope", "registry"];
    scene.shell.run(&behind).failed(2, &["there is no refshim in front"]);

    // What refers to that stands below it, and is said to be where it is.
    scene.shell.write("sbom.sig", "signed");
    let signature = scene.sign("b/c", elsewhere.split_once('@').unwrap().1);
    let tree = ["tree", &scene.at("a:v1"), "--scope", "registry", "--no-trunc"];
    let drawn = scene.shell.ok(&tree);
    assert_eq!(drawn.matches(" in b/c").count(), 2, "{drawn}");
    assert!(drawn.contains(&signature) && drawn.contains("3 manifests:"), "{drawn}");
    let json = scene.shell.json(&[&tree[..4], &["--json"]].concat());
    let copy = json["referrers"].as_array().unwrap().iter().find(|it| it["reference"] == elsewhere).unwrap();
    assert_eq!(copy["referrers"][0]["reference"], scene.at(&format!("b/c@{signature}")));
    assert_eq!(scene.shell.ok(&["tree", &scene.at("a:v1")]).lines().count(), 3);
    let behind = ["tree", &scene.behind("a:v1"), "--scope", "registry"];
    scene.shell.run(&behind).failed(2, &["there is no refshim in front"]);
}

/// A list of many, without asking for a single one of them.
#[tokio::test]
async fn four_hundred_referrers_are_listed_without_reading_them() {
    const MANY: usize = 400;
    let registry = Registry::variant().with_access_log().start();
    let data = tempfile::tempdir().unwrap();
    let refshim = crate::support::Refshim::start(registry.address, data.path()).await;
    let client = refshim.client();
    let image = client.image("a", "a").await;
    client.push_as("a", "v1", &image).await;
    for number in 0..MANY {
        let referrer = image.changed(|manifest| {
            manifest["subject"] = image.descriptor();
            manifest["artifactType"] = json!(SIGNATURE);
            manifest["annotations"] = json!({"number": number.to_string()});
        });
        client.push("a", &referrer).await;
    }
    let reads = || registry.access_log().matches("\"GET /v2/a/manifests/").count();
    let before = reads();
    let listed = Shell::new().ok(&["references", &format!("{}/a:v1", refshim.address)]);
    assert_eq!(listed.lines().count(), MANY + 1);
    assert!(reads() - before < 10, "{} manifests were read", reads() - before);
}

/// The same where the registry itself has the API, and of the newest only, which is read.
#[test]
fn a_registry_is_asked_for_its_list_and_then_for_what_is_meant() {
    const MANY: usize = 400;
    let image = Content::image("{}", "x");
    let referrers: Vec<Content> = (0..MANY)
        .map(|number| {
            image.changed(|manifest| {
                manifest["subject"] = image.descriptor();
                manifest["artifactType"] = json!(SIGNATURE);
                manifest["annotations"] = json!({"number": number.to_string()});
            })
        })
        .collect();
    let newest = referrers[MANY - 1].digest.clone();
    let described: Vec<Value> = referrers
        .iter()
        .map(|referrer| {
            let mut descriptor = referrer.descriptor();
            descriptor["artifactType"] = json!(SIGNATURE);
            descriptor
        })
        .collect();
    let list = Content::index(&[]).changed(|list| list["manifests"] = json!(described));
    let known = image.clone();
    let registry = Scripted::start(move |exchange| {
        let line = exchange.request.line.clone();
        let path = line.split(' ').nth(1).unwrap().to_owned();
        if path.contains("/referrers/") {
            assert_eq!(list.media_type, IMAGE_INDEX);
            exchange.answer_manifest(&list);
        } else if path.ends_with("/manifests/v1") {
            exchange.answer_manifest(&known);
        } else if let Some(found) = referrers.iter().find(|found| path.ends_with(&found.digest)) {
            exchange.answer_manifest(found);
        } else if path.contains("/blobs/") {
            exchange.answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx");
        } else {
            exchange.answer_status(StatusCode::NOT_FOUND.as_str());
        }
    });
    let name = format!("{}/a:v1", registry.address);
    let shell = Shell::new();
    assert_eq!(shell.ok(&["references", &name, "--no-headers"]).lines().count(), MANY);
    let asked = registry.requests().len();
    assert!(asked < 10, "{asked} requests");
    let fetched = shell.ok(&["fetch", &name, "--latest", "-o", "-"]);
    assert_eq!(fetched, "x");
    let requests = registry.requests();
    let read = requests.iter().filter(|request| {
        request.line.contains("/manifests/sha256:") && !request.line.contains("references?")
    });
    let read: Vec<&str> = read.map(|request| request.line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(read, [format!("/v2/a/manifests/{newest}")]);
}
