//! `deploy/openapi.yaml` against the running server: schemathesis sends what it describes, and what it does not, and
//! compares each answer with it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use regex::Regex;
use reqwest::{Method, StatusCode};

use crate::clients::installed;
use crate::support::{Client, Refshim, Registry};

const DESCRIPTION: &str = "deploy/openapi.yaml";

/// Sends requests for the paths that this selects, always the same ones.
#[track_caller]
fn conforms(address: SocketAddr, paths: [&str; 2]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(installed("python/bin/schemathesis"));
    command.current_dir(directory.path()).env("NO_PROXY", "127.0.0.1");
    command.arg("--config-file").arg(root.join("tests/clients/schemathesis.toml")).arg("run");
    command.arg(root.join(DESCRIPTION)).args(["--url", &format!("http://{address}")]).args(paths);
    command.args(["--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--max-redirects", "0"]);
    command.args(["--generation-deterministic", "--no-color"]);
    let output = command.output().unwrap();
    let told =
        [output.stdout, output.stderr].map(|told| String::from_utf8_lossy(&told).into_owned()).concat();
    assert!(output.status.success(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_description_says_is_what_is_answered() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).launch().await;
    let client: Client = refshim.client();
    let image = client.image("hello", "image").await;
    client.push_as("hello", "v1", &image).await;
    for n in 0..3 {
        let path = format!("/v2/hello/manifests/v1/references?artifactType=a/b&annotation=n%3D{n}");
        let attached = client.send(client.request(Method::POST, &path).body("content")).await;
        assert_eq!(attached.status, StatusCode::CREATED, "{attached:?}");
    }
    conforms(refshim.address, ["--include-path-regex", "^/v2/"]);
    conforms(refshim.admin, ["--exclude-path-regex", "^/v2/"]);
    assert_eq!(refshim.count("panicked"), 0, "{:?}", refshim.lines());
}

#[test]
fn every_path_of_the_reference_is_described() {
    let read =
        |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let described = read(DESCRIPTION);
    let described: BTreeSet<&str> =
        described.lines().filter_map(|line| line.strip_prefix("  /")?.strip_suffix(':')).collect();
    let words = read("deploy/API.md");
    let named = Regex::new(r"/(v2/(?:<name>|_oci)/[a-z_<>/]+)").unwrap();
    let named: BTreeSet<String> = named.captures_iter(&words).map(|found| found[1].to_owned()).collect();
    assert!(named.len() > 5, "{named:?}");
    for name in named {
        let path = [("<name>", "{name}"), ("<ref>", "{reference}"), ("<digest>", "{digest}")];
        let path = path.iter().fold(name, |path, (shown, described)| path.replace(shown, described));
        let is_registrys = path.ends_with("manifests/{digest}");
        assert!(is_registrys || described.contains(&*path), "{path}: {described:?}");
    }
}
