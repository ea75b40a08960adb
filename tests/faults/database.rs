//! The database of the index is killed, fails over to a standby, or is empty when ten replicas start at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::it::support::postgres::{PASSWORD, Postgres, ROLE};
use crate::ledger::{Ledger, REPOSITORY};
use crate::random::Random;
use crate::support::{Client, Content, Refshim, Registry, by_environment};
use crate::table::Row;

const REFERRERS: usize = 120;
const WRITERS: usize = 8;
/// How long pushes go on before the database is killed, at most, in microseconds.
const LOAD: u64 = 300_000;
/// Long enough for a busy machine; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(60);

/// A refshim with its index in the database, and its data directory, which it does not use.
async fn start(registry: &Registry, url: &str) -> (Refshim, TempDir) {
    let (refshim, directory) = start_unready(registry, url);
    refshim.ready().await;
    (refshim, directory)
}

fn start_unready(registry: &Registry, url: &str) -> (Refshim, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let start = Refshim::prepare(registry.address, directory.path());
    let start = start.with("INDEX_URL", url).with("INDEX_MIGRATE", "true");
    (start.launch_unready(), directory)
}

/// Both servers in one URL, in this order.
fn url_of(servers: [&Postgres; 2]) -> String {
    let [one, other] = servers.map(Postgres::port);
    format!("postgres://{ROLE}:{PASSWORD}@127.0.0.1:{one},127.0.0.1:{other}/{ROLE}?sslmode=disable")
}

/// Asks for the references of a manifest: what the answer's status is.
async fn status_of_query(client: &Client, subject: &Content) -> StatusCode {
    let path = format!("/v2/{REPOSITORY}/manifests/{}/references", subject.digest);
    client.send(client.request(Method::GET, &path)).await.status
}

/// Waits until queries are answered again; until then, with 503.
async fn until_it_answers(client: &Client, subject: &Content) {
    let began = Instant::now();
    loop {
        match status_of_query(client, subject).await {
            StatusCode::OK => return,
            StatusCode::SERVICE_UNAVAILABLE => assert!(began.elapsed() < LIMIT, "queries stay refused"),
            status => panic!("a query was answered {status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Pushes, and this in the midst of them.
async fn round(refshim: &Refshim, mut ledger: Ledger, random: &mut Random, fault: impl FnOnce()) -> Ledger {
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
    block_in_place(fault);
    pushes.await.unwrap()
}

/// `FAULT_DATABASE_KILLS` is how often.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_killed_under_load_has_every_acknowledged_link() {
    let (registry, mut postgres) = (Registry::start(), Postgres::start());
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let (refshim, _directory) = start(&registry, &postgres.url()).await;
    let client = refshim.client();
    let mut random = Random::new(by_environment("FAULT_SEED", 1));
    let mut row = Row::new("SIGKILL of PostgreSQL under load");
    let mut ledgers: Vec<Ledger> = Vec::new();
    for n in 0..by_environment("FAULT_DATABASE_KILLS", 6) {
        let ledger = Ledger::about(&behind, &image, &format!("round {n}")).await;
        let ledger = round(&refshim, ledger, &mut random, || postgres.kill9()).await;
        assert_eq!(
            status_of_query(&client, &ledger.subject).await,
            StatusCode::SERVICE_UNAVAILABLE,
            "without its database, refshim says so"
        );
        block_in_place(|| postgres.start_again());
        until_it_answers(&client, &ledger.subject).await;
        row.tried += 1;
        row.acknowledged += ledger.acknowledged.len() as u64;
        ledgers.push(ledger);
        for ledger in ledgers.iter().rev().take(3) {
            ledger.check(&mut row, &client, &behind).await;
        }
    }
    // Another process, which remembers nothing.
    refshim.kill();
    let (refshim, _directory) = start(&registry, &postgres.url()).await;
    for ledger in &ledgers {
        ledger.check(&mut row, &refshim.client(), &behind).await;
    }
    assert!(refshim.stop().success());
    row.close();
}

/// `FAULT_FAILOVERS` is how often.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_synchronous_standby_keeps_every_acknowledged_link() {
    let registry = Registry::start();
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let mut random = Random::new(by_environment("FAULT_SEED", 1));
    let mut row = Row::new("failover of PostgreSQL under load");
    for n in 0..by_environment("FAULT_FAILOVERS", 1) {
        let mut primary = Postgres::start();
        let standby = block_in_place(|| primary.standby());
        let (refshim, _directory) = start(&registry, &url_of([&primary, &standby])).await;
        let client = refshim.client();
        let ledger = Ledger::about(&behind, &image, &format!("failover {n}")).await;
        let ledger = round(&refshim, ledger, &mut random, || primary.kill9()).await;
        let standby_only = status_of_query(&client, &ledger.subject).await;
        assert_eq!(standby_only, StatusCode::SERVICE_UNAVAILABLE, "a standby is not asked");
        block_in_place(|| standby.promote());
        // The other half of the pair is gone, and nothing waits for it.
        until_it_answers(&client, &ledger.subject).await;
        row.tried += 1;
        row.acknowledged += ledger.acknowledged.len() as u64;
        ledger.check(&mut row, &client, &behind).await;
        let mut after = Ledger::about(&behind, &image, &format!("after failover {n}")).await;
        let referrers = (0..20).map(|n| after.referrer(n)).collect();
        after.push(&client, referrers, 4, &Arc::default()).await;
        assert_eq!(after.acknowledged.len(), 20, "pushes go on at the new primary");
        after.check(&mut row, &client, &behind).await;
        assert!(refshim.stop().success());
    }
    row.close();
}

/// A standby that has not applied what the primary acknowledged would answer with lists that are short.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_never_asked() {
    let registry = Registry::start();
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let mut row = Row::new("a standby that lags");
    let mut primary = Postgres::start();
    let standby = block_in_place(|| primary.standby());
    // The standby first.
    let (refshim, _directory) = start(&registry, &url_of([&standby, &primary])).await;
    let client = refshim.client();
    standby.psql("SELECT pg_wal_replay_pause()");
    let mut ledger = Ledger::about(&behind, &image, "subject").await;
    for n in 0..20 {
        let referrer = ledger.referrer(n);
        ledger.push(&client, vec![referrer], 1, &Arc::default()).await;
        row.tried += 1;
        ledger.check(&mut row, &client, &behind).await;
    }
    assert_eq!(ledger.acknowledged.len(), 20, "the primary is found");
    block_in_place(|| primary.kill9());
    for _ in 0..50 {
        let answered = status_of_query(&client, &ledger.subject).await;
        assert_eq!(answered, StatusCode::SERVICE_UNAVAILABLE, "only a standby is there");
    }
    // Another process, which has not seen the primary.
    let (late, _late_directory) = start_unready(&registry, &url_of([&standby, &primary]));
    let answered = status_of_query(&late.client(), &ledger.subject).await;
    assert_eq!(answered, StatusCode::SERVICE_UNAVAILABLE, "only a standby is there");
    standby.psql("SELECT pg_wal_replay_resume()");
    block_in_place(|| standby.promote());
    for refshim in [refshim, late] {
        until_it_answers(&refshim.client(), &ledger.subject).await;
        ledger.check(&mut row, &refshim.client(), &behind).await;
        assert!(refshim.stop().success());
    }
    row.acknowledged = ledger.acknowledged.len() as u64;
    row.close();
}

/// Whoever deletes while the database is away is told of success, for the registry has done it.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_while_the_database_is_away_is_known_when_it_is_back() {
    let (registry, mut postgres) = (Registry::start(), Postgres::start());
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let (refshim, _directory) = start(&registry, &postgres.url()).await;
    let client = refshim.client();
    let mut ledger = Ledger::about(&behind, &image, "subject").await;
    let (stays, goes) = (ledger.referrer(0), ledger.referrer(1));
    ledger.push(&client, vec![stays.clone(), goes.clone()], 1, &Arc::default()).await;
    assert_eq!(ledger.acknowledged.len(), 2);
    block_in_place(|| postgres.kill9());
    let deleted = client.delete(&format!("/v2/{REPOSITORY}/manifests/{}", goes.digest)).await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED);
    block_in_place(|| postgres.start_again());
    until_it_answers(&client, &ledger.subject).await;
    // The doubt is written a moment after that.
    let began = Instant::now();
    while client.referrers(REPOSITORY, &ledger.subject.digest, "").await != [stays.digest.clone()] {
        assert!(began.elapsed() < LIMIT, "what was deleted stays listed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(refshim.stop().success());
}

/// How many replicas start at once.
const REPLICAS: usize = 10;

/// `FAULT_MIGRATIONS` is how often.
#[tokio::test(flavor = "multi_thread")]
async fn ten_replicas_that_start_at_once_make_one_schema() {
    let (registry, postgres) = (Registry::start(), Postgres::start());
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let mut row = Row::new("ten replicas start on an empty database");
    for n in 0..by_environment("FAULT_MIGRATIONS", 2) {
        let name = format!("empty{n}");
        let url = postgres.database(&name);
        let replicas = std::thread::scope(|scope| {
            let starting: Vec<_> =
                (0..REPLICAS).map(|_| scope.spawn(|| start_unready(&registry, &url))).collect();
            starting.into_iter().map(|replica| replica.join().unwrap()).collect::<Vec<_>>()
        });
        for (refshim, _directory) in &replicas {
            refshim.ready().await;
        }
        let versions =
            crate::it::support::postgres::ask(&url, "SELECT version, usable_from FROM schema_version");
        assert_eq!(versions.unwrap(), "1|1");
        let mut ledger = Ledger::about(&behind, &image, &name).await;
        for (n, (refshim, _directory)) in replicas.iter().enumerate() {
            let referrer = ledger.referrer(n);
            ledger.push(&refshim.client(), vec![referrer], 1, &Arc::default()).await;
        }
        assert_eq!(ledger.acknowledged.len(), REPLICAS);
        row.tried += 1;
        row.acknowledged += REPLICAS as u64;
        for (refshim, _directory) in replicas {
            ledger.check(&mut row, &refshim.client(), &behind).await;
            if refshim.logged("\"level\":\"ERROR\"") {
                row.mistake(refshim.lines().join("\n"));
            }
            assert!(refshim.stop().success());
        }
    }
    row.close();
}
