//! `refshim index dump` and `load`: the index as JSON Lines, in the format of [`crate::index::maintenance::dump`].
//!
//! A dump of a running index holds everything acknowledged before it began. All files are opened first; compaction
//! may remove one while they are looked up, and then that is repeated.
//!
//! `load` writes a complete journal beside its final name and renames it at the end, so a failed load leaves no
//! index.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::scratch::write_snapshot;
use crate::index::Version;
use crate::index::local::data_dir::{self, JOURNAL, UNFINISHED_LOAD};
use crate::index::local::journal::files::{self, segment_path, snapshot_path};
use crate::index::local::journal::format::{self, Frames, NextFrame};
use crate::index::local::journal::format::{HEADER_BYTES, Header};
use crate::index::local::journal::{Damage, Journal, JournalError, create_segment};
use crate::index::local::opening;
use crate::index::local::store::snapshot::{SortedSnapshot, is_sorted};
use crate::index::maintenance::dump::{DumpReader, DumpWriter};
use crate::index::maintenance::{Dumped, MaintenanceError, failed};
use crate::index::record::{Record, Recorded, ReferrerKey};

/// How often the files are looked up again because a compaction removed one meanwhile.
const ATTEMPTS: usize = 100;
/// Bytes of records in one frame of a loaded journal.
pub(crate) const BATCH_BYTES: usize = 1 << 20;
pub(crate) const SEGMENT_BYTES: u64 = 64 << 20;

/// Writes the index of `data_dir` to `output`, as it is at this moment: also while it is being served, of which
/// everything is in it that was acknowledged before.
///
/// # Errors
/// There is no index, its journal is damaged, or the output takes no more. Then what was written has no end, and
/// is not loaded.
pub fn dump(data_dir: &Path, output: impl Write) -> Result<Dumped, MaintenanceError> {
    let journal = OpenJournal::open(data_dir)?;
    let mut lines = DumpWriter::begin(output, journal.last_order())?;
    journal.read(|record| lines.record(&record))?;
    lines.end()
}

/// The records of a journal as it was when it was opened, also while it is being appended to.
pub(crate) struct OpenJournal {
    files: Vec<JournalFile>,
    /// Up to where sled had taken the journal when it was opened. Unknown if another process had sled open.
    applied: Option<u64>,
}

impl OpenJournal {
    /// Opens the journal of a data directory.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, MaintenanceError> {
        let journal = data_dir.join(JOURNAL);
        if !journal.exists() {
            return Err(MaintenanceError::NoIndex(data_dir.to_owned()));
        }
        // Held until both are opened: whoever serves the index may end, or begin, while the journal is read, and sled
        // has then taken more than was opened here.
        match data_dir::lock(data_dir) {
            Ok(_lock) => Self::open_held(&journal, data_dir),
            Err(_) => Ok(Self { files: open_all(&journal)?, applied: None }),
        }
    }

    /// Opens the journal in `directory`, of a data directory that the caller has locked.
    pub(crate) fn open_held(directory: &Path, data_dir: &Path) -> Result<Self, MaintenanceError> {
        let files = open_all(directory)?;
        let applied = files.last().map(|last| opening::applied(data_dir, last.header.identity));
        let applied = applied.transpose().map_err(failed("looking for sled"))?.flatten();
        Ok(Self { files, applied })
    }

    fn last_order(&self) -> u64 {
        self.files.iter().map(|file| file.header.last_order).max().unwrap_or(0)
    }

    /// Passes the records to `take`. Applied in this order, each once, they make the index.
    ///
    /// # Errors
    /// The journal is damaged. That it has lost its end looks like a shorter one, but sled was made from what stood
    /// there.
    pub(crate) fn read(
        self,
        take: impl FnMut(Record) -> Result<(), MaintenanceError>,
    ) -> Result<(), MaintenanceError> {
        let mut once = Once { take, ahead: HashMap::new() };
        let mut end = None;
        for file in self.files {
            end = Some(file.read(&mut once)?);
        }
        match end {
            Some(end) if self.applied.is_some_and(|applied| applied > end.position) => {
                let damage = Damage::new(&end.path, end.offset, "it ends before what sled was made from");
                Err(JournalError::from(damage).into())
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Passes each record on once.
struct Once<T> {
    take: T,
    /// Referrers whose state in the snapshot includes records from behind its position, with their version. Those
    /// records stand in the segments as well, and must not be passed on again.
    ahead: HashMap<ReferrerKey, Version>,
}

impl<T: FnMut(Record) -> Result<(), MaintenanceError>> Once<T> {
    fn of_snapshot(&mut self, position: u64, record: Record) -> Result<(), MaintenanceError> {
        let version = Version::in_snapshot(position, &record);
        let Record::Recorded(recorded) = record else { return Ok(()) };
        if version > Version(position) {
            self.ahead.insert(recorded.referrer.clone(), version);
        }
        // Versions are positions in this journal, and mean nothing in the one that is loaded.
        (self.take)(Record::Recorded(Recorded { version: None, ..recorded }))
    }

    fn of_segment(&mut self, version: Version, record: Record) -> Result<(), MaintenanceError> {
        if let Some(key) = record.referrer() {
            if self.ahead.get(key).is_some_and(|ahead| version <= *ahead) {
                return Ok(());
            }
            // From here on only segments tell of it; a removal, for one, ends what the snapshot said.
            self.ahead.remove(key);
        }
        (self.take)(record)
    }
}

/// A file of the journal that can be read to the end it had when it was opened, even after it was removed.
struct JournalFile {
    path: PathBuf,
    file: File,
    header: Header,
    length: u64,
    is_snapshot: bool,
    /// Whether it is being appended to.
    is_last: bool,
}

/// Where the intact part of a file ends.
struct IntactEnd {
    path: PathBuf,
    offset: u64,
    position: u64,
}

impl JournalFile {
    fn new(path: PathBuf, position: u64, is_snapshot: bool) -> Result<Self, JournalError> {
        let (file, header) = files::open(&path, position)?;
        let length = file.metadata().map_err(|source| JournalError::io(&path, source))?.len();
        Ok(Self { path, file, header, length, is_snapshot, is_last: false })
    }

    fn read<T: FnMut(Record) -> Result<(), MaintenanceError>>(
        self,
        lines: &mut Once<T>,
    ) -> Result<IntactEnd, MaintenanceError> {
        if self.is_snapshot && is_sorted(&self.header) {
            return self.read_sorted(lines);
        }
        let io_error = |source| MaintenanceError::from(JournalError::io(&self.path, source));
        let damage =
            |offset, what| MaintenanceError::from(JournalError::from(Damage::new(&self.path, offset, what)));
        let mut file = &self.file;
        file.seek(SeekFrom::Start(HEADER_BYTES)).map_err(io_error)?;
        let mut frames = Frames::new(BufReader::new(file), HEADER_BYTES, self.length);
        let (mut referrers, mut is_complete) = (0, !self.is_snapshot);
        loop {
            let offset = frames.offset();
            let payload = match frames.next() {
                Ok(NextFrame::Intact(payload)) => payload,
                Ok(NextFrame::End) if is_complete => return Ok(self.end(offset)),
                Ok(NextFrame::End) => return Err(damage(offset, "the snapshot is not complete")),
                Ok(NextFrame::Bad) if self.is_last => return self.torn(offset),
                Ok(NextFrame::Bad) => return Err(damage(offset, "there is no intact frame")),
                // The process that serves the index has just cut off a failed write, which nobody was told succeeded.
                Err(error) if self.is_last && error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(self.end(offset));
                }
                Err(error) => return Err(io_error(error)),
            };
            let records =
                Record::read_all(&payload).map_err(|_| damage(offset, "the frame holds no records"))?;
            let position = self.header.position;
            for (index, record) in (0..).zip(records) {
                if let Record::End { referrers: expected } = record {
                    is_complete = expected == referrers;
                } else if self.is_snapshot {
                    referrers += 1;
                    is_complete = false;
                    lines.of_snapshot(position, record)?;
                } else {
                    lines.of_segment(Version::of(position + offset, index), record)?;
                }
            }
        }
    }

    fn read_sorted<T: FnMut(Record) -> Result<(), MaintenanceError>>(
        self,
        lines: &mut Once<T>,
    ) -> Result<IntactEnd, MaintenanceError> {
        let position = self.header.position;
        let snapshot = Arc::new(SortedSnapshot::of(self.file, self.path.clone(), self.header)?);
        for state in snapshot.view().states() {
            let (referrer, state) = state?;
            lines.of_snapshot(position, Record::Recorded(Recorded::of(referrer, state)))?;
        }
        Ok(IntactEnd { path: self.path, offset: self.length, position })
    }

    fn end(&self, offset: u64) -> IntactEnd {
        IntactEnd { path: self.path.clone(), offset, position: self.header.position + offset }
    }

    /// The end of the last file, at a bad frame: what a crash, or a write in progress, leaves. Damage if an intact
    /// one follows.
    fn torn(&self, offset: u64) -> Result<IntactEnd, MaintenanceError> {
        let mut file = &self.file;
        let next = format::next_intact(&mut file, offset + 1, self.length);
        if next.map_err(|source| JournalError::io(&self.path, source))?.is_some() {
            let what = "a frame that is not intact stands before one that is";
            return Err(JournalError::from(Damage::new(&self.path, offset, what)).into());
        }
        Ok(self.end(offset))
    }
}

/// Opens the newest snapshot and the segments behind it.
fn open_all(directory: &Path) -> Result<Vec<JournalFile>, JournalError> {
    for _ in 1..ATTEMPTS {
        match try_open_all(directory) {
            Err(error) if may_have_been_compacted(&error) => {}
            opened => return opened,
        }
    }
    try_open_all(directory)
}

fn may_have_been_compacted(error: &JournalError) -> bool {
    match error {
        JournalError::Damaged(_) => true,
        JournalError::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
        JournalError::Newer { .. } => false,
    }
}

fn try_open_all(directory: &Path) -> Result<Vec<JournalFile>, JournalError> {
    let mut listing = files::list(directory)?;
    // What a crash leaves of a file that was being made.
    listing.segments.pop_if(|segment| segment.length < HEADER_BYTES);
    let snapshot = listing.snapshots.last();
    let mut at = snapshot.map_or(0, |snapshot| snapshot.position);
    let mut opened: Vec<JournalFile> = Vec::new();
    if let Some(snapshot) = snapshot {
        let path = snapshot_path(directory, snapshot.position);
        opened.push(JournalFile::new(path, snapshot.position, true)?);
    }
    let start = at;
    for segment in listing.segments.iter().filter(|segment| segment.base >= start) {
        let path = segment_path(directory, segment.base);
        if segment.base != at {
            return Err(Damage::new(&path, 0, "the files before it are missing").into());
        }
        let segment = JournalFile::new(path, segment.base, false)?;
        if opened.last().is_some_and(|before| before.header.identity != segment.header.identity) {
            return Err(Damage::new(&segment.path, 0, "the file belongs to another journal").into());
        }
        at += segment.length;
        opened.push(segment);
    }
    match opened.last_mut() {
        Some(last) if !last.is_snapshot => last.is_last = true,
        Some(_) | None => {
            return Err(Damage::new(&segment_path(directory, at), 0, "the segment is missing").into());
        }
    }
    Ok(opened)
}

/// Creates an index in `data_dir`, which must have none, from the output of [`dump`].
///
/// # Errors
/// There is one already, the input is not a complete dump, or the disk fails. Then no index is made.
pub fn load(data_dir: &Path, input: impl BufRead) -> Result<Dumped, MaintenanceError> {
    let data_dir = data_dir::create(data_dir)?;
    let _lock = data_dir::lock(&data_dir)?;
    let journal = data_dir.join(JOURNAL);
    if journal.exists() {
        return Err(MaintenanceError::Occupied(data_dir));
    }
    let loading = data_dir.join(UNFINISHED_LOAD);
    if loading.exists() {
        fs::remove_dir_all(&loading).map_err(failed("removing what an earlier attempt left"))?;
    }
    let records = fill(&loading, DumpReader::begin(input)?)?;
    fs::rename(&loading, &journal).map_err(failed("putting the journal in its place"))?;
    files::sync_directory(&data_dir).map_err(failed("putting the journal in its place"))?;
    Ok(Dumped { records })
}

/// Makes a journal of one snapshot and an empty segment.
fn fill(directory: &Path, mut dump: DumpReader<impl BufRead>) -> Result<u64, MaintenanceError> {
    let writing = failed("writing the journal");
    fs::create_dir(directory).map_err(&writing)?;
    let header = write_snapshot(directory, |take| {
        while let Some(record) = dump.next()? {
            take(record)?;
        }
        Ok(())
    })?;
    let header = Header { last_order: header.last_order.max(dump.last_order()), ..header };
    create_segment(directory, &header).map_err(&writing)?;
    files::sync_directory(directory).map_err(&writing)?;
    Ok(dump.records())
}

/// Appends one frame of records, to the next segment if the last one is full.
pub(crate) fn append(journal: &mut Journal, payload: &[u8], last_order: u64) -> Result<(), MaintenanceError> {
    let write = |journal: &mut Journal| -> io::Result<()> {
        if journal.is_full() {
            journal.roll()?;
        }
        journal.append(payload, last_order)
    };
    write(journal).map_err(failed("writing the journal"))
}
