//! The journal: every change of the index, appended and synced before anybody is told of it. It is the truth; sled
//! can be built from it at any time.
//!
//! # On disk
//! Segments `<position>.journal`, appended to one after the other, and at most one snapshot `<position>.snapshot`
//! that counts: it replaces the segments before its position (see [`super::compaction`]). A *position* counts the
//! bytes of all segments since the journal was created, headers included; in file names it has sixteen hex digits.
//! The bytes of a file are described in [`format`]; a file gets its name when it is complete and synced ([`files`]).
//!
//! # When it is not as it was written
//! - A bad frame at the very end of the last segment is what a crash in the middle of a write leaves. Nobody was told
//!   that this write succeeded. It is cut off, with a warning.
//! - A last segment without a whole header is what a crash while creating it leaves. It is removed.
//! - Anything else is damage: a bad frame before an intact one, a missing or foreign file, a segment that does not
//!   end where the next one begins. Then nothing is read or written any more, because an index that silently lacks
//!   signatures is worse than one that answers with an error. `refshim index rebuild` keeps what is intact, and says
//!   what was lost.
//! - A file of a newer format version: refused, with the advice to use the newer build.
//!
//! # When it cannot be written
//! After a failed write or sync nobody knows what is on the disk behind the last synced frame, and what the system
//! shows of it need not be there: Linux reports a failed sync once and then takes the pages for clean. So this tail
//! is neither read nor appended to: [`Journal::resume`] cuts it off, syncs that, and continues in a new file.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

pub(crate) mod files;
pub(crate) mod format;
pub(crate) mod reader;

use files::{JournalFiles, Segment, Snapshot, segment_path, snapshot_path};
use format::{FIRST_SORTED, FORMAT, HEADER_BYTES, Header, Identity};
use format::{Frames, NextFrame};
use reader::JournalReader;

use crate::index::record::Record;

/// A journal without a snapshot that is longer than this gets one when it is opened: building one is quicker from here on
/// than applying as many records to sled.
const LONG_BYTES: u64 = 256 << 20;

/// Damage: where the journal is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the journal is damaged: {path} at byte {offset}: {what}; restore it from a backup (refshim index load), or \
     keep what is intact (refshim index rebuild)"
)]
pub(crate) struct Damage {
    path: String,
    offset: u64,
    what: &'static str,
}

/// Why the journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{} has format version {found}; this build reads versions up to {FORMAT}: use a newer build",
        path.display()
    )]
    Newer { path: PathBuf, found: u32 },
    #[error(transparent)]
    Damaged(#[from] Damage),
}

impl Damage {
    pub(crate) fn new(path: &Path, offset: u64, what: &'static str) -> Self {
        Self { path: path.display().to_string(), offset, what }
    }
}

/// The journal, open for appending.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    identity: Identity,
    segment_bytes: u64,
    snapshot: Option<Snapshot>,
    /// From the oldest that counts to the one that is appended to.
    segments: Vec<Segment>,
    last_order: u64,
    file: File,
    /// Whether an older build wrote the snapshot, of records in any order.
    is_snapshot_old: bool,
    /// Whether an older build wrote the last segment. It must not get records of this format: that build takes them
    /// for damage where a newer header tells it to refuse.
    is_older: bool,
}

impl Journal {
    /// Opens the journal in `directory`, if there is one. Reads the whole last segment.
    pub(crate) fn open(directory: &Path, segment_bytes: u64) -> Result<Option<Self>, JournalError> {
        if !directory.try_exists().map_err(|source| JournalError::io(directory, source))? {
            return Ok(None);
        }
        files::remove_unfinished(directory).map_err(|source| JournalError::io(directory, source))?;
        let mut listing = files::list(directory)?;
        drop_torn_segment(directory, &mut listing)?;
        if listing.segments.is_empty() && listing.snapshots.is_empty() {
            return Ok(None);
        }
        refuse_newer(directory, &listing)?;
        let snapshot = listing.snapshots.last().copied();
        let segments = needed_segments(directory, &listing)?;
        Self::open_tail(directory, segment_bytes, snapshot, segments).map(Some)
    }

    /// Begins a journal in `directory`, which holds none.
    pub(crate) fn create(directory: &Path, segment_bytes: u64) -> Result<Self, JournalError> {
        let io_error = |source| JournalError::io(directory, source);
        fs::create_dir_all(directory).map_err(io_error)?;
        let identity = random_identity().map_err(io_error)?;
        let header = Header::new(identity, 0, 0);
        let file = create_segment(directory, &header).map_err(io_error)?;
        directory.parent().map_or(Ok(()), files::sync_directory).map_err(io_error)?;
        Ok(Self {
            directory: directory.to_owned(),
            identity,
            segment_bytes,
            snapshot: None,
            segments: vec![Segment { base: 0, length: HEADER_BYTES }],
            last_order: 0,
            file,
            is_snapshot_old: false,
            is_older: false,
        })
    }

    fn open_tail(
        directory: &Path,
        segment_bytes: u64,
        snapshot: Option<Snapshot>,
        mut segments: Vec<Segment>,
    ) -> Result<Self, JournalError> {
        let Some(last) = segments.last_mut() else {
            return Err(Damage::new(directory, 0, "there is no segment").into());
        };
        let path = segment_path(directory, last.base);
        let tail = Tail::read(&path, *last)?;
        let file = File::options().append(true).open(&path);
        let file = file.map_err(|source| JournalError::io(&path, source))?;
        if tail.length < last.length {
            tracing::warn!(
                file = %path.display(), offset = tail.length, bytes = last.length - tail.length,
                "the journal ended in a write that a crash interrupted; cut it off"
            );
            file.set_len(tail.length).map_err(|source| JournalError::io(&path, source))?;
            last.length = tail.length;
        }
        let is_snapshot_old = match snapshot {
            None => false,
            Some(snapshot) => {
                let path = snapshot_path(directory, snapshot.position);
                files::open(&path, snapshot.position)?.1.format < FIRST_SORTED
            }
        };
        // A killed process may have written frames without syncing them. They count from now on and are applied to
        // sled, which must not be ahead of the journal after a power cut.
        file.sync_all().map_err(|source| JournalError::io(&path, source))?;
        Ok(Self {
            directory: directory.to_owned(),
            identity: tail.header.identity,
            segment_bytes,
            snapshot,
            segments,
            last_order: tail.last_order,
            file,
            is_snapshot_old,
            is_older: tail.header.format < FORMAT,
        })
    }

    /// The directory of its files.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether a snapshot has to be built before anything can be looked up: the one that is there is of an older format,
    /// or there is none in front of a long journal.
    pub(crate) fn needs_snapshot(&self) -> bool {
        match self.snapshot {
            Some(_) => self.is_snapshot_old,
            None => self.segments_length() > LONG_BYTES,
        }
    }

    /// The header of what begins at this position.
    pub(crate) fn header_at(&self, position: u64) -> Header {
        Header::new(self.identity, position, self.last_order)
    }

    /// The position after the last frame.
    pub(crate) fn end(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end)
    }

    /// The highest order given so far.
    pub(crate) fn last_order(&self) -> u64 {
        self.last_order
    }

    /// The length of all segments.
    pub(crate) fn segments_length(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// The length of the snapshot.
    pub(crate) fn snapshot_length(&self) -> u64 {
        self.snapshot.map_or(0, |snapshot| snapshot.length)
    }

    /// A reader of what is there now.
    pub(crate) fn reader(&self) -> JournalReader {
        JournalReader { directory: self.directory.clone(), identity: self.identity, snapshot: self.snapshot }
    }

    /// Whether a new segment should be begun.
    pub(crate) fn is_full(&self) -> bool {
        self.is_older || self.segments.last().is_some_and(|segment| segment.length >= self.segment_bytes)
    }

    /// Begins a new segment, unless the last one is empty. Returns its header.
    pub(crate) fn roll(&mut self) -> io::Result<Header> {
        let (header, is_empty) = self.next_header();
        if !is_empty || self.is_older {
            self.begin_segment(&header, is_empty)?;
        }
        Ok(header)
    }

    /// The header of the segment to come, and whether the last one is empty, so that it takes its place.
    fn next_header(&self) -> (Header, bool) {
        let base = self.segments.last().map_or(0, |last| last.base);
        let is_empty = self.end() == base + HEADER_BYTES;
        let position = if is_empty { base } else { self.end() };
        (Header::new(self.identity, position, self.last_order), is_empty)
    }

    fn begin_segment(&mut self, header: &Header, is_empty: bool) -> io::Result<()> {
        self.file = create_segment(&self.directory, header).inspect_err(|_| {
            // If this fails as well, the next opening removes it.
            files::discard_unfinished(&segment_path(&self.directory, header.position)).ok();
        })?;
        self.is_older = false;
        if !is_empty {
            self.segments.push(Segment { base: header.position, length: HEADER_BYTES });
        }
        Ok(())
    }

    /// Makes the journal usable after a failed write: cuts off what was not acknowledged, begins a new segment, and
    /// proves by a frame without records that it can be written and synced.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        let Some(last) = self.segments.last() else { return Err(io::ErrorKind::NotFound.into()) };
        // A new descriptor: Linux reports a failed sync only once to each, and the old one had its report.
        let file = File::options().write(true).open(segment_path(&self.directory, last.base))?;
        if file.metadata()?.len() < last.length {
            return Err(io::Error::other("the last segment has lost its end"));
        }
        file.set_len(last.length)?;
        // Synced before the new segment exists: if a crash brought the tail back, the segment would end behind the
        // beginning of the next one, which is damage.
        file.sync_all()?;
        let (header, is_empty) = self.next_header();
        self.begin_segment(&header, is_empty)?;
        self.append(&[], self.last_order)
    }

    /// Appends one frame of records and syncs it; `last_order` is the highest order in it. After an error nothing
    /// may be appended before [`Journal::resume`].
    pub(crate) fn append(&mut self, payload: &[u8], last_order: u64) -> io::Result<()> {
        let frame = format::seal(payload)?;
        self.file.write_all(&frame)?;
        // fdatasync writes the file's new length too, which is all of its metadata that reading needs.
        self.file.sync_data()?;
        self.last_order = self.last_order.max(last_order);
        if let Some(segment) = self.segments.last_mut() {
            segment.length += frame.len() as u64;
        }
        Ok(())
    }

    /// Has further frames appended to this file, which may be one that cannot be written.
    #[cfg(test)]
    pub(crate) fn write_to(&mut self, file: File) {
        self.file = file;
    }

    /// Notes a snapshot that replaced all segments before its position.
    pub(crate) fn compacted(&mut self, snapshot: Snapshot) {
        self.segments.retain(|segment| segment.base >= snapshot.position);
        self.is_snapshot_old = false;
        self.snapshot = Some(snapshot);
    }
}

/// The intact part of the last segment.
struct Tail {
    header: Header,
    length: u64,
    last_order: u64,
}

impl Tail {
    fn read(path: &Path, segment: Segment) -> Result<Self, JournalError> {
        let io_error = |source| JournalError::io(path, source);
        let (file, header) = files::open(path, segment.base)?;
        let mut frames = Frames::new(BufReader::new(file), HEADER_BYTES, segment.length);
        let mut last_order = header.last_order;
        loop {
            match frames.next().map_err(io_error)? {
                NextFrame::Intact(payload) => {
                    let records = reader::read_records(path, frames.offset(), &payload)?;
                    let orders = records.iter().filter_map(Record::order);
                    last_order = orders.map(|order| order.0).fold(last_order, u64::max);
                }
                NextFrame::Bad => {
                    let bad = frames.offset();
                    let mut file = File::open(path).map_err(io_error)?;
                    let intact = format::next_intact(&mut file, bad + 1, segment.length).map_err(io_error)?;
                    if intact.is_some() {
                        let what = "a frame that is not intact stands before one that is";
                        return Err(Damage::new(path, bad, what).into());
                    }
                    break;
                }
                NextFrame::End => break,
            }
        }
        Ok(Self { header, length: frames.offset(), last_order })
    }
}

/// Removes a last segment without a whole header, which a crash while creating it leaves.
fn drop_torn_segment(directory: &Path, listing: &mut JournalFiles) -> Result<(), JournalError> {
    if let Some(torn) = listing.segments.pop_if(|segment| segment.length < HEADER_BYTES) {
        let path = segment_path(directory, torn.base);
        tracing::warn!(file = %path.display(), "the journal's last segment was never begun; removed it");
        fs::remove_file(&path).map_err(|source| JournalError::io(&path, source))?;
    }
    Ok(())
}

/// Fails if any file has a newer format, before anything is changed.
fn refuse_newer(directory: &Path, listing: &JournalFiles) -> Result<(), JournalError> {
    let segments = listing.segments.iter().map(|segment| segment.base);
    let segments = segments.map(|base| (segment_path(directory, base), base));
    let snapshots = listing.snapshots.iter().map(|snapshot| snapshot.position);
    let snapshots = snapshots.map(|position| (snapshot_path(directory, position), position));
    for (path, position) in segments.chain(snapshots) {
        if let Err(error @ JournalError::Newer { .. }) = files::open(&path, position) {
            return Err(error);
        }
    }
    Ok(())
}

/// The segments behind the newest snapshot; an error if they have a gap.
fn needed_segments(directory: &Path, listing: &JournalFiles) -> Result<Vec<Segment>, JournalError> {
    let start = listing.snapshots.last().map_or(0, |snapshot| snapshot.position);
    let needed: Vec<_> = listing.segments.iter().filter(|segment| segment.end() > start).copied().collect();
    if needed.first().is_none_or(|first| first.base > start) {
        return Err(Damage::new(&segment_path(directory, start), 0, "the segment is missing").into());
    }
    let mut identity = None;
    for (index, segment) in needed.iter().enumerate() {
        let path = segment_path(directory, segment.base);
        let (_, header) = files::open(&path, segment.base)?;
        if *identity.get_or_insert(header.identity) != header.identity {
            return Err(Damage::new(&path, 0, "the file belongs to another journal").into());
        }
        if needed.get(index + 1).is_some_and(|next| next.base != segment.end()) {
            let what = "the segment does not end where the next one begins";
            return Err(Damage::new(&path, segment.length, what).into());
        }
    }
    Ok(needed)
}

/// Creates an empty segment, durably.
pub(crate) fn create_segment(directory: &Path, header: &Header) -> io::Result<File> {
    files::UnfinishedFile::create(segment_path(directory, header.position), header)?.finish()
}

/// An identity for a new journal. Files and sleds of another journal, restored by mistake, are recognised by it.
pub(crate) fn random_identity() -> io::Result<Identity> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Identity(bytes))
}
