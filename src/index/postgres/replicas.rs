//! Which replicas use the database: each holds a lease of its own name while it runs, and renews it.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_postgres::types::Type;

use super::Postgres;
use super::connection::{Lent, Session};
use super::failure::Failure;
use super::lease::{LEASE, RELEASE};
use super::rows::get;
use super::statements::Sql;

/// How long a replica that was killed is counted.
const PRESENT: Duration = Duration::from_secs(60);
/// How often one that runs says so.
const RENEWED: Duration = Duration::from_secs(20);
/// How long saying or asking it may take.
const ASIDE: Duration = Duration::from_secs(2);
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
    /// How many replicas use the database, this one included; `None` if that cannot be told now.
    pub(crate) async fn replicas(&self) -> Option<u64> {
        let counted = self.aside(|session| async move {
            let row = session.row(&COUNT, &[&PREFIX]).await?;
            row.map_or(Ok(0), |row| get::<i64>(&row, 0))
        });
        counted.await.and_then(|count| u64::try_from(count).ok())
    }

    /// Says that this replica runs, if it is time to; `said` is when it last tried.
    pub(super) async fn say_present(&self, said: &mut Option<Instant>) {
        if said.is_some_and(|said| said.elapsed() < RENEWED) {
            return;
        }
        *said = Some(Instant::now());
        let name = &self.lease_name();
        let lasts = &i64::try_from(PRESENT.as_micros()).unwrap_or(i64::MAX);
        let told = self.aside(|session| async move {
            session.row(&LEASE, &[name, &self.holder, lasts]).await?;
            session.row(&SWEEP, &[&PREFIX]).await
        });
        told.await;
    }

    /// Says that it ends.
    pub(super) async fn say_gone(&self) {
        let name = &self.lease_name();
        self.aside(|session| async move { session.row(&RELEASE, &[name, &self.holder]).await }).await;
    }

    /// Does something once that no query and no push depends on. However it ends, it says nothing of the database's
    /// health: whoever holds a lock on the leases would otherwise stop all queries.
    async fn aside<T, W>(&self, work: impl FnOnce(Session) -> W) -> Option<T>
    where
        W: Future<Output = Result<T, Failure>>,
    {
        let lent = Lent::default();
        let done = async {
            let session = self.session().await?;
            lent.keep(&session);
            let done = work(session.clone()).await;
            lent.clear();
            if done.is_err() {
                session.discard();
            }
            done
        };
        let done = timeout(ASIDE.min(self.timeout), done).await;
        // What is given up goes on in the connection, and the next user would wait for it.
        lent.discard();
        done.ok()?.ok()
    }

    fn lease_name(&self) -> String {
        [PREFIX, &self.holder].concat()
    }
}
