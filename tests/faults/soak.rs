//! Pushes, pulls, queries and deletes at the machine's limit, on two registries at once. The way to one of
//! them breaks again and again, it answers oddly, and clients go away; only what was under way then may fail,
//! no answer may be wrong, and neither memory nor file descriptors may grow.

mod storms;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use self::storms::{GRACE, Kind, Storms};
use self::worker::{Found, Worker};
use crate::door::{Door, Weather};
use crate::oddities::{Oddities, Oddity};
use crate::random::Random;
use crate::support::{Refshim, Registry, by_environment};
use crate::table::Row;

/// Clients of each registry.
const WORKERS: u64 = 12;
const CALM: Duration = Duration::from_secs(3);
const STORM: Duration = Duration::from_secs(1);
/// Longer, for refshim asks little and remembers the answers.
const ODD_STORM: Duration = Duration::from_secs(2);
/// How long connections that a storm ended may go on to be found dead.
const AFTERMATH: Duration = Duration::from_millis(500);
/// How much larger the last third may be than the second.
const MEMORY_MARGIN: u64 = 24 << 20;
const DESCRIPTOR_MARGIN: u64 = 64;

/// How many files, sockets among them, the process has open.
fn descriptors(refshim: &Refshim) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", refshim.pid())).unwrap().count() as u64
}

/// Memory in bytes and open files, once a second.
async fn sample(refshim: &Refshim, until: Instant) -> Vec<(u64, u64)> {
    let mut samples = Vec::new();
    while Instant::now() < until {
        samples.push((refshim.memory(), descriptors(refshim)));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    samples
}

/// `FAULT_SOAK` is for how many seconds.
#[tokio::test(flavor = "multi_thread")]
async fn for_as_long_as_it_is_under_load_nothing_is_lost_and_nothing_grows() {
    let (sound, broken) = (Registry::start(), Registry::start());
    let oddities = Oddities::before(broken.address).await;
    let door = Door::before(oddities.address).await;
    let directory = tempfile::tempdir().unwrap();
    let start = || {
        Refshim::prepare(sound.address, directory.path())
            .with("UPSTREAMS_BROKEN_URL", &format!("http://{}", door.address))
            .with("UPSTREAMS_BROKEN_PREFIXES", "broken")
            .with("UPSTREAMS_BROKEN_STRIP_PREFIX", "true")
            .with("INDEX_COMPACT_BYTES", "4MiB")
            .with("LOG_FILTER", "warn,refshim::cli=info")
    };
    let refshim = start().launch().await;
    let storms = Arc::new(Storms::default());
    let seed = by_environment("FAULT_SEED", 1);
    let mut workers = Vec::new();
    for n in 0..WORKERS {
        let storms = Arc::clone(&storms);
        let name = format!("w{n}");
        workers.push(Worker::start((&refshim, ""), (&sound, &name), seed + n, None).await);
        let there = (&refshim, "broken/");
        workers.push(Worker::start(there, (&broken, &name), seed + n, Some(storms)).await);
    }
    let mut row = Row::new("connections break, answers are odd and clients go away under mixed load");
    let until = Instant::now() + Duration::from_secs(by_environment("FAULT_SOAK", 20));
    let mut load: JoinSet<Worker> = workers.into_iter().map(|worker| worker.work(until)).collect();
    let weather = async {
        let mut random = Random::new(seed);
        let mut breaks = Weather::STORMS.into_iter().cycle();
        let mut calm = CALM;
        for is_odd in [true, false].into_iter().cycle() {
            tokio::time::sleep(calm).await;
            if Instant::now() >= until {
                break;
            }
            // Half of the odd storms break connections, too.
            let weather = if is_odd && random.coin() { None } else { breaks.next() };
            let kind = Kind { breaks: weather.is_some(), is_odd };
            storms.change(kind);
            if is_odd {
                oddities.set(Oddity::some(&mut random), random.next());
            }
            // Any change of the weather breaks connections.
            if let Some(weather) = weather {
                door.set(weather);
            }
            tokio::time::sleep(if is_odd { ODD_STORM } else { STORM }).await;
            if weather.is_some() {
                door.set(Weather::Calm);
            }
            oddities.set(Vec::new(), seed);
            tokio::time::sleep(AFTERMATH).await;
            storms.change(kind);
            refshim.hang_up();
            row.tried += 1;
            calm = if is_odd { GRACE + CALM } else { CALM };
        }
    };
    let (samples, ()) = tokio::join!(sample(&refshim, until), weather);
    let mut workers = Vec::new();
    while let Some(worker) = load.join_next().await {
        workers.push(worker.unwrap());
    }
    tokio::time::sleep(GRACE).await;
    for worker in &mut workers {
        worker.query().await;
    }
    if refshim.logged("\"level\":\"ERROR\"") {
        row.mistake(refshim.lines().join("\n"));
    }
    refshim.kill();
    let refshim = start().launch().await;
    let mut all = Found::default();
    for mut worker in workers {
        worker.client = refshim.client();
        worker.query().await;
        all.requests += worker.found.requests;
        all.excused += worker.found.excused;
        all.lacking += worker.found.lacking;
        row.tried += worker.found.gone_away;
        row.acknowledged += worker.found.acknowledged;
        worker.found.lost.into_iter().for_each(|finding| row.lose(finding));
        worker.found.wrong.into_iter().for_each(|finding| row.mistake(finding));
    }
    let thirds: Vec<&[(u64, u64)]> = samples.chunks(samples.len().div_ceil(3)).collect();
    let most =
        |of: fn(&(u64, u64)) -> u64| thirds.iter().map(move |third| third.iter().map(of).max().unwrap());
    let memory: Vec<u64> = most(|sample| sample.0).collect();
    let descriptors: Vec<u64> = most(|sample| sample.1).collect();
    let (requests, excused) = (all.requests, all.excused);
    println!(
        "{requests} requests, {excused} of them failed by a storm; the most memory (bytes) in each third:"
    );
    println!("{memory:?}, and descriptors: {descriptors:?}");
    println!("{} entries were missing from lists for a moment; odd answers dealt:", all.lacking);
    print!("{}", oddities.dealt());
    assert!(memory[2] <= memory[1] + MEMORY_MARGIN, "memory grows");
    assert!(descriptors[2] <= descriptors[1] + DESCRIPTOR_MARGIN, "descriptors grow");
    row.close();
}
