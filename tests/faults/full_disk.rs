//! The disk is full while the index is written, and has room again later.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use reqwest::StatusCode;

use crate::ledger::{Ledger, REPOSITORY, put};
use crate::mounted::Mounted;
use crate::random::Random;
use crate::support::{Content, Refshim, Registry, by_environment};
use crate::table::Row;

const DISK_BYTES: u64 = 8 << 20;
/// How much room is left when the disk is filled, at most.
const ROOM: u64 = 96 << 10;

fn start(registry: &Registry, disk: &Mounted) -> Refshim {
    Refshim::prepare(registry.address, disk.path())
        .with("INDEX_COMPACT_BYTES", "128KiB")
        .under(disk.wrapper())
        .launch_unready()
}

fn large_referrer(ledger: &Ledger, n: usize) -> Content {
    ledger.referrer(n).changed(|manifest| manifest["annotations"]["filling"] = "x".repeat(4000).into())
}

/// Pushes until the disk takes no more, and looks at what is answered then.
async fn run_into_it(row: &mut Row, ledger: &mut Ledger, refshim: &Refshim, registry: &Registry) {
    let client = refshim.client();
    let mut failures = 0;
    for n in 1000..1100 {
        let content = large_referrer(ledger, n);
        let answer = put(&client, &content).await;
        match &answer {
            Some(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => failures += 1,
            Some(answer) if answer.status == StatusCode::CREATED => {}
            other => row.mistake(format!("a push came to {other:?}")),
        }
        ledger.take(content, answer.as_ref());
        ledger.check_failing(row, &client).await;
        if failures == 3 {
            break;
        }
    }
    if failures == 0 {
        row.mistake("the disk took everything".to_owned());
    }
    let passed = client.served(REPOSITORY, &ledger.subject.digest).await;
    assert_eq!(passed, registry.client().served(REPOSITORY, &ledger.subject.digest).await);
}

async fn round(row: &mut Row, registry: &Registry, ledger: &mut Ledger, random: &mut Random) {
    let disk = Mounted::memory(DISK_BYTES);
    let refshim = start(registry, &disk);
    refshim.ready().await;
    let before = random.below(40);
    let referrers = (0..before).map(|n| large_referrer(ledger, usize::try_from(n).unwrap())).collect();
    ledger.push(&refshim.client(), referrers, 4, &Arc::new(AtomicUsize::new(0))).await;
    disk.fill(random.below(ROOM));
    run_into_it(row, ledger, &refshim, registry).await;
    if random.coin() {
        assert!(refshim.stop().success());
    } else {
        refshim.kill();
    }
    // It may not be able to open the index now; it is up all the same.
    let refshim = start(registry, &disk);
    ledger.check_failing(row, &refshim.client()).await;
    let passed = refshim.client().served(REPOSITORY, &ledger.subject.digest).await;
    assert_eq!(passed.2, ledger.subject.digest);
    refshim.kill();

    disk.free();
    let refshim = start(registry, &disk);
    refshim.ready().await;
    let (client, behind) = (refshim.client(), registry.client());
    ledger.check(row, &client, &behind).await;
    for content in std::mem::take(&mut ledger.unknown) {
        let answer = put(&client, &content).await;
        ledger.take(content, answer.as_ref());
    }
    assert!(ledger.unknown.is_empty(), "with room again, pushes are taken again");
    ledger.check(row, &client, &behind).await;
    assert!(refshim.stop().success());
}

/// `FAULT_FULL_DISKS` is how often.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_is_no_short_list() {
    let registry = Registry::start();
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let mut random = Random::new(by_environment("FAULT_SEED", 1));
    let mut row = Row::new("disk full, and free again");
    for n in 0..by_environment("FAULT_FULL_DISKS", 2) {
        let mut ledger = Ledger::about(&behind, &image, &format!("subject {n}")).await;
        round(&mut row, &registry, &mut ledger, &mut random).await;
        row.tried += 1;
        row.acknowledged += ledger.acknowledged.len() as u64;
    }
    row.close();
}
