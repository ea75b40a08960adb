//! Migrating, checking, dumping and loading an index in a database.

use super::*;
use crate::index::maintenance::{IndexDatabase, MaintenanceError, Migrated, dump_directory, load_directory};

fn database_of(bench: &Bench) -> IndexDatabase {
    IndexDatabase::new(bench.settings.database.as_ref().unwrap()).unwrap()
}

/// The tables, columns and keys.
fn schema(bench: &Bench) -> String {
    server_sql(
        bench,
        "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns \
         WHERE table_schema = 'public' ORDER BY 1, 2; SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' \
         ORDER BY 1; SELECT version, usable_from FROM schema_version",
    )
}

/// An index of each kind of state: confirmed, pending, absent, claimed, of several kinds and repositories, with long
/// descriptors, and without what was removed.
pub(super) async fn fill(index: &Index) {
    for n in 0..30 {
        put(index, 100 + n, &[n % 3, 3]).await;
    }
    drop(begin(index, 170, &[1]).await);
    for n in [103, 110] {
        remove(index, n, version(index, n).await.unwrap()).await;
    }
    put(index, 103, &[1]).await;
    assert_eq!(absent(index, 104, version(index, 104).await.unwrap()).await, Removed::Doubted);
    index.doubt(repository("a"), digest(105)).await.unwrap();
    index.disown(repository("a"), digest(106)).await.unwrap();
    let read = index.begin_read(repository("b/c")).await;
    let long = Referrer { descriptor: format!("\"{}\"", "x".repeat(100_000)), ..referrer(171, &[1, 2]) };
    let kinds = vec![link(1, LinkKind::Parent), link(1, LinkKind::Cosign), link(2, LinkKind::Attestation)];
    let other = Referrer { links: kinds, ..referrer(172, &[]) };
    let observations =
        [(long, false), (other, true)].map(|(referrer, claimed)| Observation { referrer, claimed });
    index.observe(&read, observations.into()).await.unwrap();
    let upstream = Repository { upstream: 1, ..repository("a") };
    index.begin(upstream, referrer(173, &[1])).await.unwrap().confirm().await.unwrap();
}

/// All that is known, but for versions.
pub(super) async fn known(index: &Index) -> Vec<KnownReferrer> {
    let mut all = everything_known(index).await;
    for referrer in &mut all {
        referrer.version = Version::UNKNOWN;
    }
    all
}

async fn load_bytes(bench: &Bench, dump: &[u8]) -> Result<u64, MaintenanceError> {
    if bench.is_local() {
        return load_directory(&bench.settings.data_dir, dump).map(|loaded| loaded.records);
    }
    database_of(bench).migrate().await.unwrap();
    database_of(bench).load(dump).await.map(|loaded| loaded.records)
}

async fn dump_bytes(bench: &Bench) -> Vec<u8> {
    let mut bytes = Vec::new();
    if bench.is_local() {
        dump_directory(&bench.settings.data_dir, &mut bytes).unwrap();
    } else {
        database_of(bench).dump(&mut bytes).await.unwrap();
    }
    bytes
}

#[tokio::test]
async fn a_dump_of_one_engine_loads_into_the_other_and_back() {
    for (from, to) in [
        (Bench::new(), Bench::in_postgres()),
        (Bench::in_postgres(), Bench::new()),
        (Bench::in_postgres(), Bench::in_postgres()),
    ] {
        let index = from.open().await;
        fill(&index).await;
        let (expected, listed) = (known(&index).await, answers(&index, 0..4).await);
        index.close().await;
        load_bytes(&to, &dump_bytes(&from).await).await.unwrap();
        let index = to.open().await;
        assert_eq!(known(&index).await, expected);
        assert_eq!(answers(&index, 0..4).await, listed);
        // What comes after is younger than all of it.
        put(&index, 180, &[3]).await;
        assert_eq!(numbers(&index, 3).await.last(), Some(&(180, false)));
        let first_404 = absent(&index, 104, version(&index, 104).await.unwrap()).await;
        assert_eq!(first_404, Removed::Doubted);
        index.close().await;
        drop(index);
        // The time of the first 404 comes along as well.
        let lines = |dump: Vec<u8>| String::from_utf8(dump).unwrap().matches("absent").count();
        assert!(lines(dump_bytes(&to).await) > 0);
        let again = load_bytes(&to, &dump_bytes(&from).await).await.unwrap_err().to_string();
        assert!(again.contains("holds an index already"), "{again}");
    }
}

#[tokio::test]
async fn a_dump_that_is_not_whole_fills_no_database() {
    let (from, to) = (Bench::in_postgres(), Bench::in_postgres());
    let index = from.open().await;
    fill(&index).await;
    let dump = dump_bytes(&from).await;
    let cut = &dump[..dump.len() - 20];
    let refused = load_bytes(&to, cut).await.unwrap_err().to_string();
    assert!(refused.contains("cut off") || refused.contains("not a record"), "{refused}");
    assert_eq!(database_of(&to).check().await.unwrap().referrers, 0);
    load_bytes(&to, &dump).await.unwrap();
}

#[tokio::test]
async fn a_sound_index_is_found_intact_and_what_is_odd_is_named() {
    let bench = Bench::in_postgres();
    let index = bench.open().await;
    fill(&index).await;
    let report = database_of(&bench).check().await.unwrap();
    let (referrers, links, pending) = counts(&index).await;
    let expected = [referrers, links, pending].map(|number| number as u64);
    assert_eq!([report.referrers, report.links, report.pending], expected);
    assert_eq!((report.repositories, report.odd, report.named), (3, 0, vec![]));
    let check = async |sql: &str, what: &str| {
        server_sql(&bench, sql);
        let report = database_of(&bench).check().await.unwrap();
        assert!(report.named.iter().any(|odd| odd.what.contains(what)), "{sql}: {report:?}");
        assert_eq!(report.odd, report.named.len() as u64);
    };
    check(
        "UPDATE link SET pending = NOT pending WHERE subject = (SELECT subject FROM link ORDER BY 1 LIMIT 1)",
        "agree",
    )
    .await;
    check(
        "DELETE FROM link WHERE subject = (SELECT subject FROM link ORDER BY 1 DESC LIMIT 1)",
        "one of its links is missing",
    )
    .await;
    check(
        "DELETE FROM referrer WHERE referrer = (SELECT referrer FROM referrer ORDER BY 1 DESC LIMIT 1)",
        "does not have it",
    )
    .await;
    check(
        "UPDATE referrer SET subjects = ARRAY['\\x09'::bytea], kinds = '{1}' WHERE referrer = (SELECT referrer \
         FROM referrer ORDER BY 1 LIMIT 1)",
        "cannot be read",
    )
    .await;
    check("DELETE FROM repository WHERE name = 'b/c'", "its repository is unknown").await;
    check("INSERT INTO repository (repo, upstream, name) VALUES ('\\x01', 0, 'Z')", "cannot be read").await;
    check("INSERT INTO repository (repo, upstream, name) VALUES ('\\x02', 0, 'z')", "another one's").await;
}

#[tokio::test]
async fn any_number_may_migrate_at_once_from_whatever_is_there() {
    let expected = Bench::in_postgres();
    let first = database_of(&expected).migrate().await.unwrap();
    assert_eq!(first, Migrated { from: None, to: 1 });
    let again = database_of(&expected).migrate().await.unwrap();
    assert_eq!(again, Migrated { from: Some(1), to: 1 });
    // Nothing, or what was made before a migration was killed.
    let (whole, _) = include_str!("../postgres/schema/1.sql").split_once("-- The links").unwrap();
    let half = format!(
        "SET ROLE refshim; CREATE TABLE schema_version (one boolean NOT NULL PRIMARY KEY CHECK (one), \
         version bigint NOT NULL, usable_from bigint NOT NULL, identity text NOT NULL); \
         INSERT INTO schema_version VALUES (true, 0, 1, 'x'); {whole}"
    );
    for before in ["", &half] {
        let bench = Bench::in_postgres();
        server_sql(&bench, before);
        let ten = (0..10).map(|_| {
            let database = database_of(&bench);
            tokio::spawn(async move { database.migrate().await })
        });
        for one in futures_util::future::join_all(ten).await {
            assert_eq!(one.unwrap().unwrap().to, 1);
        }
        assert_eq!(schema(&bench), schema(&expected));
        put(&bench.open().await, 10, &[1]).await;
    }
}

#[tokio::test]
async fn a_newer_schema_is_used_only_if_it_says_so() {
    let bench = Bench::in_postgres();
    let index = bench.open().await;
    fill(&index).await;
    index.close().await;
    server_sql(&bench, "UPDATE schema_version SET version = 7");
    let index = bench.open().await;
    put(&index, 190, &[1]).await;
    index.close().await;
    assert_eq!(database_of(&bench).migrate().await.unwrap(), Migrated { from: Some(7), to: 7 });
    database_of(&bench).check().await.unwrap();
    server_sql(&bench, "UPDATE schema_version SET usable_from = 7");
    let refused =
        "the schema of the index is of version 7, which this build (1) cannot use: use a newer build";
    let index = bench.try_open().unwrap();
    index.opened().await;
    assert_eq!(index.state(), IndexState::Unreachable(refused.to_owned()));
    let database = database_of(&bench);
    let told = [
        database.migrate().await.map(drop),
        database.check().await.map(drop),
        database.dump(&mut Vec::new()).await.map(drop),
        database.load(&b""[..]).await.map(drop),
    ];
    for error in told {
        assert_eq!(error.unwrap_err().to_string(), refused);
    }
}
