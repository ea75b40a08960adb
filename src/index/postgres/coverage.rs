//! What is known of the coverage, in a table of its own. Asked for with every list, so each replica remembers it for
//! some seconds.

use std::collections::BTreeMap;

use jiff::Timestamp;
use moka::sync::Cache;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::Postgres;
use super::failure::Failure;
use super::keeper::CoverageChange;
use super::rows::get;
use super::statements::Sql;
use crate::index::{Coverage, CoverageList, Covered, ReadError, WriteError};
use crate::oci::RepositoryName;

/// The coverage of repositories, and of whole upstreams, for some seconds.
pub(super) type Remembered = Cache<(u32, Option<RepositoryName>), Coverage>;

/// The database's time.
static NOW: Sql =
    Sql { text: "SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint", types: &[] };

/// From now on an upstream is recorded; nothing changes if it was already.
static BEGIN_COVERAGE: Sql = Sql {
    text: "INSERT INTO coverage (upstream, name, began_us) VALUES ($1, '', \
           (extract(epoch FROM statement_timestamp()) * 1000000)::bigint) ON CONFLICT DO NOTHING",
    types: &[Type::INT8],
};

/// Nothing is known of an upstream's coverage any more.
static VOID_COVERAGE: Sql = Sql { text: "DELETE FROM coverage WHERE upstream = $1", types: &[Type::INT8] };

/// An upstream is recorded from now on only.
static RESTART_COVERAGE: Sql = Sql {
    text: "UPDATE coverage SET began_us = CASE WHEN name = '' THEN GREATEST(began_us + 1, \
           (extract(epoch FROM statement_timestamp()) * 1000000)::bigint) END, \
           backfilled_us = NULL, swept_us = NULL WHERE upstream = $1",
    types: &[Type::INT8],
};

/// Adds to what is known of a repository's coverage, or under no name of all. What was begun before the upstream was
/// recorded does not count, and nothing does as long as it is not.
static COVER: Sql = Sql {
    text: "INSERT INTO coverage AS c (upstream, name, backfilled_us, swept_us, notified_us) \
           SELECT $1, $2, CASE WHEN $3 >= w.began_us THEN $3 END, CASE WHEN $4 >= w.began_us THEN $4 END, $5 \
           FROM coverage AS w WHERE w.upstream = $1 AND w.name = '' \
           ON CONFLICT (upstream, name) DO UPDATE SET backfilled_us = GREATEST(c.backfilled_us, excluded.backfilled_us), \
           swept_us = GREATEST(c.swept_us, excluded.swept_us), notified_us = GREATEST(c.notified_us, excluded.notified_us)",
    types: &[Type::INT8, Type::TEXT, Type::INT8, Type::INT8, Type::INT8],
};

/// What is known of a repository, and of its upstream as a whole. What was read before the upstream was recorded does
/// not count.
static COVERAGE_OF: Sql = Sql {
    text: "SELECT c.name, w.began_us, CASE WHEN c.backfilled_us >= w.began_us THEN c.backfilled_us END, \
           CASE WHEN c.swept_us >= w.began_us THEN c.swept_us END, c.notified_us \
           FROM coverage AS c JOIN coverage AS w ON w.upstream = c.upstream AND w.name = '' \
           WHERE c.upstream = $1 AND c.name IN ('', $2)",
    types: &[Type::INT8, Type::TEXT],
};

/// What is known of an upstream and of its repositories.
static ALL_COVERAGE: Sql = Sql {
    text: "SELECT c.name, w.began_us, CASE WHEN c.backfilled_us >= w.began_us THEN c.backfilled_us END, \
           CASE WHEN c.swept_us >= w.began_us THEN c.swept_us END, c.notified_us \
           FROM coverage AS c JOIN coverage AS w ON w.upstream = c.upstream AND w.name = '' WHERE c.upstream = $1",
    types: &[Type::INT8],
};

impl Postgres {
    /// Changes the coverage of a whole upstream in the background, as soon as the database takes it.
    pub(crate) fn change_coverage(&self, change: CoverageChange) {
        self.keeper.change_coverage(change);
        self.coverage.invalidate_all();
    }

    pub(super) async fn write_coverage_change(&self, change: CoverageChange) -> Result<(), WriteError> {
        self.change(|session, _| async move {
            match change {
                CoverageChange::Begin { upstream } => {
                    session.row(&BEGIN_COVERAGE, &[&i64::from(upstream)]).await?;
                }
                CoverageChange::Void { upstream } => {
                    session.row(&VOID_COVERAGE, &[&i64::from(upstream)]).await?;
                }
                CoverageChange::Restart { upstream } => {
                    session.row(&RESTART_COVERAGE, &[&i64::from(upstream)]).await?;
                }
            }
            Ok(())
        })
        .await?;
        self.coverage.invalidate_all();
        Ok(())
    }

    pub(crate) async fn cover(
        &self,
        upstream: u32,
        name: Option<&RepositoryName>,
        covered: Covered,
    ) -> Result<(), WriteError> {
        let (id, text) = (&i64::from(upstream), &name.map(ToString::to_string).unwrap_or_default());
        let micros = |time: Option<Timestamp>| time.map(Timestamp::as_microsecond);
        let (backfilled, swept) = (&micros(covered.backfilled), &micros(covered.swept));
        let notified = &micros(covered.notified);
        let written = self.change(|session, _| async move {
            session.row(&COVER, &[id, text, backfilled, swept, notified]).await.map(drop)
        });
        written.await?;
        self.coverage.invalidate(&(upstream, name.cloned()));
        Ok(())
    }

    pub(crate) async fn coverage(
        &self,
        upstream: u32,
        name: Option<&RepositoryName>,
    ) -> Result<Coverage, ReadError> {
        let key = (upstream, name.cloned());
        if let Some(coverage) = self.coverage.get(&key) {
            return Ok(coverage);
        }
        let (id, text) = (&i64::from(upstream), &name.map(ToString::to_string).unwrap_or_default());
        let read = self.run(|session| async move {
            let rows = session.rows(&COVERAGE_OF, &[id, text]).await?;
            let mut is_complete = false;
            let mut began = None;
            for row in &rows {
                let (_, covered) = decoded(row)?;
                is_complete |= covered.is_complete();
                began = began.or(time(row, 1)?);
            }
            Ok(match began {
                Some(_) if is_complete => Coverage::Complete,
                began => Coverage::Since(began.unwrap_or_else(Timestamp::now)),
            })
        });
        let coverage = read.await?;
        self.coverage.insert(key, coverage);
        Ok(coverage)
    }

    pub(crate) async fn covered(&self, upstream: u32) -> Result<Option<CoverageList>, ReadError> {
        let id = &i64::from(upstream);
        let read = self.run(|session| async move {
            let rows = session.rows(&ALL_COVERAGE, &[id]).await?;
            let mut began = None;
            let mut all = BTreeMap::new();
            for row in &rows {
                let (name, covered) = decoded(row)?;
                began = began.or(time(row, 1)?);
                all.insert(name, covered);
            }
            Ok(began.map(|began| (began, all)))
        });
        Ok(read.await?)
    }

    /// The database's time, by which the coverage is measured.
    pub(crate) async fn time(&self) -> Result<Timestamp, ReadError> {
        let read = self.run(|session| async move {
            let row = session.row(&NOW, &[]).await?;
            row.map_or(Ok(None), |row| time(&row, 0))
        });
        Ok(read.await?.unwrap_or_else(Timestamp::now))
    }
}

fn decoded(row: &Row) -> Result<(Option<RepositoryName>, Covered), Failure> {
    let name: &str = get(row, 0)?;
    let name = match name {
        "" => None,
        name => Some(name.parse().map_err(|_| Failure::Malformed("a repository's name".to_owned()))?),
    };
    Ok((name, Covered { backfilled: time(row, 2)?, swept: time(row, 3)?, notified: time(row, 4)? }))
}

fn time(row: &Row, place: usize) -> Result<Option<Timestamp>, Failure> {
    let micros: Option<i64> = get(row, place)?;
    Ok(micros.and_then(|micros| Timestamp::from_microsecond(micros).ok()))
}
