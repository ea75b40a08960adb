//! What is read from the upstream, rather than pushed through refshim.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use super::change::write;
use super::connection::Session;
use super::failure::Failure;
use super::keeper::Health;
use super::rows::{Head, Puts, digest_key, digest_of, get, head, repository_key};
use super::{Postgres, statements};
use crate::index::decision::{self, Decision, LookUp};
use crate::index::record::ReferrerKey;
use crate::index::{Observation, Order, Repository, WriteError};
use crate::oci::Digest;

/// The longest wait for the count of deletions before a read from the upstream, which is a client's pull.
const READ_WAIT: Duration = Duration::from_millis(250);

/// A read from the upstream in progress.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) repository: Repository,
    /// The deletions in the repository before it began, or fewer; unknown if the database cannot be asked.
    removals: Option<i64>,
}

impl Postgres {
    pub(crate) async fn begin_read(&self, repository: Repository) -> Reading {
        if let Some(removals) = self.removals.get(&repository) {
            return Reading { repository, removals: Some(removals) };
        }
        // A pull must never wait for a database that is away.
        if !matches!(self.keeper.health(), Health::Up { .. }) || self.keeper.is_sluggish() {
            return Reading { repository, removals: None };
        }
        let repo = &repository_key(&repository);
        let asked = self.run(|session| async move {
            let row = session.row(&statements::REMOVALS, &[repo]).await?;
            row.map_or(Ok(0), |row| get::<i64>(&row, 0))
        });
        let Ok(asked) = timeout(READ_WAIT, asked).await else {
            self.keeper.waited();
            return Reading { repository, removals: None };
        };
        let removals = asked.ok();
        if let Some(removals) = removals {
            self.removals.insert(repository.clone(), removals);
        }
        Reading { repository, removals }
    }

    pub(crate) async fn observe(
        &self,
        reading: &Reading,
        observations: &[Observation],
    ) -> Result<(), WriteError> {
        self.change(|session, attempt| self.observed(session, reading, observations, attempt)).await
    }

    async fn observed(
        &self,
        session: Session,
        reading: &Reading,
        observations: &[Observation],
        attempt: u32,
    ) -> Result<(), Failure> {
        let repository = &reading.repository;
        // What is known already costs no commit, and is nearly all.
        let known = read_many(&session, repository, observations).await?;
        if !observations.iter().any(|one| is_news(repository, known.get(&one.referrer.digest), one)) {
            return Ok(());
        }
        let repo = repository_key(repository);
        let transaction = session.transaction().await?;
        add_repository(&session, repository).await?;
        let row = session.row(&statements::HOLD_REMOVALS, &[&repo]).await?.ok_or(Failure::Conflict)?;
        let (removals, now): (i64, i64) = (get(&row, 0)?, get(&row, 1)?);
        let deletion = reading.removals != Some(removals);
        if deletion {
            self.removals.insert(repository.clone(), removals);
        }
        // In the order of digests, so that two that record the same do not wait for each other. A digest that is
        // told of twice is written twice, so the state is the one after what was told first.
        let mut sorted: Vec<(usize, &Observation)> = observations.iter().enumerate().collect();
        sorted.sort_by(|one, other| one.1.referrer.digest.cmp(&other.1.referrer.digest));
        let mut known = known;
        for (place, observation) in sorted {
            let digest = observation.referrer.digest.clone();
            let key = ReferrerKey { repository: repository.clone(), digest };
            let before = known.remove(&key.digest);
            let order = Order(u64::try_from(now).unwrap_or(0).saturating_add(place as u64));
            let found = before.as_ref().map_or(LookUp::Unknown, |head| LookUp::Found(&head.state));
            let decision = decision::observe(found, &key, observation.clone(), deletion, || order);
            let puts = before.as_ref().map_or_else(Puts::default, |head| head.puts);
            let puts = puts.told(&decision);
            let after = write(&session, &key, before.as_ref(), decision, puts, attempt).await?;
            known.extend(after.map(|head| (key.digest, head)));
        }
        transaction.commit().await
    }
}

/// The states of those that are known.
async fn read_many(
    session: &Session,
    repository: &Repository,
    observations: &[Observation],
) -> Result<BTreeMap<Digest, Head>, Failure> {
    let repo = repository_key(repository);
    let mut referrers: Vec<Vec<u8>> =
        observations.iter().map(|one| digest_key(&one.referrer.digest)).collect();
    referrers.sort();
    referrers.dedup();
    let rows = session.rows(&statements::READ_MANY, &[&repo, &referrers]).await?;
    let known = rows.iter().map(|row| {
        let descriptor: Option<String> = get(row, 13)?;
        Ok((digest_of(get(row, 14)?)?, head(row, descriptor.ok_or(Failure::Conflict)?)?))
    });
    known.collect()
}

/// Whether an observation says what is not known yet.
fn is_news(repository: &Repository, known: Option<&Head>, observation: &Observation) -> bool {
    let key = ReferrerKey { repository: repository.clone(), digest: observation.referrer.digest.clone() };
    let found = known.map_or(LookUp::Unknown, |head| LookUp::Found(&head.state));
    decision::observe(found, &key, observation.clone(), false, || Order(0)) != Decision::Nothing
}

async fn add_repository(session: &Session, repository: &Repository) -> Result<(), Failure> {
    let (repo, upstream) = (repository_key(repository), i64::from(repository.upstream));
    session.row(&statements::ADD_REPOSITORY, &[&repo, &upstream, &repository.name.as_str()]).await.map(drop)
}
