//! Bringing sled up to the journal, on a thread of its own: open it and read what it has not applied; or,
//! if it is damaged, set it aside and build it anew. A sled that has more than the journal tells that the
//! journal is damaged.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::command::Command;
use super::journal::files::segment_path;
use super::journal::header::Header;
use super::journal::history::History;
use super::journal::{Damage, JournalError, create_segment};
use super::shared::Shared;
use super::sled::{Changes, Meta, Store, StoreError, guarded};
use super::{Settings, Version};

/// How much of the journal is read before what it changes is written to sled.
const BATCH_BYTES: u64 = 1 << 20;
/// How much of the journal is left to the committer, which has to stop for it.
const REST_BYTES: u64 = 1 << 20;
pub(crate) const DIRECTORY: &str = "sled";
const SET_ASIDE: &str = "sled.damaged-";

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

/// What the thread works on.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) shared: Arc<Shared>,
    pub(crate) settings: Settings,
    pub(crate) history: History,
    /// Where the journal ended when it was opened, and the highest order in it.
    pub(crate) end: u64,
    pub(crate) last_order: u64,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl Opening {
    /// Hands the store to the committer when little is left to apply.
    pub(crate) fn run(self) {
        match self.store() {
            // The committer is gone only if the index was closed.
            Ok(store) => drop(self.commands.blocking_send(Command::Opened(Arc::new(store)))),
            Err(error) => error.report(&self.shared),
        }
    }

    fn store(&self) -> Result<Store, OpeningError> {
        // Of damaged files even the closing may panic.
        let attempt = || guarded(|| Ok(self.caught_up()))?;
        match attempt() {
            Err(OpeningError::Store(error)) => {
                tracing::warn!(%error, "the index in sled cannot be used; building it anew from the journal");
                set_aside(&self.settings.data_dir).map_err(OpeningError::SetAside)?;
                attempt()
            }
            outcome => outcome,
        }
    }

    fn caught_up(&self) -> Result<Store, OpeningError> {
        let Settings { data_dir, cache_bytes, flush_interval, .. } = &self.settings;
        let path = data_dir.join(DIRECTORY);
        let store = Store::open(&path, *cache_bytes, *flush_interval, self.history.identity())?;
        self.begin(&store)?;
        loop {
            let end = self.shared.journal_end();
            replay(&self.shared, &self.history, &store, end)?;
            if self.shared.journal_end() - end <= REST_BYTES {
                return Ok(store);
            }
        }
    }

    /// Makes sure that the store is at a position from which on the journal can be read.
    fn begin(&self, store: &Store) -> Result<(), OpeningError> {
        let meta = store.numbers().meta;
        match meta.applied {
            Some(applied) if applied > self.end => Err(self.journal_lost_its_end(applied)?.into()),
            Some(applied) if applied >= self.history.oldest() => Ok(()),
            None if meta == Meta::empty(self.history.identity()) => self.read_snapshot(store),
            Some(_) => {
                Err(StoreError::Damaged("it is made up to a position that is not in the journal").into())
            }
            None => Err(StoreError::Damaged("it was not built to the end").into()),
        }
    }

    /// What sled was made from was durable before: the journal is damaged. A segment that begins where sled
    /// ends keeps that known, whatever is written to the journal until it is told of.
    fn journal_lost_its_end(&self, applied: u64) -> Result<JournalError, JournalError> {
        let directory = self.history.directory();
        let identity = self.history.identity();
        let header = Header { identity, position: applied, last_order: self.last_order };
        let path = segment_path(directory, applied);
        create_segment(directory, &header).map_err(|source| JournalError::io(&path, source))?;
        Ok(Damage::new(directory, self.end, "it ends before what sled was made from").into())
    }

    fn read_snapshot(&self, store: &Store) -> Result<(), OpeningError> {
        let start = self.history.start();
        self.history.read_snapshot(|records| {
            let mut changes = Changes::default();
            for record in records {
                changes.apply(store, record, Version::of_snapshot(start))?;
            }
            store.write(changes, None)?;
            if self.shared.is_stopping() { Err(OpeningError::Stopped) } else { Ok(()) }
        })?;
        Ok(store.write(Changes::default(), Some(start))?)
    }
}

impl OpeningError {
    /// Ends reading; damage of the journal ends writing too.
    pub(crate) fn report(self, shared: &Shared) {
        match self {
            Self::Stopped => return,
            Self::Journal(_) => shared.fail_writes(self.to_string()),
            Self::Store(_) | Self::SetAside(_) => {}
        }
        shared.damaged(self.to_string());
    }
}

/// Applies what the journal says from the store's position to `end`.
pub(crate) fn replay(
    shared: &Shared,
    history: &History,
    store: &Store,
    end: u64,
) -> Result<(), OpeningError> {
    let start = store.numbers().meta.applied.unwrap_or(history.start());
    let mut written = start;
    let mut changes = Changes::default();
    for commit in history.commits(start, end) {
        let commit = commit?;
        for (index, record) in (0..).zip(commit.records) {
            changes.apply(store, record, Version::of(commit.position, index))?;
        }
        if commit.end - written >= BATCH_BYTES {
            store.write(std::mem::take(&mut changes), Some(commit.end))?;
            written = commit.end;
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
    let mut older = Vec::new();
    for entry in fs::read_dir(data_dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(SET_ASIDE)?.parse::<u64>().ok());
        older.extend(number);
    }
    let number = older.iter().max().map_or(1, |newest| newest + 1);
    fs::rename(directory, data_dir.join(format!("{SET_ASIDE}{number}")))?;
    older.iter().try_for_each(|number| fs::remove_dir_all(data_dir.join(format!("{SET_ASIDE}{number}"))))
}
