//! The engine on this machine: the journal and sled, and the threads that keep them.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

mod batch;
mod clock;
pub(super) mod command;
pub(super) mod committer;
mod compaction;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod in_progress;
pub(super) mod journal;
mod learnt;
pub mod maintenance;
mod opening;
pub(super) mod record;
mod referrer_state;
pub(super) mod sled;
pub(super) mod state;
pub(super) mod watches;
mod write;

use super::{
    IndexSettings, IndexState, Observation, OpenError, Page, ProbeError, ReadError, Referrer, Removed,
    Repository, Scan, Statistics, Version, WriteError,
};
use crate::oci::{Digest, RepositoryName};
use command::{Command, Put, Queued, Reply, Write};
use committer::Committer;
use journal::{Damage, Journal, JournalError, files};
use opening::{DIRECTORY, Opener, adopt};
use record::ReferrerKey;
use sled::{Store, StoreError};
use state::SharedState;
use watches::ReadMark;

/// Capacity of the write queue; senders wait for room, each no longer than for its answer.
const QUEUE: usize = 1024;
/// How many KiB of records may wait in the queue. On a disk that hangs they stay there when those who sent them
/// have given up.
const QUEUE_KIB: u32 = 64 << 10;
/// How many look-ups may run at once: fewer than there are threads for them (512), so that on a disk that hangs
/// the rest waits where it can give up.
const LOOK_UPS: usize = 256;
/// How long the end of the threads is waited for. What they do not write is in the journal.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);
pub(crate) const JOURNAL: &str = "journal";
/// A whole journal on its way to be [`JOURNAL`].
pub(crate) const MENDED: &str = "journal.mended";
const LOCK: &str = "lock";

/// The journal, sled and their threads.
#[derive(Debug)]
pub(crate) struct Local {
    shared: Arc<SharedState>,
    commands: mpsc::Sender<Command>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    repository_referrers: u64,
    /// How long a look-up or a write may take.
    timeout: Duration,
    look_ups: Arc<Semaphore>,
    queue: Arc<Semaphore>,
}

impl Local {
    pub(crate) fn open(mut settings: IndexSettings) -> Result<Self, OpenError> {
        settings.data_dir = create_data_dir(&settings.data_dir)?;
        let (repository_referrers, timeout) = (settings.repository_referrers, settings.timeout);
        let shared = Arc::new(SharedState::new(lock(&settings.data_dir)?));
        finish_mending(&settings.data_dir)?;
        adopt_sled(&settings.data_dir)?;
        let (commands, receiver) = mpsc::channel(QUEUE);
        let threads = match open_journal(&settings) {
            Ok(journal) => start(&shared, journal, (&commands, receiver), settings)?,
            Err(JournalError::Damaged(damage)) => {
                shared.damaged(&damage.to_string());
                Vec::new()
            }
            Err(JournalError::Io { path, source }) => return Err(OpenError::Io { path, source }),
            Err(error @ JournalError::Newer { .. }) => return Err(OpenError::Newer(error.to_string())),
        };
        Ok(Self {
            shared,
            commands,
            threads: Mutex::new(threads),
            repository_referrers,
            timeout,
            look_ups: Arc::new(Semaphore::new(LOOK_UPS)),
            queue: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
        })
    }

    pub(crate) fn state(&self) -> IndexState {
        self.shared.state()
    }

    pub(crate) async fn opened(&self) {
        self.shared.opened().await;
    }

    pub(crate) fn write_failure(&self) -> Option<String> {
        self.shared.write_failure()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.shared.failures()
    }

    pub(crate) fn statistics(&self) -> Statistics {
        self.shared.statistics()
    }

    pub(crate) async fn begin(&self, repository: Repository, referrer: Referrer) -> Result<Put, WriteError> {
        self.write(|reply| Write::Begin { repository, referrer, reply }).await
    }

    pub(crate) async fn confirm(&self, put: Put) -> Result<(), WriteError> {
        self.write(|reply| Write::Confirm { put, reply }).await
    }

    pub(crate) async fn refuse(&self, put: Put) -> Result<(), WriteError> {
        self.write(|reply| Write::Refuse { put, reply }).await
    }

    pub(crate) async fn settle(
        &self,
        repository: Repository,
        seen: Version,
        found: Referrer,
    ) -> Result<(), WriteError> {
        self.write(|reply| Write::Settle { repository, seen, found, reply }).await
    }

    pub(crate) async fn absent(&self, key: ReferrerKey, seen: Version) -> Result<Removed, WriteError> {
        self.write(|reply| Write::Absent { key, seen, reply }).await
    }

    /// Looks first, because anybody can have this asked for: a write costs a sync.
    pub(crate) async fn doubt(&self, key: ReferrerKey) -> Result<(), WriteError> {
        let referrer = key.clone();
        match self.read(move |store| store.state(&referrer)).await {
            Ok(Some(state)) if !state.pending => self.write(|reply| Write::Doubt { key, reply }).await,
            Ok(_) => Ok(()),
            Err(ReadError::Opening | ReadError::Rebuilding) => {
                self.shared.puts.doubt_later(key);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Has the committer look at what waits elsewhere. If the queue is full it does so anyway.
    pub(crate) fn wake(&self) {
        self.commands.try_send(Command::Wake).ok();
    }

    pub(crate) async fn remove(&self, key: ReferrerKey, seen: Version) -> Result<Removed, WriteError> {
        self.write(|reply| Write::Remove { key, seen, reply }).await
    }

    pub(crate) fn read_mark(&self, repository: Repository) -> ReadMark {
        self.shared.reads.begin(repository)
    }

    pub(crate) async fn learn(
        &self,
        read: Arc<ReadMark>,
        learnt: Vec<Observation>,
    ) -> Result<(), WriteError> {
        self.write(|reply| Write::Learn { read, learnt, reply }).await
    }

    pub(crate) async fn has_room(&self, repository: Repository) -> bool {
        let count = self.read(move |store| store.referrers_in(&repository)).await;
        count.map_or(true, |count| count < self.repository_referrers)
    }

    pub(crate) async fn repositories(
        &self,
        upstream: u32,
        subject: Digest,
    ) -> Result<Vec<RepositoryName>, ReadError> {
        self.read(move |store| store.repositories(upstream, &subject)).await
    }

    pub(crate) async fn version(&self, key: ReferrerKey) -> Result<Option<Version>, ReadError> {
        let state = self.read(move |store| store.state(&key)).await?;
        Ok(state.map(|state| state.version))
    }

    pub(crate) async fn referrers(
        &self,
        repository: Repository,
        subject: Digest,
        scan: Scan,
    ) -> Result<Page, ReadError> {
        self.read(move |store| store.referrers(&repository, &subject, &scan)).await
    }

    pub(crate) async fn probe(&self) -> Result<(), ProbeError> {
        self.read(Store::probe).await?;
        Ok(self.write(|reply| Write::Probe { reply }).await?)
    }

    async fn write<T>(&self, write: impl FnOnce(Reply<T>) -> Write) -> Result<T, WriteError> {
        self.shared.writable()?;
        let (reply, answer) = oneshot::channel();
        let outcome = timeout(self.timeout, self.sent(write(reply), answer)).await;
        outcome.unwrap_or_else(|_elapsed| {
            self.shared.count_failure();
            // A PUT that was given up leaves a doubt.
            self.wake();
            Err(WriteError::Slow)
        })
    }

    /// Sends a write and waits for its answer.
    async fn sent<T>(
        &self,
        write: Write,
        mut answer: oneshot::Receiver<Result<T, WriteError>>,
    ) -> Result<T, WriteError> {
        let room = self.room_for(&write).await;
        let queued = Command::Write(Box::new(Queued { write, _room: room }));
        self.commands.send(queued).await.map_err(|_| self.ended())?;
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer.ok(),
            // What is sent at the very moment when the committer ends stays in the channel, unanswered.
            () = self.commands.closed() => answer.try_recv().ok(),
        };
        answer.unwrap_or_else(|| Err(self.ended()))
    }

    async fn room_for(&self, write: &Write) -> Option<OwnedSemaphorePermit> {
        let kibibytes = u32::try_from(write.size() >> 10).unwrap_or(u32::MAX).clamp(1, QUEUE_KIB);
        // Fails only if the semaphore were closed, which nobody does.
        Arc::clone(&self.queue).acquire_many_owned(kibibytes).await.ok()
    }

    /// Why there is no committer any more.
    fn ended(&self) -> WriteError {
        match self.shared.state() {
            IndexState::Closed => WriteError::Closed,
            IndexState::Opening | IndexState::Ready | IndexState::Rebuilding(_) | IndexState::Damaged(_) => {
                WriteError::Ended
            }
        }
    }

    /// Reads where waiting is allowed: what sled does not hold in memory it reads from the disk.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let store = self.shared.store()?;
        let read_from = Arc::clone(&store);
        let look_up = async {
            let permit = Arc::clone(&self.look_ups).acquire_owned().await;
            spawn_blocking(move || {
                // Until the look-up has ended, whether anybody still waits for it or not.
                let _permit = permit;
                read(&read_from)
            })
            .await
        };
        let Ok(outcome) = timeout(self.timeout, look_up).await else {
            self.shared.count_failure();
            return Err(ReadError::Slow);
        };
        let error = match outcome {
            Ok(Ok(found)) => return self.shared.still_counts(&store).map(|()| found),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        // Many look-ups may come to this before it is known that sled failed.
        self.shared.still_counts(&store)?;
        tracing::error!(error, "the index cannot be read");
        self.shared.count_failure();
        self.commands.try_send(Command::Failed(store)).ok();
        Err(ReadError::Failed)
    }

    pub(crate) async fn close(&self) {
        self.shared.stop();
        // The committer is gone already if the index was closed before.
        let close = timeout(self.timeout, self.commands.send(Command::Close));
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let panicked = |thread: JoinHandle<()>| thread.join().is_err();
        let (ended, joined) = oneshot::channel();
        // No thread of the runtime: that one would wait for it, however long a disk hangs.
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
            Ok(Err(_)) => tracing::error!(error = ?joining.err(), "the index is not waited for"),
            Err(_) => {
                tracing::error!("the index did not close in time; the next start reads more of the journal");
            }
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// The journal, a new one if there never was one.
fn open_journal(settings: &IndexSettings) -> Result<Journal, JournalError> {
    let directory = settings.data_dir.join(JOURNAL);
    if let Some(journal) = Journal::open(&directory, settings.segment_bytes)? {
        return Ok(journal);
    }
    let sled = settings.data_dir.join(DIRECTORY);
    if sled.try_exists().map_err(|source| JournalError::io(&sled, source))? {
        return Err(Damage::new(&directory, 0, "it is gone, and sled, which was made from it, is not").into());
    }
    Journal::create(&directory, settings.segment_bytes)
}

fn start(
    shared: &Arc<SharedState>,
    journal: Journal,
    (sender, receiver): (&mpsc::Sender<Command>, mpsc::Receiver<Command>),
    settings: IndexSettings,
) -> Result<Vec<JoinHandle<()>>, OpenError> {
    let (compact_bytes, forget_after) = (settings.compact_bytes, settings.forget_after);
    let committer = Committer::new(Arc::clone(shared), journal, receiver, compact_bytes, forget_after);
    let committer = committer.opening_with(Opener { settings, commands: sender.downgrade() });
    let committer = thread::Builder::new().name("index-committer".to_owned()).spawn(|| committer.run());
    Ok(vec![committer.map_err(OpenError::Thread)?])
}

pub(crate) fn create_data_dir(data_dir: &Path) -> Result<PathBuf, OpenError> {
    let create = || {
        let data_dir = std::path::absolute(data_dir)?;
        if !data_dir.try_exists()? {
            fs::create_dir_all(&data_dir)?;
            data_dir.parent().map_or(Ok(()), files::sync_directory)?;
        }
        Ok(data_dir)
    };
    create().map_err(|source| OpenError::Io { path: data_dir.to_owned(), source })
}

/// Does what is left to do of putting a mended journal in the place of a damaged one that is out of the way.
pub(crate) fn finish_mending(data_dir: &Path) -> Result<(), OpenError> {
    let (mended, journal) = (data_dir.join(MENDED), data_dir.join(JOURNAL));
    let finish = || {
        if !mended.try_exists()? {
            return Ok(());
        }
        if journal.try_exists()? {
            return fs::remove_dir_all(&mended);
        }
        fs::rename(&mended, &journal)?;
        files::sync_directory(data_dir)
    };
    finish().map_err(|source| OpenError::Io { path: mended.clone(), source })
}

/// Gives sled its usual name, should it have had another one because it was built anew while it was served.
pub(crate) fn adopt_sled(data_dir: &Path) -> Result<(), OpenError> {
    adopt(data_dir).map_err(|source| OpenError::Io { path: data_dir.join(DIRECTORY), source })
}

pub(crate) fn lock(data_dir: &Path) -> Result<File, OpenError> {
    let path = data_dir.join(LOCK);
    let file = File::options().create(true).write(true).truncate(false).open(&path);
    let file = file.map_err(|source| OpenError::Io { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: data_dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::local::committer::PANICKED;
    use crate::oci::{Link, LinkKind};

    #[tokio::test]
    async fn a_committer_that_panics_leaves_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let local = Local::open(IndexSettings {
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
        local.opened().await;
        // The next commit cannot be counted.
        local.shared.update_statistics(|statistics| statistics.commits = u64::MAX);
        let begin = || {
            let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
            let descriptor = "{}".to_owned();
            let links = vec![Link { subject: Digest::Sha256([2; 32]), kind: LinkKind::Reference }];
            let referrer = Referrer { digest: Digest::Sha256([1; 32]), descriptor, links };
            async { local.begin(repository, referrer).await.unwrap_err() }
        };
        let all = tokio::join!(begin(), begin(), begin());
        assert_eq!(all, (WriteError::Ended, WriteError::Ended, WriteError::Ended));
        assert_eq!(begin().await, WriteError::Ended);
        local.close().await;
        assert_eq!(local.write_failure().as_deref(), Some(PANICKED));
        assert_eq!(local.state(), IndexState::Damaged(PANICKED.to_owned()));
        assert_eq!(local.probe().await, Err(ReadError::Failed.into()));
        assert_eq!(local.statistics().in_flight, 0);
    }
}
