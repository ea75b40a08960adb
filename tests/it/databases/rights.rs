//! The database refuses refshim: password, rights, schema, connections. One clear line each, and it ends by itself.

use std::path::Path;
use std::time::Duration;

use reqwest::StatusCode;

use super::{BACK, GONE, Scene, created, patient_scene, refshim, scene};
use crate::support::postgres::{PASSWORD, Postgres, ROLE, ask};
use crate::support::{Refshim, Registry};

/// In which the database was looked at again, as long as nothing slows the machine down.
const LOOKS: Duration = Duration::from_millis(2500);

/// Started at this URL, where it is refused for this reason, until somebody mends it.
async fn refused_until(url: &str, reason: &str, mend: impl FnOnce()) -> Scene {
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let started = refshim(&registry, url, &directory).with("INDEX_MIGRATE", "false").launch_unready();
    refused_by(Scene::of(registry, started, directory).await, reason, mend).await
}

async fn refused_by(scene: Scene, reason: &str, mend: impl FnOnce()) -> Scene {
    let line = scene.refshim.logs(GONE, 1).await;
    assert!(line.contains(reason) && line.contains("ERROR"), "{line}");
    scene.passes_and_refuses(reason).await;
    assert_eq!(scene.ready_with(reason).await, StatusCode::SERVICE_UNAVAILABLE);
    // One line of it, however often it was asked.
    assert_eq!(scene.refshim.count(GONE), 1, "{}", scene.refshim.lines().join("\n"));
    mend();
    scene.comes_back(&[]).await;
    created(&scene.put("mended").await.1);
    assert_eq!((scene.refshim.count(GONE), scene.refshim.count(BACK)), (1, 1));
    scene
}

/// Makes the schema, as another process does.
async fn migrate(url: &str) {
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let other = refshim(&registry, url, &directory).launch().await;
    tokio::task::spawn_blocking(move || other.stop()).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password() {
    let postgres = Postgres::start_fast();
    migrate(&postgres.url()).await;
    let wrong = postgres.url().replace(PASSWORD, "wrong");
    let mend = || drop(postgres.psql(&format!("ALTER ROLE {ROLE} PASSWORD 'wrong'")));
    let scene = refused_until(&wrong, "index.password_file", mend).await;
    assert!(!scene.refshim.logged(PASSWORD));
}

/// The file is read for each connection.
#[tokio::test]
async fn a_password_file_that_is_wrong_missing_and_right() {
    let postgres = Postgres::start_fast();
    migrate(&postgres.url()).await;
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let file = directory.path().join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let url = postgres.url().replace(&format!(":{PASSWORD}"), "");
    let started = refshim(&registry, &url, &directory).with("INDEX_PASSWORD_FILE", file.to_str().unwrap());
    let started = started.launch_unready();
    let right = |file: &Path| std::fs::write(file, format!("{PASSWORD}\n")).unwrap();
    let scene = Scene::of(registry, started, directory).await;
    let scene = refused_by(scene, "index.password_file", || right(&file)).await;
    let lists = scene.client.referrers("a", &scene.image.digest, "").await;
    // Connections that are there need it no more.
    std::fs::remove_file(&file).unwrap();
    scene.query().await;
    postgres.cut_connections();
    scene.ready_with("index.password_file").await;
    scene.passes_and_refuses("missing").await;
    assert_eq!(scene.refshim.count("index.password_file cannot be read"), 1);
    right(&file);
    scene.ready_with("index: ok").await;
    assert_eq!(scene.client.referrers("a", &scene.image.digest, "").await, lists);
}

#[tokio::test]
async fn no_such_database() {
    let postgres = Postgres::start_fast();
    let url = postgres.url().replace("/refshim?", "/later?");
    let mend = || {
        let url = postgres.database("later");
        std::thread::scope(|threads| {
            let made = threads.spawn(|| {
                tokio::runtime::Runtime::new().unwrap().block_on(migrate(&url));
            });
            made.join().unwrap();
        });
    };
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let started = refshim(&registry, &url, &directory).with("INDEX_MIGRATE", "false").launch_unready();
    let scene = Scene::of(registry, started, directory).await;
    let line = scene.refshim.logs(GONE, 1).await;
    assert!(line.contains("create the database"), "{line}");
    scene.passes_and_refuses("none").await;
    scene.ready_with("create the database").await;
    mend();
    scene.comes_back(&[]).await;
}

/// It is made step by step, and each step is looked at: it is one trouble, told once.
#[tokio::test]
async fn no_schema() {
    let postgres = Postgres::start_fast();
    let url = postgres.url();
    let mend = || {
        let steps = [
            "CREATE TABLE schema_version (one boolean NOT NULL PRIMARY KEY CHECK (one), version bigint NOT NULL, \
             usable_from bigint NOT NULL, identity text NOT NULL)",
            "INSERT INTO schema_version VALUES (true, 0, 1, 'of another')",
        ];
        for step in steps {
            ask(&url, step).unwrap();
            std::thread::sleep(LOOKS);
        }
        std::thread::scope(|threads| {
            let made = threads.spawn(|| tokio::runtime::Runtime::new().unwrap().block_on(migrate(&url)));
            made.join().unwrap();
        });
    };
    refused_until(&url, "run refshim index migrate", mend).await;
}

#[tokio::test]
async fn a_newer_schema() {
    let postgres = Postgres::start_fast();
    migrate(&postgres.url()).await;
    let set = |version: i64| {
        let versions = format!("version = {version}, usable_from = {version}");
        postgres.psql(&format!("UPDATE schema_version SET {versions}"));
    };
    set(1000);
    refused_until(&postgres.url(), "of version 1000, which this build (1) cannot use", || set(1)).await;
}

/// One that this build can still use, with a column that it does not know.
#[tokio::test]
async fn a_newer_schema_that_is_for_older_builds_as_well() {
    let (postgres, scene) = scene().await;
    postgres.psql("ALTER TABLE link ADD COLUMN later text; ALTER TABLE referrer ADD COLUMN later text");
    postgres.psql("UPDATE schema_version SET version = 2");
    scene.client.push("a", &scene.referrer).await;
    scene.lists(&[&scene.referrer]).await;
    let other = Scene::start(&postgres.url(), |start| start).await;
    // The same image.
    other.lists(&[&scene.referrer]).await;
    created(&other.put("other").await.1);
}

const TABLES: &str = "repository, referrer, link, coverage, lease, schema_version";

/// Rights that were never there, and all of them at once.
#[tokio::test]
async fn no_rights_at_all() {
    let postgres = Postgres::start_fast();
    migrate(&postgres.url()).await;
    postgres.psql(&format!("REVOKE ALL ON {TABLES} FROM {ROLE}; ALTER TABLE link OWNER TO postgres"));
    let grant = || drop(postgres.psql(&format!("GRANT ALL ON {TABLES} TO {ROLE}")));
    refused_until(&postgres.url(), "grant SELECT, INSERT, UPDATE and DELETE", grant).await;
}

/// One is enough, and it is found before somebody needs it.
#[tokio::test]
async fn each_right_is_needed() {
    let postgres = Postgres::start_fast();
    migrate(&postgres.url()).await;
    for (right, table) in [
        ("INSERT", "link"),
        ("DELETE", "referrer"),
        ("UPDATE", "repository"),
        ("SELECT", "coverage"),
        ("INSERT", "lease"),
        ("SELECT", "schema_version"),
    ] {
        postgres.psql(&format!("REVOKE {right} ON {table} FROM {ROLE}"));
        let grant = || drop(postgres.psql(&format!("GRANT {right} ON {table} TO {ROLE}")));
        refused_until(&postgres.url(), &format!("permission denied for table {table}"), grant).await;
        postgres.psql("DELETE FROM link; DELETE FROM referrer");
    }
}

/// A right that is taken away while it works: once told, not with each request.
#[tokio::test]
async fn a_right_that_is_taken_away() {
    let (postgres, scene) = scene().await;
    postgres.psql(&format!("REVOKE INSERT ON link FROM {ROLE}"));
    super::refused(&scene.put("meets it").await.1);
    let grant = || drop(postgres.psql(&format!("GRANT INSERT ON link TO {ROLE}")));
    refused_by(scene, "permission denied for table link", grant).await;
}

/// Not one is left for refshim.
#[tokio::test]
async fn no_connection_is_left() {
    let (postgres, scene) = scene().await;
    postgres.psql(&format!("ALTER ROLE {ROLE} CONNECTION LIMIT 0"));
    postgres.cut_connections();
    scene.query().await;
    let mend = || drop(postgres.psql(&format!("ALTER ROLE {ROLE} CONNECTION LIMIT -1")));
    refused_by(scene, "see index.connections", mend).await;
}

/// With fewer than it may have, all is done; the log says so once.
#[tokio::test]
async fn fewer_connections_than_wanted_are_enough() {
    let (postgres, scene) = patient_scene().await;
    postgres.psql(&format!("ALTER ROLE {ROLE} CONNECTION LIMIT 2"));
    postgres.cut_connections();
    scene.comes_back(&[]).await;
    for round in 0..3 {
        let puts: Vec<_> = (0..20)
            .map(|one| {
                let referrer = crate::support::about(&scene.image, &scene.image, &format!("{round} {one}"));
                let client = scene.client.clone();
                tokio::spawn(async move { client.push("a", &referrer).await })
            })
            .collect();
        for put in puts {
            put.await.unwrap();
        }
    }
    assert_eq!(scene.client.referrers("a", &scene.image.digest, "").await.len(), 60);
    assert_eq!(scene.refshim.count(GONE), 0, "{}", scene.refshim.lines().join("\n"));
    assert!(scene.refshim.count("fewer connections") >= 1);
    assert!(ask(&postgres.url(), "SELECT 1").is_err() || scene.refshim.count("fewer connections") < 60);
}

/// The schema cannot be made without the right to make tables, which is told apart from the others.
#[tokio::test]
async fn a_migration_without_the_right() {
    let postgres = Postgres::start_fast();
    postgres.psql(&format!("ALTER DATABASE refshim OWNER TO postgres; REVOKE CREATE ON SCHEMA public FROM {ROLE}, PUBLIC; ALTER SCHEMA public OWNER TO postgres"));
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let started: Refshim = refshim(&registry, &postgres.url(), &directory).launch_unready();
    let scene = Scene::of(registry, started, directory).await;
    let grant = || drop(postgres.psql(&format!("GRANT CREATE ON SCHEMA public TO {ROLE}")));
    refused_by(scene, "permission denied for schema public", grant).await;
}
