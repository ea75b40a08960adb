//! `refshim index`: backup of a running server, and what is done about a damaged journal.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use reqwest::StatusCode;
use serde_json::Value;

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

/// The data directory of a refshim that was served and stopped.
async fn served(directory: &Path) -> PathBuf {
    let (registry, data) = (Registry::start(), directory.join("data"));
    assert!(Refshim::start(registry.address, &data).await.stop().success());
    data
}

#[tokio::test]
async fn a_dump_leaves_alone_what_is_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let data = served(directory.path()).await;
    let (dump, other) = (directory.path().join("dump"), directory.path().join("dump.partial"));
    std::fs::write(&other, "somebody else's").unwrap();
    let there = || {
        let files = std::fs::read_dir(directory.path()).unwrap();
        files.map(|file| file.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let before = there();
    succeed(&data, &["dump", dump.to_str().unwrap()]);
    let again = index(&data, &["dump", dump.to_str().unwrap()]);
    let told = String::from_utf8(again.stderr).unwrap();
    assert_eq!(again.status.code(), Some(1), "{told}");
    assert!(told.contains(&format!("{} exists already", dump.display())), "{told}");
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "somebody else's");
    assert!(std::fs::read_to_string(&dump).unwrap().contains("{\"end\""));
    let added: Vec<_> = there().difference(&before).cloned().collect();
    assert_eq!(added, ["dump"]);
}

#[tokio::test]
async fn the_name_of_a_dump_survives_a_power_loss() {
    let directory = tempfile::tempdir().unwrap();
    let data = served(directory.path()).await;
    let calls = directory.path().join("calls");
    let dumped = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=/rename.*,fsync", "-o"])
        .arg(&calls)
        .arg(binary())
        .args(["index", "dump", "backup", "--data-dir"])
        .arg(&data)
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(dumped.status.success(), "{dumped:?}");
    let calls = std::fs::read_to_string(&calls).unwrap();
    let (_, after) = calls.split_once("\"backup\"").unwrap();
    let real = directory.path().canonicalize().unwrap();
    assert!(after.contains("fsync(") && after.contains(&format!("<{}>)", real.display())), "{calls}");
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

/// A data directory that holds a snapshot and several segments, and is not being served.
async fn compacted(registry: &Registry, data: &Path) {
    let start = Refshim::prepare(registry.address, data);
    let refshim = start.with("INDEX_COMPACT_BYTES", "64KiB").launch().await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push("a", &image).await;
    let kinds = || files(data).into_iter().filter_map(|path| Some(path.extension()?.to_owned()));
    let mut pushed = 0;
    while kinds().all(|kind| kind != "snapshot") || kinds().count() < 3 {
        assert!(pushed < 100, "it is not compacted");
        client.push("a", &about(&image, &image, &format!("{pushed}{}", "x".repeat(8_000)))).await;
        pushed += 1;
    }
    assert!(refshim.stop().success());
}

/// The files of the journal.
fn files(data: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(data.join("journal")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

type Damage = fn(&[u8]) -> Vec<u8>;

/// Each file of the journal with each kind of damage: a dump of it has an end only if nothing is missing.
#[tokio::test]
async fn a_dump_of_what_is_damaged_is_an_error_and_is_not_loaded() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    compacted(&registry, &data).await;
    let whole = succeed(&data, &["dump", "-"]);
    let damages: [(&str, Damage); 6] = [
        ("a flipped bit in the middle", |bytes| flipped(bytes, bytes.len() / 2)),
        ("a flipped bit in the first frame", |bytes| flipped(bytes, 60)),
        ("a flipped bit in the header", |bytes| flipped(bytes, 20)),
        ("its second half cut off", |bytes| bytes[..bytes.len() / 2].to_vec()),
        ("its last byte cut off", |bytes| bytes[..bytes.len() - 1].to_vec()),
        ("no content", |_| Vec::new()),
    ];
    let (mut refused, file) = (0, directory.path().join("dump.jsonl"));
    for path in files(&data) {
        let bytes = std::fs::read(&path).unwrap();
        let is_snapshot = path.extension().is_some_and(|extension| extension == "snapshot");
        for (what, damage) in damages {
            std::fs::write(&path, damage(&bytes)).unwrap();
            let output = index(&data, &["dump", "-"]);
            let what = format!("{} with {what}: {output:?}", path.display());
            let dumped = String::from_utf8(output.stdout).unwrap();
            // What stands at a snapshot's end can be made anew from the rest.
            if output.status.success() && is_snapshot && dumped == whole {
                continue;
            }
            refused += 1;
            assert_eq!(output.status.code(), Some(1), "{what}");
            assert!(!dumped.contains("{\"end\""), "{what}");
            let to_file = index(&data, &["dump", file.to_str().unwrap()]);
            assert_eq!(to_file.status.code(), Some(1), "{what}");
            let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
            assert_eq!(left.len(), 1, "{what}: {left:?}");
        }
        std::fs::write(&path, &bytes).unwrap();
    }
    // The snapshot and what came after it; more, if the last compaction had not yet removed what came before.
    assert!(refused >= damages.len() * 2 - 1, "{refused}");
    assert_eq!(succeed(&data, &["dump", "-"]), whole);
}

fn flipped(bytes: &[u8], place: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let place = place.min(bytes.len() - 1);
    bytes[place] ^= 1;
    bytes
}

#[tokio::test]
async fn a_dump_is_piped_into_another_index() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let (data, copy) = (directory.path().join("data"), directory.path().join("copy"));
    compacted(&registry, &data).await;
    let script = r#""$0" index dump - --data-dir "$1" | "$0" index load - --data-dir "$2""#;
    let mut shell = Command::new("sh");
    shell.current_dir(directory.path()).arg("-c").arg(script).arg(binary()).arg(&data).arg(&copy);
    let output = shell.output().unwrap();
    assert!(output.status.success() && output.stdout.ends_with(b" records\n"), "{output:?}");
    assert!(!directory.path().join("-").exists());
    // Of each referrer one record, with all that the journal had of it.
    let referrers = |data: &Path| -> Vec<String> {
        let dump = succeed(data, &["dump"]);
        let records = dump.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap());
        let digest = |record: Value| {
            let kind = record.as_object().unwrap().values().next().unwrap().clone();
            let named = kind["referrer"]["digest"].as_str().or_else(|| kind["digest"].as_str());
            named.map(str::to_owned)
        };
        records.filter_map(digest).collect()
    };
    let (copied, recorded) = (referrers(&copy), referrers(&data));
    assert!(copied.len() > 5 && copied.len() < recorded.len());
    assert_eq!(copied.iter().collect::<BTreeSet<_>>(), recorded.iter().collect());
    assert_eq!(copied.len(), copied.iter().collect::<BTreeSet<_>>().len());
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
