//! An index moves from a data directory to a database and back while writers push and queries are asked:
//! `refshim index copy --follow`, as the manual tells to do it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use refshim::oci::{Algorithm, Digest};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, block_in_place};

use crate::it::support::postgres::Postgres;
use crate::ledger::{Ledger, REPOSITORY};
use crate::support::{Client, Content, Refshim, Registry, binary, by_environment};
use crate::table::Row;

const WRITERS: usize = 20;
/// Referrers of each subject that is pushed to meanwhile.
const REFERRERS: usize = 300;
/// Links are spread over so many repositories.
const REPOSITORIES: u64 = 500;
/// Referrers of each subject of those that are moved.
const OF_ONE: u64 = 5;

fn index(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("index").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn succeed(arguments: &[&str]) -> String {
    let output = index(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn digest(text: &str) -> String {
    Digest::of(Algorithm::Sha256, text.as_bytes()).to_string()
}

fn repository(n: u64) -> String {
    format!("moved/{}", n / OF_ONE % REPOSITORIES)
}

/// Fills a data directory with so many links, like the one that the index in `like` holds.
fn fill(like: &Path, data: &str, links: u64) {
    let dumped = succeed(&["dump", "--data-dir", like.to_str().unwrap()]);
    let mut template = dumped.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut head = template.next().unwrap();
    let mut record = json!({"recorded": template.find_map(|line| line.get("begun").cloned()).unwrap()});
    record["recorded"]["pending"] = json!(false);
    let descriptor = record["recorded"]["descriptor"].as_str().unwrap();
    let mut descriptor: Value = serde_json::from_str(descriptor).unwrap();
    head["refshim"]["last_order"] = json!(links + 1);
    let file = Path::new(data).with_extension("jsonl");
    let mut output = BufWriter::new(File::create(&file).unwrap());
    writeln!(output, "{head}").unwrap();
    for n in 0..links {
        let referrer = digest(&format!("moved {n}"));
        descriptor["digest"] = json!(referrer);
        let recorded = &mut record["recorded"];
        recorded["order"] = json!(n + 1);
        recorded["descriptor"] = json!(descriptor.to_string());
        recorded["referrer"]["name"] = json!(repository(n));
        recorded["referrer"]["digest"] = json!(referrer);
        recorded["links"][0]["subject"] = json!(digest(&format!("subject {}", n / OF_ONE)));
        writeln!(output, "{record}").unwrap();
    }
    writeln!(output, "{}", json!({"end": {"records": links}})).unwrap();
    output.into_inner().unwrap().sync_all().unwrap();
    succeed(&["load", "--data-dir", data, file.to_str().unwrap()]);
    std::fs::remove_file(file).unwrap();
}

/// Writers and somebody who asks, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    progress: Arc<AtomicUsize>,
    writing: JoinHandle<Vec<Ledger>>,
    asking: JoinHandle<u64>,
}

impl Load {
    fn begin(client: Client, registry: Client, image: Content, name: &'static str) -> Self {
        let (stop, progress) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (told, seen, writer) = (Arc::clone(&stop), Arc::clone(&progress), client.clone());
        let subject = image.digest.clone();
        let writing = tokio::spawn(async move {
            let mut ledgers = Vec::new();
            while !told.load(Ordering::SeqCst) {
                let (about, began) = (format!("{name} {}", ledgers.len()), Instant::now());
                let mut ledger = Ledger::about(&registry, &image, &about).await;
                let referrers = (0..REFERRERS).map(|n| ledger.referrer(n)).collect();
                ledger.push(&writer, referrers, WRITERS, &seen).await;
                ledgers.push(ledger);
                // Half of the machine is the copy's: it ends only if it is quicker than the writers.
                tokio::time::sleep(began.elapsed()).await;
            }
            ledgers
        });
        let told = Arc::clone(&stop);
        let asking = tokio::spawn(async move {
            let mut asked = 0;
            while !told.load(Ordering::SeqCst) {
                let path = format!("/v2/{REPOSITORY}/referrers/{subject}");
                assert_eq!(client.send(client.request(Method::GET, &path)).await.status, StatusCode::OK);
                asked += 1;
            }
            asked
        });
        Self { stop, progress, writing, asking }
    }

    /// Waits until so many more were pushed.
    async fn goes_on(&self, pushes: usize) {
        let until = self.progress.load(Ordering::SeqCst) + pushes;
        while self.progress.load(Ordering::SeqCst) < until {
            assert!(!self.asking.is_finished(), "a query was refused");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(self) -> (Vec<Ledger>, u64) {
        self.stop.store(true, Ordering::SeqCst);
        (self.writing.await.unwrap(), self.asking.await.unwrap())
    }
}

/// Copies while this refshim serves and is pushed to, and goes on until it has stopped: then both are equal.
async fn moved(refshim: Refshim, load: Load, from: &str, to: &str, links: u64) -> Vec<Ledger> {
    load.goes_on(WRITERS).await;
    let began = Instant::now();
    let told = block_in_place(|| index(&["copy", "--quiet", "--from", from, "--to", to]).output().unwrap());
    let first = began.elapsed();
    // Written to meanwhile, the two differ by what was pushed since, as the exit code says.
    assert!(matches!(told.status.code(), Some(0 | 1)), "{told:?}");
    let mut following = index(&["copy", "--follow", "--quiet", "--from", from, "--to", to]).spawn().unwrap();
    load.goes_on(2 * WRITERS).await;
    assert!(following.try_wait().unwrap().is_none());
    let (ledgers, asked) = load.end().await;
    let stopped = Instant::now();
    assert!(refshim.stop().success());
    let pid = following.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let done = block_in_place(|| following.wait_with_output().unwrap());
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && text.ends_with("equal\n"), "{done:?}");
    let acknowledged: usize = ledgers.iter().map(|ledger| ledger.acknowledged.len()).sum();
    println!(
        "{links} links: the first copy took {first:.1?}, the last pass {:.1?}; meanwhile {acknowledged} pushes and \
         {asked} queries. {text}",
        stopped.elapsed(),
    );
    ledgers
}

/// The database holds everything that was there before.
fn check_moved(row: &mut Row, database: &str, links: u64) {
    let dumped = succeed(&["dump", "--url", database]);
    let digests = dumped.split("\"digest\":\"").skip(1).filter_map(|part| part.split('"').next());
    let held: HashSet<&str> = digests.collect();
    for referrer in (0..links).map(|n| digest(&format!("moved {n}"))) {
        if !held.contains(referrer.as_str()) {
            row.lose(format!("{referrer} was not moved"));
        }
    }
}

/// `FAULT_MOVED` is how many links there are before it begins.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_moves_to_a_database_and_back_while_writers_push() {
    let links = by_environment("FAULT_MOVED", 2_000);
    let (registry, postgres) = (Registry::start(), Postgres::start());
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let like = Refshim::start(registry.address, &directory.path().join("like")).await;
    let one = Ledger::about(&behind, &image, "like").await;
    like.client().push(REPOSITORY, &one.referrer(0)).await;
    assert!(like.stop().success());
    let (data, back, url) = (path("data"), path("back"), postgres.url());
    block_in_place(|| fill(&directory.path().join("like"), &data, links));

    let mut row = Row::new("the index moves to a database and back under load");
    let refshim = Refshim::start(registry.address, Path::new(&data)).await;
    let load = Load::begin(refshim.client(), behind.clone(), image.clone(), "to the database");
    let mut ledgers = moved(refshim, load, &data, &url, links).await;
    block_in_place(|| check_moved(&mut row, &url, links));

    let unused = directory.path().join("replica");
    let replica = Refshim::prepare(registry.address, &unused).with("INDEX_URL", &url).launch().await;
    for ledger in &ledgers {
        ledger.check(&mut row, &replica.client(), &behind).await;
    }
    let load = Load::begin(replica.client(), behind.clone(), image.clone(), "and back");
    ledgers.extend(moved(replica, load, &url, &back, links).await);
    let refshim = Refshim::start(registry.address, Path::new(&back)).await;
    for ledger in &ledgers {
        ledger.check(&mut row, &refshim.client(), &behind).await;
        row.acknowledged += ledger.acknowledged.len() as u64;
    }
    assert!(refshim.stop().success());
    row.tried = 2;
    row.close();
}
