//! SIGKILL at random moments: while pushes are under way, and while refshim starts.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::ledger::{Ledger, REPOSITORY};
use crate::random::Random;
use crate::support::{Client, Content, Refshim, Registry, by_environment};
use crate::table::Row;

const REFERRERS: usize = 200;
const WRITERS: usize = 8;
/// How long pushes go on before the kill, at most, in microseconds.
const LOAD: u64 = 150_000;
/// About as long as a start takes, in microseconds.
const START: u64 = 60_000;
/// After so many rounds, and at the end, all lists are looked at, not the latest alone.
const REVIEW: u64 = 50;
const LATEST: usize = 5;

/// The same settings for all rounds, so that segments end and compactions run while it is killed.
async fn start(registry: &Registry, data_dir: &Path) -> Refshim {
    Refshim::prepare(registry.address, data_dir).with("INDEX_COMPACT_BYTES", "256KiB").launch().await
}

/// Pushes, and a kill in the midst of them, right after `before`.
pub(crate) async fn killed_round(
    refshim: Refshim,
    mut ledger: Ledger,
    random: &mut Random,
    before: impl FnOnce(),
) -> Ledger {
    let client = refshim.client();
    let referrers: Vec<Content> = (0..REFERRERS).map(|n| ledger.referrer(n)).collect();
    let progress = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&progress);
    let pushes = tokio::spawn(async move {
        ledger.push(&client, referrers, WRITERS, &progress).await;
        ledger
    });
    while seen.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_micros(random.below(LOAD))).await;
    before();
    refshim.kill();
    pushes.await.unwrap()
}

async fn kill_while_starting(registry: &Registry, data_dir: &Path, random: &mut Random) {
    let mut command = Refshim::prepare(registry.address, data_dir).command();
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    tokio::time::sleep(Duration::from_micros(random.below(START))).await;
    child.kill().unwrap();
    child.wait().unwrap();
}

/// `FAULT_KILLS` is how often.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_under_load_loses_no_acknowledged_link_and_lists_what_the_registry_has() {
    let registry = Registry::start();
    let behind: Client = registry.client();
    let directory = tempfile::tempdir().unwrap();
    let image = behind.image(REPOSITORY, "image").await;
    let mut random = Random::new(by_environment("FAULT_SEED", 1));
    let (mut load, mut starting) = (Row::new("SIGKILL under load"), Row::new("SIGKILL while starting"));
    let mut ledgers: Vec<Ledger> = Vec::new();
    let rounds = by_environment("FAULT_KILLS", 10);
    for round in 0..rounds {
        let kills = if round % 4 == 3 { 1 + random.below(3) } else { 0 };
        for _ in 0..kills {
            kill_while_starting(&registry, directory.path(), &mut random).await;
        }
        let refshim = start(&registry, directory.path()).await;
        let client = refshim.client();
        let row = if kills > 0 { &mut starting } else { &mut load };
        row.tried += kills;
        let looked_at = if round % REVIEW == 0 { 0 } else { ledgers.len().saturating_sub(LATEST) };
        // The registry is done with what the last process but one began.
        if let [.., ended, _] = ledgers.as_mut_slice() {
            ended.settle(&behind).await;
        }
        for ledger in &ledgers[looked_at..] {
            ledger.check(row, &client, &behind).await;
        }
        let ledger = Ledger::about(&behind, &image, &format!("round {round}")).await;
        let ledger = killed_round(refshim, ledger, &mut random, || ()).await;
        load.tried += 1;
        load.acknowledged += ledger.acknowledged.len() as u64;
        ledgers.push(ledger);
    }
    let refshim = start(&registry, directory.path()).await;
    for ledger in &ledgers {
        ledger.check(&mut load, &refshim.client(), &behind).await;
    }
    starting.acknowledged = load.acknowledged;
    assert!(refshim.stop().success());
    load.close();
    starting.close();
}
