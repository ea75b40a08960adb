//! Load on an index, through its interface alone: `index_load SECONDS`, with the index that `REFSHIM_DATA_DIR` or
//! `REFSHIM_INDEX_URL` names. Prints a line `begin NAME` before each case and `end NAME COUNT SECONDS CPU` after it, all
//! times in seconds, CPU user and system of this process.

use std::error::Error;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use refshim::config::{CommandLine, Config};
use refshim::index::{Index, IndexSettings, IndexState, Referrer, Repository, Scan};
use refshim::oci::{Algorithm, Digest, Link, LinkKind};

type Failed = Box<dyn Error + Send + Sync>;

/// Cases of queries: subjects with so many referrers.
const REFERRERS: [u64; 4] = [1, 10, 100, 1_000];
const WRITERS: [u64; 3] = [1, 16, 64];

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failed> {
    let seconds = std::env::args().nth(1).ok_or("usage: index_load SECONDS")?.parse()?;
    let given = CommandLine { upstream: Some("http://127.0.0.1:9".to_owned()), ..CommandLine::default() };
    let index = Index::open(IndexSettings::of(&Config::load(&given, std::env::vars_os())?))?;
    index.opened().await;
    if index.state() != IndexState::Ready {
        return Err(format!("the index is {:?}", index.state()).into());
    }
    for referrers in REFERRERS {
        for n in 0..referrers {
            put(&index, "bench/queries", &format!("{referrers} {n}"), &referrers.to_string()).await?;
        }
    }
    let lasts = Duration::from_secs(seconds);
    for writers in WRITERS {
        let index = index.clone();
        measure(&format!("PUT by {writers}"), lasts, writers, move |writer, n| {
            let (index, name) = (index.clone(), format!("{writers} {writer} {n} {}", std::process::id()));
            async move {
                // Usual: a few signatures and SBOMs of an image.
                put(&index, &format!("bench/{}", writer % 8), &name, &format!("{writer} {}", n / 4)).await
            }
        })
        .await?;
    }
    for referrers in REFERRERS {
        let index = index.clone();
        measure(&format!("list of {referrers}"), lasts, 1, move |_, _| {
            let index = index.clone();
            async move {
                let scan = Scan {
                    after: None,
                    max_entries: 10_000,
                    max_bytes: 4 << 20,
                    max_claims: 10_000,
                    accepts: Box::new(|_| true),
                };
                let subject = digest(&referrers.to_string());
                let page = index.referrers(repository("bench/queries")?, subject, scan).await?;
                if page.entries.len() as u64 == referrers { Ok(()) } else { Err("not all are listed".into()) }
            }
        })
        .await?;
    }
    index.close().await;
    Ok(())
}

fn repository(name: &str) -> Result<Repository, Failed> {
    Ok(Repository { upstream: 0, name: name.parse()? })
}

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

/// A PUT of a referrer that nobody knows, begun and confirmed.
async fn put(index: &Index, name: &str, referrer: &str, subject: &str) -> Result<(), Failed> {
    let digest_of_it = digest(&format!("referrer {referrer}"));
    let descriptor = format!(
        "{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"size\":1024,\"digest\":\"{digest_of_it}\",\
         \"artifactType\":\"application/vnd.dev.cosign.simplesigning.v1+json\",\
         \"annotations\":{{\"org.opencontainers.image.created\":\"2026-01-01T00:00:00Z\"}}}}"
    );
    let links = vec![Link { subject: digest(subject), kind: LinkKind::Subject }];
    let referrer = Referrer { digest: digest_of_it, descriptor, links };
    Ok(index.begin(repository(name)?, referrer).await?.confirm().await?)
}

/// Does `work` with so many at a time for so long.
async fn measure<W>(
    name: &str,
    lasts: Duration,
    at_a_time: u64,
    work: impl Fn(u64, u64) -> W + Clone + Send + 'static,
) -> Result<(), Failed>
where
    W: Future<Output = Result<(), Failed>> + Send,
{
    writeln!(io::stdout(), "begin {name}")?;
    let (began, cpu, count) = (Instant::now(), cpu()?, Arc::new(AtomicU64::new(0)));
    let tasks = (0..at_a_time).map(|one| {
        let (work, count) = (work.clone(), Arc::clone(&count));
        tokio::spawn(async move {
            let mut n = 0;
            while began.elapsed() < lasts {
                work(one, n).await?;
                n += 1;
            }
            count.fetch_add(n, Ordering::Relaxed);
            Ok::<(), Failed>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    let count = count.load(Ordering::Relaxed);
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), self::cpu()? - cpu);
    writeln!(io::stdout(), "end {name} {count} {seconds:.3} {cpu:.3}")?;
    Ok(())
}

/// User and system time of this process so far.
fn cpu() -> Result<f64, Failed> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/self/stat is unreadable")?;
    let ticks: f64 =
        fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<_, _>>()?;
    // Of Linux, everywhere.
    Ok(ticks / 100.0)
}
