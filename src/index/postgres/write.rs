//! Writes: what the state that is read becomes, written on the condition that it is still the same.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::timeout;

use super::change::{read, write};
use super::connection::Session;
use super::failure::Failure;
use super::keeper::Health;
use super::rows::{Puts, get, repository_key};
use super::{Postgres, lease, statements};
use crate::index::decision::{self, Decision};
use crate::index::record::ReferrerKey;
use crate::index::{ProbeError, ReadError, Referrer, Removed, Repository, Version, WriteError};

/// The part of the time-out that a client's pull waits until a doubt is written.
const DOUBT_WAIT: u32 = 10;

impl Postgres {
    pub(crate) async fn settle(
        &self,
        repository: Repository,
        seen: Version,
        served: &Referrer,
    ) -> Result<(), WriteError> {
        let key = &ReferrerKey { repository, digest: served.digest.clone() };
        self.change(|session, attempt| async move {
            let found = read(&session, key).await?;
            let decision = decision::settle(found.look_up(), key, seen, served);
            let puts = found.puts().told(&decision);
            write(&session, key, found.head.as_ref(), decision, puts, attempt).await.map(drop)
        })
        .await
    }

    pub(crate) async fn remove(&self, key: &ReferrerKey, seen: Version) -> Result<Removed, WriteError> {
        let removed = self.change(|session, attempt| async move {
            // Before anything is looked up: what another replica has read and records at this moment is there, or is
            // recorded as pending.
            self.note_removal(&session, &key.repository).await?;
            let found = read(&session, key).await?;
            let is_being_put = found.is_being_put();
            let (removed, decision) = decision::remove(found.look_up(), key, seen, is_being_put);
            // Doubted also if no PUT is counted: one whose answer was lost may have been counted down twice.
            let puts = Puts { brought: false, doubted: true, ..found.puts() };
            write(&session, key, found.head.as_ref(), decision, puts, attempt).await?;
            Ok(removed)
        });
        self.or_doubted(key, removed.await)
    }

    /// If something could not be written that the registry has done, the referrer is doubted as soon as possible.
    fn or_doubted<T>(&self, key: &ReferrerKey, written: Result<T, WriteError>) -> Result<T, WriteError> {
        if written.is_err() {
            self.keeper.doubt_later(key.clone(), 0);
        }
        written
    }

    pub(crate) async fn absent(&self, key: &ReferrerKey, seen: Version) -> Result<Removed, WriteError> {
        self.change(|session, attempt| async move {
            let found = read(&session, key).await?;
            let is_being_put = found.is_being_put();
            let times = (u64::try_from(found.now).unwrap_or(0), self.forget_after);
            let (removed, decision) = decision::absent(found.look_up(), key, seen, is_being_put, times);
            if decision == Decision::Nothing && !is_being_put {
                // Usual, with every query until the referrer is forgotten: no commit.
                return Ok(removed);
            }
            self.note_removal(&session, &key.repository).await?;
            let puts = Puts { brought: false, doubted: true, ..found.puts() };
            write(&session, key, found.head.as_ref(), decision, puts, attempt).await?;
            Ok(removed)
        })
        .await
    }

    pub(crate) async fn doubt(&self, key: &ReferrerKey) -> Result<(), WriteError> {
        // A client's pull waits for it.
        let doubted = self.change(|session, attempt| self.doubted(session, key, 0, attempt));
        let written = timeout(self.timeout / DOUBT_WAIT, doubted).await.unwrap_or(Err(WriteError::Slow));
        self.or_doubted(key, written)
    }

    /// The same, and ends so many PUTs of it, whose outcome is not known.
    pub(super) async fn abandon(&self, key: &ReferrerKey, puts: i32) -> Result<(), WriteError> {
        self.change(|session, attempt| self.doubted(session, key, puts, attempt)).await
    }

    async fn doubted(
        &self,
        session: Session,
        key: &ReferrerKey,
        ended: i32,
        attempt: u32,
    ) -> Result<(), Failure> {
        let found = read(&session, key).await?;
        let decision = decision::doubt(found.look_up(), key);
        let mut puts = found.puts();
        if decision == Decision::Nothing && ended == 0 {
            return Ok(());
        }
        self.note_removal(&session, &key.repository).await?;
        for _ in 0..ended {
            puts = Puts { brought: false, ..puts.ended() };
        }
        write(&session, key, found.head.as_ref(), decision, puts, attempt).await.map(drop)
    }

    /// Makes a referrer that ever was confirmed a claim.
    pub(crate) async fn disown(&self, key: &ReferrerKey) -> Result<(), WriteError> {
        let is_known = self.run(|session| async move {
            let found = read(&session, key).await?;
            Ok(found.head.is_some_and(|head| head.state.was_confirmed))
        });
        let is_known = is_known.await.map_err(WriteError::from);
        if self.or_doubted(key, is_known)? {
            self.remove(key, Version::UNKNOWN).await?;
        }
        Ok(())
    }

    /// Proves that the database can be read and takes writes. Costs a commit.
    pub(crate) async fn probe(&self) -> Result<(), ProbeError> {
        self.work_off().await;
        let read = self.run(|session| async move { session.row(&statements::LOOK, &[]).await.map(drop) });
        read.await.map_err(ReadError::from)?;
        Ok(self.change(|session, _| async move { self.write_probe(&session).await }).await?)
    }

    pub(super) async fn write_probe(&self, session: &Session) -> Result<(), Failure> {
        // Of one name, so that a probe that is cut off leaves no more than one row.
        let name = format!("probe {}", self.holder);
        session.row(&lease::LEASE, &[&name, &self.holder, &0_i64]).await?;
        session.row(&lease::RELEASE, &[&name, &self.holder]).await?;
        Ok(())
    }

    pub(super) async fn note_removal(
        &self,
        session: &Session,
        repository: &Repository,
    ) -> Result<(), Failure> {
        let (repo, upstream) = (repository_key(repository), i64::from(repository.upstream));
        let name = repository.name.as_str();
        if let Some(row) = session.row(&statements::NOTE_REMOVAL, &[&repo, &upstream, &name]).await? {
            self.removals.insert(repository.clone(), get(&row, 0)?);
        }
        Ok(())
    }

    /// Changes something: refused at once while the database takes no writes. The work is told which attempt it is.
    /// See [`Postgres::attempt`].
    pub(super) async fn change<T, W>(&self, work: impl Fn(Session, u32) -> W) -> Result<T, WriteError>
    where
        W: Future<Output = Result<T, Failure>>,
    {
        if let Health::Up { writes: Some(failure) } = self.keeper.health() {
            return Err(failure.into());
        }
        let attempt = AtomicU32::new(0);
        Ok(self.attempt(true, |session| work(session, attempt.fetch_add(1, Ordering::Relaxed))).await?)
    }
}
