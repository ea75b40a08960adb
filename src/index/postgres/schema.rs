//! The schema, and how it is brought to the version that this build knows.
//!
//! Each version is a file of statements, never changed once it was released. They are expand-only: a build of the
//! version before goes on working beside the new one, and what it needs is taken away a version later. Versions that
//! are newer than this build say so only if it can still be used (`usable_from`).
//!
//! Safe if several migrate at once: each statement says IF NOT EXISTS, the version's row is inserted once, and it is
//! raised only from the version before. Not all databases that speak PostgreSQL's protocol have transactions of DDL,
//! or advisory locks.

use std::time::Duration;

use tokio::time::sleep;

use super::connection::Session;
use super::failure::Failure;
use super::rows::get;
use super::statements;

/// The versions, oldest first.
const VERSIONS: [(i64, &str); 1] = [(NEWEST, include_str!("schema/1.sql"))];
/// Where the version is kept. `usable_from` is the oldest build, by the version that it knows, that can use it.
const VERSION_TABLE: &str = "CREATE TABLE IF NOT EXISTS schema_version (
    one boolean NOT NULL PRIMARY KEY CHECK (one),
    version bigint NOT NULL,
    usable_from bigint NOT NULL,
    identity text NOT NULL
)";
/// How often a migration is tried while others migrate, too.
const TRIES: u32 = 20;

/// What a database says of itself.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) identity: String,
    pub(super) is_read_only: bool,
    pub(super) loses_commits: bool,
}

/// The newest of them.
pub(super) const NEWEST: i64 = 1;

/// What the database says, if its schema is one that this build can use; migrates it first where that is asked for.
pub(super) async fn known(session: &Session, migrate: bool) -> Result<Known, Failure> {
    let found = match session.row(&statements::LOOK, &[]).await {
        Ok(found) => found,
        Err(Failure::Unmigrated(_)) if migrate => None,
        Err(failure) => return Err(failure),
    };
    let version: Option<i64> = found.as_ref().map(|row| get(row, 0)).transpose()?;
    match (found, version) {
        (Some(row), Some(version)) if version >= NEWEST => {
            let usable_from: i64 = get(&row, 4)?;
            if usable_from > NEWEST {
                let told = format!(
                    "the schema of the index is of version {version}, which this build ({NEWEST}) cannot use: \
                     use a newer build"
                );
                return Err(Failure::Refused(told));
            }
            Ok(Known { identity: get(&row, 1)?, is_read_only: get(&row, 2)?, loses_commits: get(&row, 3)? })
        }
        (_, version) if migrate => {
            self::migrate(session).await?;
            tracing::info!(from = version.unwrap_or(0), to = NEWEST, "migrated the schema of the index");
            Box::pin(known(session, false)).await
        }
        (_, version) => Err(Failure::Unmigrated(format!(
            "the schema of the index is of version {}, and this build needs {}",
            version.unwrap_or(0),
            NEWEST
        ))),
    }
}

/// The version of the schema, if it has one.
pub(super) async fn version(session: &Session) -> Result<Option<i64>, Failure> {
    match session.row(&statements::SCHEMA, &[]).await {
        Ok(row) => row.map(|row| get(&row, 0)).transpose(),
        // There is no table of versions.
        Err(Failure::Unmigrated(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Brings the schema to the newest version. Tells from which.
pub(super) async fn migrate(session: &Session) -> Result<i64, Failure> {
    let mut tried = 0;
    loop {
        match once(session).await {
            // In PostgreSQL, two CREATE TABLE IF NOT EXISTS at the same moment can fail in the catalog.
            Err(Failure::Conflict) if tried < TRIES => {
                tried += 1;
                sleep(Duration::from_millis(50) * tried).await;
            }
            outcome => return outcome,
        }
    }
}

async fn once(session: &Session) -> Result<i64, Failure> {
    session.batch(VERSION_TABLE).await?;
    session
        .batch(
            "INSERT INTO schema_version (one, version, usable_from, identity) \
             VALUES (true, 0, 1, gen_random_uuid()::text) ON CONFLICT DO NOTHING",
        )
        .await?;
    let row = session.row(&statements::SCHEMA, &[]).await?;
    let version: i64 = row.as_ref().map_or(Ok(0), |row| get(row, 0))?;
    for (number, statements) in VERSIONS {
        if number > version {
            session.batch(statements).await?;
            let raise = format!("UPDATE schema_version SET version = {number} WHERE version < {number}");
            session.batch(&raise).await?;
        }
    }
    Ok(version)
}
