//! The kinds of write, and what the committer does of each.
//!
//! A new kind of write is a variant of [`Write`], its decision in [`crate::index::decision`], and the method of
//! [`crate::index::Index`] that sends it. The committer takes what waits and decides one write after the other, each
//! seeing what those before it did, so a decision never races with another one.
//!
//! While sled is being opened nothing can be looked up ([`LookUp::Unavailable`]), and writes are accepted all the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::batch::WriteBatch;
use super::clock::{Clock, micros};
use super::in_progress::{Before, PutMark, ReadMark};
use super::state::SharedState;
use crate::index::decision::{self, Decision, LookUp};
use crate::index::record::ReferrerKey;
use crate::index::{Observation, Order, Referrer, Removed, Repository, Version, WriteError};

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
                let key = ReferrerKey { repository, digest: found.digest.clone() };
                let decision = decision::settle(batch.find(&key), &key, seen, &found);
                batch.record(decision, &key);
                answer(reply, ())
            }
            Write::Remove { key, seen, reply } => answer(reply, self.remove(&key, seen, batch)),
            Write::Absent { key, seen, reply } => answer(reply, self.absent(&key, seen, batch)),
            Write::Doubt { key, reply } => {
                self.doubt(&key, batch);
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
        let found = batch.find(&key);
        let (order, before) = match found {
            LookUp::Found(state) => (state.order, Before::Known(Some(state.version))),
            LookUp::Unknown => (self.clock.next_order(), Before::Unknown),
            LookUp::Unavailable => (self.clock.next_order(), Before::Known(None)),
        };
        let decision = decision::begin(found, &key, &referrer, order);
        let version = batch.record(decision, &key);
        Put { mark: self.shared.puts.begin(key, before, version), referrer, order }
    }

    fn remove(&self, key: &ReferrerKey, seen: Version, batch: &mut WriteBatch) -> Removed {
        let is_being_put = self.note_deletion(key);
        let (removed, decision) = decision::remove(batch.find(key), key, seen, is_being_put);
        batch.record(decision, key);
        removed
    }

    fn absent(&self, key: &ReferrerKey, seen: Version, batch: &mut WriteBatch) -> Removed {
        let is_being_put = self.note_deletion(key);
        let times = (self.clock.now(), self.forget_after);
        let (removed, decision) = decision::absent(batch.find(key), key, seen, is_being_put, times);
        batch.record(decision, key);
        removed
    }

    /// Tells whether the referrer is being PUT. Before anything is looked up: whatever becomes of the removal, PUTs and
    /// reads in progress may have seen the manifest before it was deleted, and must not confirm it.
    fn note_deletion(&self, key: &ReferrerKey) -> bool {
        self.shared.reads.note_deletion(&key.repository);
        self.shared.puts.doubt(key)
    }

    /// Makes a confirmed referrer pending.
    pub(crate) fn doubt(&self, key: &ReferrerKey, batch: &mut WriteBatch) {
        let decision = decision::doubt(batch.find(key), key);
        if decision != Decision::Nothing {
            self.shared.reads.note_deletion(&key.repository);
            batch.record(decision, key);
        }
    }

    fn observe(&mut self, read: &ReadMark, observations: Vec<Observation>, batch: &mut WriteBatch) {
        let deletion = read.saw_deletion();
        for observation in observations {
            let digest = observation.referrer.digest.clone();
            let key = ReferrerKey { repository: read.repository().clone(), digest };
            // Also if it is no news: a PUT that is refused must not take away what was seen in the registry.
            self.shared.puts.told(&key);
            let next_order = || self.clock.next_order();
            let decision = decision::observe(batch.find(&key), &key, observation, deletion, next_order);
            batch.record(decision, &key);
        }
    }
}

fn confirm(put: Put, batch: &mut WriteBatch) {
    let Put { mark, referrer, order } = put;
    let key = mark.key().clone();
    let doubted = mark.is_doubted();
    mark.end();
    let decision = decision::confirm(batch.find(&key), &key, &referrer, order, doubted);
    batch.record(decision, &key);
}

fn refuse(put: Put, batch: &mut WriteBatch) {
    let key = put.mark.key().clone();
    let decision = decision::refuse(batch.find(&key), &key, put.mark.refuse());
    batch.record(decision, &key);
}

fn answer<T: 'static>(reply: Reply<T>, value: T) -> Acknowledgement {
    // The caller may be gone; what was done stays done.
    Box::new(move |outcome| drop(reply.send(outcome.map(|()| value))))
}
