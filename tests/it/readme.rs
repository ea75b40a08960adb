//! The README's sessions run as they stand there.

use std::path::Path;
use std::process::Command;

use regex::Regex;
use serde_json::Value;

use crate::support::{Refshim, Registry, binary};

const README: &str = include_str!("../../README.md");

/// The blocks of shell in the section with this title.
fn sessions(title: &str) -> Vec<&'static str> {
    let (_, section) = README.split_once(&format!("\n## {title}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("\n```sh\n").skip(1);
    blocks.map(|block| block.split("\n```").next().unwrap()).collect()
}

/// What a session prints that must succeed to its last command.
#[track_caller]
fn run(session: &str, refshim: &Refshim, directory: &Path) -> String {
    let session = session.replace("localhost:5000", &refshim.address.to_string());
    let binaries = binary().parent().unwrap().display().to_string();
    let path = format!("{binaries}:{}", std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &session]).current_dir(directory);
    bash.env("PATH", path).env("HOME", directory).env("NO_PROXY", "127.0.0.1");
    let output = bash.output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{session}\n{out}\n{err}");
    out
}

#[tokio::test]
async fn its_sessions_do_what_it_says() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, &directory.path().join("data")).await;
    let client = refshim.client();
    let hello = client.image("hello", "hello").await;
    client.push_as("hello", "v1", &hello).await;
    let home = directory.path().join("home");
    std::fs::create_dir(&home).unwrap();

    let [proposal, signing, copying] = sessions("By hand")[..] else { panic!("three sessions") };
    let said = run(proposal, &refshim, &home);
    let manifest = std::fs::read(home.join("ref-to-ubuntu/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["reference"]["digest"], hello.digest);
    assert_eq!(manifest["layers"], hello.value["layers"]);
    assert!(said.contains(&hello.digest), "the referring manifest is shown: {said}");
    assert!(said.contains(r#""io.refshim.repository":"ref-to-ubuntu""#), "{said}");

    let said = run(signing, &refshim, &home);
    assert!(said.contains("Signature Verified Successfully"), "{said}");
    assert!(said.contains("application/vnd.example.ed25519"), "{said}");

    let said = run(copying, &refshim, &home);
    let age = Regex::new(r" \d+s +").unwrap();
    let lines = said.lines().filter(|line| line.contains("application/vnd.example.ed25519"));
    let lines: Vec<_> = lines.map(|line| age.replace(line, " AGE ")).collect();
    assert_eq!(lines.len(), 2, "in both trees: {said}");
    assert_eq!(lines[0], lines[1]);
}
