//! The kinds of write, and which records each adds to the journal.
//!
//! A new kind of write is a variant of [`Write`] and its decision here, and the method of [`crate::index::Index`]
//! that sends it. The committer takes what waits and decides one write after the other, each seeing what those before
//! it did, so a decision never races with another one. What it compares with (the state of a referrer) may be older
//! than what the caller saw: callers name the [`Version`] they saw, and a stale decision changes nothing or only
//! makes the referrer pending.
//!
//! While sled is being opened nothing can be looked up, and writes are accepted all the same. Then a decision adds
//! records that are right whatever state they meet: pending in place of confirmed, doubted in place of removed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::batch::{LookUp, WriteBatch};
use super::clock::{Clock, micros};
use super::in_progress::{PutMark, ReadMark};
use super::record::{Record, Recorded, ReferrerKey};
use super::referrer_state::is_own;
use super::state::SharedState;
use crate::index::{Observation, Order, Referrer, Removed, Repository, Version, WriteError};
use crate::oci::Link;

/// A write, with the sender of its answer. It is answered once what it adds is durable.
#[derive(Debug)]
pub(crate) enum Write {
    /// A manifest is about to be sent upstream.
    Begin { repository: Repository, referrer: Referrer, reply: Reply<Put> },
    /// The upstream accepted it.
    Confirm { put: Put, reply: Reply<()> },
    /// The upstream refused it.
    Refuse { put: Put, reply: Reply<()> },
    /// The upstream serves the referrer as `found`.
    Settle { repository: Repository, seen: Version, found: Referrer, reply: Reply<()> },
    /// The upstream deleted the referrer.
    Remove { key: ReferrerKey, seen: Version, reply: Reply<Removed> },
    /// The upstream answered 404 to a caller that can read the repository.
    Absent { key: ReferrerKey, seen: Version, reply: Reply<Removed> },
    /// The upstream answered 404 to any caller.
    Doubt { key: ReferrerKey, reply: Reply<()> },
    /// Referrers were found in the upstream.
    Observe { read: Arc<ReadMark>, observations: Vec<Observation>, reply: Reply<()> },
    /// Nothing but a frame without records, as a proof that the journal can be written.
    Probe { reply: Reply<()> },
}

/// Where a write's answer is sent.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, WriteError>>;

/// Answers one write, given the outcome of the commit that it was part of.
pub(crate) type Acknowledgement = Box<dyn FnOnce(Result<(), WriteError>)>;

/// A PUT whose referrer is recorded as pending.
#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) mark: PutMark,
    pub(crate) referrer: Referrer,
    pub(crate) order: Order,
}

/// Decides which records a write adds.
#[derive(Debug)]
pub(crate) struct Decisions {
    shared: Arc<SharedState>,
    clock: Clock,
    /// How many microseconds of nothing but 404 it takes to forget a referrer.
    forget_after: u64,
}

impl Write {
    /// Whether the caller gave up waiting and the write can be dropped. That holds of writes nothing was done on the
    /// strength of: without the answer to `Begin` the manifest is not sent upstream. The others report what did
    /// happen in the upstream, and are recorded whether anybody waits or not.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Begin { reply, .. } => reply.is_closed(),
            Self::Probe { reply } => reply.is_closed(),
            Self::Confirm { .. }
            | Self::Refuse { .. }
            | Self::Settle { .. }
            | Self::Remove { .. }
            | Self::Absent { .. }
            | Self::Doubt { .. }
            | Self::Observe { .. } => false,
        }
    }

    /// The approximate size of its records in bytes.
    pub(crate) fn size(&self) -> usize {
        const KEY: usize = 400;
        const LINK: usize = 110;
        let of = |referrer: &Referrer| KEY + referrer.descriptor.len() + LINK * referrer.links.len();
        match self {
            Self::Begin { referrer, .. }
            | Self::Settle { found: referrer, .. }
            | Self::Confirm { put: Put { referrer, .. }, .. } => of(referrer),
            Self::Observe { observations, .. } => observations.iter().map(|one| of(&one.referrer)).sum(),
            Self::Refuse { .. }
            | Self::Remove { .. }
            | Self::Absent { .. }
            | Self::Doubt { .. }
            | Self::Probe { .. } => KEY,
        }
    }
}

impl Decisions {
    /// Decisions whose orders are higher than `last_order`.
    pub(crate) fn new(shared: Arc<SharedState>, last_order: Order, forget_after: Duration) -> Self {
        Self { shared, clock: Clock::new(last_order), forget_after: micros(forget_after) }
    }

    /// The highest order given so far.
    pub(crate) fn last_order(&self) -> Order {
        self.clock.last_order()
    }

    /// Adds to the batch what a write asks for, and returns what answers it.
    pub(crate) fn decide(&mut self, write: Write, batch: &mut WriteBatch) -> Acknowledgement {
        match write {
            Write::Begin { repository, referrer, reply } => {
                answer(reply, self.begin(repository, referrer, batch))
            }
            Write::Confirm { put, reply } => {
                let key = put.mark.key().clone();
                confirm(put, batch);
                let puts = Arc::clone(&self.shared.puts);
                Box::new(move |outcome| {
                    // The upstream has the manifest, and the journal does not say so. The mark is gone by now, so
                    // the doubt has to be asked for here.
                    if outcome.is_err() {
                        puts.doubt_later(key);
                    }
                    // The client may be gone.
                    reply.send(outcome).ok();
                })
            }
            Write::Refuse { put, reply } => {
                refuse(put, batch);
                answer(reply, ())
            }
            Write::Settle { repository, seen, found, reply } => {
                settle(repository, seen, &found, batch);
                answer(reply, ())
            }
            Write::Remove { key, seen, reply } => answer(reply, self.remove(key, seen, batch)),
            Write::Absent { key, seen, reply } => answer(reply, self.absent(key, seen, batch)),
            Write::Doubt { key, reply } => {
                self.doubt(key, batch);
                answer(reply, ())
            }
            Write::Observe { read, observations, reply } => {
                self.observe(&read, observations, batch);
                answer(reply, ())
            }
            Write::Probe { reply } => answer(reply, ()),
        }
    }

    fn begin(&mut self, repository: Repository, referrer: Referrer, batch: &mut WriteBatch) -> Put {
        let key = ReferrerKey { repository, digest: referrer.digest.clone() };
        // A link that only the tag tells of is recorded with the confirmation: that the upstream has the manifest
        // does not show that it accepted this tag.
        let links = referrer.links.iter().filter(|link| link.kind.is_in_the_bytes());
        let links: Vec<Link> = links.cloned().collect();
        let (order, is_unknown, is_confirmed) = match batch.find(&key) {
            LookUp::Found(state) => (state.order, false, !state.pending),
            LookUp::Unknown => (self.clock.next_order(), true, false),
            LookUp::Unavailable => (self.clock.next_order(), false, false),
        };
        let is_known = matches!(batch.find(&key), LookUp::Found(_));
        // A new version even where nothing else changes: a removal decided on before this PUT must be detected as
        // stale, or it would take away what the upstream is about to have again.
        let version = if is_confirmed {
            Some(batch.push(Record::Confirmed(key.clone())))
        } else if is_known || !links.is_empty() {
            let descriptor = referrer.descriptor.clone();
            Some(batch.push(Record::Begun(Recorded::new(key.clone(), order, true, descriptor, links))))
        } else {
            None
        };
        Put { mark: self.shared.puts.begin(key, is_unknown, version), referrer, order }
    }

    fn remove(&self, key: ReferrerKey, seen: Version, batch: &mut WriteBatch) -> Removed {
        match self.if_unchanged(&key, seen, batch) {
            Ok(_absent_since) => {
                batch.push(Record::Removed(key));
                Removed::Gone
            }
            Err(Removed::Doubted) => disown(key, batch),
            Err(removed) => removed,
        }
    }

    fn absent(&self, key: ReferrerKey, seen: Version, batch: &mut WriteBatch) -> Removed {
        let absent_since = match self.if_unchanged(&key, seen, batch) {
            Ok(absent_since) => absent_since,
            Err(Removed::Doubted) => return push_doubt(key, batch),
            Err(removed) => return removed,
        };
        // One 404 proves nothing: Quay and distribution on S3 lag behind their own 201 by seconds, and one node of
        // several may be wrong for a moment. So the time of the first one is recorded, and only an absence that lasts
        // removes the referrer.
        let now = self.clock.now();
        match absent_since {
            None => {
                batch.push(Record::Absent { referrer: key, since: now });
                Removed::Doubted
            }
            Some(since) if now.saturating_sub(since) >= self.forget_after => {
                batch.push(Record::Removed(key));
                Removed::Gone
            }
            // No record: each query asks for this until the referrer is forgotten.
            Some(_) => Removed::Doubted,
        }
    }

    /// When the referrer's absence began, if any; an error if it must not be removed, because it is unknown, was
    /// changed since it was `seen`, or is being PUT.
    fn if_unchanged(
        &self,
        key: &ReferrerKey,
        seen: Version,
        batch: &mut WriteBatch,
    ) -> Result<Option<u64>, Removed> {
        // Both before anything is looked up: whatever becomes of the removal, PUTs and reads in progress may have
        // seen the manifest before it was deleted, and must not confirm it.
        self.shared.reads.note_deletion(&key.repository);
        let is_being_put = self.shared.puts.doubt(key);
        match batch.find(key) {
            LookUp::Unknown => Err(Removed::Unknown),
            LookUp::Found(state) if state.version == seen && !is_being_put => Ok(state.absent_since),
            LookUp::Found(_) | LookUp::Unavailable => Err(Removed::Doubted),
        }
    }

    /// Makes a confirmed referrer pending.
    pub(crate) fn doubt(&self, key: ReferrerKey, batch: &mut WriteBatch) {
        let is_confirmed = match batch.find(&key) {
            LookUp::Found(state) => !state.pending,
            LookUp::Unknown => false,
            LookUp::Unavailable => true,
        };
        // Only then: a client without any right to the referrer can have this asked for as often as it likes.
        if is_confirmed {
            self.shared.reads.note_deletion(&key.repository);
            batch.push(Record::Doubted(key));
        }
    }

    /// Records what is new of this. Pending: what may have been deleted since it was read, and what only another
    /// manifest tells of.
    fn observe(&mut self, read: &ReadMark, observations: Vec<Observation>, batch: &mut WriteBatch) {
        let deletion = read.saw_deletion();
        for Observation { referrer, claimed } in observations {
            let key = ReferrerKey { repository: read.repository().clone(), digest: referrer.digest };
            let unsure = deletion || claimed;
            let (order, pending) = match batch.find(&key) {
                LookUp::Found(state) => {
                    // An observation need not be all that the bytes say. So it confirms nothing that a client claimed
                    // and that it does not repeat: that stays pending until the manifest itself is read.
                    let pending = unsure || (state.pending && !state.is_within(&referrer.links));
                    let says_more = !state.has(&referrer.links)
                        || (state.claimed && !claimed)
                        || (state.pending && !pending)
                        || (state.absent_since.is_some() && !unsure);
                    if !says_more {
                        continue;
                    }
                    (state.order, pending)
                }
                LookUp::Unknown | LookUp::Unavailable if referrer.links.is_empty() => continue,
                LookUp::Unknown => (self.clock.next_order(), unsure),
                LookUp::Unavailable => (self.clock.next_order(), true),
            };
            let recorded = Recorded::new(key, order, pending, referrer.descriptor, referrer.links);
            batch.push(Record::Recorded(Recorded { claimed, ..recorded }));
        }
    }
}

fn confirm(put: Put, batch: &mut WriteBatch) {
    let Put { mark, referrer, order } = put;
    let key = mark.key().clone();
    // Deleted while it was being PUT, maybe after the upstream had accepted it: stays pending, the next query asks.
    let doubted = mark.is_doubted();
    mark.end();
    let record = |order| {
        let Referrer { descriptor, links, .. } = referrer.clone();
        Record::Accepted(Recorded::new(key.clone(), order, doubted, descriptor, links))
    };
    match batch.find(&key) {
        LookUp::Found(state) if !state.pending && state.has(&referrer.links) => {}
        LookUp::Found(state) => {
            let state = state.clone();
            batch.push_change(&state, record(state.order), key.clone());
        }
        LookUp::Unknown | LookUp::Unavailable => {
            batch.push(record(order));
        }
    }
}

fn refuse(put: Put, batch: &mut WriteBatch) {
    let key = put.mark.key().clone();
    // Only what these PUTs themselves added: what anybody else recorded since stays.
    if let Some(made) = put.mark.refuse()
        && matches!(batch.find(&key), LookUp::Found(state) if state.pending && state.version == made)
    {
        batch.push(Record::Removed(key));
    }
}

fn settle(repository: Repository, seen: Version, found: &Referrer, batch: &mut WriteBatch) {
    let key = ReferrerKey { repository, digest: found.digest.clone() };
    // What cannot be compared stays as it is, and the next query asks again.
    let LookUp::Found(state) = batch.find(&key) else { return };
    if state.version != seen {
        return;
    }
    let state = state.clone();
    let links = found.links.iter().filter(|link| is_own(link.kind)).cloned().collect();
    let recorded = Recorded::new(key.clone(), state.order, false, found.descriptor.clone(), links);
    batch.push_change(&state, Record::Settled(recorded), key);
}

/// Makes the referrer pending. Also if it is already: the new version makes a confirmation that was decided on what
/// the upstream served before come too late.
fn push_doubt(key: ReferrerKey, batch: &mut WriteBatch) -> Removed {
    batch.push(Record::Doubted(key));
    Removed::Doubted
}

/// Makes the referrer pending, and no more than a claim: somebody deleted it, or meant to. So it is not listed on the
/// strength of having been there, as others are while the registry cannot be asked.
fn disown(key: ReferrerKey, batch: &mut WriteBatch) -> Removed {
    match batch.find(&key) {
        LookUp::Found(state) if state.was_confirmed => {
            let claim = Recorded { pending: true, ..Recorded::of(key.clone(), state.clone()) };
            batch.push(Record::Removed(key));
            batch.push(Record::Recorded(Recorded { was_confirmed: false, version: None, ..claim }));
            Removed::Doubted
        }
        LookUp::Found(_) | LookUp::Unknown | LookUp::Unavailable => push_doubt(key, batch),
    }
}

fn answer<T: 'static>(reply: Reply<T>, value: T) -> Acknowledgement {
    // The caller may be gone; what was done stays done.
    Box::new(move |outcome| drop(reply.send(outcome.map(|()| value))))
}
