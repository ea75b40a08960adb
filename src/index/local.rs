//! The engine on this machine: an append-only journal, whose snapshot is an index of itself, and an index of what
//! changed since in sled.
//!
//! # Why all three
//! Durability must not depend on sled 0.34.7. Its flush is no fsync on Linux: of 25 simulated power cuts, 24 lost
//! acknowledged writes or the database. A kill while it opens can leave files that it never opens again, and damaged
//! files make it panic or, worse, answer wrongly. What it does well is reading: a list of ten takes microseconds. So
//! the [`journal`] is the truth, and sled only an index of it, which can be thrown away and rebuilt at any time. A
//! backup is a copy of the journal, or `refshim index dump`. What lies where is listed in [`data_dir`].
//!
//! Nor can sled hold everything: of ten million links it took 28 GB of disk and 1.2 GB of memory, 80 seconds to open
//! after a clean stop and 17 minutes to build. So it only indexes what is new. The journal's snapshot, which replaces
//! what is old, is sorted and compressed ([`store::snapshot`]), and the [`store`] reads it together with sled.
//!
//! # The way of a write
//! [`crate::index::Index`] sends a [`Write`] through a bounded queue to one thread, the [`committer`]. It takes all
//! that waits, decides which records that makes ([`write`]), appends them to the journal as one frame, syncs once,
//! applies them to sled, and answers everybody. Because one sync serves many writes, 64 writers got 12,500 writes a
//! second where a single one got 1,500 (measured with sled's flush included, which the journal made unnecessary).
//!
//! Reads do not pass through that thread. They run on threads where blocking is allowed, because what sled does not
//! have in memory it reads from the disk, which takes up to 200 ms.
//!
//! # When something fails
//! - The journal cannot be written or synced: everything waiting is answered with an error, later writes too, until
//!   the committer got the journal to a known state again. Reading goes on.
//! - sled fails: queries are answered with an error while it is rebuilt. Writing goes on.
//! - The journal is damaged: neither reading nor writing, until somebody runs `refshim index rebuild` or restores a
//!   backup. What does not need the index goes on.
//! - A disk hangs: reads and writes time out. What they queued stays bounded.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};

mod ahead;
mod batch;
pub(super) mod building;
mod checking;
mod clock;
pub(super) mod committer;
mod compaction;
mod coverage;
mod data_dir;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(super) mod in_progress;
pub(super) mod journal;
pub(crate) mod maintenance;
pub(super) mod opening;
pub(super) mod sled;
pub(crate) mod sorted;
pub(super) mod state;
pub(super) mod store;
pub(super) mod write;

use super::record::ReferrerKey;
use super::{IndexSettings, IndexState, OpenError, ReadError, Removed, Repository, Version, WriteError};
use checking::Checker;
use committer::Committer;
use coverage::Coverages;
use data_dir::{JOURNAL, SLED};
use in_progress::ReadMark;
use journal::format::Identity;
use journal::{Damage, Journal, JournalError};
use opening::{OpenedIndex, Opener};
use sorted::SortedError;
use state::SharedState;
use store::{Store, StoreError, View};
use write::{Reply, Write};

/// Capacity of the write queue; senders block when it is full, each for its timeout at most.
const QUEUE: usize = 1024;
/// Capacity of the write queue in KiB of records. On a disk that hangs, they stay in memory after their senders have
/// given up.
const QUEUE_KIB: u32 = 64 << 10;
/// Reads that may run at once. Fewer than tokio has blocking threads (512), so that on a disk that hangs the rest
/// waits where a timeout ends it.
const READS: usize = 256;
/// How long closing waits for the threads. What they leave undone is in the journal.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// The journal, sled, and the threads that write them.
#[derive(Debug)]
pub(crate) struct Local {
    pub(super) shared: Arc<SharedState>,
    pub(super) coverage: Coverages,
    /// `None` if the journal is damaged.
    pub(super) journal: Option<Identity>,
    commands: mpsc::Sender<EngineCommand>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    repository_referrers: u64,
    /// How long a read or a write may take, waiting included.
    timeout: Duration,
    /// Until then a read waits for the index to be opened. Later ones are answered at once: opening takes long.
    waits_until: Instant,
    reads: Arc<Semaphore>,
    queue: Arc<Semaphore>,
}

/// What is sent to the committer.
#[derive(Debug)]
pub(crate) enum EngineCommand {
    Write(Box<QueuedWrite>),
    /// Look for doubts that wait.
    Wake,
    /// The index was opened, or could not be.
    Opened(OpenedIndex),
    /// This store could not be read.
    Failed(Arc<Store>),
    Close,
}

/// A write in the queue.
#[derive(Debug)]
pub(crate) struct QueuedWrite {
    pub(crate) write: Write,
    /// Its part of [`QUEUE_KIB`].
    pub(crate) _room: Option<OwnedSemaphorePermit>,
}

impl Local {
    /// Opens the journal and starts the committer, which opens sled in the background.
    pub(crate) fn open(mut settings: IndexSettings) -> Result<Self, OpenError> {
        settings.data_dir = data_dir::create(&settings.data_dir)?;
        let (repository_referrers, timeout) = (settings.repository_referrers, settings.timeout);
        // The lock before anything is touched: another process may be using the directory.
        let shared = Arc::new(SharedState::new(data_dir::lock(&settings.data_dir)?));
        data_dir::finish_rebuild(&settings.data_dir)?;
        let (commands, receiver) = mpsc::channel(QUEUE);
        let journal = open_journal(&settings);
        let identity = journal.as_ref().ok().map(|journal| journal.reader().identity());
        let coverage = Coverages::open(&settings.data_dir, identity);
        let threads = match journal {
            Ok(journal) => start(&shared, journal, (&commands, receiver), settings)?,
            // The process starts all the same: a proxy whose clients cannot pull because signatures cannot be listed
            // would be worse.
            Err(JournalError::Damaged(damage)) => {
                shared.damaged(&damage.to_string());
                Vec::new()
            }
            Err(JournalError::Io { path, source }) => return Err(OpenError::Io { path, source }),
            Err(error @ JournalError::Newer { .. }) => return Err(OpenError::Newer(error.to_string())),
        };
        Ok(Self {
            shared,
            coverage,
            journal: identity,
            commands,
            threads: Mutex::new(threads),
            repository_referrers,
            timeout,
            waits_until: Instant::now() + timeout,
            reads: Arc::new(Semaphore::new(READS)),
            queue: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
        })
    }

    /// Makes a confirmed referrer pending.
    pub(crate) async fn doubt(&self, key: ReferrerKey) -> Result<(), WriteError> {
        // Looks first: a write costs a sync, and any client can have this asked for by asking for what is not there.
        let referrer = key.clone();
        match self.read_now(move |view| view.referrer_state(&referrer)).await {
            Ok(Some(state)) if !state.pending => self.write(|reply| Write::Doubt { key, reply }).await,
            Ok(_) => Ok(()),
            Err(ReadError::Opening | ReadError::Rebuilding) => {
                self.shared.puts.doubt_later(key);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a referrer that ever was confirmed a claim.
    pub(crate) async fn disown(&self, key: ReferrerKey) -> Result<(), WriteError> {
        // Looks first, as above.
        let referrer = key.clone();
        match self.read_now(move |view| view.referrer_state(&referrer)).await {
            Ok(Some(state)) if state.was_confirmed => {
                let seen = Version::UNKNOWN;
                self.remove(key, seen).await.map(|_doubted| ())
            }
            Ok(_) => Ok(()),
            Err(ReadError::Opening | ReadError::Rebuilding) => {
                self.shared.puts.doubt_later(key);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a referrer. If that cannot be written, it is doubted as soon as something can be.
    pub(crate) async fn remove(&self, key: ReferrerKey, seen: Version) -> Result<Removed, WriteError> {
        let removed = key.clone();
        let written = self.write(|reply| Write::Remove { key: removed, seen, reply }).await;
        if written.is_err() {
            self.shared.puts.doubt_later(key);
            self.wake();
        }
        written
    }

    /// Has the committer look for doubts that wait. Not needed when the queue is full: it looks after each batch.
    pub(crate) fn wake(&self) {
        self.commands.try_send(EngineCommand::Wake).ok();
    }

    /// Marks the beginning of an upstream read.
    pub(crate) fn begin_read(&self, repository: Repository) -> ReadMark {
        self.shared.reads.begin(repository)
    }

    /// Whether a repository may have more referrers. Yes if they cannot be counted now: a limit on growth is no
    /// reason to refuse what cannot be checked.
    pub(crate) async fn has_room(&self, repository: Repository) -> bool {
        let count = self.read_now(move |view| view.referrers_in(&repository)).await;
        count.map_or(true, |count| count < self.repository_referrers)
    }

    /// Sends a write to the committer and waits until it is durable.
    pub(crate) async fn write<T>(&self, write: impl FnOnce(Reply<T>) -> Write) -> Result<T, WriteError> {
        self.shared.writable()?;
        let (reply, answer) = oneshot::channel();
        let outcome = timeout(self.timeout, self.sent(write(reply), answer)).await;
        outcome.unwrap_or_else(|_elapsed| {
            self.shared.count_failure();
            // A PUT given up here leaves a doubt.
            self.wake();
            Err(WriteError::Slow)
        })
    }

    async fn sent<T>(
        &self,
        write: Write,
        mut answer: oneshot::Receiver<Result<T, WriteError>>,
    ) -> Result<T, WriteError> {
        let room = self.room_for(&write).await;
        let queued = EngineCommand::Write(Box::new(QueuedWrite { write, _room: room }));
        self.commands.send(queued).await.map_err(|_| self.ended())?;
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer.ok(),
            // A write sent at the very moment when the committer ends stays in the channel: its answer never comes.
            () = self.commands.closed() => answer.try_recv().ok(),
        };
        answer.unwrap_or_else(|| Err(self.ended()))
    }

    async fn room_for(&self, write: &Write) -> Option<OwnedSemaphorePermit> {
        // One that alone is larger than the queue still must fit.
        let kibibytes = u32::try_from(write.size() >> 10).unwrap_or(u32::MAX).clamp(1, QUEUE_KIB);
        // Fails only if the semaphore were closed, and nobody does that.
        Arc::clone(&self.queue).acquire_many_owned(kibibytes).await.ok()
    }

    /// Why there is no committer any more.
    fn ended(&self) -> WriteError {
        match self.shared.state() {
            IndexState::Closed => WriteError::Closed,
            IndexState::Opening
            | IndexState::Ready
            | IndexState::Rebuilding(_)
            | IndexState::Unreachable(_)
            | IndexState::Damaged(_) => WriteError::Ended,
        }
    }

    /// Reads from the store, once it is open. An index is opened in less than a second as a rule, and an error in that
    /// moment would be read as "unsigned".
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReadError> {
        if matches!(self.shared.state(), IndexState::Opening | IndexState::Rebuilding(_)) {
            timeout_at(self.waits_until, self.shared.opened()).await.ok();
        }
        self.read_now(read).await
    }

    /// Reads from the store on a thread where blocking is allowed, if it is open. For what a push, a pull or a delete needs:
    /// those do not wait for the index.
    pub(crate) async fn read_now<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let store = self.shared.store()?;
        let read_from = Arc::clone(&store);
        let look_up = async {
            let permit = Arc::clone(&self.reads).acquire_owned().await;
            spawn_blocking(move || {
                // Held until the read has ended, also if nobody waits for it any more: it still blocks a thread.
                let _permit = permit;
                read(&read_from.view())
            })
            .await
        };
        let Ok(outcome) = timeout(self.timeout, look_up).await else {
            self.shared.count_failure();
            return Err(ReadError::Slow);
        };
        let error = match outcome {
            // Checked after reading: the files of a store that failed meanwhile are emptied, which sled may take for
            // a shorter list.
            Ok(Ok(found)) => return self.shared.still_valid(&store).map(|()| found),
            // Of this part of the snapshot nothing can be said; the rest is as good as before.
            Ok(Err(StoreError::Snapshot(SortedError::Damaged { .. } | SortedError::Needed))) => {
                return Err(ReadError::Damaged);
            }
            Ok(Err(StoreError::Snapshot(error @ SortedError::Io { .. }))) => {
                tracing::error!(%error, "the index cannot be read");
                self.shared.count_failure();
                return Err(ReadError::Failed);
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        // Many reads may fail before it is known that sled failed; the first one is enough for the log.
        self.shared.still_valid(&store)?;
        tracing::error!(error, "the index cannot be read");
        self.shared.count_failure();
        self.commands.try_send(EngineCommand::Failed(store)).ok();
        Err(ReadError::Failed)
    }

    /// Stops the threads and waits for them.
    pub(crate) async fn close(&self) {
        self.shared.stop();
        // Fails if the index was closed before: there is no committer any more.
        let close = timeout(self.timeout, self.commands.send(EngineCommand::Close));
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let panicked = |thread: JoinHandle<()>| {
            thread.thread().unpark();
            thread.join().is_err()
        };
        let (ended, joined) = oneshot::channel();
        // On a thread of its own, not one of the runtime: the runtime would wait for it at its end, however long a
        // disk hangs.
        let join = move || {
            // Nobody may be waiting any more.
            ended.send(threads.into_iter().map(panicked).filter(|it| *it).count()).ok();
        };
        let joining = thread::Builder::new().name("index-closing".to_owned()).spawn(join);
        let joined = async {
            close.await.ok();
            joined.await
        };
        match timeout(CLOSE_LIMIT, joined).await {
            Ok(Ok(0)) => {}
            Ok(Ok(_)) => tracing::error!("a thread of the index panicked"),
            Ok(Err(_)) => tracing::error!(error = ?joining.err(), "cannot wait for the index to close"),
            Err(_) => {
                tracing::error!("the index did not close in time; the next start reads more of the journal");
            }
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.shared.stop();
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.iter().for_each(|thread| thread.thread().unpark());
    }
}

/// Opens the journal, or creates it in a data directory that never had one.
fn open_journal(settings: &IndexSettings) -> Result<Journal, JournalError> {
    let directory = settings.data_dir.join(JOURNAL);
    if let Some(journal) = Journal::open(&directory, settings.segment_bytes)? {
        return Ok(journal);
    }
    let sled = settings.data_dir.join(SLED);
    // Somebody removed or moved the journal. An empty one in its place would pass for an index without referrers.
    if sled.try_exists().map_err(|source| JournalError::io(&sled, source))? {
        let what = "it is missing, although sled, which is built from it, is there";
        return Err(Damage::new(&directory, 0, what).into());
    }
    Journal::create(&directory, settings.segment_bytes)
}

fn start(
    shared: &Arc<SharedState>,
    journal: Journal,
    (sender, receiver): (&mpsc::Sender<EngineCommand>, mpsc::Receiver<EngineCommand>),
    settings: IndexSettings,
) -> Result<Vec<JoinHandle<()>>, OpenError> {
    let (compact_bytes, forget_after) = (settings.compact_bytes, settings.forget_after);
    let committer = Committer::new(Arc::clone(shared), journal, receiver, compact_bytes, forget_after);
    let committer =
        committer.opening_with(Opener { settings, commands: sender.downgrade(), numbers: Arc::default() });
    let committer = thread::Builder::new().name("index-committer".to_owned()).spawn(|| committer.run());
    let checker = Checker::start(shared, sender);
    Ok(vec![committer.map_err(OpenError::Thread)?, checker.map_err(OpenError::Thread)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Referrer;
    use crate::index::local::committer::PANICKED;
    use crate::oci::{Digest, Link, LinkKind};

    #[tokio::test]
    async fn a_committer_that_panics_leaves_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let local = Local::open(IndexSettings {
            database: None,
            data_dir: directory.path().to_owned(),
            cache_bytes: 1 << 20,
            flush_interval: Duration::from_millis(100),
            segment_bytes: 1 << 20,
            compact_bytes: 1 << 20,
            repository_referrers: 1 << 20,
            timeout: Duration::from_secs(60),
            forget_after: Duration::from_secs(3600),
        });
        let local = local.unwrap();
        local.shared.opened().await;
        // The next commit cannot be counted.
        local.shared.update_statistics(|statistics| statistics.commits = u64::MAX);
        let begin = || {
            let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
            let descriptor = "{}".to_owned();
            let links = vec![Link { subject: Digest::Sha256([2; 32]), kind: LinkKind::Reference }];
            let referrer = Referrer { digest: Digest::Sha256([1; 32]), descriptor, links };
            async { local.write(|reply| Write::Begin { repository, referrer, reply }).await.unwrap_err() }
        };
        let all = tokio::join!(begin(), begin(), begin());
        assert_eq!(all, (WriteError::Ended, WriteError::Ended, WriteError::Ended));
        assert_eq!(begin().await, WriteError::Ended);
        local.close().await;
        assert_eq!(local.shared.write_failure().as_deref(), Some(PANICKED));
        assert_eq!(local.shared.state(), IndexState::Damaged(PANICKED.to_owned()));
        assert_eq!(local.read(View::probe).await, Err(ReadError::Failed));
        assert_eq!(local.shared.statistics().in_flight, 0);
    }
}
