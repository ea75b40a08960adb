//! PUTs: in the usual case, one statement before the manifest goes upstream and one after.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Postgres;
use super::change::{read, write};
use super::connection::Session;
use super::failure::Failure;
use super::observe::{add_repository, hold_removals};
use super::rows::{Head, Puts, columns, digest_key, head, placed, repository_key};
use super::statements;
use super::unique::fresh_version;
use crate::index::decision::{self, Decision, LookUp};
use crate::index::record::ReferrerKey;
use crate::index::{Order, Referrer, Repository, WriteError};
use crate::oci::{Digest, LinkKinds};

/// How long a PUT counts as under way at most, in microseconds. It ends earlier unless its replica was killed.
const PUT_LIMIT: i64 = 10 * 60 * 1_000_000;

/// A PUT whose referrer is recorded as pending.
#[derive(Debug)]
pub(crate) struct Put {
    engine: Arc<Postgres>,
    key: ReferrerKey,
    referrer: Referrer,
    begun: Begun,
    /// Whether its outcome is reported.
    is_ended: bool,
}

/// What was found when a PUT began.
#[derive(Clone, Debug)]
enum Begun {
    /// Recorded; the row as it was then, if all of it is known.
    Recorded { order: Order, head: Option<Head> },
    /// Not recorded, since only a tag tells of it, as long as nobody else did. With the deletions in the repository so
    /// far.
    Unrecorded { order: Order, removals: i64 },
}

impl Postgres {
    pub(crate) async fn begin(
        self: &Arc<Self>,
        repository: Repository,
        referrer: Referrer,
    ) -> Result<Put, WriteError> {
        let key = ReferrerKey { repository, digest: referrer.digest.clone() };
        let (of, manifest) = (&key, &referrer);
        let begun = self.change(|session, _| async move { begin(&session, of, manifest).await }).await?;
        Ok(Put { engine: Arc::clone(self), key, referrer, begun, is_ended: false })
    }
}

impl Put {
    pub(crate) async fn confirm(mut self) -> Result<(), WriteError> {
        let (key, referrer, begun) = (&self.key, &self.referrer, &self.begun);
        let confirmed = self
            .engine
            .change(|session, attempt| async move { confirm(&session, key, referrer, begun, attempt).await });
        // After a failure the registry has the manifest, and the database does not say so: the drop has it doubted.
        confirmed.await?;
        self.is_ended = true;
        Ok(())
    }

    pub(crate) async fn refuse(mut self) -> Result<(), WriteError> {
        let key = &self.key;
        if let Begun::Recorded { .. } = self.begun {
            let refused = self.engine.change(|session, attempt| async move {
                let found = read(&session, key).await?;
                let puts = found.puts();
                // Not before the last of them has ended: another one may still be accepted.
                let made = found.head.as_ref().map(|head| head.state.version);
                // And not in a second attempt: the first may have been counted, and its answer lost.
                let made = made.filter(|_| puts.brought && puts.count == 1 && attempt == 0);
                let decision = decision::refuse(found.look_up(), key, made);
                write(&session, key, found.head.as_ref(), decision, puts.ended(), attempt).await.map(drop)
            });
            refused.await?;
        }
        self.is_ended = true;
        Ok(())
    }
}

impl Drop for Put {
    fn drop(&mut self) {
        if !self.is_ended {
            let puts = i32::from(matches!(self.begun, Begun::Recorded { .. }));
            self.engine.keeper.doubt_later(self.key.clone(), puts);
        }
    }
}

/// Begins a PUT: in one statement, if the referrer is unknown or confirmed.
async fn begin(session: &Session, key: &ReferrerKey, referrer: &Referrer) -> Result<Begun, Failure> {
    let mut links: BTreeMap<Digest, LinkKinds> = BTreeMap::new();
    for link in referrer.links.iter().filter(|link| link.kind.is_in_the_bytes()) {
        let kinds = links.entry(link.subject.clone()).or_default();
        *kinds = LinkKinds::from_bits(kinds.bits() | LinkKinds::from(link.kind).bits());
    }
    if !links.is_empty() {
        let (repo, digest) = (repository_key(&key.repository), digest_key(&key.digest));
        let (upstream, name) = (i64::from(key.repository.upstream), key.repository.name.as_str());
        let (subjects, kinds) = columns(&links);
        let (own, repeated) = placed(&referrer.descriptor, links.len());
        let version = fresh_version();
        let row = session
            .row(
                &statements::BEGIN,
                &[&repo, &upstream, &name, &digest, &version, &PUT_LIMIT, &subjects, &kinds, &own, &repeated],
            )
            .await?;
        if let Some(row) = row {
            let head = head(&row, referrer.descriptor.clone())?;
            let order = head.state.order;
            return Ok(Begun::Recorded { order, head: Some(head) });
        }
    }
    let found = read(session, key).await?;
    let order = Order(u64::try_from(found.now).unwrap_or(0));
    let order = found.head.as_ref().map_or(order, |head| head.state.order);
    let decision = decision::begin(found.look_up(), key, referrer, order);
    if decision == Decision::Nothing {
        return Ok(Begun::Unrecorded { order, removals: found.removals });
    }
    let mut puts = found.puts().begun(found.now, found.now + PUT_LIMIT);
    puts.brought &= found.head.as_ref().is_some_and(|head| head.state.pending);
    let head = write(session, key, found.head.as_ref(), decision, puts, 0).await?;
    Ok(Begun::Recorded { order, head })
}

async fn confirm(
    session: &Session,
    key: &ReferrerKey,
    referrer: &Referrer,
    begun: &Begun,
    attempt: u32,
) -> Result<(), Failure> {
    let (order, seen) = match begun {
        Begun::Recorded { order, head } => (*order, head.as_ref()),
        Begun::Unrecorded { order, .. } => (*order, None),
    };
    // First over what the beginning left: usually nobody else comes to it meanwhile. Of a confirmed one, the beginning
    // did not read the descriptor.
    let is_enough = |head: &&Head| head.state.pending || head.state.has(&referrer.links);
    if let Some(seen) = seen.filter(is_enough).filter(|_| attempt == 0) {
        let found = LookUp::Found(&seen.state);
        let decision = decision::confirm(found, key, referrer, order, seen.puts.doubted);
        let puts = Puts { brought: false, ..seen.puts.ended() };
        return write(session, key, Some(seen), decision, puts, attempt).await.map(drop);
    }
    let found = read(session, key).await?;
    let is_ours = found.head.as_ref().is_some_and(|head| head.state.order == order);
    let (doubted, puts) = match begun {
        // What is gone was removed, and what is another one came after a removal.
        Begun::Recorded { .. } if is_ours => (found.puts().doubted, found.puts().ended()),
        Begun::Recorded { .. } => (true, found.puts()),
        Begun::Unrecorded { removals, .. } => {
            (found.puts().doubted || found.removals != *removals, found.puts())
        }
    };
    // Its place may be taken by now.
    let order = Order(order.0.saturating_add(u64::from(attempt)));
    let puts = Puts { brought: false, ..puts };
    if let (Begun::Unrecorded { removals, .. }, None) = (begun, &found.head) {
        let decided = |doubted| decision::confirm(LookUp::Unknown, key, referrer, order, doubted);
        return confirm_unrecorded(session, key, decided, *removals, puts, attempt).await;
    }
    let decision = decision::confirm(found.look_up(), key, referrer, order, doubted);
    write(session, key, found.head.as_ref(), decision, puts, attempt).await.map(drop)
}

/// Records an accepted PUT of which nothing was recorded before. No row could tell a deletion of it, so the deletions of
/// its repository are compared, and held up until this is recorded.
async fn confirm_unrecorded(
    session: &Session,
    key: &ReferrerKey,
    decided: impl Fn(bool) -> Decision,
    removals: i64,
    puts: Puts,
    attempt: u32,
) -> Result<(), Failure> {
    add_repository(session, &key.repository).await?;
    let transaction = session.transaction().await?;
    let written = async {
        let (held, _now) = hold_removals(session, &key.repository).await?;
        write(session, key, None, decided(held != removals), puts, attempt).await.map(drop)
    };
    transaction.end(written.await).await
}
