//! Somebody holds a lock on a table, as an operator does who makes an index: it can be read, and not written.

use std::thread;
use std::time::{Duration, Instant};

use reqwest::StatusCode;

use super::{BACK, GONE, Scene, created, refused, scene};
use crate::support::postgres::{Postgres, ask};

const NO_WRITES: &str = "the index takes no writes";

/// Locks a table against writes until it is released.
fn lock(postgres: &Postgres, table: &str) {
    lock_in(postgres, table, "SHARE");
}

fn lock_in(postgres: &Postgres, table: &str, mode: &str) {
    let (url, held) = (postgres.url(), held(table));
    let sql = format!("BEGIN; LOCK TABLE {table} IN {mode} MODE; SELECT pg_sleep(600)");
    // Ends when it is released, with an error.
    thread::spawn(move || ask(&url, &sql));
    while postgres.psql(&format!("SELECT count(*) FROM pg_locks WHERE {held}")) != "1" {
        thread::sleep(Duration::from_millis(10));
    }
}

fn release(postgres: &Postgres, table: &str) {
    postgres.psql(&format!("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {}", held(table)));
}

fn held(table: &str) -> String {
    let modes = "mode IN ('ShareLock', 'AccessExclusiveLock')";
    format!("granted AND {modes} AND locktype = 'relation' AND relation = '{table}'::regclass")
}

#[tokio::test]
async fn queries_go_on_while_a_table_is_locked_against_writes() {
    let (postgres, scene) = scene().await;
    scene.client.push("a", &scene.referrer).await;
    let mut expected = vec![scene.referrer.clone()];
    for table in ["repository", "referrer", "link"] {
        lock(&postgres, table);
        for round in 0..3 {
            refused(&scene.put(&format!("{table} {round}")).await.1);
            for _ in 0..10 {
                scene.lists(&expected.iter().collect::<Vec<_>>()).await;
            }
        }
        scene.passes(table).await;
        assert_eq!(scene.ready_with("did not answer in time").await, StatusCode::SERVICE_UNAVAILABLE);
        scene.metric("refshim_index_ready 1").await;
        release(&postgres, table);
        scene.ready_with("index: ok").await;
        let (next, answer) = scene.put(table).await;
        created(&answer);
        expected.push(next);
        scene.lists(&expected.iter().collect::<Vec<_>>()).await;
    }
    let counts = [NO_WRITES, GONE, BACK].map(|part| scene.refshim.count(part));
    assert!(counts[0] <= 3 && counts[1] == 0 && counts[2] >= 1, "{}", scene.refshim.lines().join("\n"));
}

/// No query needs the leases, which each replica renews every 20 s, and which whoever looks at the health page has counted.
#[tokio::test]
async fn queries_go_on_while_the_leases_are_locked() {
    let postgres = Postgres::start_fast();
    let scene = Scene::start(&postgres.url(), |start| start.with("WEB_LISTEN", "127.0.0.1:0")).await;
    scene.client.push("a", &scene.referrer).await;
    let web = scene.refshim.web();
    let health = web.text("/health").await;
    assert!(health.contains("Replicas of refshim"), "{health}");
    lock_in(&postgres, "lease", "ACCESS EXCLUSIVE");
    let until = Instant::now() + Duration::from_secs(25);
    while Instant::now() < until {
        let health = web.get("/health").await;
        assert_eq!(health.status, StatusCode::OK);
        for _ in 0..10 {
            scene.lists(&[&scene.referrer]).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(!web.text("/health").await.contains("Replicas of refshim"));
    release(&postgres, "lease");
    scene.ready_with("index: ok").await;
    created(&scene.put("afterwards").await.1);
    assert_eq!(scene.refshim.count(GONE), 0, "{}", scene.refshim.lines().join("\n"));
}
