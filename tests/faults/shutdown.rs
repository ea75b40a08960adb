//! A real file system that is shut down while pushes are under way, and mounted again.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use crate::kills::killed_round;
use crate::ledger::{Ledger, REPOSITORY};
use crate::mounted::Mounted;
use crate::random::Random;
use crate::support::{Client, Refshim, Registry, by_environment};
use crate::table::Row;

const DISK_BYTES: u64 = 64 << 20;

/// An ext4 in a file.
fn make_ext4(image: &Path) {
    File::create(image).unwrap().set_len(DISK_BYTES).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image).status().unwrap();
    assert!(made.success());
}

async fn start(registry: &Registry, disk: &Mounted) -> Refshim {
    Refshim::prepare(registry.address, disk.path())
        .with("INDEX_COMPACT_BYTES", "128KiB")
        .under(disk.wrapper())
        .launch()
        .await
}

/// Linux 6.18 says of a sync that the shutdown overtakes that it succeeded, though nothing was written. An
/// acknowledged link takes two syncs, one after the other; of another the registry may know, and nobody else.
async fn look(row: &mut Row, ledger: &Ledger, refshim: &Refshim, registry: &Client) {
    let unlisted = ledger.check_acknowledged(row, &refshim.client(), registry).await;
    if !unlisted.is_empty() {
        println!("sent before a sync that never was, and not acknowledged: {unlisted:?}");
    }
}

/// `FAULT_SHUTDOWNS` is how often. Where a file cannot be mounted it says so, and that is all.
#[tokio::test(flavor = "multi_thread")]
async fn an_ext4_that_is_shut_down_has_every_acknowledged_link() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let image_file = directory.path().join("ext4");
    make_ext4(&image_file);
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let mut random = Random::new(by_environment("FAULT_SEED", 1));
    let mut row = Row::new("ext4 shut down during pushes");
    let mut ledgers: Vec<Ledger> = Vec::new();
    for round in 0..by_environment("FAULT_SHUTDOWNS", 2) {
        let Some(disk) = Mounted::ext4(&image_file) else {
            println!("this machine mounts no file: an ext4 that is shut down was not tried");
            return;
        };
        let refshim = start(&registry, &disk).await;
        for ledger in &ledgers {
            look(&mut row, ledger, &refshim, &behind).await;
        }
        let ledger = Ledger::about(&behind, &image, &format!("round {round}")).await;
        let ledger = killed_round(refshim, ledger, &mut random, || disk.shut_down()).await;
        row.tried += 1;
        row.acknowledged += ledger.acknowledged.len() as u64;
        ledgers.push(ledger);
        disk.unmount();
    }
    let disk = Mounted::ext4(&image_file).unwrap();
    let refshim = start(&registry, &disk).await;
    for ledger in &ledgers {
        look(&mut row, ledger, &refshim, &behind).await;
    }
    assert!(refshim.stop().success());
    disk.unmount();
    row.close();
}
