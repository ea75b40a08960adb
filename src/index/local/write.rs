//! What a command adds to the draft, given what is known at that place of the journal. Where that cannot be
//! seen yet, because sled is being opened, the records suit whatever state they meet.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::batch::{LookUp, WriteBatch};
use super::command::{Put, Write};
use super::learnt;
use super::record::{Record, Recorded, ReferrerKey};
use super::referrer_state::{ReferrerState, is_own};
use super::state::SharedState;
use crate::index::{Order, Referrer, Removed, Repository, Version, WriteError};
use crate::oci::Link;

/// Sends one caller the answer.
pub(crate) type Acknowledgement = Box<dyn FnOnce(Result<(), WriteError>)>;

/// What deciding needs besides the draft.
#[derive(Debug)]
pub(crate) struct Decisions {
    shared: Arc<SharedState>,
    last_order: Order,
    clock: Clock,
    /// How many microseconds of nothing but 404 it takes to forget a referrer.
    forget_after: u64,
}

/// The time since 1970, of which a step of the system's clock makes no absence longer.
#[derive(Debug)]
struct Clock {
    began: Duration,
    running: Instant,
}

impl Decisions {
    pub(crate) fn new(shared: Arc<SharedState>, last_order: Order, forget_after: Duration) -> Self {
        let clock = Clock { began: since_1970(), running: Instant::now() };
        Self { shared, last_order, clock, forget_after: micros(forget_after) }
    }

    /// The highest order given so far.
    pub(crate) fn last_order(&self) -> Order {
        self.last_order
    }

    /// Adds to the draft what a command asks for; gives what answers it.
    pub(crate) fn decide(&mut self, write: Write, batch: &mut WriteBatch) -> Acknowledgement {
        match write {
            Write::Begin { repository, referrer, reply } => {
                let put = self.begin(repository, referrer, batch);
                answer(reply, put)
            }
            Write::Confirm { put, reply } => {
                let key = put.mark.key().clone();
                confirm(put, batch);
                let in_flight = Arc::clone(&self.shared.puts);
                Box::new(move |outcome| {
                    // The upstream took it, and that is written nowhere.
                    if outcome.is_err() {
                        in_flight.doubt_later(key);
                    }
                    // Whoever asked may have gone.
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
            Write::Learn { read, learnt, reply } => {
                learnt::record(&read, learnt, batch, || self.next_order());
                answer(reply, ())
            }
            Write::Probe { reply } => answer(reply, ()),
        }
    }

    /// Makes a new version of the referrer even if nothing else is recorded, so that a removal that was
    /// decided before this PUT comes too late. What only the tag says that it goes to is recorded with the
    /// upstream's yes: whether the upstream has the manifest does not tell whether it took that tag.
    fn begin(&mut self, repository: Repository, referrer: Referrer, batch: &mut WriteBatch) -> Put {
        let key = ReferrerKey { repository, digest: referrer.digest.clone() };
        let links = referrer.links.iter().filter(|link| link.kind.is_in_the_bytes());
        let links: Vec<Link> = links.cloned().collect();
        let (order, is_unknown, is_confirmed) = match batch.find(&key) {
            LookUp::Found(state) => (state.order, false, !state.pending),
            LookUp::Unknown => (self.next_order(), true, false),
            LookUp::Unavailable => (self.next_order(), false, false),
        };
        let is_known = matches!(batch.find(&key), LookUp::Found(_));
        let version = if is_confirmed {
            Some(batch.push(Record::Confirmed(key.clone())))
        } else if is_known || !links.is_empty() {
            Some(batch.push(Record::Begun(recorded(&key, &referrer, links, order, true))))
        } else {
            None
        };
        Put { mark: self.shared.puts.begin(key, is_unknown, version), referrer, order }
    }

    fn remove(&self, key: ReferrerKey, seen: Version, batch: &mut WriteBatch) -> Removed {
        match self.if_unchanged(&key, seen, batch) {
            Ok(_known) => {
                batch.push(Record::Removed(key));
                Removed::Gone
            }
            Err(Removed::Doubted) => doubted(key, batch),
            Err(removed) => removed,
        }
    }

    /// One 404 proves nothing: registries lag behind their own 201 by seconds, and one node of several may
    /// err for a moment. So the first one is remembered, and only an absence that lasts is one.
    fn absent(&self, key: ReferrerKey, seen: Version, batch: &mut WriteBatch) -> Removed {
        let absent_since = match self.if_unchanged(&key, seen, batch) {
            Ok(absent_since) => absent_since,
            Err(Removed::Doubted) => return doubted(key, batch),
            Err(removed) => return removed,
        };
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
            // Nothing is written: this happens with each query until it is forgotten.
            Some(_) => Removed::Doubted,
        }
    }

    /// Since when the referrer is absent, if it is as it was `seen` and not being PUT; else what becomes of its
    /// removal.
    fn if_unchanged(
        &self,
        key: &ReferrerKey,
        seen: Version,
        batch: &mut WriteBatch,
    ) -> Result<Option<u64>, Removed> {
        self.shared.reads.note_deletion(&key.repository);
        let in_flight = self.shared.puts.doubt(key);
        match batch.find(key) {
            LookUp::Unknown => Err(Removed::Unknown),
            LookUp::Found(state) if state.version == seen && !in_flight => Ok(state.absent_since),
            LookUp::Found(_) | LookUp::Unavailable => Err(Removed::Doubted),
        }
    }

    /// Whoever is answered 404 may have no right to see the referrer, so this writes only if it changes
    /// something.
    pub(crate) fn doubt(&self, key: ReferrerKey, batch: &mut WriteBatch) {
        let is_confirmed = match batch.find(&key) {
            LookUp::Found(state) => !state.pending,
            LookUp::Unknown => false,
            LookUp::Unavailable => true,
        };
        if is_confirmed {
            self.shared.reads.note_deletion(&key.repository);
            batch.push(Record::Doubted(key));
        }
    }

    fn next_order(&mut self) -> Order {
        let now = micros(since_1970());
        self.last_order = Order(now.max(self.last_order.0.saturating_add(1)));
        self.last_order
    }
}

impl Clock {
    fn now(&self) -> u64 {
        micros(self.began + self.running.elapsed())
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Even if it is pending: the new version keeps it so when a query has just been told that it is there.
fn doubted(key: ReferrerKey, batch: &mut WriteBatch) -> Removed {
    batch.push(Record::Doubted(key));
    Removed::Doubted
}

fn confirm(put: Put, batch: &mut WriteBatch) {
    let Put { mark, referrer, order } = put;
    let key = mark.key().clone();
    // The upstream may have taken the manifest before it deleted it: the next query asks.
    let doubted = mark.is_doubted();
    mark.end();
    let record =
        |order, pending| Record::Accepted(recorded(&key, &referrer, referrer.links.clone(), order, pending));
    match batch.find(&key) {
        LookUp::Found(state) if !state.pending && state.has(&referrer.links) => {}
        LookUp::Found(state) => {
            let state = state.clone();
            push_change(&state, record(state.order, doubted), key.clone(), batch);
        }
        LookUp::Unknown | LookUp::Unavailable => {
            batch.push(record(order, doubted));
        }
    }
}

fn refuse(put: Put, batch: &mut WriteBatch) {
    let key = put.mark.key().clone();
    // What anybody else recorded since is not these PUTs' to take away.
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
    let record = Record::Settled(recorded(&key, found, links, state.order, false));
    push_change(&state, record, key, batch);
}

/// Adds the record if it changes anything; a shorter one if that comes to the same.
fn push_change(state: &ReferrerState, record: Record, key: ReferrerKey, batch: &mut WriteBatch) {
    let version = Version(state.version.0.saturating_add(1));
    let after = |record| ReferrerState::after(Some(state.clone()), record, version);
    let changed = after(record.clone());
    if changed == Some(ReferrerState { version, ..state.clone() }) {
        return;
    }
    let confirmed = Record::Confirmed(key);
    let is_all = changed == after(confirmed.clone());
    batch.push(if is_all { confirmed } else { record });
}

fn recorded(
    key: &ReferrerKey,
    referrer: &Referrer,
    links: Vec<Link>,
    order: Order,
    pending: bool,
) -> Recorded {
    Recorded {
        referrer: key.clone(),
        order: order.0,
        pending,
        claimed: false,
        was_confirmed: false,
        absent_since: None,
        version: None,
        descriptor: referrer.descriptor.clone(),
        links,
    }
}

fn answer<T: 'static>(reply: super::command::Reply<T>, value: T) -> Acknowledgement {
    // Whoever asked may have gone; what was done stays done.
    Box::new(move |outcome| drop(reply.send(outcome.map(|()| value))))
}
