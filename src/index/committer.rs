//! The one thread that writes: takes what waits, makes records of it, appends them as one frame, syncs
//! once, applies them to sled, and only then answers everybody.

use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

use super::command::{Command, Put, Reply, Write};
use super::compaction::{Compacting, Compaction, CompactionError};
use super::draft::{Draft, Found};
use super::journal::Journal;
use super::journal::files::Snapshot;
use super::journal::header::Header;
use super::learnt;
use super::opening::replay;
use super::record::{Record, Recorded, ReferrerKey};
use super::shared::Shared;
use super::sled::Store;
use super::{Order, Referrer, Removed, Repository, Statistics, Version, WriteError};
use crate::oci::Link;

/// How many bytes of what waits go into one frame, about.
const BATCH_BYTES: usize = 4 << 20;

/// What is said if the thread does not end as it should.
pub(crate) const PANICKED: &str = "the thread that writes the index panicked";

/// Sends one caller the answer.
type Answer = Box<dyn FnOnce(Result<(), WriteError>)>;

/// The thread's state.
#[derive(Debug)]
pub(crate) struct Committer {
    shared: Arc<Shared>,
    journal: Journal,
    commands: mpsc::Receiver<Command>,
    /// None while sled is being opened, and when it failed.
    store: Option<Arc<Store>>,
    last_order: Order,
    compact_bytes: u64,
    compaction: Option<Compacting>,
    /// No compaction before the segments are this long; set when one failed.
    compact_from: u64,
}

impl Committer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        journal: Journal,
        commands: mpsc::Receiver<Command>,
        compact_bytes: u64,
    ) -> Self {
        let last_order = Order(journal.last_order());
        shared.set_journal_end(journal.end());
        Self {
            shared,
            journal,
            commands,
            store: None,
            last_order,
            compact_bytes,
            compaction: None,
            compact_from: 0,
        }
    }

    /// Runs until the index is closed or nobody holds it any more.
    pub(crate) fn run(mut self) {
        self.note_statistics(0);
        while let Some(first) = self.commands.blocking_recv() {
            let (writes, other) = self.drain(first);
            if !writes.is_empty() {
                self.commit(writes);
            }
            match other {
                Some(Command::Opened(store)) => self.take_over(store),
                Some(Command::Close) => break,
                Some(Command::Write(_)) | None => {}
            }
            self.compact_if_due();
        }
        self.finish();
    }

    /// What waits, up to a command that is no write.
    fn drain(&mut self, first: Command) -> (Vec<Write>, Option<Command>) {
        let mut writes = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Write(write) => {
                    bytes += write.size();
                    writes.push(*write);
                }
                other @ (Command::Opened(_) | Command::Close) => return (writes, Some(other)),
            }
            next = if bytes < BATCH_BYTES { self.commands.try_recv().ok() } else { None };
        }
        (writes, None)
    }

    fn commit(&mut self, writes: Vec<Write>) {
        if self.journal.is_full() && self.shared.write_failure().is_none() {
            self.roll();
        }
        let mut draft = Draft::new(self.journal.end(), self.store.clone());
        let mut must_write = false;
        let mut answers = Vec::with_capacity(writes.len());
        // After a failure the answers are the same, and what the commands hold is let go.
        for write in writes {
            must_write |= matches!(write, Write::Probe { .. });
            answers.push(self.decide(write, &mut draft));
        }
        let outcome = if must_write || !draft.is_empty() { self.write(draft) } else { Ok(()) };
        let outcome = outcome.and_then(|()| self.writable());
        for answer in answers {
            answer(outcome.clone());
        }
    }

    fn writable(&self) -> Result<(), WriteError> {
        self.shared.write_failure().map_or(Ok(()), |reason| Err(WriteError::Failed(reason.to_owned())))
    }

    /// Adds to the draft what a command asks for; gives what answers it.
    fn decide(&mut self, write: Write, draft: &mut Draft) -> Answer {
        match write {
            Write::Begin { repository, referrer, reply } => {
                let put = self.begin(repository, referrer, draft);
                answer(reply, put)
            }
            Write::Confirm { put, reply } => {
                confirm(put, draft);
                answer(reply, ())
            }
            Write::Refuse { put, reply } => {
                refuse(put, draft);
                answer(reply, ())
            }
            Write::SettlePresent { key, seen, reply } => {
                // What cannot be compared stays pending, and the next query asks again.
                if matches!(draft.find(&key), Found::Known(known) if known.pending && known.version == seen) {
                    draft.push(Record::Confirmed(key));
                }
                answer(reply, ())
            }
            Write::Remove { key, seen, reply } => {
                let removed = self.remove(key, seen, draft);
                answer(reply, removed)
            }
            Write::Learn { watch, learnt, reply } => {
                learnt::record(&watch, learnt, draft, || self.next_order());
                answer(reply, ())
            }
            Write::Probe { reply } => answer(reply, ()),
        }
    }

    /// Records the referrer even if it is known: that makes a new version, so that a removal that was
    /// decided before this PUT comes too late. What only the tag says that it goes to is recorded with the
    /// upstream's yes: whether the upstream has the manifest does not tell whether it took that tag.
    fn begin(&mut self, repository: Repository, referrer: Referrer, draft: &mut Draft) -> Put {
        let key = ReferrerKey { repository, digest: referrer.digest.clone() };
        let links = referrer.links.iter().filter(|link| link.kind.is_in_the_bytes());
        let links: Vec<Link> = links.cloned().collect();
        let (order, is_known, is_unknown) = match draft.find(&key) {
            Found::Known(known) => (known.order, true, false),
            Found::Unknown => (self.next_order(), false, true),
            Found::Unseen => (self.next_order(), false, false),
        };
        let is_recorded = is_known || !links.is_empty();
        if is_recorded {
            draft.push(recorded(&key, &referrer, links, order, true));
        }
        Put { mark: self.shared.in_flight.begin(key, is_unknown && is_recorded), referrer, order }
    }

    fn remove(&self, key: ReferrerKey, seen: Version, draft: &mut Draft) -> Removed {
        self.shared.watches.disturb(&key.repository);
        let in_flight = self.shared.in_flight.doubt(&key);
        let stale = match draft.find(&key) {
            Found::Unknown => return Removed::Unknown,
            Found::Known(known) => known.version != seen,
            Found::Unseen => true,
        };
        if !stale && !in_flight {
            draft.push(Record::Removed(key));
            return Removed::Gone;
        }
        // Even if it is pending: the new version keeps it so when a query has just been told that it is there.
        draft.push(Record::Doubted(key));
        Removed::Doubted
    }

    fn next_order(&mut self) -> Order {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        self.last_order = Order(now.max(self.last_order.0.saturating_add(1)));
        self.last_order
    }

    fn roll(&mut self) -> Option<Header> {
        let rolled = self.journal.roll();
        self.shared.set_journal_end(self.journal.end());
        let failed = |error| format!("a new segment of the journal cannot be begun: {error}");
        rolled.map_err(|error| self.shared.fail_writes(failed(error))).ok()
    }

    fn write(&mut self, draft: Draft) -> Result<(), WriteError> {
        self.writable()?;
        let records = draft.records();
        let written = draft
            .payload()
            .map_err(std::io::Error::other)
            .and_then(|payload| self.journal.append(payload, self.last_order.0));
        if let Err(error) = written {
            self.shared.fail_writes(format!("the journal cannot be written: {error}"));
            return self.writable();
        }
        self.shared.set_journal_end(self.journal.end());
        if let Err(error) = draft.apply(self.journal.end()) {
            self.lose_store(&error.to_string());
        }
        self.note_statistics(records);
        Ok(())
    }

    /// What is written stays durable in the journal, and the next start builds the index anew.
    fn lose_store(&mut self, error: &str) {
        if let Some(store) = self.store.take() {
            abandon(store);
        }
        self.shared.damaged(format!("{error}; restart to build the index anew from the journal"));
    }

    fn note_statistics(&self, records: u64) {
        let meta = self.store.as_ref().map(|store| store.numbers().meta);
        let journal_bytes = self.journal.segments_length() + self.journal.snapshot_length();
        self.shared.update_statistics(|statistics| {
            let (referrers, links, pending) = meta
                .map_or((statistics.referrers, statistics.links, statistics.pending), |meta| {
                    (meta.referrers, meta.links, meta.pending)
                });
            *statistics = Statistics {
                referrers,
                links,
                pending,
                journal_bytes,
                commits: statistics.commits + u64::from(records > 0),
                records: statistics.records + records,
                ..*statistics
            };
        });
    }

    /// Takes the store when the rest of the journal is applied to it; nothing is written meanwhile.
    fn take_over(&mut self, store: Arc<Store>) {
        match replay(&self.shared, &self.journal.history(), &store, self.journal.end()) {
            Ok(()) => {
                self.store = Some(Arc::clone(&store));
                self.note_statistics(0);
                self.shared.ready(store);
            }
            Err(error) => {
                abandon(store);
                error.report(&self.shared);
            }
        }
    }

    fn compact_if_due(&mut self) {
        if let Some(compaction) = self.compaction.take_if(|compaction| compaction.is_finished()) {
            self.end_compaction(compaction);
        }
        let length = self.journal.segments_length();
        let due = length > self.compact_bytes.max(2 * self.journal.snapshot_length());
        let Some(store) = self.store.clone() else { return };
        if !due || length < self.compact_from || self.compaction.is_some() || self.writable().is_err() {
            return;
        }
        let Some(header) = self.roll() else { return };
        let compaction = Compaction {
            shared: Arc::clone(&self.shared),
            store,
            directory: self.journal.directory().to_owned(),
            header,
        };
        match compaction.start() {
            Ok(compaction) => self.compaction = Some(compaction),
            Err(error) => self.put_off_compaction(&error.to_string()),
        }
    }

    fn end_compaction(&mut self, compaction: Compacting) {
        match compaction.join() {
            Ok(Ok(snapshot)) => self.compacted(snapshot),
            Ok(Err(CompactionError::Stopped)) => {}
            Ok(Err(error)) => self.put_off_compaction(&error.to_string()),
            Err(_) => self.put_off_compaction("it panicked"),
        }
    }

    fn compacted(&mut self, snapshot: Snapshot) {
        self.journal.compacted(snapshot);
        self.shared.update_statistics(|statistics| statistics.compactions += 1);
        self.note_statistics(0);
        tracing::info!(position = snapshot.position, bytes = snapshot.length, "compacted the journal");
    }

    fn put_off_compaction(&mut self, reason: &str) {
        self.compact_from = self.journal.segments_length().saturating_add(self.compact_bytes);
        tracing::error!(reason, "the journal could not be compacted; nothing is lost, it only grows");
    }

    fn finish(mut self) {
        self.shared.stop();
        if let Some(compaction) = self.compaction.take() {
            self.end_compaction(compaction);
        }
        self.shared.closed();
        let Some(store) = self.store.take() else { return };
        if let Err(error) = store.flush() {
            tracing::warn!(%error, "sled could not be flushed; the next start reads more of the journal");
            abandon(store);
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.stop();
            self.shared.fail_writes(PANICKED.to_owned());
            self.lose_store(PANICKED);
        }
    }
}

/// Closing a sled that failed may panic or never end: it is kept until the process ends.
fn abandon(store: Arc<Store>) {
    std::mem::forget(store);
}

fn confirm(put: Put, draft: &mut Draft) {
    let Put { mark, referrer, order } = put;
    let key = mark.key();
    // The upstream may have taken the manifest before it deleted it: the next query asks.
    let doubted = mark.is_doubted();
    let links = referrer.links.clone();
    let record = match draft.find(key) {
        Found::Known(known) if known.has(&referrer.links) => {
            if !known.pending || doubted {
                return;
            }
            if known.descriptor == referrer.descriptor {
                Record::Confirmed(key.clone())
            } else {
                recorded(key, &referrer, links, known.order, false)
            }
        }
        Found::Known(_) | Found::Unknown | Found::Unseen => recorded(key, &referrer, links, order, doubted),
    };
    draft.push(record);
}

fn refuse(put: Put, draft: &mut Draft) {
    let key = put.mark.key().clone();
    if put.mark.refuse() && matches!(draft.find(&key), Found::Known(known) if known.pending) {
        draft.push(Record::Removed(key));
    }
}

fn recorded(key: &ReferrerKey, referrer: &Referrer, links: Vec<Link>, order: Order, pending: bool) -> Record {
    Record::Recorded(Recorded {
        referrer: key.clone(),
        order: order.0,
        pending,
        claimed: false,
        descriptor: referrer.descriptor.clone(),
        links,
    })
}

fn answer<T: 'static>(reply: Reply<T>, value: T) -> Answer {
    // Whoever asked may have gone; what was done stays done.
    Box::new(move |outcome| drop(reply.send(outcome.map(|()| value))))
}
