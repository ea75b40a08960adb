//! The commands `refshim index migrate`, `check`, `dump` and `load`, on the index in a database, and what
//! `refshim index copy` reads and writes there.

mod check;
mod dump;
pub(crate) mod reading;
pub(crate) mod writing;

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;

pub use check::{DatabaseReport, Odd};

use super::connection::{self, Session};
use super::failure::Failure;
use super::schema;
use super::share::Share;
use crate::config::{DatabaseConfig, Statements};
use crate::index::maintenance::MaintenanceError;

/// The longest a statement may take: a migration may have to read a large table.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// The index in a database, for the commands that look after it.
#[derive(Clone, Debug)]
pub struct IndexDatabase {
    pool: Pool,
    share: Arc<Share>,
    statements: Statements,
}

/// What a migration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The version that the schema had; none before the first.
    pub from: Option<i64>,
    /// The version that it has.
    pub to: i64,
}

impl From<Failure> for MaintenanceError {
    fn from(failure: Failure) -> Self {
        Self::Database(failure.to_string())
    }
}

impl IndexDatabase {
    /// The index in this database; connects to nothing yet.
    ///
    /// # Errors
    /// The TLS files cannot be used.
    pub fn new(database: &DatabaseConfig) -> Result<Self, MaintenanceError> {
        let pool = connection::pool(database, TIMEOUT);
        let pool = pool.map_err(|error| MaintenanceError::Database(error.to_string()))?;
        let share = Arc::new(Share::new(database.connections));
        Ok(Self { pool, share, statements: database.statements })
    }

    /// Brings the schema to the newest version that this build knows. Safe while others do so too.
    ///
    /// # Errors
    /// The database cannot be used, or its schema is too new for this build.
    pub async fn migrate(&self) -> Result<Migrated, MaintenanceError> {
        let session = self.session().await?;
        let from = schema::version(&session).await?.filter(|version| *version > 0);
        schema::known(&session, true).await?;
        let to = schema::version(&session).await?.unwrap_or(schema::NEWEST);
        Ok(Migrated { from, to })
    }

    async fn session(&self) -> Result<Session, Failure> {
        let place = self.share.one().await?;
        Ok(Session::new(self.pool.get().await?, place, self.statements))
    }

    /// A connection to an index whose schema this build can use.
    async fn known(&self) -> Result<Session, Failure> {
        let session = self.session().await?;
        schema::known(&session, false).await?;
        Ok(session)
    }
}
