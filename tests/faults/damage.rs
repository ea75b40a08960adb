//! Files of the journal and of sled that are cut, flipped, gone, of a newer version, locked or read-only.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use refshim::index::{Index, IndexState, ReadError};

use crate::disk::{Tree, plant, tree};
use crate::ledger::{Ledger, REPOSITORY};
use crate::power::{push, settings, try_listed};
use crate::random::Random;
use crate::support::{Refshim, Registry, binary, by_environment, digest_of};
use crate::table::Row;

/// A closed index, all of whose links were acknowledged.
struct Recorded {
    files: Tree,
    subject: String,
    acknowledged: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Cut,
    BitFlipped,
    Noise,
    Emptied,
    Deleted,
    AllDeleted,
}

impl Damage {
    const ALL: [Self; 6] =
        [Self::Cut, Self::BitFlipped, Self::Noise, Self::Emptied, Self::Deleted, Self::AllDeleted];

    fn apply(self, files: &mut Tree, path: &Path, random: &mut Random) {
        let content = files.get_mut(path).unwrap().as_mut().unwrap();
        let length = content.len();
        match self {
            Self::Cut => content.truncate(random.place(length.saturating_sub(1))),
            Self::BitFlipped if length > 0 => content[random.place(length - 1)] ^= 1 << random.below(8),
            Self::BitFlipped => {}
            Self::Noise => *content = random.bytes(length),
            Self::Emptied => content.clear(),
            Self::Deleted => drop(files.remove(path)),
            Self::AllDeleted => {
                let directory = path.components().next().unwrap();
                files.retain(|path, _| !path.starts_with(directory));
            }
        }
    }
}

/// The extension of snapshots.
const SNAPSHOT: &str = "snapshot";

/// Large enough for segments, a snapshot and a sled of some pages.
async fn recorded() -> Recorded {
    let directory = tempfile::tempdir().unwrap();
    let (subject, mut acknowledged) = (digest_of(b"subject"), BTreeSet::new());
    for range in [0..60, 60..90] {
        let index = Index::open(settings(directory.path())).unwrap();
        index.opened().await;
        for n in range {
            acknowledged.insert(push(&index, &subject, &format!("{n}"), 4000).await);
        }
        index.close().await;
    }
    Recorded { files: tree(directory.path()), subject, acknowledged }
}

impl Recorded {
    /// The files below a directory, or the snapshot, by chance one.
    fn file(&self, directory: &str, random: &mut Random) -> PathBuf {
        let is_in = |path: &Path| match directory {
            SNAPSHOT => path.extension().is_some_and(|extension| extension == SNAPSHOT),
            directory => path.starts_with(directory),
        };
        let is_file = |(path, content): &(&PathBuf, &Option<Vec<u8>>)| is_in(path) && content.is_some();
        let files: Vec<&PathBuf> = self.files.iter().filter(is_file).map(|(path, _)| path).collect();
        files[random.place(files.len() - 1)].clone()
    }

    /// Opens an index on damaged files. It lists all that was acknowledged, or it may say why it cannot.
    async fn check(&self, row: &mut Row, files: &Tree, what: &str, may_refuse: bool) {
        let directory = tempfile::tempdir().unwrap();
        plant(files, directory.path());
        row.tried += 1;
        row.acknowledged += self.acknowledged.len() as u64;
        let index = match Index::open(settings(directory.path())) {
            Ok(index) => index,
            Err(_) if may_refuse => return,
            Err(error) => return row.mistake(format!("{what}: {error}")),
        };
        index.opened().await;
        match index.state() {
            IndexState::Ready => match try_listed(&index, &self.subject).await {
                Ok(found) => {
                    let found: BTreeSet<String> = found.into_keys().collect();
                    for digest in self.acknowledged.symmetric_difference(&found) {
                        row.lose(format!("{what}: {digest}"));
                    }
                }
                Err(ReadError::Damaged) if may_refuse => {}
                Err(error) => row.mistake(format!("{what}: {error}")),
            },
            IndexState::Damaged(_) if may_refuse => {}
            state @ (IndexState::Opening
            | IndexState::Unreachable(_)
            | IndexState::Rebuilding(_)
            | IndexState::Damaged(_)
            | IndexState::Closed) => {
                row.mistake(format!("{what}: {state:?}"));
            }
        }
        index.close().await;
    }
}

/// `FAULT_DAMAGES` is how many of each.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_give_no_short_list() {
    let recorded = recorded().await;
    let mut random = Random::new(by_environment("FAULT_SEED", 1));
    let mut rows = [
        ("sled", Row::new("sled's files cut, flipped, overwritten, emptied or deleted")),
        ("journal", Row::new("the journal's files cut, flipped, overwritten, emptied or deleted")),
        (SNAPSHOT, Row::new("the snapshot cut, flipped, overwritten, emptied or deleted")),
    ];
    for (directory, row) in &mut rows {
        for _ in 0..by_environment("FAULT_DAMAGES", 3) {
            for damage in Damage::ALL {
                let path = recorded.file(directory, &mut random);
                let mut files = recorded.files.clone();
                damage.apply(&mut files, &path, &mut random);
                let what = format!("{damage:?} {}", path.display());
                recorded.check(row, &files, &what, *directory != "sled").await;
            }
        }
    }
    for (_, row) in rows {
        row.close();
    }
}

/// What a later build may write: the same header with another version.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_newer_version_are_refused_or_built_anew() {
    let recorded = recorded().await;
    let mut row = Row::new("files of a newer version");
    for (path, content) in &recorded.files {
        let Some(content) = content else { continue };
        let mut files = recorded.files.clone();
        if path.starts_with("journal") {
            let mut newer = content.clone();
            newer[8..12].copy_from_slice(&9u32.to_be_bytes());
            let checksum = crc32c::crc32c(&newer[..44]).to_be_bytes();
            newer[44..48].copy_from_slice(&checksum);
            files.insert(path.clone(), Some(newer));
            let directory = tempfile::tempdir().unwrap();
            plant(&files, directory.path());
            let error = Index::open(settings(directory.path())).unwrap_err().to_string();
            assert!(error.contains("use a newer build"), "{error}");
            recorded.check(&mut row, &files, "newer", true).await;
        } else if path.starts_with("sled") && path.ends_with("conf") {
            let text = String::from_utf8_lossy(content).replace("version: 0.34", "version: 1.99");
            files.insert(path.clone(), Some(text.into_bytes()));
            recorded.check(&mut row, &files, "a newer sled", false).await;
        }
    }
    row.close();
}

/// A refshim that has recorded something and was stopped; the registry is there still.
async fn stopped() -> (Registry, tempfile::TempDir, Ledger) {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let mut ledger = Ledger::about(&behind, &image, "subject").await;
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let referrers = (0..10).map(|n| ledger.referrer(n)).collect();
    ledger.push(&refshim.client(), referrers, 4, &std::sync::Arc::default()).await;
    assert!(refshim.stop().success());
    (registry, directory, ledger)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_has_one_owner_who_is_not_disturbed_by_others() {
    let (registry, directory, ledger) = stopped().await;
    let mut row = Row::new("files locked by another process");
    row.acknowledged = ledger.acknowledged.len() as u64;
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let second = Refshim::prepare(registry.address, directory.path()).command().output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another process"), "{second:?}");
    row.tried += 1;
    ledger.check(&mut row, &refshim.client(), &registry.client()).await;
    assert!(refshim.stop().success());

    let delta = std::fs::read_dir(directory.path().join("sled")).unwrap().next().unwrap().unwrap().path();
    let lock = File::options().write(true).open(delta.join("db")).unwrap();
    lock.lock().unwrap();
    row.tried += 1;
    let refshim = Refshim::prepare(registry.address, directory.path()).launch_unready();
    ledger.check_failing(&mut row, &refshim.client()).await;
    lock.unlock().unwrap();
    refshim.kill();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    ledger.check(&mut row, &refshim.client(), &registry.client()).await;
    row.close();
}

/// Needs root's rights, or the right to make namespaces of one's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_data_directory_is_refused_and_told_and_left_as_it_was() {
    let (registry, directory, ledger) = stopped().await;
    let mut row = Row::new("data directory read-only");
    row.acknowledged = ledger.acknowledged.len() as u64;
    let files = tree(directory.path());
    let script = r#"mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@""#;
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(directory.path())
        .arg(binary())
        .args(["serve", "--upstream", &registry.url(), "--listen", "127.0.0.1:0"])
        .args(["--admin-listen", "127.0.0.1:0", "--data-dir"])
        .arg(directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    row.tried += 1;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("Read-only file system"), "{told}");
    assert_eq!(tree(directory.path()), files);
    let refshim = Refshim::start(registry.address, directory.path()).await;
    ledger.check(&mut row, &refshim.client(), &registry.client()).await;
    row.close();
}
