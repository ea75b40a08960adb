//! An acknowledged link survives; an index that was damaged is built anew, the same as before.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;

use crate::support::{Answer, Client, Content, Refshim, Registry, about};

/// Subjects and referrers of a kill test, prepared so that PUTs are all that is left to do.
struct Load {
    image: Content,
    referrers: Vec<Content>,
}

async fn load(client: &Client, repository: &str, count: usize) -> Load {
    let image = client.image(repository, "image").await;
    client.push(repository, &image).await;
    let referrers = (0..count).map(|n| about(&image, &image, &format!("{repository} {n}"))).collect();
    Load { image, referrers }
}

/// Kills refshim in the middle of concurrent PUTs; the acknowledged ones.
async fn kill_during_puts(
    refshim: Refshim,
    repository: &str,
    load: &Load,
    writers: usize,
    kill_after: usize,
) -> Vec<String> {
    let client = refshim.client();
    let next = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..writers {
        let (client, referrers, repository) = (client.clone(), load.referrers.clone(), repository.to_owned());
        let (next, done) = (Arc::clone(&next), Arc::clone(&done));
        tasks.spawn(async move {
            let mut acknowledged = Vec::new();
            while let Some(content) = referrers.get(next.fetch_add(1, Ordering::SeqCst)) {
                let path = format!("/v2/{repository}/manifests/{}", content.digest);
                let put =
                    client.request(reqwest::Method::PUT, &path).header("content-type", &content.media_type);
                match client.try_send(put.body(content.bytes.clone())).await {
                    Ok(answer) if answer.status == StatusCode::CREATED => {
                        acknowledged.push(content.digest.clone());
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(answer) => panic!("{answer:?}"),
                    Err(_) => break,
                }
            }
            acknowledged
        });
    }
    while done.load(Ordering::SeqCst) < kill_after {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    refshim.kill();
    tasks.join_all().await.concat()
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// `KILL_ROUNDS` and `KILL_PUTS` make it longer.
#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_link_survives_a_kill_and_so_does_every_one_that_the_registry_holds() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let (rounds, puts) = (setting("KILL_ROUNDS", 4), setting("KILL_PUTS", 400));
    let (mut all_acknowledged, mut all_held) = (0, 0);
    for round in 0..rounds {
        let refshim = Refshim::start(registry.address, directory.path()).await;
        let repository = format!("round{round}");
        let load = load(&refshim.client(), &repository, puts).await;
        let kill_after = puts / 10 + puts * 8 / 10 * round / rounds;
        let acknowledged = kill_during_puts(refshim, &repository, &load, 64.min(puts / 4), kill_after).await;

        let refshim = Refshim::start(registry.address, directory.path()).await;
        let mut listed = refshim.client().referrers(&repository, &load.image.digest, "").await;
        listed.sort();
        let behind = registry.client();
        let mut held = Vec::new();
        for content in &load.referrers {
            let ask = behind
                .request(reqwest::Method::HEAD, &format!("/v2/{repository}/manifests/{}", content.digest));
            if behind.send(ask.header("accept", &content.media_type)).await.status == StatusCode::OK {
                held.push(content.digest.clone());
            }
        }
        held.sort();
        for digest in &acknowledged {
            assert!(listed.binary_search(digest).is_ok(), "round {round}: {digest} was acknowledged");
        }
        assert_eq!(listed, held, "round {round}: listed and held by the registry");
        all_acknowledged += acknowledged.len();
        all_held += held.len();
    }
    assert!(all_acknowledged > 0);
    println!("{rounds} rounds: {all_acknowledged} acknowledged, {all_held} held by the registry, 0 lost");
}

struct Recorded {
    registry: Registry,
    directory: tempfile::TempDir,
    image: Content,
    answer: Vec<Value>,
}

/// A refshim that was used and stopped.
async fn recorded(count: usize) -> Recorded {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push("a", &image).await;
    for n in 0..count {
        client.push("a", &about(&image, &image, &n.to_string())).await;
    }
    let answer = client.references("a", &image.digest, "").await;
    assert_eq!(answer.len(), count);
    assert!(refshim.stop().success());
    Recorded { registry, directory, image, answer }
}

impl Recorded {
    async fn check_same(&self, what: &str) {
        let refshim = Refshim::start(self.registry.address, self.directory.path()).await;
        let answer = refshim.client().references("a", &self.image.digest, "").await;
        assert_eq!(answer, self.answer, "{what}");
        assert!(refshim.stop().success());
    }
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test]
async fn a_sled_that_is_gone_or_noise_is_built_anew() {
    let recorded = recorded(30).await;
    recorded.check_same("a plain restart").await;
    let sled = recorded.directory.path().join("sled");
    std::fs::remove_dir_all(&sled).unwrap();
    recorded.check_same("sled's directory deleted").await;
    // One delta: nothing was compacted.
    let delta = || std::fs::read_dir(&sled).unwrap().next().unwrap().unwrap().path();
    for (seed, file) in files(&delta()).into_iter().enumerate() {
        let file = delta().join(file.file_name().unwrap());
        let length = usize::try_from(std::fs::metadata(&file).unwrap().len()).unwrap();
        let noise: Vec<u8> =
            (0..length).map(|n| u8::try_from((n * 7 + n / 251 + seed * 13) % 256).unwrap()).collect();
        std::fs::write(&file, noise).unwrap();
        recorded.check_same(&format!("{} overwritten", file.display())).await;
    }
    for file in files(&delta()) {
        std::fs::write(&file, b"").unwrap();
    }
    recorded.check_same("every file of sled emptied").await;
}

#[tokio::test]
async fn a_damaged_journal_is_no_short_list_and_what_passes_still_passes() {
    let recorded = recorded(20).await;
    let journal = recorded.directory.path().join("journal");
    let segment = files(&journal).into_iter().max().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    std::fs::remove_dir_all(recorded.directory.path().join("sled")).unwrap();

    let refshim = Refshim::prepare(recorded.registry.address, recorded.directory.path()).launch_unready();
    let client = refshim.client();
    let answer = loop {
        let answer = client.get(&format!("/v2/a/manifests/{}/references", recorded.image.digest)).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        if !String::from_utf8_lossy(&answer.body).contains("being") {
            break answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!(answer.error_code(), "UNAVAILABLE");
    assert_eq!(Client::new(refshim.admin).get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let (_, _, digest) = client.served("a", &recorded.image.digest).await;
    assert_eq!(digest, recorded.image.digest);
    let put = client.put_manifest("a", "x", &about(&recorded.image, &recorded.image, "new")).await;
    assert_eq!(put.status, StatusCode::SERVICE_UNAVAILABLE);
}

/// As if the process was killed in mid-write.
#[tokio::test]
async fn the_journals_end_cut_off_costs_no_earlier_link() {
    let recorded = recorded(5).await;
    let journal = recorded.directory.path().join("journal");
    let segment = files(&journal).into_iter().max().unwrap();
    let whole = std::fs::read(&segment).unwrap();
    for cut in (1..200).step_by(20) {
        std::fs::write(&segment, &whole[..whole.len() - cut]).unwrap();
        // A crash in mid-write leaves no sled that is ahead of the journal.
        std::fs::remove_dir_all(recorded.directory.path().join("sled")).unwrap();
        let refshim = Refshim::start(recorded.registry.address, recorded.directory.path()).await;
        let answer = refshim.client().references("a", &recorded.image.digest, "").await;
        assert!(answer.len() >= 4 && answer[..4] == recorded.answer[..4], "{cut} bytes cut off");
        assert!(refshim.stop().success());
    }
}

/// What a client is told names neither files nor what is used to keep the index.
fn assert_plain(answer: &Answer) {
    assert_eq!(answer.error_code(), "UNAVAILABLE");
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    let told = answer.json()["errors"][0]["message"].as_str().unwrap().to_owned();
    for word in ["sled", "journal", "os error", "/", "File", "{"] {
        assert!(!told.contains(word), "{told}");
    }
}

/// Pushes until it is taken.
async fn push_again(client: &Client, tag: &str, content: &Content) {
    loop {
        let put = client.put_manifest("a", tag, content).await;
        match put.status {
            StatusCode::CREATED => return,
            StatusCode::SERVICE_UNAVAILABLE => assert_plain(&put),
            _ => panic!("{put:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_disk_that_takes_no_more_ends_recording_until_it_has_room_again_and_nothing_else() {
    let Recorded { registry, directory, image, answer } = recorded(3).await;
    let start = Refshim::prepare(registry.address, directory.path()).surviving_limits();
    let refshim = start.launch().await;
    let client = refshim.client();
    let segment = files(&directory.path().join("journal")).into_iter().max().unwrap();
    let length = || std::fs::metadata(&segment).unwrap().len();
    let readiness = async || Client::new(refshim.admin).get("/readyz").await;
    assert_eq!(readiness().await.status, StatusCode::OK);
    // sled would write to the full disk as well, if it had anything left to write.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let before = length();
    refshim.limit_file_size(10);
    let new = about(&image, &image, "new");
    for _ in 0..2 {
        let put = client.put_manifest("a", "new", &new).await;
        assert_eq!(put.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_plain(&put);
        let ready = readiness().await;
        assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE, "it was ready a moment ago");
        assert!(String::from_utf8_lossy(&ready.body).contains("the journal cannot be written"));
    }
    assert_eq!(registry.client().head("/v2/a/manifests/new").await.status, StatusCode::NOT_FOUND);
    let plain = client.image("a", "plain").await;
    client.push("a", &plain).await;
    assert_eq!(client.served("a", &plain.digest).await.2, plain.digest);
    assert_eq!(client.references("a", &image.digest, "").await, answer);
    refshim.limit_file_size(1 << 40);
    push_again(&client, "new", &new).await;
    assert_eq!(readiness().await.status, StatusCode::OK);
    assert_eq!(length(), before, "it goes on in another file");

    // The first part of a record is written.
    let segment = files(&directory.path().join("journal")).into_iter().max().unwrap();
    let length = || std::fs::metadata(&segment).unwrap().len();
    let before = length();
    refshim.limit_file_size(before + 100);
    let torn = about(&image, &image, "torn");
    let put = client.put_manifest("a", "torn", &torn).await;
    assert_eq!(put.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_plain(&put);
    // With the limit sled fails as well, and what is recorded without it is too long for any file.
    refshim.limit_file_size(1 << 40);
    push_again(&client, "torn", &torn).await;
    assert_eq!(length(), before, "what was not acknowledged is cut off, and nothing else stands there");
    // sled may have run into the limit as well.
    refshim.ready().await;
    let listed = client.references("a", &image.digest, "").await;
    assert_eq!((listed.len(), &listed[..3]), (5, &answer[..]));
    refshim.kill();

    // sled may have been built anew under another name.
    for path in std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if path.file_name().unwrap().to_str().unwrap().starts_with("sled") {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    let refshim = Refshim::start(registry.address, directory.path()).await;
    assert_eq!(refshim.client().references("a", &image.digest, "").await, listed);
}

/// The limit lets the journal's short segments be written, but not sled's one long file.
#[tokio::test]
async fn a_sled_that_fails_gives_no_short_list_and_is_built_anew() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let start = Refshim::prepare(registry.address, directory.path()).surviving_limits();
    let refshim = start.with("INDEX_COMPACT_BYTES", "256KiB").launch().await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push("a", &image).await;
    let path = format!("/v2/a/manifests/{}/references", image.digest);
    refshim.limit_file_size(100 << 10);
    let mut acknowledged = Vec::new();
    let failure = loop {
        assert!(acknowledged.len() < 500, "sled goes on");
        let name = format!("{}{}", acknowledged.len(), "x".repeat(10_000));
        let content = about(&image, &image, &name);
        client.push("a", &content).await;
        acknowledged.push(content.digest);
        let answer = client.get(&path).await;
        if answer.status != StatusCode::OK {
            break answer;
        }
        assert_eq!(digests(&answer), acknowledged);
    };
    assert_eq!(failure.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_plain(&failure);
    // It is built anew again and again, to the same end: what it answers meanwhile is whole.
    for n in 0..20 {
        let content = about(&image, &image, &format!("after it {n}"));
        client.push("a", &content).await;
        acknowledged.push(content.digest);
        let answer = client.get(&path).await;
        if answer.status == StatusCode::OK {
            assert_eq!(digests(&answer), acknowledged);
        } else {
            assert_plain(&answer);
        }
    }
    refshim.limit_file_size(1 << 40);
    let admin = Client::new(refshim.admin);
    loop {
        let answer = client.get(&path).await;
        if answer.status == StatusCode::OK && admin.get("/readyz").await.status == StatusCode::OK {
            assert_eq!(digests(&answer), acknowledged);
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(refshim.stop().success());

    let mut found = Vec::new();
    for _ in 0..2 {
        let refshim = Refshim::start(registry.address, directory.path()).await;
        assert_eq!(refshim.client().referrers("a", &image.digest, "").await, acknowledged);
        assert!(refshim.stop().success());
        let names = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        found.push(names.collect::<BTreeSet<_>>());
    }
    assert_eq!(found[0], found[1], "nothing is found damaged a second time");
    // A delta that was not written any more may have failed unnoticed: only the latest is kept.
    let is_damaged = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with("sled.damaged-"));
    let (damaged, usual): (Vec<_>, Vec<_>) = found.remove(0).into_iter().partition(is_damaged);
    assert!(damaged.len() <= 1, "{damaged:?}");
    assert_eq!(usual, ["coverage", "journal", "lock", "sled"], "one sled, by its usual name");
}

fn digests(answer: &Answer) -> Vec<String> {
    let manifests = answer.json()["manifests"].as_array().unwrap().clone();
    manifests.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect()
}
