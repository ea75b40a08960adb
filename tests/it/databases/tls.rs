//! TLS between refshim and PostgreSQL: always verified, and with files that may be renewed.

use std::fs;
use std::path::Path;

use super::{GONE, Scene, created, refshim};
use crate::support::postgres::Postgres;
use crate::support::{Authority, Identity, Registry, Start};

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn server(identity: &Identity, client_ca: Option<&Authority>) -> Postgres {
    let client_ca = client_ca.map(|authority| read(&authority.certificate()));
    Postgres::with_tls(&read(&identity.certificate), &read(&identity.key), client_ca.as_deref())
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Pushes and queries.
async fn works(scene: &Scene) {
    scene.client.push("a", &scene.referrer).await;
    scene.lists(&[&scene.referrer]).await;
}

/// Started so that the connection is refused with a line that has this in it.
async fn refused(postgres: &Postgres, reason: &str, change: impl FnOnce(Start<'_>) -> Start<'_>) -> Scene {
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let started = change(refshim(&registry, &postgres.url(), &directory)).launch_unready();
    let scene = Scene::of(registry, started, directory).await;
    let line = scene.refshim.logs(GONE, 1).await;
    assert!(line.contains(reason) && line.contains("index.tls"), "{line}");
    scene.passes_and_refuses(reason).await;
    scene.ready_with(reason).await;
    assert_eq!(scene.refshim.count(GONE), 1, "{}", scene.refshim.lines().join("\n"));
    scene
}

#[tokio::test]
async fn a_server_of_a_private_authority_is_trusted_with_it_alone() {
    let authority = Authority::new();
    let postgres = server(&authority.server("postgres", &["127.0.0.1"]), None);
    let ca = path(&authority.certificate());
    let scene = Scene::start(&postgres.url(), |start| start.with("INDEX_TLS_CA", &ca)).await;
    works(&scene).await;
    let ssl =
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'refshim'";
    assert_eq!(postgres.psql(ssl), "t");
    refused(&postgres, "certificate", |start| start).await;
    let stranger = Authority::new();
    refused(&postgres, "certificate", |start| start.with("INDEX_TLS_CA", &path(&stranger.certificate())))
        .await;
}

#[tokio::test]
async fn a_certificate_of_another_name_is_refused_unless_it_is_expected() {
    let authority = Authority::new();
    let postgres = server(&authority.server("postgres", &["db.example"]), None);
    let ca = path(&authority.certificate());
    refused(&postgres, "not valid for name", |start| start.with("INDEX_TLS_CA", &ca)).await;
    refused(&postgres, "not valid for name", |start| {
        start.with("INDEX_TLS_CA", &ca).with("INDEX_TLS_SERVER_NAME", "other.example")
    })
    .await;
    let scene = Scene::start(&postgres.url(), |start| {
        start.with("INDEX_TLS_CA", &ca).with("INDEX_TLS_SERVER_NAME", "db.example")
    })
    .await;
    works(&scene).await;
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let expired = Identity::expired(directory.path(), &["127.0.0.1"], true);
    let postgres = server(&expired, None);
    refused(&postgres, "expired", |start| start.with("INDEX_TLS_CA", &path(&expired.certificate))).await;
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let postgres = server(&authority.server("postgres", &["127.0.0.1"]), Some(&clients));
    let (ca, own) = (path(&authority.certificate()), clients.client("refshim"));
    let (certificate, key) = (path(&own.certificate), path(&own.key));
    let scene = Scene::start(&postgres.url(), |start| {
        let start = start.with("INDEX_TLS_CA", &ca).with("INDEX_TLS_CERTIFICATE", &certificate);
        start.with("INDEX_TLS_KEY", &key)
    })
    .await;
    works(&scene).await;
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let without = refshim(&registry, &postgres.url(), &directory).with("INDEX_TLS_CA", &ca).launch_unready();
    let line = without.logs(GONE, 1).await;
    assert!(line.contains("certificate"), "{line}");
}

/// The server has a certificate of a new authority, and refshim is told of that by the same file.
#[tokio::test]
async fn a_renewed_authority_is_taken_with_the_next_connection() {
    let (old, new) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.crt");
    fs::copy(old.certificate(), &ca).unwrap();
    let postgres = server(&new.server("postgres", &["127.0.0.1"]), None);
    let scene = refused(&postgres, "certificate", |start| start.with("INDEX_TLS_CA", &path(&ca))).await;
    // A file that is being written is told of, and not the end.
    fs::write(&ca, "-----BEGIN CERTIFICATE-----\n").unwrap();
    scene.ready_with("ca.crt").await;
    fs::copy(new.certificate(), &ca).unwrap();
    scene.comes_back(&[]).await;
    works(&scene).await;
}

/// What was asked for was TLS.
#[tokio::test]
async fn a_server_without_tls_is_refused() {
    let postgres = Postgres::start_fast();
    let url = postgres.url().replace("sslmode=disable", "sslmode=require");
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let authority = Authority::new();
    let ca = path(&authority.certificate());
    let started = refshim(&registry, &url, &directory).with("INDEX_TLS_CA", &ca).launch_unready();
    let scene = Scene::of(registry, started, directory).await;
    let line = scene.refshim.logs(GONE, 1).await;
    assert!(line.contains("does not support TLS: see sslmode"), "{line}");
    created(&scene.client.put_manifest("a", "again", &scene.image).await);
    scene.passes_and_refuses("plain").await;
}
