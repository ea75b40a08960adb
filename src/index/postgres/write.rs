//! Writes: what the state that is read becomes, written on the condition that it is still the same.

use std::sync::atomic::{AtomicU32, Ordering};

use super::change::{read, write};
use super::connection::Session;
use super::failure::Failure;
use super::keeper::Health;
use super::rows::{Puts, get, repository_key};
use super::unique::unique;
use super::{Postgres, lease, statements};
use crate::index::decision::{self, Decision};
use crate::index::record::ReferrerKey;
use crate::index::{ProbeError, ReadError, Referrer, Removed, Repository, Version, WriteError};

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
        let removed = self.removed(key, seen).await;
        if removed.is_err() {
            // The registry has deleted it, and its client was told so.
            self.keeper.doubt_later(key.clone(), 0);
        }
        removed
    }

    async fn removed(&self, key: &ReferrerKey, seen: Version) -> Result<Removed, WriteError> {
        self.change(|session, attempt| async move {
            // Before anything is looked up: what another replica has read and records at this moment is there, or is
            // recorded as pending.
            self.note_removal(&session, &key.repository).await?;
            let found = read(&session, key).await?;
            let is_being_put = found.is_being_put();
            let (removed, decision) = decision::remove(found.look_up(), key, seen, is_being_put);
            let puts = Puts { brought: false, doubted: is_being_put, ..found.puts() };
            write(&session, key, found.head.as_ref(), decision, puts, attempt).await?;
            Ok(removed)
        })
        .await
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
            let puts = Puts { brought: false, doubted: is_being_put, ..found.puts() };
            write(&session, key, found.head.as_ref(), decision, puts, attempt).await?;
            Ok(removed)
        })
        .await
    }

    pub(crate) async fn doubt(&self, key: &ReferrerKey) -> Result<(), WriteError> {
        self.change(|session, attempt| self.doubted(session, key, 0, attempt)).await
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
        if is_known.await? {
            self.remove(key, Version::UNKNOWN).await?;
        }
        Ok(())
    }

    /// Proves that the database can be read and takes writes. Costs a commit.
    pub(crate) async fn probe(&self) -> Result<(), ProbeError> {
        self.work_off().await;
        let read = self.run(|session| async move { session.row(&statements::LOOK, &[]).await.map(drop) });
        read.await.map_err(ReadError::from)?;
        let written = self.run(|session| async move { self.write_probe(&session).await });
        Ok(written.await.map_err(WriteError::from)?)
    }

    pub(super) async fn write_probe(&self, session: &Session) -> Result<(), Failure> {
        let holder = unique();
        session.row(&lease::LEASE, &[&format!("probe {holder}"), &holder, &0_i64]).await?;
        session.row(&lease::RELEASE, &[&format!("probe {holder}"), &holder]).await?;
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

    /// The same as [`Postgres::run`], for writes: refused at once while the database takes none. The work is told
    /// which attempt it is.
    pub(super) async fn change<T, W>(&self, work: impl Fn(Session, u32) -> W) -> Result<T, WriteError>
    where
        W: Future<Output = Result<T, Failure>>,
    {
        if let Health::Up { writes: Some(failure) } = self.keeper.health() {
            return Err(failure.into());
        }
        let attempt = AtomicU32::new(0);
        Ok(self.run(|session| work(session, attempt.fetch_add(1, Ordering::Relaxed))).await?)
    }
}
