//! Bringing the index up to the journal, on a thread of its own, while writes are accepted already.
//!
//! The snapshot is opened, and the delta over it, which remembers the position of the journal up to which it was built;
//! the journal is read from there on. After a compaction that did not end there are two deltas, of which the first one
//! ends where the second one begins.
//!
//! What may go wrong, and what is done:
//! - sled does not open, panics, or fails the check of its entries: `sled/` is set aside, and the deltas are built anew
//!   from the journal's segments. The journal proves what it says by checksums, sled does not.
//! - A delta remembers a position that the journal does not have: the *journal* is damaged, because sled is only ever
//!   given what is durable in it. Rebuilding sled would make acknowledged writes vanish without a word, so the
//!   index refuses to work until somebody restores the journal or accepts the loss.
//! - sled fails while it is being used (a full disk, a file that is gone): the deltas are built anew in directories of
//!   other names, because sled's threads may go on for a while and write to files by their path.
//! - The disk fails: the committer retries with increasing waits.
//! - The snapshot is not sorted, because an older build wrote it, or there is none and the journal is long: a snapshot is
//!   built ([`super::building`]) before the deltas. What older builds had in sled is removed meanwhile.

use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;

mod error;
mod stored;

pub(crate) use error::OpeningError;
pub(crate) use stored::{DeltaNumbers, applied, remove_before, stored};
use stored::{open_snapshot, usable_deltas};

use super::EngineCommand;
use super::ahead::ahead;
use super::building::{Building, PlainSum};
use super::data_dir::{self, DeltaName};
use super::journal::files::{self, Snapshot, segment_path, snapshot_path};
use super::journal::format::Header;
use super::journal::reader::{Commit, JournalReader};
use super::journal::{Damage, Journal, JournalError, create_segment};
use super::sled::{DeltaSettings, applied_in, guarded};
use super::sorted::SortedError;
use super::state::SharedState;
use super::store::snapshot::SnapshotWriter;
use super::store::{Changes, Store, StoreError};
use crate::index::IndexSettings;

/// How much of the journal is read before its changes are written to sled. Larger batches take gigabytes of memory in
/// sled, whose garbage they hold.
const BATCH_BYTES: u64 = 64 << 10;
/// How much of the journal is left for the committer to apply. It writes nothing meanwhile.
const REST_BYTES: u64 = 1 << 20;

/// Opens the index, as often as needed.
#[derive(Debug)]
pub(crate) struct Opener {
    pub(crate) settings: IndexSettings,
    /// Weak: the committer ends when the last [`super::Local`] is gone, and holds this itself.
    pub(crate) commands: mpsc::WeakSender<EngineCommand>,
    pub(crate) numbers: Arc<DeltaNumbers>,
}

/// What came of an opening.
#[derive(Debug)]
pub(crate) struct OpenedIndex {
    /// The index, nearly caught up with the journal, or why there is none.
    pub(crate) store: Result<Arc<Store>, OpeningError>,
    /// The snapshot that was built by this opening, whatever came after.
    pub(crate) built: Option<Snapshot>,
}

/// The thread that opens the index.
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
    /// The header of the snapshot to build first.
    to_build: Option<Header>,
    numbers: Arc<DeltaNumbers>,
}

impl Opener {
    /// Starts a thread that sends the opened index, or why there is none, as a command. Returns None if the index is
    /// being dropped. With a header, a snapshot is built of all that is before its position.
    pub(crate) fn start(
        &self,
        shared: Arc<SharedState>,
        journal: &Journal,
        failed_before: bool,
        to_build: Option<Header>,
    ) -> io::Result<Option<JoinHandle<()>>> {
        let Some(commands) = self.commands.upgrade() else { return Ok(None) };
        let (settings, reader) = (self.settings.clone(), journal.reader());
        let (end, last_order) = (journal.end(), journal.last_order());
        let numbers = Arc::clone(&self.numbers);
        let opening =
            Opening { shared, settings, reader, end, last_order, commands, failed_before, to_build, numbers };
        thread::Builder::new().name("index-opening".to_owned()).spawn(|| opening.run()).map(Some)
    }

    /// Where a new delta goes that begins at this position, and how it is opened.
    pub(crate) fn new_delta(&self, base: u64) -> io::Result<(std::path::PathBuf, DeltaSettings)> {
        let data_dir = &self.settings.data_dir;
        let number = self.numbers.next(data_dir)?;
        Ok((DeltaName { base, number }.path(data_dir), delta_settings(&self.settings)))
    }
}

fn delta_settings(settings: &IndexSettings) -> DeltaSettings {
    DeltaSettings { cache_bytes: settings.cache_bytes, flush_interval: settings.flush_interval }
}

impl Opening {
    /// Hands the index to the committer when little of the journal is left to apply.
    fn run(mut self) {
        let mut built = None;
        let store = self.open(&mut built).map(Arc::new);
        let opened = EngineCommand::Opened(OpenedIndex { store, built });
        // Before the command is sent: the shared state holds the lock on the data directory, and whoever closes the
        // index after it got the store does not wait for the end of this thread.
        let commands = self.commands.clone();
        drop(self);
        // The committer is gone only if the index was closed.
        commands.blocking_send(opened).ok();
    }

    fn open(&mut self, built: &mut Option<Snapshot>) -> Result<Store, OpeningError> {
        if let Some(header) = self.to_build {
            let snapshot = self.build(&header)?;
            self.reader = self.reader.after(snapshot);
            *built = Some(snapshot);
        } else {
            self.remove_unneeded_sleds()?;
        }
        let data_dir = &self.settings.data_dir;
        let number = || self.numbers.next(data_dir).map_err(OpeningError::SetAside);
        let new = if self.failed_before {
            let new = number()?;
            data_dir::remove_failed_deltas(data_dir).map_err(OpeningError::SetAside)?;
            Some(new)
        } else {
            None
        };
        // Around all of it: of damaged files even closing may panic.
        let attempt = |new| guarded(|| Ok(self.caught_up(new)))?;
        match attempt(new) {
            Err(OpeningError::Store(error)) => {
                tracing::warn!(%error, "the index in sled cannot be used; rebuilding it from the journal");
                let new = number()?;
                data_dir::set_sled_aside(data_dir).map_err(OpeningError::SetAside)?;
                attempt(Some(new))
            }
            outcome => outcome,
        }
    }

    /// Removes what older builds had in sled, and deltas behind the journal's end. Not if one of this journal tells that
    /// it lost something.
    fn remove_unneeded_sleds(&self) -> Result<(), OpeningError> {
        if self.failed_before {
            return Ok(());
        }
        let data_dir = &self.settings.data_dir;
        let old = data_dir::old_sleds(data_dir).map_err(OpeningError::Remove)?.into_iter();
        let deltas = data_dir::deltas(data_dir).map_err(OpeningError::Remove)?.into_iter();
        // Before a snapshot is built all of them, for none will be opened.
        let deltas = deltas.filter(|delta| self.to_build.is_some() || delta.base > self.end);
        for unneeded in old.chain(deltas.map(|delta| delta.path(data_dir))) {
            match applied_in(&unneeded) {
                Some((identity, applied)) if identity == self.reader.identity() && applied > self.end => {
                    return Err(self.journal_lost_its_end(applied).into());
                }
                Some(_) | None => {
                    data_dir::remove_directory(&unneeded).map_err(OpeningError::Remove)?;
                }
            }
        }
        Ok(())
    }

    /// Builds a snapshot of all that lies before the position in its header, and removes what it replaces.
    fn build(&self, header: &Header) -> Result<Snapshot, OpeningError> {
        tracing::info!("building the index's snapshot from the journal");
        let directory = self.reader.directory();
        let (removed, written) = thread::scope(|scope| {
            // Opening a large sled takes as long as building. It may tell that the journal lost something; then nothing
            // is replaced. A full disk has room when it is gone, whatever becomes of the building.
            let removing = scope.spawn(|| self.remove_unneeded_sleds());
            let written = self.write_snapshot(header);
            (removing.join().unwrap_or_else(|panic| resume_unwind(panic)), written)
        });
        let finished = removed.and(written).and_then(|writer| writer.finish().map_err(OpeningError::Build));
        let length = finished.inspect_err(|_| {
            // If this fails as well, the next opening removes it.
            files::discard_unfinished(&snapshot_path(directory, header.position)).ok();
        })?;
        remove_before(directory, header.position);
        Ok(Snapshot { position: header.position, length })
    }

    fn write_snapshot(&self, header: &Header) -> Result<SnapshotWriter, OpeningError> {
        let go_on = || !self.shared.is_stopping();
        let mut building = Building::new(&self.settings.data_dir);
        // Parsed, they take about as much as they did in the file.
        let bytes = |commit: &Result<Commit, JournalError>| {
            commit
                .as_ref()
                .map_or(0, |commit| usize::try_from(commit.end - commit.position).unwrap_or(usize::MAX))
        };
        let commits = self.reader.all(header.position)?;
        for commit in ahead("index-reading", commits, bytes).map_err(OpeningError::Build)? {
            for (version, record) in commit?.into_versions() {
                building.add(version, &record).map_err(OpeningError::Build)?;
            }
            if !go_on() {
                return Err(OpeningError::Stopped);
            }
        }
        let directory = self.reader.directory();
        let mut writer = SnapshotWriter::create(directory, header).map_err(OpeningError::Build)?;
        building.write(&mut writer, go_on, &mut PlainSum::default())?;
        Ok(writer)
    }

    /// Opens the snapshot and the deltas and applies the journal until little is left. With a number, the deltas are new
    /// ones.
    fn caught_up(&self, number: Option<u64>) -> Result<Store, OpeningError> {
        let data_dir = &self.settings.data_dir;
        let reader = &self.reader;
        let (snapshot, below) =
            open_snapshot(reader.directory(), reader.snapshot_position(), reader.identity())?;
        // What a crash at the end of a compaction left.
        remove_before(reader.directory(), below.base);
        let deltas = if let Some(number) = number {
            vec![DeltaName { base: below.base, number }]
        } else {
            let number = || self.numbers.next(data_dir);
            usable_deltas(data_dir, below.base, number).map_err(OpeningError::SetAside)?
        };
        let settings = delta_settings(&self.settings);
        let mut paths = deltas.iter().map(|delta| (delta.base, delta.path(data_dir)));
        let Some((_, first)) = paths.next() else { return Err(OpeningError::Stopped) };
        let store = Store::open(&first, settings, below, snapshot)?;
        for (base, path) in paths {
            self.check_end(store.meta().applied)?;
            self.check_end(base)?;
            // It was begun in vain: what came after went to the one before.
            if store.meta().applied > base {
                data_dir::remove_directory(&path).map_err(OpeningError::SetAside)?;
                continue;
            }
            replay(&self.shared, &self.reader, &store, base)?;
            store.begin_delta(&path, settings, base)?;
        }
        self.check_end(store.meta().applied)?;
        loop {
            let end = self.shared.journal_end();
            replay(&self.shared, &self.reader, &store, end)?;
            // Others write meanwhile; each round leaves less.
            if self.shared.journal_end() - end <= REST_BYTES {
                return Ok(store);
            }
        }
    }

    fn check_end(&self, applied: u64) -> Result<(), OpeningError> {
        if applied > self.end { Err(self.journal_lost_its_end(applied).into()) } else { Ok(()) }
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
}

/// Applies the journal from the store's position to `end`.
pub(crate) fn replay(
    shared: &SharedState,
    reader: &JournalReader,
    store: &Store,
    end: u64,
) -> Result<(), OpeningError> {
    let start = store.meta().applied;
    let view = store.view();
    let mut written = start;
    let mut changes = Changes::default();
    for commit in reader.commits(start, end) {
        let commit = commit?;
        let commit_end = commit.end;
        for (version, record) in commit.into_versions() {
            match changes.apply(&view, &record, version) {
                // Recorded before the block was damaged, or while nothing could be looked up. It is in the journal, which
                // is kept, and the rest of the index need not wait for somebody who mends this.
                Err(StoreError::Snapshot(SortedError::Damaged { .. } | SortedError::Needed)) => {
                    changes.leave_out(&view, &record);
                }
                applied => applied?,
            }
        }
        if commit_end - written >= BATCH_BYTES {
            store.write(std::mem::take(&mut changes), commit_end)?;
            written = commit_end;
        }
        if shared.is_stopping() {
            return Err(OpeningError::Stopped);
        }
    }
    if start < end { Ok(store.write(changes, end)?) } else { Ok(()) }
}
