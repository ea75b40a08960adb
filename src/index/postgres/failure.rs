//! Why the database did not do what it was asked to.

use deadpool_postgres::{PoolError, TimeoutType};
use tokio_postgres::error::SqlState;

use crate::index::{ReadError, WriteError};

/// Why an operation failed. The texts are for operators.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// There is no connection, or it broke.
    #[error("the database cannot be reached: {0}")]
    Unreachable(String),
    /// It takes no further connection.
    #[error("the database takes no more connections: {0}")]
    Crowded(String),
    /// It takes no writes at all: a standby, or a failover that is under way.
    #[error("the database is read-only (a failover under way?)")]
    ReadOnly,
    /// It refuses us: password, rights, a schema that is too new.
    #[error("{0}")]
    Refused(String),
    /// Its schema is missing or old. Seen half-way, too, while others migrate.
    #[error("{0}: run refshim index migrate")]
    Unmigrated(String),
    /// It takes no writes at the moment, as with a full disk.
    #[error("the database takes no writes: {0}")]
    Full(String),
    /// Somebody else changed the same rows. Trying again helps.
    #[error("others change the same rows")]
    Conflict,
    /// It did not answer in time.
    #[error("the database did not answer in time")]
    Slow,
    /// What it answered is not what we wrote.
    #[error("the database holds something unreadable: {0}")]
    Malformed(String),
    /// Anything else: a mistake in refshim.
    #[error("the database reports {0}")]
    Unexpected(String),
    /// The index was closed.
    #[error("the index is closed")]
    Closed,
}

impl Failure {
    /// Whether an operator has to be told of one of them only. A database that goes away gives a dozen texts, depending
    /// on what was being done.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unreachable(_) | Self::Slow, Self::Unreachable(_) | Self::Slow) => true,
            // Some name the time.
            (Self::Refused(one), Self::Refused(other)) => {
                let words = |text: &str| -> String { text.chars().filter(|c| !c.is_ascii_digit()).collect() };
                words(one) == words(other)
            }
            (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(database) = error.as_db_error() else {
            let text = with_sources(&error);
            // A mistake in what we send or expect; anything else is of the connection.
            let has = |part: &str| text.contains(part);
            return if has("error serializing") || has("error deserializing") {
                Self::Unexpected(text)
            } else if has("does not allow writes") {
                // All hosts are standbys.
                Self::ReadOnly
            } else if has("password missing") {
                Self::Refused(format!("{text}: set index.password_file"))
            } else if has("does not support TLS") {
                Self::Refused(format!("{text}: see sslmode in index.url"))
            } else if has("certificate") || has("received fatal alert") {
                Self::Refused(format!("{text}: see index.tls"))
            } else {
                Self::Unreachable(text)
            };
        };
        let (code, message) = (database.code(), database.message());
        let told = |advice: &str| format!("{message} ({}): {advice}", code.code());
        let plain = || format!("{message} ({})", code.code());
        match *code {
            SqlState::T_R_SERIALIZATION_FAILURE
            | SqlState::T_R_DEADLOCK_DETECTED
            | SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
            | SqlState::UNIQUE_VIOLATION
            // Of a table that others create at the same moment.
            | SqlState::DUPLICATE_TABLE
            | SqlState::DUPLICATE_OBJECT => Self::Conflict,
            SqlState::READ_ONLY_SQL_TRANSACTION => Self::ReadOnly,
            SqlState::QUERY_CANCELED | SqlState::LOCK_NOT_AVAILABLE => Self::Slow,
            SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                Self::Refused(told("see index.url, index.password_file and pg_hba.conf"))
            }
            SqlState::INVALID_CATALOG_NAME => Self::Refused(told("create the database, or see index.url")),
            SqlState::INSUFFICIENT_PRIVILEGE => {
                Self::Refused(told(
                    "grant SELECT, INSERT, UPDATE and DELETE on the tables of refshim, or, to migrate, CREATE on \
                     their schema",
                ))
            }
            SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_COLUMN | SqlState::INVALID_SCHEMA_NAME => {
                Self::Unmigrated(plain())
            }
            SqlState::TOO_MANY_CONNECTIONS => Self::Crowded(told("see index.connections")),
            SqlState::DISK_FULL | SqlState::OUT_OF_MEMORY | SqlState::INSUFFICIENT_RESOURCES => {
                Self::Full(plain())
            }
            SqlState::INVALID_SQL_STATEMENT_NAME | SqlState::DUPLICATE_PSTATEMENT => Self::Refused(told(
                "behind pgbouncer in transaction mode, set index.statements = \"unnamed\"",
            )),
            _ => match code.code().get(..2) {
                // Connections, operators (a shutdown), and the system below it.
                Some("08" | "57" | "58") => Self::Unreachable(plain()),
                Some("40") => Self::Conflict,
                Some("53" | "54") => Self::Full(plain()),
                _ => Self::Unexpected(plain()),
            },
        }
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => error.into(),
            // All connections are busy.
            PoolError::Timeout(TimeoutType::Wait) => Self::Slow,
            PoolError::Timeout(TimeoutType::Create | TimeoutType::Recycle) => {
                Self::Unreachable("no connection in time".to_owned())
            }
            PoolError::Closed => Self::Closed,
            error @ (PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_)) => {
                Self::Unexpected(error.to_string())
            }
        }
    }
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable(_)
            | Failure::Crowded(_)
            | Failure::ReadOnly
            | Failure::Refused(_)
            | Failure::Unmigrated(_) => Self::Unreachable,
            Failure::Slow => Self::Slow,
            Failure::Closed => Self::Closed,
            Failure::Full(_) | Failure::Conflict | Failure::Malformed(_) | Failure::Unexpected(_) => {
                Self::Failed
            }
        }
    }
}

impl From<Failure> for WriteError {
    fn from(failure: Failure) -> Self {
        ReadError::from(failure).into()
    }
}

/// The error with all that it comes from: tokio-postgres says only "db error" by itself.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
