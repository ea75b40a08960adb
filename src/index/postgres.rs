//! The engine for several replicas: the index in PostgreSQL, or in what speaks its protocol. refshim then holds no
//! state of its own.
//!
//! # What is where
//! The tables are described in `postgres/schema/1.sql`. A referrer is one row, which holds its state and lists its
//! links; each link is a row as well, which repeats all that a query answers, so that a query is one scan of one index
//! (a join costs two to four times as much from ten entries on).
//!
//! # The way of a write
//! What a write does to the state that it meets is decided by [`crate::index::decision`], as in the local engine. Here
//! the state is read, and written on the condition that nobody changed it since (its `revision`); if somebody did, it is
//! read and decided again. Two replicas that change the same referrer therefore never undo each other's work, nothing
//! is locked while refshim thinks, and a statement that is repeated because its answer was lost does no harm. The
//! beginning of a PUT is the exception: unknown and confirmed referrers, which are nearly all, are dealt with in one
//! statement without a look first, and its confirmation is written over what it returned. So a recorded PUT costs two
//! round trips and two commits.
//!
//! # Races between replicas
//! - A PUT on one, a deletion on another: the PUTs under way are counted in the referrer's row, with a time until when
//!   they count, since a replica may be killed; a deletion meanwhile makes the referrer pending.
//! - A deletion while another replica reads from the registry: deletions are counted for each repository, and what was
//!   read before one is recorded as pending. An old count is as good as a new one, only more careful; so it is
//!   remembered, and asked for only once for each repository.
//! - Orders and times are the database's: no clocks are compared. Two referrers of one subject never have the same
//!   order; the key forbids it, and the statement is repeated.
//!
//! # When something fails
//! See [`keeper`]. Nothing is acknowledged that the database has not committed; whether that survives the loss of the
//! database's machine is for `synchronous_standby_names` to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deadpool_postgres::Pool;
use moka::sync::Cache;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

mod change;
mod connection;
mod coverage;
mod failure;
mod hosts;
mod keeper;
mod lease;
pub(super) mod maintenance;
mod observe;
mod put;
mod queued;
mod read;
mod replicas;
mod rows;
pub(super) mod schema;
mod share;
mod statements;
mod unique;
mod write;

use super::{IndexSettings, IndexState, Repository};
use crate::config::{DatabaseConfig, Statements};
use crate::tls::TlsError;
use connection::{Lent, Session};
use failure::Failure;
pub(crate) use keeper::CoverageChange;
use keeper::{Health, Keeper};
pub(crate) use observe::Reading;
pub(crate) use put::Put;
pub(crate) use queued::HELD;
pub(crate) use rows::Head;
use share::Share;
pub(crate) use unique::unique;

/// How often an operation is tried again when somebody else changes the same rows.
const TRIES: u32 = 30;
/// The first pause before that.
const PAUSE: Duration = Duration::from_millis(1);
/// Repositories whose count of deletions is remembered.
const REPOSITORIES_REMEMBERED: u64 = 100_000;
/// How long the number of referrers in a repository, and the coverage of one, are remembered.
const REMEMBERED: Duration = Duration::from_secs(5);

/// The database.
#[derive(Debug)]
pub(crate) struct Postgres {
    pool: Pool,
    share: Share,
    statements: Statements,
    /// Whether to bring the schema to the newest version.
    migrate: bool,
    keeper: Keeper,
    /// The name of this process among the replicas.
    holder: String,
    /// How often something was deleted from each repository, as far as this replica knows.
    removals: Cache<Repository, i64>,
    room: Cache<Repository, bool>,
    coverage: coverage::Remembered,
    repository_referrers: u64,
    timeout: Duration,
    /// In microseconds.
    forget_after: u64,
    keeping: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Postgres {
    /// Connects in the background.
    ///
    /// # Errors
    /// The TLS files cannot be used.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub(crate) fn open(settings: &IndexSettings, database: &DatabaseConfig) -> Result<Arc<Self>, TlsError> {
        let remembered = |entries| Cache::builder().max_capacity(entries).time_to_live(REMEMBERED).build();
        let engine = Arc::new(Self {
            pool: connection::pool(database, settings.timeout)?,
            share: Share::new(database.connections),
            statements: database.statements,
            migrate: database.migrate,
            keeper: Keeper::new(),
            holder: unique(),
            removals: Cache::new(REPOSITORIES_REMEMBERED),
            room: Cache::builder()
                .max_capacity(REPOSITORIES_REMEMBERED)
                .time_to_live(12 * REMEMBERED)
                .build(),
            coverage: remembered(REPOSITORIES_REMEMBERED),
            repository_referrers: settings.repository_referrers,
            timeout: settings.timeout,
            forget_after: u64::try_from(settings.forget_after.as_micros()).unwrap_or(u64::MAX),
            keeping: std::sync::Mutex::default(),
        });
        let kept = Arc::clone(&engine);
        let keeping = tokio::spawn(async move { kept.keep().await });
        *engine.keeping.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(keeping);
        Ok(engine)
    }

    async fn session(&self) -> Result<Session, Failure> {
        loop {
            let place = self.share.one().await?;
            match self.pool.get().await.map_err(Failure::from) {
                Ok(connection) => return Ok(Session::new(connection, place, self.statements)),
                // Others of ours do have a connection, and will be done with it.
                Err(failure @ Failure::Crowded(_)) if self.pool.status().size > 0 => {
                    if !self.share.withhold(place) {
                        return Err(failure);
                    }
                    self.keeper.crowded(&failure);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Reads something. See [`Postgres::attempt`].
    async fn run<T, W>(&self, work: impl Fn(Session) -> W) -> Result<T, Failure>
    where
        W: Future<Output = Result<T, Failure>>,
    {
        self.attempt(false, work).await
    }

    /// Does something with a connection, and again with another one if it broke, or if somebody else changed the same
    /// rows meanwhile. Everything that is done so may be done twice.
    async fn attempt<T, W>(&self, is_write: bool, work: impl Fn(Session) -> W) -> Result<T, Failure>
    where
        W: Future<Output = Result<T, Failure>>,
    {
        // What is given up after the time-out goes on in the connection, and the next user would wait for it.
        let lent = Lent::default();
        let admitted = AtomicU64::new(0);
        let tried = async {
            admitted.store(self.keeper.admitted().await?, Ordering::Relaxed);
            let (mut conflicts, mut broken, mut unconnected) = (0, 0, 0);
            loop {
                let session = match self.session().await {
                    // Connecting may end after the index was closed: what begins then would be done for nobody, and a
                    // replica that is gone would hold what it took.
                    Ok(_) if self.keeper.health() == Health::Closed => return Err(Failure::Closed),
                    Ok(session) => session,
                    Err(Failure::Unreachable(_)) if unconnected == 0 => {
                        unconnected += 1;
                        continue;
                    }
                    Err(failure) => return Err(failure),
                };
                lent.keep(&session);
                let outcome = work(session.clone()).await;
                lent.clear();
                if matches!(outcome, Err(Failure::ReadOnly | Failure::Unreachable(_))) {
                    session.discard();
                }
                match outcome {
                    Err(Failure::Conflict) if conflicts < TRIES => {
                        conflicts += 1;
                        drop(session);
                        // Who comes second must not come second again, so each waits for another time.
                        sleep(jittered(PAUSE * conflicts)).await;
                    }
                    // All that are in the pool may have been cut.
                    Err(Failure::Unreachable(_)) if broken < self.pool.status().max_size => broken += 1,
                    outcome => return outcome,
                }
            }
        };
        let outcome = timeout(self.timeout, tried).await.unwrap_or(Err(Failure::Slow));
        if matches!(outcome, Err(Failure::Slow)) {
            lent.discard();
        }
        if let Err(failure) = &outcome {
            self.keeper.failed(failure, admitted.into_inner(), is_write);
        }
        outcome
    }

    pub(crate) fn state(&self) -> IndexState {
        match self.keeper.health() {
            Health::Opening => IndexState::Opening,
            Health::Up { .. } => IndexState::Ready,
            Health::Down(failure) => IndexState::Unreachable(failure.to_string()),
            Health::Closed => IndexState::Closed,
        }
    }

    pub(crate) async fn opened(&self) {
        self.keeper.opened().await;
    }

    pub(crate) fn write_failure(&self) -> Option<String> {
        match self.keeper.health() {
            Health::Up { writes } => writes.map(|failure| failure.to_string()),
            Health::Down(failure) => Some(failure.to_string()),
            Health::Opening | Health::Closed => None,
        }
    }

    pub(crate) fn failures(&self) -> u64 {
        self.keeper.failures()
    }

    pub(crate) fn identity(&self) -> Option<String> {
        self.keeper.identity()
    }

    pub(crate) async fn close(&self) {
        if self.keeper.health() != Health::Closed {
            // What was put off is lost otherwise.
            if timeout(self.timeout, self.work_off()).await.is_err() {
                tracing::warn!("not all doubts could be written before the index was closed");
            }
            self.say_gone().await;
            self.keeper.close();
            self.pool.close();
        }
        let keeping = self.keeping.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(keeping) = keeping {
            // It may wait for a database that does not answer.
            keeping.abort();
            let _aborted = keeping.await;
        }
    }
}

/// Between half of it and all of it.
fn jittered(pause: Duration) -> Duration {
    let part = u32::try_from(unique::random() % 1024).unwrap_or_default() + 1024;
    pause * part / 2048
}
