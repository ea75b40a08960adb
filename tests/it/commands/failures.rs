//! What goes wrong, what is said about it, and the exit code.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::{Ended, SBOM, Scene, Shell};
use crate::support::{Content, IMAGE_MANIFEST, Scripted, digest_of};

#[tokio::test]
async fn what_is_not_there_is_told_from_what_does_not_work() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    let check = |image: &str, said: &[&str]| scene.shell.run(&["tree", image]).failed(3, said);
    check(
        &scene.at("nothing/here:v1"),
        &["reading v1 of", &scene.at("nothing/here"), "there is no such manifest"],
    );
    check(&scene.at("a:v2"), &["reading v2 of", &scene.at("a"), "check the name"]);
    check(&scene.at(&format!("a@sha256:{}", "0".repeat(64))), &["sha256:000", "there is no such manifest"]);
    check("oci:none", &["oci:none", "nothing there has a tag"]);
    let platform = ["tree", &scene.at("a:v1"), "--platform", "linux/arm64"];
    assert_eq!(scene.shell.run(&platform).code, 0, "an image that is no index is taken as it is");
    scene.graph("b").await;
    let platform = ["tree", &scene.at("b:v1"), "--platform", "plan9/mips"];
    scene.shell.run(&platform).failed(3, &["plan9/mips", "only linux/amd64, linux/arm64"]);
    let missing = ["attach", &scene.at("a:v1"), "no-file", "--artifact-type", SBOM];
    scene.shell.run(&missing).failed(3, &["reading no-file", "No such file"]);
}

#[test]
fn what_cannot_be_meant_is_a_mistake_of_usage() {
    let shell = Shell::new();
    let check = |arguments: &[&str], said: &[&str]| shell.run(arguments).failed(2, said);
    check(&["tree", "localhost:5000/A"], &["localhost:5000/A", "not a repository name"]);
    check(&["tree", "oci:"], &["not an image"]);
    check(&["tree", "::1/a"], &["the connection to ::1", "brackets"]);
    check(&["tree"], &["<IMAGE>"]);
    check(&["references", "a", "--kind", "sbom"], &["possible values: reference, subject"]);
    check(&["copy", "a", "b", "--platform", "linux"], &["os/architecture"]);
    check(&["copy", "a", "b", "--jobs", "0"], &["at least one"]);
    check(&["attach", "a", "-", "-", "--artifact-type", "a/b"], &["standard input"]);
    check(&["attach", "a", "f", "--artifact-type", "a/b", "--annotation", "k"], &["key=value"]);
    check(&["attach", "a", "f"], &["--artifact-type"]);
}

#[test]
fn a_registry_that_is_down_is_named() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let image = format!("{free}/a:v1");
    Shell::new().run(&["tree", &image]).failed(1, &[&free.to_string(), "Connection refused", "is it up"]);
    Shell::new().run(&["tree", "registry.invalid/a:v1"]).failed(1, &["registry.invalid", "is it up"]);
}

#[test]
fn the_answer_of_a_registry_is_told_with_what_to_do() {
    let check = |status: &str, body: &str, code: i32, said: &[&str]| {
        let answer =
            format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let registry = Scripted::start(move |exchange| exchange.answer(&answer));
        let image = format!("{}/a:v1", registry.address);
        let failed = Shell::new().run(&["tree", &image]);
        failed.failed(code, &[&registry.address.to_string()]);
        failed.failed(code, said);
    };
    let denied = r#"{"errors":[{"code":"DENIED","message":"not you"}]}"#;
    check("403 Forbidden", denied, 4, &["403", "DENIED: not you", "docker login"]);
    check("401 Unauthorized", "", 4, &["401"]);
    check("429 Too Many Requests", "slow", 1, &["429", "wait a moment"]);
    check("503 Service Unavailable", "", 1, &["503", "wait a moment"]);
    check("500 Internal Server Error", "<html>", 1, &["500"]);
    check("200 OK", "no manifest", 1, &["reading the manifest"]);
    check("200 OK\r\ncontent-length: 9", "", 1, &["reading v1"]);
}

/// A registry that has one image `v1`, and gives out other bytes than it should for what `lies` says.
fn lying(lies: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> (Scripted, Content) {
    let image = Content::image("{}", "x");
    let (digest, bytes) = (image.digest.clone(), String::from_utf8(image.bytes.clone()).unwrap());
    let blobs =
        [(digest_of(b"{}"), "{}".to_owned()), (digest_of(b"x"), "x".to_owned()), (digest, bytes.clone())];
    let registry = Scripted::start(move |exchange| {
        let path = exchange.request.line.split(' ').nth(1).unwrap().to_owned();
        let truth = if path.ends_with("/manifests/v1") {
            Some(bytes.clone())
        } else {
            blobs
                .iter()
                .find(|(digest, _)| path.ends_with(digest.as_str()))
                .map(|(_, content)| content.clone())
        };
        match lies(&path).or(truth) {
            Some(content) => exchange.answer(&format!(
                "HTTP/1.1 200 OK\r\ncontent-type: {IMAGE_MANIFEST}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{content}",
                content.len()
            )),
            None => exchange.answer_status("404 Not Found"),
        }
    });
    (registry, image)
}

#[test]
fn content_that_is_not_what_its_digest_says_is_refused() {
    let shell = Shell::new();
    let (registry, image) =
        lying(|path| path.contains("/manifests/sha256:").then(|| r#"{"schemaVersion":2}"#.to_owned()));
    let name = format!("{}/a@{}", registry.address, image.digest);
    shell
        .run(&["tree", &name, "--depth", "0"])
        .failed(1, &[&image.digest, "the digest does not match", "do not use it"]);

    for (content, said) in
        [("y", "the digest does not match"), ("xx", "more than the 1 bytes"), ("", "less than the 1 bytes")]
    {
        let layer = digest_of(b"x");
        let of = layer.clone();
        let (registry, _) = lying(move |path| path.ends_with(&of).then(|| content.to_owned()));
        let copy = shell.run(&["copy", &format!("{}/a:v1", registry.address), "oci:out"]);
        copy.failed(1, &[&layer, said]);
        let stored = shell.path(&format!("out/blobs/sha256/{}", layer.trim_start_matches("sha256:")));
        assert!(!stored.exists(), "{content}");
    }
}

#[tokio::test]
async fn a_lie_on_its_way_to_another_registry_is_refused_too() {
    let scene = Scene::new().await;
    let layer = digest_of(b"x");
    let of = layer.clone();
    let (registry, _) = lying(move |path| path.ends_with(&of).then(|| "y".to_owned()));
    let copy = scene.shell.run(&["copy", &format!("{}/a:v1", registry.address), &scene.at("a")]);
    copy.failed(1, &[&layer, "the digest does not match"]);
    assert_eq!(scene.client.head(&format!("/v2/a/blobs/{layer}")).await.status, 404);
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_half_written_stays() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let large = vec![7; 256 << 10];
    scene.shell.write("large", &large);
    let name = scene.at("a:v1");
    scene.shell.ok(&["attach", &name, "large", "--artifact-type", SBOM]);
    let limited = |arguments: &str| {
        let typed = format!("trap '' XFSZ; ulimit -f 64; exec {} {arguments}", env!("CARGO_BIN_EXE_refshim"));
        let mut bash = Command::new("bash");
        bash.args(["-c", &typed]).current_dir(scene.shell.path("")).env("HOME", scene.shell.path(""));
        bash.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        Ended::of(bash.spawn().unwrap())
    };
    let said = ["File too large", "make room"];
    limited(&format!("fetch {name} --artifact-type {SBOM} -o out"))
        .failed(1, &[&["writing out/large"], &said[..]].concat());
    assert_eq!(std::fs::read_dir(scene.shell.path("out")).unwrap().count(), 0);
    limited(&format!("copy {name} oci:layout --references"))
        .failed(1, &[&["writing layout/blobs"], &said[..]].concat());
    let blobs = std::fs::read_dir(scene.shell.path("layout/blobs/sha256")).unwrap();
    let names: Vec<String> = blobs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| name.len() == 64), "{names:?}");

    // With room again, the same command goes on.
    scene.shell.ok(&["copy", &name, "oci:layout", "--references"]);
    assert_eq!(scene.shell.json(&["tree", "oci:layout", "--json"])["digest"], image.digest);
    assert_eq!(scene.shell.ok(&["fetch", &name, "--artifact-type", SBOM, "-o", "out"]), "out/large");
}

/// A registry that takes an upload and never says that it is stored.
pub(super) fn never_done() -> Scripted {
    Scripted::start(|exchange| {
        let method = exchange.request.line.split(' ').next().unwrap().to_owned();
        match method.as_str() {
            "POST" => exchange.answer_status("202 Accepted\r\nlocation: /v2/a/blobs/uploads/1?state=x"),
            "PUT" => loop {
                std::thread::park();
            },
            _ => exchange.answer_status("404 Not Found"),
        }
    })
}

#[tokio::test]
async fn ctrl_c_in_the_midst_of_an_upload_ends_the_command_with_130() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    let stuck = never_done();
    let to = format!("{}/a:v1", stuck.address);
    let copy = scene.shell.command(&["copy", &scene.at("a:v1"), &to]).spawn().unwrap();
    while !stuck.requests().iter().any(|request| request.line.starts_with("PUT")) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let kill = Command::new("kill").args(["-INT", &copy.id().to_string()]).status();
    assert!(kill.unwrap().success());
    Ended::of(copy).failed(130, &["interrupted", "what was sent stays"]);
}

#[tokio::test]
async fn ctrl_c_leaves_nothing_half_written() {
    let layer = digest_of(b"x");
    let of = layer.clone();
    // It promises one byte and never sends it.
    let (image, bytes) = {
        let image = Content::image("{}", "x");
        (image.digest.clone(), String::from_utf8(image.bytes).unwrap())
    };
    let registry = Scripted::start(move |exchange| {
        let line = exchange.request.line.clone();
        if line.contains(&of) {
            exchange.answer("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n");
            loop {
                std::thread::park();
            }
        }
        let body = if line.contains("/manifests/v1") { bytes.as_str() } else { "{}" };
        let length = body.len();
        exchange.answer(&format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
    });
    let shell = Shell::new();
    let copy = shell
        .command(&["copy", &format!("{}/a:v1", registry.address), "oci:out", "--jobs", "1"])
        .spawn()
        .unwrap();
    let blobs = shell.path("out/blobs/sha256");
    let written = || {
        std::fs::read_dir(&blobs).map_or(Vec::new(), |read| {
            read.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        })
    };
    while !written().iter().any(|name| name.starts_with(".refshim-")) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let kill = Command::new("kill").args(["-INT", &copy.id().to_string()]).status();
    assert!(kill.unwrap().success());
    Ended::of(copy).failed(130, &["interrupted"]);
    assert!(written().iter().all(|name| name.len() == 64), "{image}: {:?}", written());
}

#[tokio::test]
async fn who_stops_reading_is_no_failure() {
    let scene = Scene::new().await;
    scene.graph("a").await;
    let typed =
        format!("set -o pipefail; {} tree {} | head -0", env!("CARGO_BIN_EXE_refshim"), scene.at("a:v1"));
    let bash = Command::new("bash").args(["-c", &typed]).env("HOME", scene.shell.path("")).output().unwrap();
    assert!(bash.status.success(), "{}", String::from_utf8_lossy(&bash.stderr));
}

#[tokio::test]
async fn json_and_quiet_leave_nothing_but_the_result() {
    let scene = Scene::new().await;
    let image = scene.image("a", "v1").await;
    let (from, to) = (scene.at("a:v1"), scene.at("b:v1"));
    let told = scene.shell.run(&["copy", &from, &to]);
    assert!(told.err.contains("mounted 2 blobs"), "{told:?}");
    let quiet = scene.shell.run(&["copy", &from, &to, "--quiet"]);
    assert_eq!(quiet, Ended { code: 0, out: format!("{}\n", image.digest), err: String::new() });
    let json = scene.shell.run(&["copy", &from, &to, "--json"]);
    assert_eq!(json.err, "");
    let report: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(
        report,
        json!({
            "images": [{"reference": format!("{}@{}", to.rsplit_once(':').unwrap().0, image.digest), "digest": image.digest, "tag": "v1"}],
            "manifests": 0, "manifests_already": 1, "blobs": 0, "blobs_mounted": 0, "blobs_already": 2, "bytes": 0,
            "tags": 0,
        })
    );
}

#[tokio::test]
async fn all_that_is_told_is_json_where_the_result_would_be() {
    let scene = Scene::new().await;
    let told = |arguments: &[&str]| -> serde_json::Value {
        let ended = scene.shell.run(arguments);
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{arguments:?}");
        let told: serde_json::Value = serde_json::from_str(&ended.err).unwrap();
        assert_eq!((&told["exit_code"], &told["error"]["kind"]), (&json!(2), &json!("usage")));
        told
    };
    let name = scene.at("a:v1");
    for more in [&["--json"][..], &["--format", "json"], &["--format=json"]] {
        let told = told(&[&["references", &name, "--nonsense"], more].concat());
        assert!(told["message"].as_str().unwrap().contains("--nonsense"), "{told}");
        assert!(told["error"]["advice"].as_str().unwrap().contains("--help"), "{told}");
    }
    told(&["references", "--json"]);
    told(&["references", &name, "--json", "--kind", "nonsense"]);
    told(&["references", &name, "--json", "--format", "digest"]);
    // Behind --, it is the name of a file.
    let text = scene.shell.run(&["attach", &name, "--artifact-type", "sbom", "--", "--json"]);
    text.failed(2, &["error: invalid value 'sbom'"]);
    assert!(scene.shell.ok(&["references", "--json", "--help"]).contains("Usage:"));
}

#[tokio::test]
async fn what_is_asked_is_told_to_whoever_wants_to_see_it() {
    let scene = Scene::new().await;
    scene.image("a", "v1").await;
    let ended = scene.shell.run(&["resolve", &scene.at("a:v1"), "-v"]);
    let line = format!("GET http://{}/v2/a/manifests/v1 200 OK in ", scene.refshim.address);
    assert!(ended.code == 0 && ended.err.contains(&line), "{ended:?}");
    assert_eq!(scene.shell.run(&["resolve", &scene.at("a:v1")]).err, "");
    let dead = scene.shell.run(&["resolve", "127.0.0.1:1/a:v1", "--verbose"]);
    assert!(dead.err.contains("GET http://127.0.0.1:1/v2/a/manifests/v1 failed in "), "{}", dead.err);
    assert_eq!(scene.shell.run(&["resolve", &scene.at("a:v1"), "-v", "-q"]).code, 2);
}

#[test]
fn manual_pages_have_examples_exit_codes_and_variables() {
    let shell = Shell::new();
    shell.ok(&["man", "pages"]);
    let mut seen = 0;
    for entry in std::fs::read_dir(shell.path("pages")).unwrap() {
        let path = entry.unwrap().path();
        let page = std::fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_group = ["refshim", "refshim-index", "refshim-config"].contains(&name);
        assert_eq!(page.contains(".SH EXAMPLES\n"), !is_group, "{name}");
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "\"EXIT STATUS\"", "ENVIRONMENT"] {
            assert!(page.contains(&format!(".SH {section}\n")), "no {section} in {name}");
        }
        assert!(!page.contains("SH EXTRA"), "{name}");
        seen += 1;
    }
    assert!(seen > 30, "{seen}");
    let tree = std::fs::read_to_string(shell.path("pages/refshim-tree.1")).unwrap();
    assert!(tree.contains("refshim tree registry.example/app:v1") && tree.contains("REGISTRY_AUTH_FILE"));
    assert!(shell.ok(&["man"]).contains("refshim"));
    // Values are completed.
    let bash = shell.ok(&["completions", "bash"]);
    assert!(bash.contains("reference subject parent attestation cosign fallback"), "{bash}");
}
