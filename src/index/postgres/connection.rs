//! Connections to the database: a pool, how one is made, and how a statement is run on it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Row, Socket};

use super::failure::Failure;
use super::hosts;
use super::statements::Sql;
use crate::config::{DatabaseConfig, Statements};
use crate::tls::DatabaseConnector;

/// The longest wait for a new connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Without an answer to what was sent for so long, a connection is given up by the system.
const SILENCE: Duration = Duration::from_secs(15);

/// Makes the pool; connects to nothing yet.
pub(super) fn pool(settings: &DatabaseConfig, limit: Duration) -> Result<Pool, crate::tls::TlsError> {
    let dialer = Dialer {
        tls: settings.tls.required.then(|| DatabaseConnector::new(&settings.tls)).transpose()?,
        settings: settings.clone(),
        limit: CONNECT.min(limit),
        session: (settings.statements == Statements::Prepared).then(|| session_settings(limit)),
        last_good: AtomicUsize::new(0),
        password_problem: Mutex::default(),
    };
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_connect(settings.url.config().clone(), dialer, recycling);
    let wait = Some(limit);
    let create = Some(CONNECT.min(limit));
    let pool = Pool::builder(manager)
        .max_size(settings.connections)
        .timeouts(Timeouts { wait, create, recycle: create })
        .runtime(Runtime::Tokio1)
        .build();
    // Fails only if there is no runtime, and one is given.
    Ok(pool.unwrap_or_else(|error| unreachable!("{error}")))
}

/// What each session needs, whatever the role or the database sets. Behind pgbouncer in transaction mode sessions are
/// shared, so there the role has to set it.
fn session_settings(limit: Duration) -> String {
    let limit = limit.as_millis().max(1);
    // Serializable transactions would be right as well, only slower and with more conflicts.
    format!(
        "SET statement_timeout = {limit}; SET lock_timeout = {limit}; \
         SET idle_in_transaction_session_timeout = {limit}; \
         SET default_transaction_isolation = 'read committed'; \
         SELECT set_config('synchronous_commit', 'on', false) \
         WHERE current_setting('synchronous_commit') IN ('off', 'local')"
    )
}

/// Makes connections.
#[derive(Debug)]
struct Dialer {
    tls: Option<DatabaseConnector>,
    settings: DatabaseConfig,
    limit: Duration,
    session: Option<String>,
    /// The place of the host that was connected to the last time.
    last_good: AtomicUsize,
    /// What is wrong with the file of the password.
    password_problem: Mutex<Option<String>>,
}

impl Dialer {
    /// Connects to the host that takes writes.
    async fn any_host(&self, config: Config) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        let mut hosts = hosts::each(&config);
        // Never none: the configuration has seen to that.
        let count = hosts.len().max(1);
        let first = self.last_good.load(Ordering::Relaxed) % count;
        if !hosts.is_empty() {
            hosts.rotate_left(first);
        }
        let limit = self.limit / u32::try_from(count).unwrap_or(u32::MAX);
        let mut last = hosts.pop().unwrap_or(config);
        for (place, mut host) in hosts.into_iter().enumerate() {
            host.connect_timeout(limit);
            if let Ok(Ok(connected)) = timeout(limit, self.dial(&host)).await {
                self.last_good.store((first + place) % count, Ordering::Relaxed);
                return Ok(connected);
            }
        }
        // What is wrong with the last one is told. The pool has a limit for all of this.
        last.connect_timeout(self.limit);
        let connected = self.dial(&last).await?;
        self.last_good.store((first + count - 1) % count, Ordering::Relaxed);
        Ok(connected)
    }

    async fn dial(&self, config: &Config) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        let (client, connection) = match &self.tls {
            None => open(config, NoTls).await?,
            Some(tls) => open(config, tls.clone()).await?,
        };
        if let Some(session) = &self.session {
            client.batch_execute(session).await?;
        }
        Ok((client, connection))
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.password_problem.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl deadpool_postgres::Connect for Dialer {
    fn connect(
        &self,
        without_password: &Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        // Anew for each connection, so that the password can be changed at any time.
        let mut config = match self.settings.connection() {
            Ok(config) => {
                *self.lock() = None;
                config
            }
            Err(error) => {
                // Once, and not with each attempt.
                let mut told = self.lock();
                if told.as_ref() != Some(&error) {
                    tracing::error!(error, "index.password_file cannot be read");
                    *told = Some(error);
                }
                without_password.clone()
            }
        };
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(SILENCE);
        }
        self.any_host(config).boxed()
    }
}

async fn open<T>(config: &Config, tls: T) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error>
where
    T: MakeTlsConnect<Socket> + Send,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as tokio_postgres::tls::TlsConnect<Socket>>::Future: Send,
{
    let (client, connection) = config.connect(tls).await?;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the database of the index ended");
        }
    });
    Ok((client, driver))
}

/// A connection that was lent out; goes back to the pool when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Session {
    lent: Arc<Checkout>,
    statements: Statements,
}

struct Checkout {
    /// None only while it is dropped.
    connection: Option<Object>,
    is_unfit: AtomicBool,
    is_in_transaction: AtomicBool,
    /// Given back after the connection.
    _place: OwnedSemaphorePermit,
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|_| self.is_unfit.load(Ordering::Relaxed)) {
            drop(Object::take(connection));
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(connection: Object, place: OwnedSemaphorePermit, statements: Statements) -> Self {
        let checkout = Checkout {
            connection: Some(connection),
            is_unfit: AtomicBool::new(false),
            is_in_transaction: AtomicBool::new(false),
            _place: place,
        };
        Self { lent: Arc::new(checkout), statements }
    }

    fn client(&self) -> Result<&Object, Failure> {
        self.lent.connection.as_ref().ok_or(Failure::Closed)
    }

    /// The rows of a statement; one round trip.
    pub(super) async fn rows(
        &self,
        sql: &Sql,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        let client = self.client()?;
        Ok(match self.statements {
            Statements::Prepared => {
                let statement = client.prepare_typed_cached(sql.text, sql.types).await?;
                client.query(&statement, parameters).await?
            }
            Statements::Unnamed => {
                let typed: Vec<(&(dyn ToSql + Sync), Type)> =
                    parameters.iter().copied().zip(sql.types.iter().cloned()).collect();
                client.query_typed(sql.text, &typed).await?
            }
        })
    }

    /// The only row of a statement, if there is one.
    pub(super) async fn row(
        &self,
        sql: &Sql,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Failure> {
        Ok(self.rows(sql, parameters).await?.pop())
    }

    /// Statements without parameters, one after the other.
    pub(super) async fn batch(&self, text: &str) -> Result<(), Failure> {
        Ok(self.client()?.batch_execute(text).await?)
    }

    /// Begins a transaction, which ends with [`Transaction::commit`]; dropped before, it takes the connection with it.
    pub(super) async fn transaction(&self) -> Result<Transaction<'_>, Failure> {
        let transaction = Transaction { session: self, is_ended: false };
        self.lent.is_in_transaction.store(true, Ordering::Relaxed);
        self.batch("BEGIN").await?;
        Ok(transaction)
    }

    /// The same, if the session is not in one.
    pub(super) async fn transaction_unless_in_one(&self) -> Result<Option<Transaction<'_>>, Failure> {
        if self.lent.is_in_transaction.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.transaction().await.map(Some)
    }

    /// Keeps the connection out of the pool from now on: the server that it leads to is not the one that is wanted
    /// any more, or it is in the middle of something.
    pub(super) fn discard(&self) {
        self.lent.is_unfit.store(true, Ordering::Relaxed);
    }
}

/// The session that somebody works with who may be interrupted.
#[derive(Debug, Default)]
pub(super) struct Lent(Mutex<Option<Session>>);

impl Lent {
    pub(super) fn keep(&self, session: &Session) {
        *self.lock() = Some(session.clone());
    }

    pub(super) fn clear(&self) {
        *self.lock() = None;
    }

    /// Keeps the connection out of the pool if it is in the middle of something.
    pub(super) fn discard(&self) {
        if let Some(session) = self.lock().take() {
            session.discard();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transaction on a session.
#[derive(Debug)]
pub(super) struct Transaction<'s> {
    session: &'s Session,
    is_ended: bool,
}

impl Transaction<'_> {
    /// Commits what was done in it, or rolls it back if that failed.
    pub(super) async fn end(mut self, done: Result<(), Failure>) -> Result<(), Failure> {
        // Of a failure of the connection nothing is to be rolled back; then this fails and the connection goes.
        if done == Err(Failure::Conflict) {
            self.session.batch("ROLLBACK").await?;
            self.is_ended = true;
        }
        done?;
        self.commit().await
    }

    /// Commits it.
    pub(super) async fn commit(mut self) -> Result<(), Failure> {
        self.session.batch("COMMIT").await?;
        self.is_ended = true;
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.session.lent.is_in_transaction.store(false, Ordering::Relaxed);
        if !self.is_ended {
            self.session.discard();
        }
    }
}
