//! The whole index, read in pages.

use std::collections::BTreeSet;

use tokio_postgres::types::Type;

use super::IndexDatabase;
use crate::index::Repository;
use crate::index::maintenance::MaintenanceError;
use crate::index::postgres::connection::Session;
use crate::index::postgres::failure::Failure;
use crate::index::postgres::read::heads;
use crate::index::postgres::rows::{Head, digest_key, get, repository_key};
use crate::index::postgres::statements::Sql;
use crate::oci::Digest;

/// Repositories that are read at once.
const CHUNK: i64 = 1_000;

/// Repositories, by their key.
static REPOSITORIES: Sql = Sql {
    text: "SELECT r.repo, r.upstream, r.name, EXISTS (SELECT 1 FROM referrer AS f WHERE f.repo = r.repo) \
           FROM repository AS r WHERE r.repo > $1 ORDER BY r.repo LIMIT $2",
    types: &[Type::BYTEA, Type::INT8],
};

/// What an index in a database holds.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(super) session: Session,
}

impl IndexDatabase {
    /// What it holds at the moment of the first look, whatever is written meanwhile.
    pub(crate) async fn read_consistently(&self) -> Result<Reading, MaintenanceError> {
        let session = self.known().await?;
        session.batch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        // The transaction ends with the connection.
        session.discard();
        Ok(Reading { session })
    }

    /// What it holds at each look.
    pub(crate) async fn read(&self) -> Result<Reading, MaintenanceError> {
        Ok(Reading { session: self.known().await? })
    }
}

impl Reading {
    /// The repositories that have referrers.
    pub(crate) async fn repositories(&self) -> Result<BTreeSet<Repository>, MaintenanceError> {
        let mut all = BTreeSet::new();
        let mut after: Vec<u8> = Vec::new();
        loop {
            let rows = self.session.rows(&REPOSITORIES, &[&after, &CHUNK]).await?;
            for row in &rows {
                after = get(row, 0)?;
                let (upstream, name): (i64, &str) = (get(row, 1)?, get(row, 2)?);
                if get(row, 3)? {
                    all.insert(repository(upstream, name)?);
                }
            }
            if i64::try_from(rows.len()).unwrap_or(0) < CHUNK {
                return Ok(all);
            }
        }
    }

    /// Referrers of a repository by digest, and whether there are more.
    pub(crate) async fn page(
        &self,
        repository: &Repository,
        after: Option<&Digest>,
        max: usize,
    ) -> Result<(Vec<(Digest, Head)>, bool), MaintenanceError> {
        let after = after.map(digest_key).unwrap_or_default();
        let mut tries = 0;
        loop {
            match heads(&self.session, &repository_key(repository), after.clone(), max).await {
                // A row was changed between two statements.
                Err(Failure::Conflict) if tries < 10 => tries += 1,
                page => return Ok(page?),
            }
        }
    }
}

/// The repository of these columns.
pub(super) fn repository(upstream: i64, name: &str) -> Result<Repository, Failure> {
    let unreadable = || Failure::Malformed(format!("the repository {name:?} of upstream {upstream}"));
    let upstream = u32::try_from(upstream).map_err(|_| unreadable())?;
    Ok(Repository { upstream, name: name.parse().map_err(|_| unreadable())? })
}
