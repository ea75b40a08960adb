//! What a replica is to work off later: a row for each group of events, which another replica takes over when its
//! holder has not renewed it for a while.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::Postgres;
use super::rows::{get, number};
use super::statements::Sql;
use crate::index::{Parcel, WriteError};

/// How long a row is its holder's without being renewed.
pub(crate) const HELD: Duration = Duration::from_secs(60);
/// Rows that are taken over at a time.
const TAKEN_AT_A_TIME: i64 = 100;

static ADD: Sql = Sql {
    text: "INSERT INTO queued (queue, id, holder, until_us, received_us, events) VALUES ($1, $2, $3, \
           (extract(epoch FROM statement_timestamp()) * 1000000)::bigint + $4, \
           (extract(epoch FROM statement_timestamp()) * 1000000)::bigint, $5) ON CONFLICT DO NOTHING",
    types: &[Type::TEXT, Type::TEXT, Type::TEXT, Type::INT8, Type::TEXT],
};

static REMOVE: Sql = Sql {
    text: "DELETE FROM queued WHERE queue = $1 AND id = $2 AND holder = $3",
    types: &[Type::TEXT, Type::TEXT, Type::TEXT],
};

static RENEW: Sql = Sql {
    text: "UPDATE queued SET until_us = (extract(epoch FROM statement_timestamp()) * 1000000)::bigint + $3 \
           WHERE queue = $1 AND holder = $2",
    types: &[Type::TEXT, Type::TEXT, Type::INT8],
};

/// Asked again of each row after it was waited for, so that two do not take over the same.
static TAKE_OVER: Sql = Sql {
    text: "UPDATE queued AS q SET holder = $2, \
           until_us = (extract(epoch FROM statement_timestamp()) * 1000000)::bigint + $3 \
           FROM (SELECT id FROM queued WHERE queue = $1 \
           AND until_us < (extract(epoch FROM statement_timestamp()) * 1000000)::bigint \
           ORDER BY received_us LIMIT $4) AS left_over \
           WHERE q.queue = $1 AND q.id = left_over.id \
           AND q.until_us < (extract(epoch FROM statement_timestamp()) * 1000000)::bigint \
           RETURNING q.id, q.received_us, q.events",
    types: &[Type::TEXT, Type::TEXT, Type::INT8, Type::INT8],
};

impl Postgres {
    pub(crate) async fn add_parcel(
        &self,
        queue: &str,
        holder: &str,
        id: &str,
        events: &str,
    ) -> Result<(), WriteError> {
        let held = &held();
        self.change(|session, _attempt| async move {
            session.row(&ADD, &[&queue, &id, &holder, held, &events]).await.map(drop)
        })
        .await
    }

    pub(crate) async fn remove_parcel(&self, queue: &str, holder: &str, id: &str) -> Result<(), WriteError> {
        self.change(|session, _attempt| async move {
            session.row(&REMOVE, &[&queue, &id, &holder]).await.map(drop)
        })
        .await
    }

    /// Renews what this holder has, and takes over what others have left.
    pub(crate) async fn take_parcels(&self, queue: &str, holder: &str) -> Result<Vec<Parcel>, WriteError> {
        let held = &held();
        self.change(|session, _attempt| async move {
            session.row(&RENEW, &[&queue, &holder, held]).await?;
            let rows = session.rows(&TAKE_OVER, &[&queue, &holder, held, &TAKEN_AT_A_TIME]).await?;
            let parcels = rows.iter().map(|row| {
                let received = Duration::from_micros(number(row, 1)?);
                Ok(Parcel { id: get(row, 0)?, received, events: get(row, 2)? })
            });
            parcels.collect()
        })
        .await
    }
}

fn held() -> i64 {
    i64::try_from(HELD.as_micros()).unwrap_or(i64::MAX)
}
