//! The one thread that writes (group commit): takes all writes that wait, decides what records they make, appends
//! those to the journal as one frame, syncs once, applies them to sled, and only then answers everybody.
//!
//! The order is what the promises rest on. Answers come after the sync, so that no crash takes back a write that
//! somebody was told of. sled comes after the sync too, so that it is never ahead of the journal. Answers come after
//! sled, so that a client's next query sees its own write.
//!
//! A failed write or sync ends writing until the journal is known to be in order again; a failed sled has it rebuilt.
//! Both are retried with increasing waits, without a restart: a full disk has room again some day.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::EngineCommand;
use super::batch::WriteBatch;
use super::checking;
use super::clock::Backoff;
use super::compaction::{Compacted, Compactor};
use super::journal::Journal;
use super::journal::format::Header;
use super::opening::{OpenedIndex, Opener, OpeningError, replay};
use super::state::SharedState;
use super::store::Store;
use super::write::{Decisions, Write};
use crate::index::{Order, ReadError, Statistics, WriteError};

/// Approximate limit for the records of one frame. What waits beyond it makes the next one.
const BATCH_BYTES: usize = 4 << 20;
/// Minimum wait for what is due, so that a retry that fails at once does not keep the thread busy.
const BREATH: Duration = Duration::from_millis(20);

/// The reason of all failures after this thread panicked.
pub(crate) const PANICKED: &str = "the thread that writes the index panicked: restart refshim";

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct Committer {
    shared: Arc<SharedState>,
    journal: Journal,
    commands: mpsc::Receiver<EngineCommand>,
    /// None while sled is being opened, and when it failed.
    store: Option<Arc<Store>>,
    decisions: Decisions,
    compactor: Compactor,
    /// None in tests, which open sled themselves.
    opener: Option<Opener>,
    opening: Option<JoinHandle<()>>,
    /// When sled is opened again after a failure.
    reopening: Backoff,
    /// When the journal is written again after a failure.
    resuming: Backoff,
    /// When doubts are written again that could not be looked up.
    doubting: Backoff,
    /// Threads that remove what a compaction replaced.
    discarding: Vec<JoinHandle<()>>,
}

impl Committer {
    /// A committer that does not open sled.
    pub(crate) fn new(
        shared: Arc<SharedState>,
        journal: Journal,
        commands: mpsc::Receiver<EngineCommand>,
        compact_bytes: u64,
        forget_after: Duration,
    ) -> Self {
        let last_order = Order(journal.last_order());
        shared.set_journal_end(journal.end());
        Self {
            decisions: Decisions::new(Arc::clone(&shared), last_order, forget_after),
            shared,
            journal,
            commands,
            store: None,
            compactor: Compactor::new(compact_bytes),
            opener: None,
            opening: None,
            reopening: Backoff::new(),
            resuming: Backoff::new(),
            doubting: Backoff::new(),
            discarding: Vec::new(),
        }
    }

    /// Has it open sled at its start, and again whenever sled fails.
    pub(crate) fn opening_with(mut self, opener: Opener) -> Self {
        self.opener = Some(opener);
        self
    }

    /// Runs until the index is closed or nobody holds it any more.
    pub(crate) fn run(mut self) {
        // tokio's channel has no blocking receive with a timeout. Without the timer, retries come with the next
        // write.
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let timer = timer.inspect_err(|error| tracing::warn!(%error, "the index has no timer")).ok();
        self.note_statistics(0);
        self.open_store(false);
        while let Some(first) = self.next_command(timer.as_ref()) {
            let (writes, other) = self.drain(first);
            if !writes.is_empty() || self.has_doubts() {
                self.commit(writes);
            }
            match other {
                Some(EngineCommand::Opened(opened)) => self.take_over(opened),
                Some(EngineCommand::Failed(store)) => self.store_failed(&store),
                Some(EngineCommand::Close) => break,
                Some(EngineCommand::Write(_) | EngineCommand::Wake) | None => {}
            }
            self.try_again();
            self.compact_if_due();
        }
        self.finish();
    }

    /// The next command; [`EngineCommand::Wake`] if a retry is due first.
    fn next_command(&mut self, timer: Option<&Runtime>) -> Option<EngineCommand> {
        if self.has_doubts() {
            return Some(self.commands.try_recv().unwrap_or(EngineCommand::Wake));
        }
        let due =
            [self.reopening.due(), self.resuming.due(), self.doubting.due()].into_iter().flatten().min();
        let (Some(due), Some(timer)) = (due, timer) else { return self.commands.blocking_recv() };
        let wait = due.saturating_duration_since(Instant::now()).max(BREATH);
        let commands = &mut self.commands;
        let next = timer.block_on(async { tokio::time::timeout(wait, commands.recv()).await });
        next.unwrap_or(Some(EngineCommand::Wake))
    }

    /// Whether there are doubts that can be written now.
    fn has_doubts(&self) -> bool {
        let may_try = self.doubting.due().is_none_or(|due| due <= Instant::now());
        may_try && self.store.is_some() && self.shared.writable().is_ok() && self.shared.puts.has_doubts()
    }

    /// All writes that wait, up to the limit or to a command that is not a write, and that command.
    fn drain(&mut self, first: EngineCommand) -> (Vec<Write>, Option<EngineCommand>) {
        let mut writes = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                // After a disk that hung, the queue is full of these. Their senders timed out and may have retried.
                EngineCommand::Write(queued) if queued.write.is_abandoned() => {}
                EngineCommand::Write(queued) => {
                    bytes += queued.write.size();
                    writes.push(queued.write);
                }
                EngineCommand::Wake => {}
                other @ (EngineCommand::Opened(_) | EngineCommand::Failed(_) | EngineCommand::Close) => {
                    return (writes, Some(other));
                }
            }
            next = if bytes < BATCH_BYTES { self.commands.try_recv().ok() } else { None };
        }
        (writes, None)
    }

    fn commit(&mut self, writes: Vec<Write>) {
        if self.journal.is_full() && self.shared.writable().is_ok() {
            self.roll();
        }
        let mut batch = WriteBatch::new(self.journal.end(), self.store.clone());
        let doubts = self.has_doubts().then(|| self.shared.puts.take_doubts());
        self.doubting.take();
        for key in doubts.iter().flatten() {
            self.decisions.doubt(key, &mut batch);
            // Nobody waits for it. In a damaged block it would fail for ever, after an error of the disk it may not.
            if batch.take_refusal() == Some(WriteError::Failed) {
                self.shared.puts.doubt_later(key.clone());
                self.doubting.failed();
            }
        }
        let mut must_write = false;
        let mut answers = Vec::with_capacity(writes.len());
        // Also after a failure: deciding ends the PUTs in progress, and gives everybody the error as an answer.
        for write in writes {
            must_write |= matches!(write, Write::Probe { .. });
            let answer = self.decisions.decide(write, &mut batch);
            answers.push((answer, batch.take_refusal()));
        }
        let outcome = if must_write || !batch.is_empty() { self.write(batch) } else { Ok(()) };
        let outcome = outcome.and_then(|()| self.shared.writable());
        // They were taken out of the set before it was known whether they could be written.
        if outcome.is_err() {
            for key in doubts.into_iter().flatten() {
                self.shared.puts.doubt_later(key);
            }
        }
        for (answer, refusal) in answers {
            answer(refusal.map_or_else(|| outcome.clone(), Err));
        }
    }

    /// Begins a new segment of the journal.
    fn roll(&mut self) -> Option<Header> {
        let rolled = self.journal.roll();
        self.shared.set_journal_end(self.journal.end());
        let failed = |error| format!("a new segment of the journal cannot be begun: {error}");
        rolled.map_err(|error| self.fail_writes(failed(error))).ok()
    }

    fn write(&mut self, batch: WriteBatch) -> Result<(), WriteError> {
        self.shared.writable()?;
        let records = batch.records();
        let written = batch
            .payload()
            .map_err(std::io::Error::other)
            .and_then(|payload| self.journal.append(payload, self.decisions.last_order().0));
        if let Err(error) = written {
            self.fail_writes(format!("the journal cannot be written: {error}"));
            return self.shared.writable();
        }
        self.shared.set_journal_end(self.journal.end());
        // Still a success for the writers: the records are durable, and sled is rebuilt from them.
        if let Err(error) = batch.apply(self.journal.end()) {
            self.lose_store(error.to_string());
        }
        self.note_statistics(records);
        Ok(())
    }

    fn fail_writes(&mut self, reason: String) {
        self.shared.fail_writes(reason, WriteError::Failed);
        self.resuming.failed();
    }

    /// Gives up the store and has it rebuilt from the journal, where all it held is durable.
    fn lose_store(&mut self, error: String) {
        if let Some(store) = self.store.take() {
            Store::abandon(store);
        }
        self.shared.rebuilding(error);
        self.reopening.failed();
    }

    /// A read from this store failed.
    fn store_failed(&mut self, failed: &Arc<Store>) {
        // Not if it was replaced since: several reads report the same store.
        if self.store.as_ref().is_some_and(|store| Arc::ptr_eq(store, failed)) {
            self.lose_store("sled cannot be read".to_owned());
        }
    }

    fn open_store(&mut self, failed_before: bool) {
        if self.opener.is_none() {
            return;
        }
        let to_build = if self.journal.needs_snapshot() {
            // What is written from now on is not in the snapshot that is built.
            let header = self.roll();
            if header.is_none() {
                self.reopening.failed();
                return;
            }
            header
        } else {
            None
        };
        let Some(opener) = &self.opener else { return };
        match opener.start(Arc::clone(&self.shared), &self.journal, failed_before, to_build) {
            Ok(opening) => self.opening = opening,
            Err(error) => {
                self.shared.rebuilding(format!("the thread that opens sled cannot be started: {error}"));
                self.reopening.failed();
            }
        }
    }

    fn not_opened(&mut self, error: &OpeningError) {
        self.opening = None;
        if matches!(error, OpeningError::Stopped) {
            return;
        }
        if error.may_pass() {
            self.shared.rebuilding(error.to_string());
            self.reopening.failed();
        } else {
            self.shared.damaged(&error.to_string());
        }
    }

    /// Applies the rest of the journal to an opened index and serves it. Nothing can be written meanwhile, so
    /// nothing is missed.
    fn take_over(&mut self, OpenedIndex { store, built }: OpenedIndex) {
        self.opening = None;
        // Also if nothing came of the rest: the files that it replaced are gone.
        if let Some(snapshot) = built {
            self.journal.compacted(snapshot);
        }
        let store = match store {
            Ok(store) => store,
            Err(error) => return self.not_opened(&error),
        };
        match replay(&self.shared, &self.journal.reader(), &store, self.journal.end()) {
            Ok(()) => {
                self.store = Some(Arc::clone(&store));
                self.note_statistics(0);
                self.shared.ready(store);
            }
            Err(error) => {
                Store::abandon(store);
                self.not_opened(&error);
            }
        }
    }

    /// Retries to open sled and to write the journal, if that is due.
    fn try_again(&mut self) {
        // A compaction removes files of the journal when it ends, which the rebuild would have to read. It ends
        // soon: its store failed.
        if !self.compactor.is_running() && self.opening.is_none() && self.reopening.take() {
            self.open_store(true);
        }
        if self.resuming.take() {
            match self.journal.resume() {
                Ok(()) => {
                    self.shared.set_journal_end(self.journal.end());
                    self.shared.resume_writes();
                    tracing::info!("the index can be written again");
                }
                Err(error) => {
                    tracing::warn!(%error, "the journal still cannot be written");
                    self.resuming.failed();
                }
            }
        }
    }

    /// Updates the statistics after a commit of `records`.
    fn note_statistics(&self, records: u64) {
        let meta = self.store.as_ref().map(|store| store.meta());
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

    fn compact_if_due(&mut self) {
        if let Some(compacted) = self.compactor.ended(&self.journal) {
            self.compacted(compacted);
        }
        let Some(store) = self.store.clone() else { return };
        if !self.compactor.may_start(&self.journal) || self.shared.writable().is_err() {
            return;
        }
        if store.older().is_none() && self.compactor.is_due(&self.journal) {
            self.begin_delta(&store);
        }
        if let Some(older) = store.older() {
            let header = self.journal.header_at(older.meta.applied);
            self.compactor.start(Arc::clone(&self.shared), store, older, &self.journal, header);
        }
    }

    /// Begins a segment of the journal, and a delta with it.
    fn begin_delta(&mut self, store: &Store) {
        let Some(header) = self.roll() else { return };
        let Some(opener) = self.opener.as_ref().filter(|_| header.position > store.meta().base) else {
            return;
        };
        let begun = opener.new_delta(header.position).map_err(Into::into).and_then(|(path, settings)| {
            store.begin_delta(&path, settings, header.position).inspect_err(|_| {
                // If this fails as well, the next opening removes it.
                std::fs::remove_dir_all(path).ok();
            })
        });
        if let Err(error) = begun {
            self.compactor.put_off(&self.journal, &error.to_string());
        }
    }

    fn compacted(&mut self, (snapshot, sorted): Compacted) {
        self.journal.compacted(snapshot);
        if let Some(store) = &self.store {
            self.discarding.retain(|thread| !thread.is_finished());
            self.discarding.extend(store.replace_older(sorted));
        }
        self.shared.update_statistics(|statistics| {
            statistics.compactions += 1;
            statistics.checked = Some(checking::now());
        });
        self.note_statistics(0);
        tracing::info!(position = snapshot.position, bytes = snapshot.length, "compacted the journal");
    }

    fn finish(mut self) {
        self.shared.stop();
        self.shared.closed();
        // The thread that opens sled may be waiting for room in the channel, and is joined below.
        self.commands.close();
        if let Some(snapshot) = self.compactor.finish(&self.journal) {
            self.compacted(snapshot);
        }
        if self.opening.take().is_some_and(|opening| opening.join().is_err()) {
            tracing::error!("the thread that opens sled panicked");
        }
        // Their directories must not be taken away from the next one who opens the index.
        for thread in std::mem::take(&mut self.discarding) {
            if thread.join().is_err() {
                tracing::error!("a thread that removes an old part of the index panicked");
            }
        }
        let Some(store) = self.store.take() else { return };
        // sled was flushed by its timer alone until here, with nothing lost by a crash but time at the next start.
        if let Err(error) = store.flush() {
            tracing::warn!(%error, "sled could not be flushed; the next start reads more of the journal");
            Store::abandon(store);
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.stop();
            self.shared.fail_writes(PANICKED.to_owned(), WriteError::Ended);
            self.shared.fail_reads(PANICKED.to_owned(), ReadError::Failed);
            if let Some(store) = self.store.take() {
                Store::abandon(store);
            }
        }
    }
}
