//! Power loss and SIGKILL at each system call: recorded runs of refshim are cut at every step, and an index
//! is opened on what a disk would hold then.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use refshim::index::{Index, IndexSettings, IndexState, ReadError, Referrer, Repository, Scan};
use refshim::oci::{Algorithm, Digest, Link, LinkKind};

use crate::disk::{Loss, Tree, after_crash, plant, tree};
use crate::ledger::{Ledger, REPOSITORY};
use crate::random::Random;
use crate::recording::{self, Step};
use crate::support::{Content, Refshim, Registry, by_environment};
use crate::table::Row;

const WRITERS: usize = 4;

/// One run of a refshim.
struct Run {
    base: Tree,
    steps: Vec<Step>,
    /// The ledger after it.
    ledger: Ledger,
    /// What was acknowledged before it.
    before: BTreeSet<String>,
}

enum End {
    Kill,
    Stop,
}

/// Large enough that a few of them fill a segment.
fn referrers(ledger: &Ledger, range: std::ops::Range<usize>) -> Vec<Content> {
    let large = |n| {
        ledger.referrer(n).changed(|manifest| {
            manifest["annotations"]["filling"] = "x".repeat(4000).into();
            if n % 7 == 0 {
                // The registry does not have this layer, and refuses the manifest.
                manifest["layers"][0]["digest"] = format!("sha256:{n:064x}").into();
            }
        })
    };
    range.map(large).collect()
}

async fn record(
    registry: &Registry,
    data_dir: &Path,
    ledger: &mut Ledger,
    range: std::ops::Range<usize>,
    end: End,
) -> Run {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace");
    let (base, before) = (tree(data_dir), ledger.acknowledged.clone());
    let refshim = Refshim::prepare(registry.address, data_dir)
        .with("INDEX_COMPACT_BYTES", "64KiB")
        .under(recording::wrapper(&file))
        .launch()
        .await;
    let referrers = referrers(ledger, range);
    ledger.push(&refshim.client(), referrers, WRITERS, &Arc::new(AtomicUsize::new(0))).await;
    let pid = refshim.pid();
    match end {
        End::Kill => refshim.kill(),
        End::Stop => assert!(refshim.stop().success()),
    }
    let steps = recording::read(&file, data_dir, pid).await;
    let told: BTreeSet<String> = acknowledged(&steps).cloned().collect();
    let expected: BTreeSet<String> = ledger.acknowledged.difference(&before).cloned().collect();
    assert!(told.is_superset(&expected), "the recording has all acknowledgements");
    Run { base, steps, ledger: ledger.clone(), before }
}

fn acknowledged(steps: &[Step]) -> impl Iterator<Item = &String> {
    steps.iter().filter_map(|step| if let Step::Acknowledge { digest } = step { Some(digest) } else { None })
}

/// A first start, a start after a kill, and a start without sled; each goes on until it compacted.
async fn runs() -> Vec<Run> {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().canonicalize().unwrap();
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let mut ledger = Ledger::about(&behind, &image, "subject").await;
    let first = record(&registry, &data_dir, &mut ledger, 0..60, End::Kill).await;
    let again = record(&registry, &data_dir, &mut ledger, 60..120, End::Stop).await;
    std::fs::remove_dir_all(data_dir.join("sled")).unwrap();
    let rebuilt = record(&registry, &data_dir, &mut ledger, 120..180, End::Kill).await;
    vec![first, again, rebuilt]
}

pub(crate) fn settings(data_dir: &Path) -> IndexSettings {
    IndexSettings {
        database: None,
        data_dir: data_dir.to_owned(),
        cache_bytes: 8 << 20,
        flush_interval: Duration::from_secs(1),
        segment_bytes: 64 << 10,
        compact_bytes: 64 << 10,
        repository_referrers: 1 << 20,
        timeout: Duration::from_secs(60),
        forget_after: Duration::from_secs(3600),
    }
}

fn repository() -> Repository {
    Repository { upstream: 0, name: REPOSITORY.parse().unwrap() }
}

/// What is listed of a subject, each with whether the registry has to be asked for it first.
pub(crate) async fn listed(index: &Index, subject: &str) -> HashMap<String, bool> {
    try_listed(index, subject).await.unwrap()
}

/// The same, or why it cannot be told.
pub(crate) async fn try_listed(index: &Index, subject: &str) -> Result<HashMap<String, bool>, ReadError> {
    let scan = Scan {
        after: None,
        max_entries: usize::MAX,
        max_bytes: usize::MAX,
        max_claims: usize::MAX,
        accepts: Box::new(|_| true),
    };
    let page = index.referrers(repository(), subject.parse().unwrap(), scan).await?;
    Ok(page.entries.into_iter().map(|entry| (entry.digest.to_string(), entry.pending)).collect())
}

/// Records a referrer whose descriptor is so long, about; its digest.
pub(crate) async fn push(index: &Index, subject: &str, name: &str, length: usize) -> String {
    let digest = Digest::of(Algorithm::Sha256, name.as_bytes());
    let descriptor = format!(r#"{{"filling":"{}"}}"#, "x".repeat(length));
    let links = vec![Link { subject: subject.parse().unwrap(), kind: LinkKind::Reference }];
    let referrer = Referrer { digest: digest.clone(), descriptor, links };
    index.begin(repository(), referrer).await.unwrap().confirm().await.unwrap();
    digest.to_string()
}

/// Opens an index on what is left, and pushes one referrer more.
async fn check(row: &mut Row, run: &Run, cut: usize, loss: Loss, random: &mut Random) {
    let what = format!("{loss:?} at step {cut} of {}: {:?}", run.steps.len(), run.steps.get(cut).map(short));
    let steps = &run.steps[..cut];
    let directory = tempfile::tempdir().unwrap();
    plant(&after_crash(&run.base, steps, loss, random), directory.path());
    row.tried += 1;
    let index = match Index::open(settings(directory.path())) {
        Ok(index) => index,
        Err(error) => return row.mistake(format!("{what}: {error}")),
    };
    index.opened().await;
    if index.state() != IndexState::Ready {
        return row.mistake(format!("{what}: {:?}", index.state()));
    }
    let subject = &run.ledger.subject.digest;
    let before = listed(&index, subject).await;
    let told: BTreeSet<&String> = run.before.iter().chain(acknowledged(steps)).collect();
    let told: Vec<_> = told.into_iter().filter(|digest| run.ledger.acknowledged.contains(*digest)).collect();
    row.acknowledged += told.len() as u64;
    for digest in told {
        if before.get(digest) != Some(&false) {
            row.lose(format!("{what}: {digest} is {:?}", before.get(digest)));
        }
    }
    for (digest, pending) in &before {
        if !pending && run.ledger.refused.contains(digest) {
            row.mistake(format!("{what}: {digest} was refused and is listed"));
        }
    }
    let new = push(&index, subject, "one more", 0).await;
    let mut after = listed(&index, subject).await;
    if after.remove(&new) != Some(false) || after != before {
        row.mistake(format!("{what}: a further push was not added to the list"));
    }
    index.close().await;
}

/// A step, told in a line.
fn short(step: &Step) -> String {
    let mut text = format!("{step:?}");
    text.truncate(120);
    text
}

/// Looks at so many of the cuts, chosen by chance.
async fn sample(row: &mut Row, runs: &[Run], losses: &[Loss], count: u64, random: &mut Random) {
    let mut cuts: Vec<(&Run, usize, Loss)> = Vec::new();
    for run in runs {
        let changes = |cut: &usize| run.steps.get(*cut).is_none_or(|step| *step != Step::Nothing);
        let steps = (0..=run.steps.len()).filter(changes);
        cuts.extend(steps.flat_map(|cut| losses.iter().map(move |loss| (run, cut, *loss))));
    }
    for _ in 0..count.min(cuts.len() as u64) {
        let (run, cut, loss) = cuts.swap_remove(random.place(cuts.len() - 1));
        check(row, run, cut, loss, random).await;
    }
}

/// `FAULT_CALLS` and `FAULT_CUTS` are how many.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_kill_or_a_power_cut_leaves_has_every_acknowledged_link() {
    let runs = runs().await;
    let mut random = Random::new(by_environment("FAULT_SEED", 1));
    let mut kill = Row::new("kill at a system call of opening, writing, compacting or closing");
    let mut power = Row::new("power cut: unsynced writes dropped, torn, reordered, zeroed or noise");
    sample(&mut kill, &runs, &[Loss::Nothing], by_environment("FAULT_CALLS", 30), &mut random).await;
    sample(&mut power, &runs, &Loss::POWER, by_environment("FAULT_CUTS", 60), &mut random).await;
    kill.close();
    power.close();
}
