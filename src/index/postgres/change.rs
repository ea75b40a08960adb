//! One referrer: read, and written on the condition that it is still the same.

use std::collections::BTreeMap;

use tokio_postgres::types::ToSql;

use super::connection::Session;
use super::failure::Failure;
use super::rows::{Head, Puts, columns, digest_key, get, head, placed, repository_key, signed};
use super::statements;
use super::unique::{fresh_version, random};
use crate::index::decision::{Decision, LookUp};
use crate::index::record::{Record, ReferrerKey};
use crate::index::referrer_state::ReferrerState;
use crate::index::{Order, Version};
use crate::oci::{Digest, LinkKinds};

/// After so many conflicts a referrer that gets further links gets another order as well: its own may be taken.
const REORDER_AFTER: u32 = 5;

/// A referrer as it was read.
pub(super) struct Found {
    pub(super) head: Option<Head>,
    /// The database's time.
    pub(super) now: i64,
    /// The deletions in its repository so far.
    pub(super) removals: i64,
}

impl Found {
    pub(super) fn look_up(&self) -> LookUp<'_> {
        self.head.as_ref().map_or(LookUp::Unknown, |head| LookUp::Found(&head.state))
    }

    pub(super) fn puts(&self) -> Puts {
        self.head.as_ref().map_or_else(Puts::default, |head| head.puts)
    }

    pub(super) fn is_being_put(&self) -> bool {
        self.puts().any(self.now)
    }
}

/// The state of a referrer.
pub(super) async fn read(session: &Session, key: &ReferrerKey) -> Result<Found, Failure> {
    let (repo, referrer) = (repository_key(&key.repository), digest_key(&key.digest));
    let row = session.row(&statements::READ, &[&repo, &referrer]).await?;
    let row = row.ok_or_else(|| Failure::Malformed("a statement gave no row".to_owned()))?;
    let known: Option<i64> = get(&row, 0)?;
    let head = if known.is_some() {
        let descriptor: Option<String> = get(&row, 13)?;
        Some(head(&row, descriptor.ok_or(Failure::Conflict)?)?)
    } else {
        None
    };
    Ok(Found { head, now: get(&row, 14)?, removals: get::<Option<i64>>(&row, 15)?.unwrap_or(0) })
}

/// Writes what was decided on the state `before`; [`Failure::Conflict`] if it is not the state any more. Gives the row
/// that it leaves.
pub(super) async fn write(
    session: &Session,
    key: &ReferrerKey,
    before: Option<&Head>,
    decision: Decision,
    puts: Puts,
    attempt: u32,
) -> Result<Option<Head>, Failure> {
    let version =
        before.map_or(0, |head| head.state.version.0.saturating_add(1)).max(fresh_version().unsigned_abs());
    let state = before.map(|head| head.state.clone());
    let after = |record: Record| ReferrerState::after(state.clone(), record, Version(version));
    let after = match decision {
        Decision::Nothing => state.clone(),
        Decision::Record(record) => after(record),
        Decision::IfNews(record) => after(record).map(|after| match &state {
            Some(before) if (ReferrerState { version: before.version, ..after.clone() }) == *before => {
                before.clone()
            }
            Some(_) | None => after,
        }),
        Decision::Both(first, second) => ReferrerState::after(after(first), second, Version(version)),
    };
    match (before, after) {
        (None, None) => Ok(None),
        (Some(before), Some(after)) if before.state == after && before.puts == puts => {
            Ok(Some(before.clone()))
        }
        (None, Some(after)) => insert(session, key, after, puts).await.map(Some),
        (Some(before), None) => remove(session, key, before).await.map(|()| None),
        (Some(before), Some(after)) if before.state == after => {
            change_puts(session, key, before, puts).await.map(Some)
        }
        (Some(before), Some(after)) => replace(session, key, before, after, puts, attempt).await.map(Some),
    }
}

async fn insert(
    session: &Session,
    key: &ReferrerKey,
    state: ReferrerState,
    puts: Puts,
) -> Result<Head, Failure> {
    let (repo, referrer) = (repository_key(&key.repository), digest_key(&key.digest));
    let (upstream, name) = (i64::from(key.repository.upstream), key.repository.name.as_str());
    let (subjects, kinds) = columns(&state.links);
    let (own, repeated) = placed(&state.descriptor, state.links.len());
    let (order, version) = (signed(state.order.0), signed(state.version.0));
    let absent = state.absent_since.map(signed);
    let row = session
        .row(
            &statements::INSERT,
            &[
                &repo,
                &upstream,
                &name,
                &referrer,
                &order,
                &version,
                &state.pending,
                &state.was_confirmed,
                &state.claimed,
                &absent,
                &puts.count,
                &puts.until,
                &puts.brought,
                &subjects,
                &kinds,
                &own,
                &repeated,
            ],
        )
        .await?;
    row.ok_or(Failure::Conflict)?;
    Ok(Head { state, revision: version, puts: Puts { doubted: false, ..puts } })
}

async fn remove(session: &Session, key: &ReferrerKey, before: &Head) -> Result<(), Failure> {
    let (repo, referrer) = (repository_key(&key.repository), digest_key(&key.digest));
    let row = session.row(&statements::REMOVE, &[&repo, &referrer, &before.revision]).await?;
    row.map(drop).ok_or(Failure::Conflict)
}

async fn change_puts(
    session: &Session,
    key: &ReferrerKey,
    before: &Head,
    puts: Puts,
) -> Result<Head, Failure> {
    let (repo, referrer) = (repository_key(&key.repository), digest_key(&key.digest));
    let Puts { count, until, brought, doubted } = puts;
    let row = session
        .row(
            &statements::CHANGE_PUTS,
            &[&repo, &referrer, &before.revision, &count, &until, &brought, &doubted],
        )
        .await?;
    let revision = get(&row.ok_or(Failure::Conflict)?, 0)?;
    Ok(Head { state: before.state.clone(), revision, puts })
}

async fn replace(
    session: &Session,
    key: &ReferrerKey,
    before: &Head,
    after: ReferrerState,
    puts: Puts,
    attempt: u32,
) -> Result<Head, Failure> {
    let only_in = |these: &ReferrerState, those: &ReferrerState| -> BTreeMap<Digest, LinkKinds> {
        let is_new = |(subject, _): &(&Digest, &LinkKinds)| !those.links.contains_key(*subject);
        these.links.iter().filter(is_new).map(|(subject, kinds)| (subject.clone(), *kinds)).collect()
    };
    let (added, gone) = (only_in(&after, &before.state), only_in(&before.state, &after));
    if !added.is_empty() && attempt >= REORDER_AFTER {
        return reorder(session, key, before, after, puts).await;
    }
    let (repo, referrer) = (repository_key(&key.repository), digest_key(&key.digest));
    let (subjects, kinds) = columns(&after.links);
    let (own, repeated) = placed(&after.descriptor, after.links.len());
    let version = signed(after.version.0);
    let absent = after.absent_since.map(signed);
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![
        &repo,
        &referrer,
        &before.revision,
        &version,
        &after.pending,
        &after.was_confirmed,
        &after.claimed,
        &absent,
        &puts.count,
        &puts.until,
        &puts.brought,
        &puts.doubted,
        &subjects,
        &kinds,
        &own,
        &repeated,
    ];
    let (added_subjects, added_kinds) = columns(&added);
    let (gone_subjects, _) = columns(&gone);
    let row = if added.is_empty() && gone.is_empty() {
        session.row(&statements::CHANGE, &parameters).await?
    } else {
        parameters.extend([&added_subjects as &(dyn ToSql + Sync), &added_kinds, &gone_subjects]);
        session.row(&statements::REPLACE, &parameters).await?
    };
    let revision = get(&row.ok_or(Failure::Conflict)?, 0)?;
    Ok(Head { state: after, revision, puts })
}

/// Gives the referrer another order, the next one that is free: a subject that it is to refer to has a referrer of the
/// same order. A client between two pages may see it twice, but never miss it.
async fn reorder(
    session: &Session,
    key: &ReferrerKey,
    before: &Head,
    after: ReferrerState,
    puts: Puts,
) -> Result<Head, Failure> {
    let transaction = session.transaction_unless_in_one().await?;
    remove(session, key, before).await?;
    let order = Order(before.state.order.0.saturating_add(random() % 1000 + 1));
    let head = insert(session, key, ReferrerState { order, ..after }, puts).await?;
    if let Some(transaction) = transaction {
        transaction.commit().await?;
    }
    Ok(head)
}
