//! The engine on this machine: the journal and sled, and the threads that keep them.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::command::{Command, Put, Reply, Write};
use super::committer::{Committer, PANICKED};
use super::journal::{Damage, Journal, JournalError, files};
use super::opening::{DIRECTORY, Opening};
use super::record::ReferrerKey;
use super::shared::Shared;
use super::sled::{Store, StoreError};
use super::watches::Watch;
use super::{
    Learnt, OpenError, Page, ProbeError, ReadError, Referrer, Removed, Repository, Scan, Settings, State,
    Statistics, Version, WriteError,
};
use crate::oci::{Digest, RepositoryName};

/// How many writes may wait; further ones wait to wait.
const QUEUE: usize = 1024;
pub(crate) const JOURNAL: &str = "journal";
/// A whole journal on its way to be [`JOURNAL`].
pub(crate) const MENDED: &str = "journal.mended";
const LOCK: &str = "lock";

/// The journal, sled and their threads.
#[derive(Debug)]
pub(crate) struct Local {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    repository_referrers: u64,
}

impl Local {
    pub(crate) fn open(mut settings: Settings) -> Result<Self, OpenError> {
        settings.data_dir = create_data_dir(&settings.data_dir)?;
        let repository_referrers = settings.repository_referrers;
        let shared = Arc::new(Shared::new(lock(&settings.data_dir)?));
        finish_mending(&settings.data_dir)?;
        let (commands, receiver) = mpsc::channel(QUEUE);
        let threads = match open_journal(&settings) {
            Ok(journal) => start(&shared, journal, (commands.clone(), receiver), settings)?,
            Err(JournalError::Damaged(damage)) => {
                shared.fail_writes(damage.to_string());
                shared.damaged(damage.to_string());
                Vec::new()
            }
            Err(JournalError::Io { path, source }) => return Err(OpenError::Io { path, source }),
            Err(error @ JournalError::Newer { .. }) => return Err(OpenError::Newer(error.to_string())),
        };
        Ok(Self { shared, commands, threads: Mutex::new(threads), repository_referrers })
    }

    pub(crate) fn state(&self) -> State {
        self.shared.state()
    }

    pub(crate) async fn opened(&self) {
        self.shared.opened().await;
    }

    pub(crate) fn write_failure(&self) -> Option<String> {
        self.shared.write_failure().map(ToOwned::to_owned)
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

    pub(crate) async fn settle_present(&self, key: ReferrerKey, seen: Version) -> Result<(), WriteError> {
        self.write(|reply| Write::SettlePresent { key, seen, reply }).await
    }

    pub(crate) async fn remove(&self, key: ReferrerKey, seen: Version) -> Result<Removed, WriteError> {
        self.write(|reply| Write::Remove { key, seen, reply }).await
    }

    pub(crate) fn watch(&self, repository: Repository) -> Watch {
        self.shared.watches.begin(repository)
    }

    pub(crate) async fn learn(&self, watch: Arc<Watch>, learnt: Vec<Learnt>) -> Result<(), WriteError> {
        self.write(|reply| Write::Learn { watch, learnt, reply }).await
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
        let known = self.read(move |store| store.known(&key)).await?;
        Ok(known.map(|known| known.version))
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
        if let Some(reason) = self.shared.write_failure() {
            return Err(WriteError::Failed(reason.to_owned()));
        }
        let (reply, mut answer) = oneshot::channel();
        let sent = self.commands.send(Command::Write(Box::new(write(reply)))).await;
        sent.map_err(|_| self.ended())?;
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer.ok(),
            // What is sent at the very moment when the committer ends stays in the channel, unanswered.
            () = self.commands.closed() => answer.try_recv().ok(),
        };
        answer.unwrap_or_else(|| Err(self.ended()))
    }

    /// Why there is no committer any more.
    fn ended(&self) -> WriteError {
        match self.shared.state() {
            State::Closed => WriteError::Closed,
            State::Opening | State::Ready | State::Damaged(_) => WriteError::Failed(PANICKED.to_owned()),
        }
    }

    /// Reads where waiting is allowed: what sled does not hold in memory it reads from the disk.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let store = self.shared.store()?;
        let outcome = spawn_blocking(move || read(&store)).await;
        outcome
            .map_err(|error| ReadError::Failed(error.to_string()))?
            .map_err(|error| ReadError::Failed(error.to_string()))
    }

    pub(crate) async fn close(&self) {
        self.shared.stop();
        // The committer is gone already if the index was closed before.
        self.commands.send(Command::Close).await.ok();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let panicked = |thread: JoinHandle<()>| thread.join().is_err();
        let joined = spawn_blocking(move || threads.into_iter().map(panicked).filter(|it| *it).count()).await;
        if !matches!(joined, Ok(0)) {
            tracing::error!("a thread of the index panicked");
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// The journal, a new one if there never was one.
fn open_journal(settings: &Settings) -> Result<Journal, JournalError> {
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
    shared: &Arc<Shared>,
    journal: Journal,
    (sender, receiver): (mpsc::Sender<Command>, mpsc::Receiver<Command>),
    settings: Settings,
) -> Result<Vec<JoinHandle<()>>, OpenError> {
    let (history, end, last_order) = (journal.history(), journal.end(), journal.last_order());
    let committer = Committer::new(Arc::clone(shared), journal, receiver, settings.compact_bytes);
    let opening =
        Opening { shared: Arc::clone(shared), settings, history, end, last_order, commands: sender };
    let committer = thread::Builder::new().name("index-committer".to_owned()).spawn(|| committer.run());
    let opening = thread::Builder::new().name("index-opening".to_owned()).spawn(|| opening.run());
    Ok(vec![committer.map_err(OpenError::Thread)?, opening.map_err(OpenError::Thread)?])
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
    use std::time::Duration;

    use super::*;
    use crate::oci::{Link, LinkKind};

    #[tokio::test]
    async fn a_committer_that_panics_leaves_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let local = Local::open(Settings {
            data_dir: directory.path().to_owned(),
            cache_bytes: 1 << 20,
            flush_interval: Duration::from_millis(100),
            segment_bytes: 1 << 20,
            compact_bytes: 1 << 20,
            repository_referrers: 1 << 20,
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
        let expected = WriteError::Failed(PANICKED.to_owned());
        let all = tokio::join!(begin(), begin(), begin());
        assert_eq!(all, (expected.clone(), expected.clone(), expected.clone()));
        assert_eq!(begin().await, expected);
        local.close().await;
        assert_eq!(local.write_failure().as_deref(), Some(PANICKED));
        let State::Damaged(reason) = local.state() else { panic!("{:?}", local.state()) };
        assert_eq!(local.probe().await, Err(ReadError::Damaged(reason).into()));
        assert_eq!(local.statistics().in_flight, 0);
    }
}
