//! Which replicas use the database: each holds a lease of its own name while it runs, and renews it.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_postgres::types::Type;

use super::Postgres;
use super::rows::get;
use super::statements::Sql;
use crate::index::ReadError;

/// How long a replica that was killed is counted.
const PRESENT: Duration = Duration::from_secs(60);
/// How often one that runs says so.
const RENEWED: Duration = Duration::from_secs(20);
/// What the names of their leases begin with.
const PREFIX: &str = "replica ";

static COUNT: Sql = Sql {
    text: "SELECT count(*) FROM lease WHERE name LIKE $1 || '%' \
           AND until_us > (extract(epoch FROM statement_timestamp()) * 1000000)::bigint",
    types: &[Type::TEXT],
};

/// Removes those of replicas that are gone.
static SWEEP: Sql = Sql {
    text: "DELETE FROM lease WHERE name LIKE $1 || '%' \
           AND until_us < (extract(epoch FROM statement_timestamp()) * 1000000)::bigint",
    types: &[Type::TEXT],
};

impl Postgres {
    /// How many replicas use the database, this one included.
    pub(crate) async fn replicas(&self) -> Result<u64, ReadError> {
        let counted = self.run(|session| async move {
            let row = session.row(&COUNT, &[&PREFIX]).await?;
            row.map_or(Ok(0), |row| get::<i64>(&row, 0))
        });
        Ok(u64::try_from(counted.await?).unwrap_or_default())
    }

    /// Says that this replica runs, if it is time to; when it did, for the next call. A failure is told by whatever else
    /// fails then.
    pub(super) async fn say_present(&self, said: Option<Instant>) -> Option<Instant> {
        if said.is_some_and(|said| said.elapsed() < RENEWED) {
            return said;
        }
        self.take_lease(&self.lease_name(), &self.holder, PRESENT).await.ok()?;
        self.run(|session| async move { session.row(&SWEEP, &[&PREFIX]).await }).await.ok()?;
        Some(Instant::now())
    }

    /// Says that it ends.
    pub(super) async fn say_gone(&self) {
        let name = self.lease_name();
        timeout(self.timeout, self.release_lease(&name, &self.holder)).await.ok();
    }

    fn lease_name(&self) -> String {
        [PREFIX, &self.holder].concat()
    }
}
