//! Many writers and many who ask, over as many compactions as come.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "buckets of a histogram, and what is printed of it"
)]

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use refshim::index::Index;

use super::{Failed, digest, everything, put, repository};

const CLIENTS: u64 = 24;
/// Of each writer, so that the index grows as a busy one does and not as fast as it can.
const PAUSE: Duration = Duration::from_millis(20);
/// Buckets of latencies, each a tenth wider than the one before, from ten microseconds on.
const BUCKETS: usize = 160;

/// How long things took.
#[derive(Debug)]
struct Latencies([AtomicU64; BUCKETS]);

impl Latencies {
    fn new() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }

    fn add(&self, took: Duration) {
        let micros = took.as_secs_f64() * 1e6;
        let bucket = ((micros / 10.0).max(1.0).ln() / 1.1f64.ln()) as usize;
        if let Some(bucket) = self.0.get(bucket.min(BUCKETS - 1)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The time, in milliseconds, that this share took at most.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut so_far = 0;
        for (bucket, count) in (0..).zip(&self.0) {
            so_far += count.load(Ordering::Relaxed);
            if so_far >= wanted {
                return 0.01 * 1.1f64.powi(bucket + 1);
            }
        }
        f64::NAN
    }
}

/// By whether a compaction ran meanwhile.
type Both = [Latencies; 2];

#[derive(Debug)]
struct Seen {
    is_compacting: AtomicBool,
    puts: Both,
    lists: Both,
}

/// Whether a snapshot is being written.
fn is_compacting() -> bool {
    let journal = PathBuf::from(std::env::var_os("REFSHIM_DATA_DIR").unwrap_or_default()).join("journal");
    let files = std::fs::read_dir(journal).into_iter().flatten().flatten();
    files.into_iter().any(|file| file.path().extension().is_some_and(|extension| extension == "tmp"))
}

pub(super) async fn run(index: &Index, lasts: Duration) -> Result<(), Failed> {
    let new = || [Latencies::new(), Latencies::new()];
    let seen = Seen { is_compacting: AtomicBool::new(false), puts: new(), lists: new() };
    let (seen, began) = (Arc::new(seen), Instant::now());
    let end = began + lasts;
    let mut tasks = Vec::new();
    for client in 0..CLIENTS {
        tasks.push(tokio::spawn(write(index.clone(), Arc::clone(&seen), client, end)));
        tasks.push(tokio::spawn(ask(index.clone(), Arc::clone(&seen), client, end)));
    }
    let mut told = began;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
        seen.is_compacting.store(is_compacting(), Ordering::Relaxed);
        if let Some(task) = tasks.iter().position(tokio::task::JoinHandle::is_finished) {
            tasks.swap_remove(task).await??;
        }
        if told.elapsed() >= Duration::from_secs(60) {
            told = Instant::now();
            tell(index, &seen, began)?;
        }
    }
    for task in tasks {
        task.await??;
    }
    tell(index, &seen, began)
}

async fn write(index: Index, seen: Arc<Seen>, client: u64, end: Instant) -> Result<(), Failed> {
    let mut n = 0;
    while Instant::now() < end {
        let (name, subject) = (format!("soak {client} {n}"), format!("soak {client} {}", n / 4));
        let start = Instant::now();
        put(&index, &format!("soak/{}", client % 8), &name, &subject).await?;
        seen.took(&seen.puts, start);
        n += 1;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Asks for what was written a while ago, all of which must be there.
async fn ask(index: Index, seen: Arc<Seen>, client: u64, end: Instant) -> Result<(), Failed> {
    let mut n = 0u64;
    while Instant::now() < end {
        let start = Instant::now();
        let subject = digest(&format!("soak {client} {}", n / 2));
        let page =
            index.referrers(repository(&format!("soak/{}", client % 8))?, subject, everything()).await?;
        seen.took(&seen.lists, start);
        // Whoever writes to it is ahead by far, but for the first moments.
        if page.entries.len() == 4 {
            n += 1;
        } else if n > 100 && page.entries.len() > 4 {
            return Err("a list has too many".into());
        }
        tokio::time::sleep(PAUSE / 2).await;
    }
    if n > 100 { Ok(()) } else { Err("lists are short".into()) }
}

impl Seen {
    fn took(&self, latencies: &Both, start: Instant) {
        let [quiet, compacting] = latencies;
        let is_compacting = self.is_compacting.load(Ordering::Relaxed);
        if is_compacting { compacting } else { quiet }.add(start.elapsed());
    }
}

fn tell(index: &Index, seen: &Seen, began: Instant) -> Result<(), Failed> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default().trim();
    let compactions = index.statistics().map_or(0, |statistics| statistics.compactions);
    let mut line = format!("{:>5} s, {memory}, {compactions} compactions", began.elapsed().as_secs());
    for (what, [quiet, compacting]) in [("PUT", &seen.puts), ("list", &seen.lists)] {
        write!(
            line,
            ", {what}: {} and {} while compacting, p50 {:.2} and {:.2} ms, p99 {:.2} and {:.2} ms",
            quiet.count(),
            compacting.count(),
            quiet.quantile(0.5),
            compacting.quantile(0.5),
            quiet.quantile(0.99),
            compacting.quantile(0.99)
        )?;
    }
    Ok(writeln!(io::stdout(), "{line}")?)
}
