//! `refshim index`: backup of a running server, and what is done about a damaged journal.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use reqwest::StatusCode;

use crate::support::{Refshim, Registry, about, binary};

fn index(data_dir: &Path, arguments: &[&str]) -> Output {
    Command::new(binary()).arg("index").args(arguments).arg("--data-dir").arg(data_dir).output().unwrap()
}

#[track_caller]
fn succeed(data_dir: &Path, arguments: &[&str]) -> String {
    let output = index(data_dir, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The file of the journal that is appended to.
fn segment(data_dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(data_dir.join("journal")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|kind| kind == "journal")).max().unwrap()
}

#[tokio::test]
async fn a_running_server_is_backed_up_and_the_backup_serves() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let (data, restored) = (directory.path().join("data"), directory.path().join("restored"));
    let refshim = Refshim::start(registry.address, &data).await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push_as("a", "latest", &image).await;
    let signature = about(&image, &image, "signature");
    client.push("a", &signature).await;

    let dump = directory.path().join("dump.jsonl");
    assert!(succeed(&data, &["dump", dump.to_str().unwrap()]).ends_with(" records\n"));
    let again = index(&data, &["dump", dump.to_str().unwrap()]);
    assert!(!again.status.success(), "a dump overwrites nothing");
    let locked = index(&data, &["check"]);
    assert_eq!(locked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&locked.stderr).contains("in use by another process"));
    refshim.kill();

    succeed(&restored, &["load", dump.to_str().unwrap()]);
    let refshim = Refshim::start(registry.address, &restored).await;
    assert_eq!(refshim.client().referrers("a", "latest", "").await, [signature.digest]);
}

#[tokio::test]
async fn a_damaged_journal_answers_no_query_until_it_is_mended() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let refshim = Refshim::start(registry.address, data).await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push_as("a", "latest", &image).await;
    let signatures = ["one", "two", "three"].map(|name| about(&image, &image, name));
    for signature in &signatures {
        client.push("a", signature).await;
    }
    assert!(refshim.stop().success());
    assert!(succeed(data, &["check"]).ends_with("intact\n"));

    let segment = segment(data);
    let mut bytes = std::fs::read(&segment).unwrap();
    let second = bytes.windows(71).position(|window| window == signatures[1].digest.as_bytes()).unwrap();
    bytes[second] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();

    let refshim = Refshim::prepare(registry.address, data).launch_unready();
    let client = refshim.client();
    let answer = client.get("/v2/a/manifests/latest/references").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(String::from_utf8(answer.body).unwrap().contains("refshim index rebuild"));
    assert_eq!(client.served("a", "latest").await.2, image.digest);
    assert!(refshim.stop().success());

    let report = index(data, &["check"]);
    let told = String::from_utf8(report.stdout).unwrap();
    assert_eq!(report.status.code(), Some(1), "{told}");
    assert!(told.contains(segment.to_str().unwrap()), "{told}");
    let told = succeed(data, &["rebuild"]);
    assert!(told.contains("may be missing") && told.contains("a (upstream 0): "), "{told}");
    assert!(told.contains(&format!("a@{}", signatures[1].digest)), "{told}");

    let refshim = Refshim::start(registry.address, data).await;
    let client = refshim.client();
    let [one, two, three] = signatures;
    assert_eq!(client.referrers("a", "latest", "").await, [one.digest.clone(), three.digest.clone()]);
    // As the report says: what is pulled is learnt again.
    client.served("a", &two.digest).await;
    let mut found = Vec::new();
    while found.len() < 3 {
        found = client.referrers("a", "latest", "").await;
    }
    assert_eq!(found, [one.digest, three.digest, two.digest]);
    assert!(refshim.stop().success());
    assert!(succeed(data, &["check"]).ends_with("intact\n"));
}

#[test]
fn what_is_no_index_is_told() {
    let directory = tempfile::tempdir().unwrap();
    for action in ["check", "rebuild", "dump"] {
        let output = index(&directory.path().join("none"), &[action]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("holds no index"), "{output:?}");
    }
}
