//! Bringing sled up to the journal, on a thread of its own, while writes are accepted already.
//!
//! sled remembers the position of the journal up to which it was built, so opening it reads the journal from there
//! on. Measured: 14 s for five million links after a kill with cold caches, nearly all of it sled's own opening.
//!
//! What may go wrong, and what is done:
//! - sled does not open, panics, or fails the check of its entries: its directory is set aside, and it is built from
//!   the whole journal. The journal proves what it says by checksums, sled does not.
//! - sled remembers a position that the journal does not have: the *journal* is damaged, because sled is only ever
//!   given what is durable in it. Rebuilding sled would make acknowledged writes vanish without a word, so the
//!   index refuses to work until somebody restores the journal or accepts the loss.
//! - sled fails while it is being used (a full disk, a file that is gone): it is rebuilt in a directory of another
//!   name, because sled's threads may go on for a while and write to files by their path.
//! - The disk fails: the committer retries with increasing waits.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;

use super::EngineCommand;
use super::data_dir::{SLED, replace_failed_sled, set_sled_aside};
use super::journal::files::segment_path;
use super::journal::format::Header;
use super::journal::reader::JournalReader;
use super::journal::{Damage, Journal, JournalError, create_segment};
use super::sled::{Changes, Meta, Store, StoreError, guarded};
use super::state::SharedState;
use crate::index::{IndexSettings, Version};

/// How much of the journal is read before its changes are written to sled. Larger batches take gigabytes of memory in
/// sled, whose garbage they hold.
const BATCH_BYTES: u64 = 1 << 20;
/// How much of the journal is left for the committer to apply. It writes nothing meanwhile.
const REST_BYTES: u64 = 1 << 20;

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

/// Opens sled, as often as needed.
#[derive(Debug)]
pub(crate) struct Opener {
    pub(crate) settings: IndexSettings,
    /// Weak: the committer ends when the last [`super::Local`] is gone, and holds this itself.
    pub(crate) commands: mpsc::WeakSender<EngineCommand>,
}

/// The thread that opens sled.
#[derive(Debug)]
struct Opening {
    shared: Arc<SharedState>,
    settings: IndexSettings,
    reader: JournalReader,
    /// Where the journal ended when the thread was started, and the highest order in it.
    end: u64,
    last_order: u64,
    commands: mpsc::Sender<EngineCommand>,
    /// Whether a sled of this process failed before.
    failed_before: bool,
}

impl Opener {
    /// Starts a thread that sends the opened store, or why there is none, as a command. Returns None if the index is
    /// being dropped.
    pub(crate) fn start(
        &self,
        shared: Arc<SharedState>,
        journal: &Journal,
        failed_before: bool,
    ) -> io::Result<Option<JoinHandle<()>>> {
        let Some(commands) = self.commands.upgrade() else { return Ok(None) };
        let (settings, reader) = (self.settings.clone(), journal.reader());
        let (end, last_order) = (journal.end(), journal.last_order());
        let opening = Opening { shared, settings, reader, end, last_order, commands, failed_before };
        thread::Builder::new().name("index-opening".to_owned()).spawn(|| opening.run()).map(Some)
    }
}

impl Opening {
    /// Hands the store to the committer when little of the journal is left to apply.
    fn run(self) {
        let opened = match self.store() {
            Ok(store) => EngineCommand::Opened(Arc::new(store)),
            Err(error) => EngineCommand::NotOpened(error),
        };
        // Before the command is sent: the shared state holds the lock on the data directory, and whoever closes the
        // index after it got the store does not wait for the end of this thread.
        let commands = self.commands.clone();
        drop(self);
        // The committer is gone only if the index was closed.
        commands.blocking_send(opened).ok();
    }

    fn store(&self) -> Result<Store, OpeningError> {
        let data_dir = &self.settings.data_dir;
        // Around all of it: of damaged files even closing may panic.
        let attempt = |path: &Path| guarded(|| Ok(self.caught_up(path)))?;
        if self.failed_before {
            return attempt(&replace_failed_sled(data_dir).map_err(OpeningError::SetAside)?);
        }
        match attempt(&data_dir.join(SLED)) {
            Err(OpeningError::Store(error)) => {
                tracing::warn!(%error, "the index in sled cannot be used; rebuilding it from the journal");
                set_sled_aside(data_dir).map_err(OpeningError::SetAside)?;
                attempt(&data_dir.join(SLED))
            }
            outcome => outcome,
        }
    }

    /// Opens sled in `path` and applies the journal until little is left.
    fn caught_up(&self, path: &Path) -> Result<Store, OpeningError> {
        let IndexSettings { cache_bytes, flush_interval, .. } = &self.settings;
        let store = Store::open(path, *cache_bytes, *flush_interval, self.reader.identity())?;
        self.begin(&store)?;
        loop {
            let end = self.shared.journal_end();
            replay(&self.shared, &self.reader, &store, end)?;
            // Others write meanwhile; each round leaves less.
            if self.shared.journal_end() - end <= REST_BYTES {
                return Ok(store);
            }
        }
    }

    /// Makes sure that the store is at a position from which the journal can be read on.
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

    /// Marks the journal as damaged, because sled was made from more than it has.
    fn journal_lost_its_end(&self, applied: u64) -> JournalError {
        // Writes are being accepted already, and may soon reach the position that sled remembers: then nothing would
        // tell of the loss any more. An empty segment at that position does: there is a gap before it.
        let directory = self.reader.directory();
        let header = Header::new(self.reader.identity(), applied, self.last_order);
        if let Err(error) = create_segment(directory, &header) {
            let path = segment_path(directory, applied);
            tracing::error!(file = %path.display(), %error, "that the journal lost its end cannot be noted");
        }
        Damage::new(directory, self.end, "it ends before what sled was made from").into()
    }

    /// Fills an empty store from the journal's snapshot.
    fn read_snapshot(&self, store: &Store) -> Result<(), OpeningError> {
        let start = self.reader.start();
        self.reader.read_snapshot(|records| {
            let mut changes = Changes::default();
            for record in records {
                let version = Version::in_snapshot(start, &record);
                changes.apply(store, record, version)?;
            }
            // Without a position: a snapshot that was read in part must not pass for a whole one after a crash.
            store.write(changes, None)?;
            if self.shared.is_stopping() { Err(OpeningError::Stopped) } else { Ok(()) }
        })?;
        Ok(store.write(Changes::default(), Some(start))?)
    }
}

impl OpeningError {
    /// Whether a retry may succeed.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Store(_) | Self::SetAside(_) | Self::Journal(JournalError::Io { .. }) => true,
            Self::Stopped | Self::Journal(JournalError::Newer { .. } | JournalError::Damaged(_)) => false,
        }
    }
}

/// Applies the journal from the store's position to `end`.
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
