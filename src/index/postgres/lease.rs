//! What one replica at a time does.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::Postgres;
use super::statements::Sql;
use crate::index::WriteError;

/// Takes or renews a lease; no row if somebody else has it.
pub(super) static LEASE: Sql = Sql {
    text: "INSERT INTO lease AS l (name, holder, until_us) VALUES ($1, $2, \
           (extract(epoch FROM statement_timestamp()) * 1000000)::bigint + $3) \
           ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until_us = excluded.until_us \
           WHERE l.holder = excluded.holder \
           OR l.until_us < (extract(epoch FROM statement_timestamp()) * 1000000)::bigint RETURNING until_us",
    types: &[Type::TEXT, Type::TEXT, Type::INT8],
};

/// Gives a lease back.
pub(super) static RELEASE: Sql =
    Sql { text: "DELETE FROM lease WHERE name = $1 AND holder = $2", types: &[Type::TEXT, Type::TEXT] };

impl Postgres {
    /// Takes or renews a lease for `holder`, for so long from now. Whether it has it then.
    pub(crate) async fn take_lease(
        &self,
        name: &str,
        holder: &str,
        lasts: Duration,
    ) -> Result<bool, WriteError> {
        let lasts = &i64::try_from(lasts.as_micros()).unwrap_or(i64::MAX);
        // As a write: who holds a lock on the leases must not stop queries.
        self.change(|session, _attempt| async move {
            Ok(session.row(&LEASE, &[&name, &holder, lasts]).await?.is_some())
        })
        .await
    }

    /// Gives a lease back, if `holder` has it.
    pub(crate) async fn release_lease(&self, name: &str, holder: &str) -> Result<(), WriteError> {
        self.change(
            |session, _attempt| async move { session.row(&RELEASE, &[&name, &holder]).await.map(drop) },
        )
        .await
    }
}
