//! Bringing sled up to the journal, on a thread of its own: open it and read what it has not applied; or,
//! if it is damaged, set it aside and build it anew. A sled that has more than the journal tells that the
//! journal is damaged.
//!
//! A sled that fails while it is served (a full disk, a file that is gone) is built anew too, in a directory of
//! another name: its threads may go on for a while and write to files by their path. The next start gives that
//! directory the usual name.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;

use super::command::Command;
use super::journal::files::{segment_path, sync_directory};
use super::journal::header::Header;
use super::journal::reader::JournalReader;
use super::journal::{Damage, Journal, JournalError, create_segment};
use super::sled::{Changes, Meta, Store, StoreError, guarded};
use super::state::SharedState;
use crate::index::{IndexSettings, Version};

/// How much of the journal is read before what it changes is written to sled.
const BATCH_BYTES: u64 = 1 << 20;
/// How much of the journal is left to the committer, which has to stop for it.
const REST_BYTES: u64 = 1 << 20;
pub(crate) const DIRECTORY: &str = "sled";
const SET_ASIDE: &str = "sled.damaged-";
/// What takes the place of a sled that failed while it was served.
const ANEW: &str = "sled.anew-";

/// Why sled could not be brought up to the journal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpeningError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the damaged index could not be set aside: {0}")]
    SetAside(#[source] io::Error),
    #[error("the index was closed while it was being opened")]
    Stopped,
}

/// What is needed to open sled, once and again.
#[derive(Debug)]
pub(crate) struct Opener {
    pub(crate) settings: IndexSettings,
    /// Weak, so that the committer ends when nobody holds the index any more.
    pub(crate) commands: mpsc::WeakSender<Command>,
}

/// What the thread works on.
#[derive(Debug)]
struct Opening {
    shared: Arc<SharedState>,
    settings: IndexSettings,
    reader: JournalReader,
    /// Where the journal ended when the thread was started, and the highest order in it.
    end: u64,
    last_order: u64,
    commands: mpsc::Sender<Command>,
    /// Whether sled failed before, in this process.
    anew: bool,
}

impl Opener {
    /// Starts the thread, which sends what it opened, or why it could not, as a command. None if nobody holds
    /// the index any more.
    pub(crate) fn start(
        &self,
        shared: Arc<SharedState>,
        journal: &Journal,
        anew: bool,
    ) -> io::Result<Option<JoinHandle<()>>> {
        let Some(commands) = self.commands.upgrade() else { return Ok(None) };
        let (settings, reader) = (self.settings.clone(), journal.reader());
        let (end, last_order) = (journal.end(), journal.last_order());
        let opening = Opening { shared, settings, reader, end, last_order, commands, anew };
        thread::Builder::new().name("index-opening".to_owned()).spawn(|| opening.run()).map(Some)
    }
}

impl Opening {
    /// Hands the store to the committer when little is left to apply.
    fn run(self) {
        let opened = match self.store() {
            Ok(store) => Command::Opened(Arc::new(store)),
            Err(error) => Command::NotOpened(error),
        };
        // With what it shares goes the lock on the directory: nobody waits for the end of this thread.
        let commands = self.commands.clone();
        drop(self);
        // The committer is gone only if the index was closed.
        commands.blocking_send(opened).ok();
    }

    fn store(&self) -> Result<Store, OpeningError> {
        let data_dir = &self.settings.data_dir;
        // Of damaged files even the closing may panic.
        let attempt = |path: &Path| guarded(|| Ok(self.caught_up(path)))?;
        if self.anew {
            return attempt(&fresh_directory(data_dir).map_err(OpeningError::SetAside)?);
        }
        match attempt(&data_dir.join(DIRECTORY)) {
            Err(OpeningError::Store(error)) => {
                tracing::warn!(%error, "the index in sled cannot be used; building it anew from the journal");
                set_aside(data_dir).map_err(OpeningError::SetAside)?;
                attempt(&data_dir.join(DIRECTORY))
            }
            outcome => outcome,
        }
    }

    fn caught_up(&self, path: &Path) -> Result<Store, OpeningError> {
        let IndexSettings { cache_bytes, flush_interval, .. } = &self.settings;
        let store = Store::open(path, *cache_bytes, *flush_interval, self.reader.identity())?;
        self.begin(&store)?;
        loop {
            let end = self.shared.journal_end();
            replay(&self.shared, &self.reader, &store, end)?;
            if self.shared.journal_end() - end <= REST_BYTES {
                return Ok(store);
            }
        }
    }

    /// Makes sure that the store is at a position from which on the journal can be read.
    fn begin(&self, store: &Store) -> Result<(), OpeningError> {
        let meta = store.numbers().meta;
        match meta.applied {
            Some(applied) if applied > self.end => Err(self.journal_lost_its_end(applied).into()),
            Some(applied) if applied >= self.reader.oldest() => Ok(()),
            None if meta == Meta::empty(self.reader.identity()) => self.read_snapshot(store),
            Some(_) => {
                Err(StoreError::Damaged("it is made up to a position that is not in the journal").into())
            }
            None => Err(StoreError::Damaged("it was not built to the end").into()),
        }
    }

    /// What sled was made from was durable before: the journal is damaged. A segment that begins where sled
    /// ends keeps that known, whatever is written to the journal until it is told of.
    fn journal_lost_its_end(&self, applied: u64) -> JournalError {
        let directory = self.reader.directory();
        let header = Header::new(self.reader.identity(), applied, self.last_order);
        if let Err(error) = create_segment(directory, &header) {
            let path = segment_path(directory, applied);
            tracing::error!(file = %path.display(), %error, "that the journal lost its end cannot be noted");
        }
        Damage::new(directory, self.end, "it ends before what sled was made from").into()
    }

    fn read_snapshot(&self, store: &Store) -> Result<(), OpeningError> {
        let start = self.reader.start();
        self.reader.read_snapshot(|records| {
            let mut changes = Changes::default();
            for record in records {
                let version = Version::in_snapshot(start, &record);
                changes.apply(store, record, version)?;
            }
            store.write(changes, None)?;
            if self.shared.is_stopping() { Err(OpeningError::Stopped) } else { Ok(()) }
        })?;
        Ok(store.write(Changes::default(), Some(start))?)
    }
}

impl OpeningError {
    /// Whether another attempt may come to another end.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Store(_) | Self::SetAside(_) | Self::Journal(JournalError::Io { .. }) => true,
            Self::Stopped | Self::Journal(JournalError::Newer { .. } | JournalError::Damaged(_)) => false,
        }
    }
}

/// Applies what the journal says from the store's position to `end`.
pub(crate) fn replay(
    shared: &SharedState,
    reader: &JournalReader,
    store: &Store,
    end: u64,
) -> Result<(), OpeningError> {
    let start = store.numbers().meta.applied.unwrap_or(reader.start());
    let mut written = start;
    let mut changes = Changes::default();
    for commit in reader.commits(start, end) {
        let commit = commit?;
        let commit_end = commit.end;
        for (version, record) in commit.into_versions() {
            changes.apply(store, record, version)?;
        }
        if commit_end - written >= BATCH_BYTES {
            store.write(std::mem::take(&mut changes), Some(commit_end))?;
            written = commit_end;
        }
        if shared.is_stopping() {
            return Err(OpeningError::Stopped);
        }
    }
    if start < end { Ok(store.write(changes, Some(end))?) } else { Ok(()) }
}

/// Moves sled's directory out of the way, to be looked at; only the newest of these is kept.
pub(crate) fn set_aside(data_dir: &Path) -> io::Result<()> {
    let directory = data_dir.join(DIRECTORY);
    if !directory.try_exists()? {
        return Ok(());
    }
    let older = numbers(data_dir, SET_ASIDE)?;
    let number = older.iter().max().map_or(1, |newest| newest + 1);
    fs::rename(directory, data_dir.join(format!("{SET_ASIDE}{number}")))?;
    older.iter().try_for_each(|number| fs::remove_dir_all(data_dir.join(format!("{SET_ASIDE}{number}"))))
}

/// The name of a directory for a sled that takes the place of all others, which failed: they are removed. Whatever
/// still has their files open goes on without their content, so that a full disk has room again.
fn fresh_directory(data_dir: &Path) -> io::Result<PathBuf> {
    let number = numbers(data_dir, ANEW)?.into_iter().max().unwrap_or(0);
    remove_failed(&data_dir.join(DIRECTORY))?;
    for number in numbers(data_dir, ANEW)? {
        remove_failed(&data_dir.join(format!("{ANEW}{number}")))?;
    }
    Ok(data_dir.join(format!("{ANEW}{}", number + 1)))
}

fn remove_failed(directory: &Path) -> io::Result<()> {
    if !directory.try_exists()? {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            File::options().write(true).open(entry.path())?.set_len(0)?;
        }
    }
    fs::remove_dir_all(directory)
}

/// Gives a sled that took the place of one that failed, in a process before this one, the usual name.
pub(crate) fn adopt(data_dir: &Path) -> io::Result<()> {
    let mut numbers = numbers(data_dir, ANEW)?;
    numbers.sort_unstable();
    let Some(newest) = numbers.pop() else { return Ok(()) };
    for number in numbers {
        fs::remove_dir_all(data_dir.join(format!("{ANEW}{number}")))?;
    }
    let directory = data_dir.join(DIRECTORY);
    if directory.try_exists()? {
        fs::remove_dir_all(&directory)?;
    }
    fs::rename(data_dir.join(format!("{ANEW}{newest}")), directory)?;
    sync_directory(data_dir)
}

fn numbers(data_dir: &Path, prefix: &str) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(data_dir)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u64>().ok()));
    }
    Ok(numbers)
}
