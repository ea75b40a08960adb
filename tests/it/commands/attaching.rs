//! `attach`, `fetch`, `detach` and `ref`.

use std::process::Stdio;

use serde_json::{Value, json};

use super::{Ended, SBOM, SIGNATURE, Scene, Shell, read};
use crate::support::{Client, Content, Scripted, digest_of};

#[tokio::test]
async fn attached_files_are_found_by_old_clients_and_by_new_ones() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    scene.shell.write("sbom.json", r#"{"spdxVersion":"SPDX-2.3"}"#);
    let name = scene.at("a:v1");
    let attach =
        ["attach", &name, "--artifact-type", SBOM, "--annotation", "org.example.by=me", "--tag", "sbom"];
    let files = ["--", "sbom.json:application/json", "-:text/plain"];
    let digest = scene.shell.run_with_input(&[&attach[..], &files].concat(), b"notes").ok();

    let manifest = scene.manifest("a", "sbom").await;
    assert_eq!(manifest.digest, digest);
    let manifest = manifest.value;
    assert_eq!(manifest["artifactType"], SBOM);
    assert_eq!((&manifest["subject"], &manifest["reference"]), (&image.descriptor(), &image.descriptor()));
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.oci.empty.v1+json");
    let titles: Vec<Value> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| {
            json!([
                layer["mediaType"],
                layer["digest"],
                layer["annotations"]["org.opencontainers.image.title"],
            ])
        })
        .collect();
    assert_eq!(
        titles,
        [
            json!(["application/json", digest_of(br#"{"spdxVersion":"SPDX-2.3"}"#), "sbom.json"]),
            json!(["text/plain", digest_of(b"notes"), null]),
        ]
    );
    assert_eq!(manifest["annotations"]["org.example.by"], "me");
    assert!(manifest["annotations"]["org.opencontainers.image.created"].is_string());

    let listed = scene
        .client
        .get(&format!("/v2/a/referrers/{}?artifactType={SBOM}", image.digest).replace('+', "%2B"))
        .await;
    assert_eq!(listed.json()["manifests"][0]["digest"], digest);
    for kind in ["reference", "subject"] {
        assert_eq!(scene.client.referrers("a", "v1", &format!("?kind={kind}")).await, [digest.clone()]);
    }
}

#[tokio::test]
async fn one_field_alone_is_written_where_that_is_wanted() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    scene.shell.write("f", "f");
    for (field, other) in [("reference", "subject"), ("subject", "reference")] {
        let digest =
            scene.shell.ok(&["attach", &scene.at("a:v1"), "f", "--artifact-type", SBOM, "--field", field]);
        assert_eq!(scene.client.referrers("a", "v1", &format!("?kind={field}")).await, [digest.clone()]);
        assert!(!scene.client.referrers("a", "v1", &format!("?kind={other}")).await.contains(&digest));
    }
}

#[tokio::test]
async fn a_registry_that_lists_no_referrers_gets_the_referrers_tag() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    scene.shell.write("f", "f");
    let behind = scene.behind("a:v1");
    let attach = |annotation| {
        scene.shell.ok(&["attach", &behind, "f", "--artifact-type", SBOM, "--annotation", annotation])
    };
    let digests = [attach("n=1"), attach("n=2")];
    let tag = image.digest.replace(':', "-");
    let list = scene.manifest("a", &tag).await.value;
    let listed: Vec<&str> =
        list["manifests"].as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap()).collect();
    assert_eq!(listed, digests);
    assert_eq!(list["manifests"][0]["artifactType"], SBOM);

    scene.shell.ok(&["detach", &behind, &digests[0], "--yes"]);
    let list = scene.manifest("a", &tag).await.value;
    assert_eq!(list["manifests"].as_array().unwrap().len(), 1);
    // Through refshim nothing of that kind is needed.
    scene.image("b", "v1").await;
    scene.shell.ok(&["attach", &scene.at("b:v1"), "f", "--artifact-type", SBOM]);
    assert_eq!(scene.client.get("/v2/b/tags/list").await.json()["tags"], json!(["v1"]));
}

/// GitLab takes the referrers tag for the digest, and gives the subject itself.
#[test]
fn the_children_of_an_index_are_not_taken_for_its_referrers() {
    let index = Content::index(&[&Content::image("{}", "x")]);
    let tag = index.digest.replace(':', "-");
    let registry = Scripted::start(move |exchange| {
        exchange.read_body();
        let line = exchange.request.line.clone();
        match line.split(' ').next().unwrap() {
            "GET" if line.contains("/manifests/") && !line.contains("/references") => {
                exchange.answer_manifest(&index);
            }
            "HEAD" => exchange.answer_status("200 OK"),
            "PUT" => exchange.answer_status("201 Created"),
            _ => exchange.answer_status("404 Not Found"),
        }
    });
    let shell = Shell::new();
    shell.write("f", "f");
    let name = format!("{}/a:v1", registry.address);
    let attached = shell.ok(&["attach", &name, "f", "--artifact-type", SBOM]);
    let put = format!("PUT /v2/a/manifests/{tag} HTTP/1.1");
    let put = registry.requests().into_iter().find(|request| request.line == put).unwrap();
    let list: Value = serde_json::from_slice(&put.body).unwrap();
    let listed: Vec<&Value> =
        list["manifests"].as_array().unwrap().iter().map(|listed| &listed["digest"]).collect();
    assert_eq!(listed, [&json!(attached)]);
}

#[tokio::test]
async fn what_was_attached_is_fetched_as_it_was() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    let name = scene.at("a:v1");
    scene.shell.write("one/sig", "first");
    scene.shell.write("two/sig", "second");
    for file in ["one/sig", "two/sig"] {
        scene.shell.ok(&["attach", &name, file, "--artifact-type", SIGNATURE]);
    }
    scene.shell.run_with_input(&["attach", &name, "-", "--artifact-type", SBOM], b"nameless").ok();
    let paths = scene.shell.ok(&["fetch", &name, "--artifact-type", SIGNATURE, "-o", "out"]);
    let mut contents: Vec<Vec<u8>> = paths.lines().map(|path| read(scene.shell.path(path))).collect();
    contents.sort();
    assert_eq!(contents, [b"first".to_vec(), b"second".to_vec()]);
    assert!(paths.lines().all(|path| path.starts_with("out/sig")), "{paths}");

    let path = scene.shell.ok(&["fetch", &name, "--artifact-type", SBOM]);
    assert_eq!(path, format!("./{}", digest_of(b"nameless").trim_start_matches("sha256:")));
    assert_eq!(read(scene.shell.path(&path)), b"nameless");
    let none = scene.shell.run(&["fetch", &name, "--artifact-type", "application/none"]);
    none.failed(3, &["application/none", &name, "nothing of that kind refers to it"]);
}

#[tokio::test]
async fn a_title_does_not_lead_out_of_the_directory() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let digest = scene.client.push_blob("a", b"evil").await;
    let evil = image.changed(|manifest| {
        manifest["artifactType"] = json!(SBOM);
        manifest["subject"] = image.descriptor();
        manifest["layers"] = json!([
            {"mediaType": "a/b", "digest": digest, "size": 4, "annotations": {"org.opencontainers.image.title": "../../evil"}},
        ]);
    });
    scene.client.push("a", &evil).await;
    let path = scene.shell.ok(&["fetch", &scene.at("a:v1"), "--artifact-type", SBOM, "-o", "deep/out"]);
    assert_eq!(path, "deep/out/evil");
}

#[tokio::test]
async fn detaching_takes_away_what_is_attached_and_nothing_else() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let other = scene.image("b", "v1").await;
    scene.shell.write("f", "f");
    let name = scene.at("a:v1");
    let digest = scene.shell.ok(&["attach", &name, "f", "--artifact-type", SBOM]);

    scene.shell.run(&["detach", &name, &digest]).failed(2, &["there is no terminal to ask on", "--yes"]);
    let foreign = scene.shell.run(&["detach", &name, &other.digest, "--yes"]);
    foreign.failed(3, &[&other.digest, "does not refer to that image"]);
    assert_eq!(scene.client.referrers("a", "v1", "").await, [digest.clone()]);

    assert_eq!(scene.shell.ok(&["detach", &name, &digest, "--yes"]), digest);
    assert_eq!(scene.client.referrers("a", "v1", "").await, Vec::<String>::new());
    assert_eq!(scene.manifest("a", "v1").await.digest, image.digest);
}

#[tokio::test]
async fn detaching_asks_on_a_terminal() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    scene.shell.write("f", "f");
    let name = scene.at("a:v1");
    let digest = scene.shell.ok(&["attach", &name, "f", "--artifact-type", SBOM]);
    let answered = |answer: &str| {
        let typed = format!("{} detach {name} {digest}", env!("CARGO_BIN_EXE_refshim"));
        let mut command = std::process::Command::new("script");
        command
            .args(["--quiet", "--return", "--command", &typed, "/dev/null"])
            .current_dir(scene.shell.path(""));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), answer.as_bytes()).unwrap();
        Ended::of(child)
    };
    let no = answered("n\n");
    assert_eq!(no.code, 1, "{no:?}");
    assert!(no.out.contains("[y/N]") && no.out.contains("nothing was deleted"), "{no:?}");
    assert_eq!(scene.client.referrers("a", "v1", "").await.len(), 1);
    assert_eq!(answered("y\n").code, 0);
    assert_eq!(scene.client.referrers("a", "v1", "").await.len(), 0);
}

#[tokio::test]
async fn a_copy_that_refers_is_the_image_with_one_member_more() {
    let scene = Scene::new().await;
    let image = scene.image("ubuntu", "latest").await;
    let digest = scene.shell.ok(&["ref", &scene.at("ubuntu"), &scene.at("ref-to-ubuntu")]);
    let copy = scene.manifest("ref-to-ubuntu", "latest").await;
    let expected = image.changed(|manifest| manifest["reference"] = image.descriptor());
    assert_eq!((copy.value, copy.digest), (expected.value, digest.clone()));
    let across = scene.client.referrers("ubuntu", "latest", "?scope=registry").await;
    assert_eq!(across, [digest]);
    let moving = scene.shell.run(&["ref", &scene.at("ubuntu"), &scene.at(&format!("x@{}", image.digest))]);
    moving.failed(2, &["name a tag"]);
}

#[tokio::test]
async fn an_index_and_another_image_can_be_made_to_refer_too() {
    let scene = Scene::new().await;
    let index = scene.graph("a").await;
    let notes = scene.image("notes", "v1").await;
    let (subject, from) = (scene.at("a:v1"), scene.at("notes:v1"));
    let digest = scene.shell.ok(&["ref", &subject, &scene.at("a:notes"), "--from", &from]);
    let expected = notes.changed(|manifest| manifest["reference"] = index.descriptor());
    assert_eq!(scene.manifest("a", &digest).await.value, expected.value);
    let kept = scene.client.referrers("a", "v1", "?kind=reference").await;
    assert!(kept.contains(&digest), "{kept:?}");

    let whole = scene.shell.ok(&["ref", &subject, &scene.at("elsewhere")]);
    let copy = scene.manifest("elsewhere", &whole).await.value;
    assert_eq!((&copy["manifests"], &copy["reference"]), (&index.value["manifests"], &index.descriptor()));
    let one = scene.shell.ok(&["ref", &subject, &scene.at("one"), "--platform", "linux/arm64"]);
    let one = scene.manifest("one", &one).await.value;
    assert_eq!(one["reference"]["digest"], index.value["manifests"][1]["digest"]);
    assert_eq!(one["reference"]["platform"], json!({"os": "linux", "architecture": "arm64"}));
}

/// Each way to give a tag away that is the subject's own, in a registry and in a layout.
#[tokio::test]
async fn the_subjects_own_tag_is_moved_only_by_force() {
    let scene = Scene::new().await;
    let index = scene.graph("a").await;
    scene.image("plain", "latest").await;
    scene.image("other", "v1").await;
    scene.shell.write("f", "f");
    scene.shell.ok(&["copy", &scene.at("a:v1"), "oci:layout:v1"]);
    let (image, plain) = (scene.at("a:v1"), scene.at("plain"));
    let by_digest = scene.at(&format!("a@{}", index.digest));
    let child = scene.at(&format!("a@{}", index.value["manifests"][0]["digest"].as_str().unwrap()));
    let attach = |image: &str, tag: &str| {
        ["attach", image, "f", "--artifact-type", SBOM, "--tag", tag].map(str::to_owned).to_vec()
    };
    let refer = |subject: &str, at: &str| ["ref", subject, at].map(str::to_owned).to_vec();
    let on_amd = |mut command: Vec<String>| {
        command.extend(["--platform".to_owned(), "linux/amd64".to_owned()]);
        command
    };
    let from_other = |mut command: Vec<String>| {
        command.extend(["--from".to_owned(), scene.at("other:v1")]);
        command
    };
    let commands = [
        attach(&image, "v1"),
        attach(&by_digest, "v1"),
        attach(&child, "v1"),
        on_amd(attach(&image, "v1")),
        attach(&plain, "latest"),
        attach("oci:layout:v1", "v1"),
        on_amd(attach("oci:layout:v1", "v1")),
        refer(&image, &image),
        refer(&plain, &plain),
        refer(&by_digest, &image),
        on_amd(refer(&image, &image)),
        from_other(refer(&image, &image)),
        refer("oci:layout:v1", "oci:layout:v1"),
    ];
    for command in &commands {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        scene.shell.run(&command).failed(2, &["tagging", "leads to the subject itself", "--force"]);
    }
    assert_eq!(scene.manifest("a", "v1").await.digest, index.digest);
    // A tag that is somebody else's moves, as by any push, and so does this one when that is wanted.
    scene.shell.ok(&["attach", &image, "f", "--artifact-type", SBOM, "--tag", "sbom"]);
    let moved = scene.shell.ok(&["attach", &image, "f", "--artifact-type", SIGNATURE, "--tag", "sbom"]);
    assert_eq!(scene.manifest("a", "sbom").await.digest, moved);
    for _ in 0..2 {
        scene.shell.ok(&["ref", &image, &scene.at("ref:v1")]);
    }
    let forced = scene.shell.ok(&["attach", &image, "f", "--artifact-type", SBOM, "--tag", "v1", "--force"]);
    assert_eq!(scene.manifest("a", "v1").await.digest, forced);
}

#[tokio::test]
async fn a_word_for_an_artifact_is_no_media_type() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    scene.shell.write("f", "f");
    let attach = |ty: &str| scene.shell.run(&["attach", &scene.at("a:v1"), "f", "--artifact-type", ty]);
    attach("sbom").failed(2, &["application/spdx+json", "application/vnd.cyclonedx+json"]);
    attach("Signature").failed(2, &["application/vnd.dev.sigstore.bundle"]);
    attach("a/b; c=d").failed(2, &["has to be a media type"]);
    attach("").failed(2, &["has to be a media type"]);
    assert_eq!(scene.client.referrers("a", "v1", "").await, [""; 0]);
}

#[tokio::test]
async fn annotations_come_from_a_file_too() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    scene.shell.write("dir/f.txt", "f");
    let attach = |annotations: &str, more: &[&str]| {
        scene.shell.write("annotations.json", annotations);
        let name = scene.at("a:v1");
        let command = ["attach", &name, "dir/f.txt", "--artifact-type", SBOM, "--annotation-file"];
        scene.shell.run(&[&command[..], &["annotations.json"], more].concat())
    };
    let each =
        r#"{"$manifest": {"a": "1", "b": "2"}, "f.txt": {"c": "3", "org.opencontainers.image.title": "g"}}"#;
    let digest = attach(each, &["--annotation", "b=4"]).ok();
    let manifest = scene.manifest("a", &digest).await.value;
    assert_eq!((&manifest["annotations"]["a"], &manifest["annotations"]["b"]), (&json!("1"), &json!("4")));
    let of_file = json!({"c": "3", "org.opencontainers.image.title": "g"});
    assert_eq!(manifest["layers"][0]["annotations"], of_file);
    let digest = attach(r#"{"a": "1"}"#, &[]).ok();
    let manifest = scene.manifest("a", &digest).await.value;
    assert_eq!(manifest["annotations"]["a"], "1");
    assert_eq!(manifest["layers"][0]["annotations"], json!({"org.opencontainers.image.title": "f.txt"}));

    attach(r#"{"$manifest": {}, "g.txt": {}}"#, &[]).failed(2, &["annotations.json", "\"g.txt\""]);
    attach(r#"{"a": 1}"#, &[]).failed(2, &["annotations.json", "$manifest", "strings"]);
    attach("{\n}}", &[]).failed(2, &["annotations.json", "line 2"]);
    assert_eq!(scene.client.referrers("a", "v1", "").await.len(), 2);
}

#[tokio::test]
async fn a_rehearsal_prints_the_manifest_and_sends_nothing() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    scene.shell.write("f", "not there yet");
    let name = scene.at("a:v1");
    let created = "org.opencontainers.image.created=2026-01-01T00:00:00Z";
    let attach = ["attach", &name, "f", "--artifact-type", SBOM, "--annotation", created];
    let shown = scene.shell.json(&[&attach[..], &["--dry-run"]].concat());
    assert_eq!(shown["subject"], image.descriptor());
    let blob = format!("/v2/a/blobs/{}", digest_of(b"not there yet"));
    assert_eq!(scene.client.get(&blob).await.status, 404);
    assert_eq!(scene.client.referrers("a", "v1", "").await, [""; 0]);
    let digest = scene.shell.ok(&attach);
    assert_eq!(scene.manifest("a", &digest).await.value, shown);
    let missing = ["attach", &scene.at("a:none"), "f", "--artifact-type", SBOM, "--dry-run"];
    scene.shell.run(&missing).failed(3, &["there is no such manifest"]);
}

/// How often something was attached by one request.
async fn by_one_request(scene: &Scene) -> String {
    let metrics = Client::new(scene.refshim.admin).text("/metrics").await;
    let counted = metrics.lines().find(|line| {
        line.starts_with("refshim_requests_total{")
            && line.contains(r#"class="references""#)
            && line.contains(r#"status="201""#)
    });
    counted.map_or("0", |line| line.rsplit(' ').next().unwrap()).to_owned()
}

/// A file's name, the media type behind it, its content, more arguments, and whether one request does.
type Case<'a> = (&'a str, &'a str, &'a [u8], &'a [&'a str], bool);

/// Whatever is attached, the registry gets the manifest that the command makes, once: by one request where refshim makes
/// the same of that, and else step by step.
#[tokio::test]
async fn a_small_file_is_attached_by_one_request_and_all_others_step_by_step() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let (name, behind) = (scene.at("a:v1"), scene.behind("a:v1"));
    scene.shell.write("manifest.json", r#"{"$manifest": {"a=b": "c"}}"#);
    scene.shell.write("layer.json", r#"{"f": {"org.example.line": "1"}}"#);
    scene.shell.write("title.json", r#"{"f": {"org.opencontainers.image.title": "another name"}}"#);
    let (small, largest) = (b"small".to_vec(), vec![7; 1 << 20]);
    let cases: [Case<'_>; 22] = [
        ("f", "", &small, &[], true),
        ("f", ":application/spdx+json", &small, &[], true),
        ("f", ":text/plain", &small, &[], true),
        ("f", ":multipart/form-data", &small, &[], false),
        ("f", ":application/x-www-form-urlencoded", &small, &[], false),
        ("a name+&=%2F;?#.txt", "", &small, &[], true),
        ("Ünï\u{2028}cödé", "", &small, &[], true),
        ("back\\slash", "", &small, &[], false),
        ("new\nline", "", &small, &[], false),
        ("f", "", &small, &["--annotation", "k=a&b=c+d%20 =ü\"\n"], true),
        ("f", "", &small, &["--annotation", "k="], true),
        ("f", "", &small, &["--annotation-file", "manifest.json"], false),
        ("f", "", &small, &["--annotation-file", "layer.json"], false),
        ("f", "", &small, &["--annotation-file", "title.json"], true),
        ("f", "", &small, &["--field", "subject"], false),
        ("f", "", &small, &["--field", "reference"], false),
        ("f", "", &small, &["--tag", "given"], false),
        ("f", "", &largest, &[], true),
        ("f", "", &[&largest[..], b"x"].concat(), &[], false),
        ("f", "", b"", &[], false),
        ("-", "", &small, &[], true),
        ("-", ":text/plain", &largest, &[], true),
    ];
    let mut count = 0;
    for (number, (file, media_type, content, more, is_at_once)) in cases.into_iter().enumerate() {
        let context = format!("{file:?} {media_type} {more:?} {} bytes", content.len());
        if file != "-" {
            scene.shell.write(file, content);
        }
        let created = format!("org.opencontainers.image.created=2026-01-01T00:00:{number:02}Z");
        let what = format!("{file}{media_type}");
        let attach = |name: &str, more: &[&str]| {
            let given = ["attach", name, "--artifact-type", SBOM, "--annotation", &created];
            let input = if file == "-" { content } else { b"" };
            scene.shell.run_with_input(&[&given[..], more, &["--", &what]].concat(), input).ok()
        };
        let made: Value = serde_json::from_str(&attach(&name, &[more, &["--dry-run"]].concat())).unwrap();
        let digest = attach(&name, more);
        assert_eq!(scene.manifest("a", &digest).await.value, made, "{context}");
        let blob = made["layers"][0]["digest"].as_str().unwrap();
        let stored = scene.registry.client().get(&format!("/v2/a/blobs/{blob}")).await;
        assert_eq!(stored.body, content, "{context}");
        count += usize::from(is_at_once);
        assert_eq!(by_one_request(&scene).await, count.to_string(), "{context}");
        let listed = scene.client.references("a", &image.digest, "").await;
        assert_eq!(listed.len(), number + 1, "{context}");
        // The registry itself does not answer to one request.
        assert_eq!(attach(&behind, more), digest, "{context}");
    }
}

/// What stands between may answer the one request with anything: what counts is what is in the registry then.
#[tokio::test]
async fn whatever_answers_the_one_request_the_file_is_attached_once() {
    for answer in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 201 Created\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 201 Created\r\nconnection: close\r\ndocker-content-digest: sha256:00\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nconnection: close\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 405 Method Not Allowed\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 201 Created\r\nconnection: close\r\ncontent-length: 9\r\n\r\nbroken",
        "garbage\r\n\r\n",
        "",
    ] {
        let image = Content::image("{}", "x");
        let subject = image.clone();
        let registry = Scripted::start(move |exchange| {
            exchange.read_body();
            let line = exchange.request.line.clone();
            match line.split(' ').next().unwrap() {
                "POST" if line.contains("/references?") => exchange.answer(answer),
                "GET" if line.contains("/manifests/v1 ") => exchange.answer_manifest(&subject),
                "GET" if line.contains("/referrers/") => exchange.answer_manifest(&Content::index(&[])),
                "HEAD" => exchange.answer_status("200 OK"),
                "PUT" => exchange.answer(&format!(
                    "HTTP/1.1 201 Created\r\nconnection: close\r\noci-subject: {}\r\ncontent-length: 0\r\n\r\n",
                    subject.digest
                )),
                _ => exchange.answer_status("404 Not Found"),
            }
        });
        let shell = Shell::new();
        shell.write("f", "f");
        let name = format!("{}/a:v1", registry.address);
        let digest = shell.ok(&["attach", &name, "f", "--artifact-type", SBOM]);
        let puts: Vec<_> =
            registry.requests().into_iter().filter(|request| request.line.starts_with("PUT ")).collect();
        let manifests: Vec<_> = puts.iter().filter(|put| digest_of(&put.body) == digest).collect();
        assert_eq!(manifests.len(), 1, "{answer}");
    }
}
