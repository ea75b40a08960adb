//! Load on an index, through its interface alone: `index_load SECONDS`, with the index that `REFSHIM_DATA_DIR` or
//! `REFSHIM_INDEX_URL` names. Prints a line `begin NAME` before each case and `end NAME COUNT SECONDS CPU` after it, all
//! times in seconds, CPU user and system of this process.
//!
//! `index_load dump LINKS` prints a dump of so many links, for `refshim index load`; `index_load SECONDS LINKS` also lists
//! random subjects of an index that was made of it.
//!
//! `index_load soak SECONDS` has 24 write and 24 ask, and prints a line each minute: what was done, whether anything
//! failed, memory, and the time that one of a hundred took at least, while a compaction ran and while none did.

use std::error::Error;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use refshim::config::{CommandLine, Config};
use refshim::index::{Index, IndexSettings, IndexState, Referrer, Repository, Scan};
use refshim::oci::{Algorithm, Digest, Link, LinkKind};

#[path = "soak.rs"]
mod soak;

type Failed = Box<dyn Error + Send + Sync>;

/// Cases of queries: subjects with so many referrers.
const REFERRERS: [u64; 4] = [1, 10, 100, 1_000];
const WRITERS: [u64; 3] = [1, 16, 64];

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failed> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: index_load SECONDS [LINKS] | index_load dump LINKS | index_load soak SECONDS";
    let seconds = arguments.next().ok_or(usage)?;
    let links: u64 = arguments.next().map_or(Ok(0), |links| links.parse())?;
    if seconds == "dump" {
        return dump(links, &mut io::BufWriter::new(io::stdout().lock()));
    }
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
    if seconds == "soak" {
        soak::run(&index, Duration::from_secs(links)).await?;
        index.close().await;
        return Ok(());
    }
    let lasts = Duration::from_secs(seconds.parse()?);
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
                let subject = digest(&referrers.to_string());
                let page = index.referrers(repository("bench/queries")?, subject, everything()).await?;
                if page.entries.len() as u64 == referrers { Ok(()) } else { Err("not all are listed".into()) }
            }
        })
        .await?;
    }
    for links_each in [1, 1_000] {
        if Group::nth_of(links, links_each, 0).is_some() {
            let (index, name) = (index.clone(), format!("random lists of {links_each}"));
            measure(&name, lasts, 1, move |_, n| {
                let index = index.clone();
                async move {
                    // Any order that is not theirs.
                    let nth = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
                    let Some(group) = Group::nth_of(links, links_each, nth) else { return Ok(()) };
                    let page =
                        index.referrers(repository(&group.name())?, group.subject(), everything()).await?;
                    if page.entries.len() as u64 == links_each {
                        Ok(())
                    } else {
                        Err("not all are listed".into())
                    }
                }
            })
            .await?;
        }
    }
    index.close().await;
    Ok(())
}

/// Of ten thousand links of a dump, these many are of subjects with so many each.
const SHARES: [(u64, u64); 4] = [(6_000, 1), (2_000, 10), (1_000, 100), (1_000, 1_000)];
const CYCLE: u64 = 10_000;
const REPOSITORIES: u64 = 500;

/// A subject and its links.
struct Group {
    /// The number of its first link.
    first: u64,
    links: u64,
}

impl Group {
    /// All groups of a dump of so many links, in order.
    fn all(links: u64) -> impl Iterator<Item = Self> {
        let cycles = (0..links.div_ceil(CYCLE)).flat_map(|cycle| {
            let mut first = cycle * CYCLE;
            SHARES.into_iter().flat_map(move |(share, each)| {
                let begin = first;
                first += share;
                (0..share / each).map(move |n| Self { first: begin + n * each, links: each })
            })
        });
        cycles.filter(move |group| group.first + group.links <= links)
    }

    /// One of the groups of so many links each.
    fn nth_of(links: u64, each: u64, nth: u64) -> Option<Self> {
        let before: u64 = SHARES.iter().take_while(|(_, of)| *of != each).map(|(share, _)| share).sum();
        let (share, _) = SHARES.iter().find(|(_, of)| *of == each)?;
        let in_cycle = share / each;
        let in_last = (links % CYCLE).saturating_sub(before).min(*share) / each;
        let nth = nth.checked_rem(in_cycle * (links / CYCLE) + in_last)?;
        Some(Self { first: nth / in_cycle * CYCLE + before + nth % in_cycle * each, links: each })
    }

    fn name(&self) -> String {
        let number = self.first % REPOSITORIES;
        format!("team-{:02}/service-{number:04}", number % 25)
    }

    fn subject(&self) -> Digest {
        digest(&format!("subject {}", self.first))
    }
}

/// A dump of links as they usually are: signatures and attestations of cosign.
fn dump(links: u64, output: &mut impl io::Write) -> Result<(), Failed> {
    writeln!(output, r#"{{"refshim":{{"format":1,"last_order":0}}}}"#)?;
    let mut records = 0;
    for group in Group::all(links) {
        let (name, subject) = (group.name(), group.subject());
        for n in group.first..group.first + group.links {
            let referrer = digest(&format!("referrer {n}"));
            let signature = if n % 3 == 0 {
                format!(
                    r#",\"dev.cosignproject.cosign/signature\":\"MEUCIQ{:x}{}\""#,
                    n * 7919,
                    digest(&n.to_string())
                )
            } else {
                String::new()
            };
            writeln!(
                output,
                concat!(
                    r#"{{"recorded":{{"referrer":{{"upstream":0,"name":"{}","digest":"{}"}},"order":{},"pending":false,"#,
                    r#""descriptor":"{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"{}\","#,
                    r#"\"size\":{},\"artifactType\":\"application/vnd.dev.cosign.artifact.sig.v1+json\",\"annotations\":"#,
                    r#"{{\"org.opencontainers.image.created\":\"2026-03-{:02}T{:02}:{:02}:00Z\"{}}}}}","#,
                    r#""links":[{{"subject":"{}","kind":"subject"}}]}}}}"#
                ),
                name,
                referrer,
                1_700_000_000_000_000 + n,
                referrer,
                700 + n % 90,
                n % 28 + 1,
                n % 24,
                n % 60,
                signature,
                subject
            )?;
            records += 1;
        }
    }
    writeln!(output, r#"{{"end":{{"records":{records}}}}}"#)?;
    Ok(output.flush()?)
}

/// All on one page.
fn everything() -> Scan {
    Scan {
        after: None,
        max_entries: 10_000,
        max_bytes: 4 << 20,
        max_claims: 10_000,
        accepts: Box::new(|_| true),
    }
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
