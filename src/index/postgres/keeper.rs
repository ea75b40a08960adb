//! Whether the database works: what operations find out, and a task that looks again while it does not.
//!
//! While the database is away, operations fail at once: a client that waited for a time-out with each query would wait
//! for nothing. One task looks every moment whether it is back; so nobody has to start refshim again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::connection::{Lent, Session};
use super::failure::Failure;
use super::{Postgres, schema, statements};
use crate::index::record::ReferrerKey;

/// How often it is looked whether a database that works still does, and still takes writes.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is looked whether one that failed is back.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// The longest pause between two looks at one that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The longest wait for what such a look finds.
const ANSWER: Duration = Duration::from_secs(5);
/// The shortest time between two lines of the log that say alike.
const QUIET: Duration = Duration::from_secs(10);
/// The same for that there are fewer connections than configured.
const TELL_OF_CROWD: Duration = Duration::from_secs(60 * 60);
/// How many referrers may wait for their doubt to be written.
const WAITING_DOUBTS: usize = 100_000;

/// What is known of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Not yet anything.
    Opening,
    /// It works. With a reason why it takes no writes at the moment, if it does not.
    Up { writes: Option<Failure> },
    /// It does not.
    Down(Failure),
    /// The index was closed.
    Closed,
}

/// What does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Writes,
    Everything,
}

/// The database's health, and what waits for it.
#[derive(Debug)]
pub(super) struct Keeper {
    health: watch::Sender<Health>,
    failures: AtomicU64,
    /// How often it went down.
    outages: AtomicU64,
    /// What was logged in the last moments, and whether that it works again is to be logged, too.
    told: Mutex<Vec<(Trouble, Failure, Instant)>>,
    has_told: AtomicBool,
    /// When it was logged that there are fewer connections.
    told_of_crowd: Mutex<Option<Instant>>,
    /// When somebody gave up waiting before the time-out.
    waited: Mutex<Option<Instant>>,
    /// Something failed: look at once.
    look: Notify,
    /// Referrers of which a PUT ended without an outcome, and how many PUTs of each are counted in the database.
    doubts: Mutex<HashMap<ReferrerKey, i32>>,
    /// What is to be written of each upstream's coverage.
    coverage: Mutex<Vec<CoverageChange>>,
    /// Held by whoever does what waits: one at a time.
    working: tokio::sync::Mutex<()>,
    /// The identity of the index, once it is known.
    identity: Mutex<Option<String>>,
}

/// A change of the coverage that must not be lost while the database is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CoverageChange {
    /// From now on it is recorded.
    Begin { upstream: u32 },
    /// It is not recorded any more.
    Void { upstream: u32 },
    /// Something was missed: it is recorded from now on only.
    Restart { upstream: u32 },
}

impl Keeper {
    pub(super) fn new() -> Self {
        Self {
            health: watch::Sender::new(Health::Opening),
            failures: AtomicU64::new(0),
            outages: AtomicU64::new(0),
            told: Mutex::default(),
            has_told: AtomicBool::new(false),
            told_of_crowd: Mutex::default(),
            waited: Mutex::default(),
            look: Notify::new(),
            doubts: Mutex::default(),
            coverage: Mutex::default(),
            working: tokio::sync::Mutex::default(),
            identity: Mutex::default(),
        }
    }

    pub(super) fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Waits until it is known whether the database works.
    pub(super) async fn opened(&self) {
        // Cannot fail: the sender lives as long as `self`.
        self.health.subscribe().wait_for(|health| *health != Health::Opening).await.ok();
    }

    /// Whether to try at all; waits while nothing is known yet.
    ///
    /// Gives the number of outages so far, for [`Keeper::failed`].
    pub(super) async fn admitted(&self) -> Result<u64, Failure> {
        loop {
            match &*self.health.borrow() {
                Health::Up { .. } => return Ok(self.outages.load(Ordering::Relaxed)),
                Health::Down(failure) => return Err(failure.clone()),
                Health::Closed => return Err(Failure::Closed),
                Health::Opening => {}
            }
            self.opened().await;
        }
    }

    /// An operation failed that was admitted after so many outages. If there was another one since, the database was
    /// looked at after what the operation met with.
    pub(super) fn failed(&self, failure: &Failure, outages: u64, is_write: bool) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let is_over = outages != self.outages.load(Ordering::Relaxed);
        match failure {
            _ if is_over => {}
            Failure::Full(_) => self.refuse_writes(failure),
            // Queries need not wait for whoever holds a lock on a table, as an operator does who makes an index.
            Failure::Slow if is_write => self.refuse_writes(failure),
            // Nothing works until this has passed.
            Failure::Unreachable(_)
            | Failure::Crowded(_)
            | Failure::ReadOnly
            | Failure::Refused(_)
            | Failure::Unmigrated(_)
            | Failure::Slow => self.down(failure),
            Failure::Unexpected(_) | Failure::Malformed(_) => {
                tracing::error!(%failure, "the index in the database failed");
            }
            Failure::Conflict | Failure::Closed => {}
        }
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    fn refuse_writes(&self, failure: &Failure) {
        let changed = self.health.send_if_modified(|health| match health {
            Health::Up { writes } if writes.as_ref() != Some(failure) => {
                *writes = Some(failure.clone());
                true
            }
            Health::Up { .. } | Health::Down(_) | Health::Opening | Health::Closed => false,
        });
        if changed {
            self.tell_of_no_writes(failure);
        }
        self.look.notify_one();
    }

    /// The database was looked at: it can be read, and takes no writes.
    fn up_for_reads(&self, failure: &Failure) {
        let writes_fail = Health::Up { writes: Some(failure.clone()) };
        let changed = self.health.send_if_modified(|health| match health {
            Health::Opening | Health::Up { .. } | Health::Down(_) if *health != writes_fail => {
                *health = writes_fail;
                true
            }
            Health::Opening | Health::Up { .. } | Health::Down(_) | Health::Closed => false,
        });
        if changed {
            self.tell_of_no_writes(failure);
        }
    }

    fn tell_of_no_writes(&self, failure: &Failure) {
        if self.is_to_be_told(Trouble::Writes, failure) {
            tracing::error!(reason = %failure, "the index takes no writes; pushes with links are answered 503");
        }
    }

    /// There is no further connection, but there are some.
    pub(super) fn crowded(&self, failure: &Failure) {
        // Not told of as often as others are: it lasts.
        let mut told = lock(&self.told_of_crowd);
        if told.is_none_or(|at| at.elapsed() > TELL_OF_CROWD) {
            *told = Some(Instant::now());
            tracing::warn!(reason = %failure, "the index has fewer connections than it may have");
        }
    }

    /// Whether something like it was not logged in the last moments. A database that fails with one statement and not
    /// with the next would fill the log.
    fn is_to_be_told(&self, trouble: Trouble, failure: &Failure) -> bool {
        let mut told = lock(&self.told);
        told.retain(|(_, _, at)| at.elapsed() < QUIET);
        let is_new = !told.iter().any(|(of, before, _)| *of == trouble && before.is_like(failure));
        if is_new {
            told.push((trouble, failure.clone(), Instant::now()));
            self.has_told.store(true, Ordering::Relaxed);
        }
        is_new
    }

    /// Notes that somebody gave up waiting for the database before the time-out.
    pub(super) fn waited(&self) {
        *lock(&self.waited) = Some(Instant::now());
        self.look.notify_one();
    }

    /// Whether somebody did a moment ago, so that nobody has to try the same.
    pub(super) fn is_sluggish(&self) -> bool {
        lock(&self.waited).is_some_and(|at| at.elapsed() < LOOK)
    }

    fn down(&self, failure: &Failure) {
        let mut is_new = false;
        self.health.send_if_modified(|health| {
            is_new = match health {
                Health::Closed => return false,
                Health::Down(before) => !before.is_like(failure),
                Health::Opening | Health::Up { .. } => {
                    self.outages.fetch_add(1, Ordering::Relaxed);
                    true
                }
            };
            *health = Health::Down(failure.clone());
            true
        });
        if is_new && self.is_to_be_told(Trouble::Everything, failure) {
            tracing::error!(reason = %failure,
                "the index cannot be used; queries and pushes with links are answered 503, everything else passes");
        }
        self.look.notify_one();
    }

    fn up(&self) {
        let before = self.health.send_replace(Health::Up { writes: None });
        match before {
            Health::Closed => drop(self.health.send_replace(Health::Closed)),
            Health::Up { writes: None } => {}
            Health::Opening => tracing::info!("the index in the database is open"),
            Health::Up { .. } | Health::Down(_) => {
                if self.has_told.swap(false, Ordering::Relaxed) {
                    tracing::info!("the index in the database works again");
                }
            }
        }
    }

    pub(super) fn close(&self) {
        self.health.send_replace(Health::Closed);
        self.look.notify_one();
    }

    /// Has a referrer doubted as soon as possible, and so many PUTs of it ended.
    pub(super) fn doubt_later(&self, key: ReferrerKey, puts: i32) {
        let mut doubts = lock(&self.doubts);
        if doubts.len() < WAITING_DOUBTS {
            *doubts.entry(key).or_default() += puts;
        }
        drop(doubts);
        self.look.notify_one();
    }

    /// Has the coverage changed as soon as possible.
    pub(super) fn change_coverage(&self, change: CoverageChange) {
        lock(&self.coverage).push(change);
        self.look.notify_one();
    }

    pub(super) fn identity(&self) -> Option<String> {
        lock(&self.identity).clone()
    }
}

impl Postgres {
    /// Looks at the database until the index is closed.
    pub(super) async fn keep(&self) {
        let (mut pause, mut said_present) = (LOOK_AGAIN, None);
        loop {
            if self.keeper.health() == Health::Closed {
                return;
            }
            match self.look().await {
                Ok(None) => {
                    self.keeper.up();
                    self.share.restore();
                    pause = LOOK_AGAIN;
                    self.say_present(&mut said_present).await;
                    // Woken when there is something to do, or to look at.
                    timeout(LOOK, self.keeper.look.notified()).await.ok();
                    self.work_off().await;
                    continue;
                }
                Ok(Some(writes)) => self.keeper.up_for_reads(&writes),
                Err(failure) => self.keeper.down(&failure),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether the database can be used. With why it takes no writes, if it can only be read.
    async fn look(&self) -> Result<Option<Failure>, Failure> {
        let (lent, limit) = (Lent::default(), ANSWER.min(self.timeout));
        let Ok(session) = timeout(limit, self.read_state(&lent)).await else {
            lent.discard();
            return Err(Failure::Slow);
        };
        let session = session?;
        match timeout(limit, self.try_writes(&session)).await.unwrap_or(Err(Failure::Slow)) {
            Ok(()) => Ok(None),
            Err(failure @ (Failure::Slow | Failure::Full(_))) => {
                session.discard();
                Ok(Some(failure))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Whether the database is there, of a schema that this build knows, and writable.
    async fn read_state(&self, lent: &Lent) -> Result<Session, Failure> {
        let session = self.session().await?;
        lent.keep(&session);
        let known = schema::known(&session, self.migrate).await?;
        if known.is_read_only {
            session.discard();
            return Err(Failure::ReadOnly);
        }
        if known.loses_commits && self.keeper.health() == Health::Opening {
            tracing::warn!(
                "the database has synchronous_commit = off: what it acknowledged can be lost in a crash"
            );
        }
        *lock(&self.keeper.identity) = Some(known.identity);
        Ok(session)
    }

    /// Whether it takes writes, unless it did the last time.
    async fn try_writes(&self, session: &Session) -> Result<(), Failure> {
        match self.keeper.health() {
            Health::Up { writes: None } | Health::Closed => {}
            Health::Up { writes: Some(_) } => {
                session.batch(statements::TRY_RIGHTS).await?;
                self.write_probe(session).await?;
                // What is full may be full for new links alone. Rolled back by the end of the connection.
                let _rolled_back = session.transaction().await?;
                session.batch(statements::TRY_LINK).await?;
            }
            Health::Opening | Health::Down(_) => session.batch(statements::TRY_RIGHTS).await?,
        }
        Ok(())
    }

    /// Does what waited for the database.
    pub(crate) async fn work_off(&self) {
        let _working = self.keeper.working.lock().await;
        loop {
            let Some(change) = lock(&self.keeper.coverage).first().copied() else { break };
            if self.write_coverage_change(change).await.is_err() {
                return;
            }
            lock(&self.keeper.coverage).remove(0);
        }
        let mut doubts = std::mem::take(&mut *lock(&self.keeper.doubts));
        while let Some((key, puts)) = doubts.iter().next().map(|(key, puts)| (key.clone(), *puts)) {
            if self.abandon(&key, puts).await.is_err() {
                for (key, puts) in doubts {
                    *lock(&self.keeper.doubts).entry(key).or_default() += puts;
                }
                return;
            }
            doubts.remove(&key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
