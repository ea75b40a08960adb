//! The journal's snapshot: the whole index at one position of the journal, sorted.
//!
//! A file with the header of the journal's files, in which all entries of the index stand in the order of their keys
//! ([`super::super::sorted`]; for keys and values, [`super::layout`]). The three numbers in its trailer are the
//! referrers, the links, and the pending referrers. Builds before format 3 wrote snapshots of records instead, in the
//! order in which sled gave them; they are converted ([`super::super::building`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layout::{self, Count, LINK_SPACE};
use super::{StoreError, View};
use crate::index::local::journal::JournalError;
use crate::index::local::journal::files::{self, UnfinishedFile, snapshot_path};
use crate::index::local::journal::format::{FIRST_SORTED, HEADER_BYTES, Header, Identity};
use crate::index::local::sled::Meta;
use crate::index::local::sorted::{SortedError, SortedFile, SortedWriter};

/// After this many bytes what was written is synced. Otherwise gigabytes wait to be written until the end, and every
/// sync of the journal waits for them.
const SYNC_BYTES: usize = 8 << 20;

/// A snapshot that is open for reading.
#[derive(Debug)]
pub(crate) struct SortedSnapshot {
    pub(crate) file: Arc<SortedFile>,
    pub(crate) path: PathBuf,
    header: Header,
    meta: Meta,
}

/// Whether a snapshot with this header is sorted.
pub(crate) fn is_sorted(header: &Header) -> bool {
    header.format >= FIRST_SORTED
}

impl SortedSnapshot {
    /// Opens the snapshot at this position; nothing if it is of an older format.
    pub(crate) fn open(directory: &Path, position: u64) -> Result<Option<Self>, OpenSnapshotError> {
        let path = snapshot_path(directory, position);
        let (file, header) = files::open(&path, position)?;
        if is_sorted(&header) { Self::of(file, path, header).map(Some) } else { Ok(None) }
    }

    /// The snapshot in an open file.
    pub(crate) fn of(file: std::fs::File, path: PathBuf, header: Header) -> Result<Self, OpenSnapshotError> {
        let length = file.metadata().map_err(|source| JournalError::io(&path, source))?.len();
        let file = Arc::new(SortedFile::open(file, &path, HEADER_BYTES, length).map_err(StoreError::from)?);
        let meta = Meta::empty(header.identity).over(header.position);
        let mut snapshot = Self { file, path, header, meta };
        if !snapshot.file.is_table_intact() {
            tracing::error!(
                file = %snapshot.path.display(),
                "the snapshot's table of contents is damaged; it was made anew from the blocks"
            );
        }
        snapshot.meta = match snapshot.file.contents() {
            Some(contents) => {
                let [referrers, links, pending] = contents.numbers;
                Meta { referrers, links, pending, ..meta }
            }
            None => snapshot.count()?,
        };
        Ok(snapshot)
    }

    /// Counts what is readable.
    fn count(&self) -> Result<Meta, StoreError> {
        let mut count = Counted::default();
        for entry in self.file.range(std::ops::Bound::Unbounded, None) {
            match entry {
                Ok((key, value)) => count.add(&key, &value),
                Err(SortedError::Damaged { .. } | SortedError::Needed) => {}
                Err(error @ SortedError::Io { .. }) => return Err(error.into()),
            }
        }
        let Counted { referrers, links, pending, .. } = count;
        Ok(Meta { referrers, links, pending, ..self.meta })
    }

    /// Which journal it belongs to.
    pub(crate) fn identity(&self) -> Identity {
        self.header.identity
    }

    /// The position of the journal up to which it is the index.
    pub(crate) fn position(&self) -> u64 {
        self.header.position
    }

    /// What a delta over it begins with.
    pub(crate) fn meta(&self) -> Meta {
        self.meta
    }

    /// A view of it alone.
    pub(crate) fn view(self: &Arc<Self>) -> View {
        View::of(Arc::clone(self))
    }
}

/// Why a snapshot cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenSnapshotError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Referrers, links and pending referrers, counted by their entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    referrers: u64,
    links: u64,
    pending: u64,
    /// What the entries say that count referrers: of all repositories, and of all subjects in all of them.
    in_repositories: u64,
    of_subjects: u64,
}

impl Counted {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        match key.first() {
            Some(&LINK_SPACE) => self.links += 1,
            Some(space) if [*space] == layout::REVERSE => {
                self.referrers += 1;
                self.pending += u64::from(layout::is_pending(value));
            }
            Some(_) => match layout::decode_count(key, value) {
                Some(Count::InRepository(count)) => self.in_repositories += count,
                Some(Count::OfSubject(count)) => self.of_subjects += count,
                None => {}
            },
            None => {}
        }
    }
}

/// Writes a snapshot. It gets its name when it is complete.
#[derive(Debug)]
pub(crate) struct SnapshotWriter {
    entries: SortedWriter<SyncedFile>,
    counted: Counted,
}

impl SnapshotWriter {
    pub(crate) fn create(directory: &Path, header: &Header) -> io::Result<Self> {
        let file = UnfinishedFile::create(snapshot_path(directory, header.position), header)?;
        let entries = SortedWriter::new(SyncedFile { file, unsynced: 0 }, HEADER_BYTES);
        Ok(Self { entries, counted: Counted::default() })
    }

    /// Adds an entry; in the order of their keys.
    pub(crate) fn append(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.counted.add(key, value);
        self.entries.append(key, value)
    }

    /// Whether what was added is what should be there.
    pub(crate) fn is_all_of(&self, meta: &Meta) -> bool {
        let Meta { referrers, links, pending, .. } = *meta;
        let (in_repositories, of_subjects) = (referrers, links);
        self.counted == Counted { referrers, links, pending, in_repositories, of_subjects }
    }

    /// Completes the snapshot. Returns its length.
    pub(crate) fn finish(self) -> io::Result<u64> {
        let Counted { referrers, links, pending, .. } = self.counted;
        let (file, length) = self.entries.finish([referrers, links, pending])?;
        file.file.finish()?;
        Ok(length)
    }
}

/// A file that is synced as it grows.
struct SyncedFile {
    file: UnfinishedFile,
    unsynced: usize,
}

impl io::Write for SyncedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.append(bytes)?;
        self.unsynced += bytes.len();
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.sync()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
