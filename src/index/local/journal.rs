//! The journal: every change of the index, appended and synced before anybody is told of it. It is the
//! truth; the rest of the index can be built from it.
//!
//! On disk: segments `<position>.journal`, and `<position>.snapshot`, which stands for the segments
//! before its position. A *position* counts the bytes of all segments from the journal's beginning on.
//! Each file is a [`format`]. A bad frame at the very end is what a crash leaves and is
//! cut off; everything else that is not intact is damage, and nothing is read or written then.
//!
//! After a write or a sync that failed nobody knows what is on the disk behind the last frame that was synced,
//! and what the system shows of it need not be there: Linux reports a failed sync once and then takes the pages
//! for clean. So that tail is never written to nor read again: [`Journal::resume`] cuts it off, syncs that, and
//! goes on in a new file.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

pub(crate) mod files;
pub(crate) mod format;
pub(crate) mod reader;
pub(crate) mod salvage;

use files::{JournalFiles, Segment, Snapshot, segment_path, snapshot_path};
use format::{FORMAT, HEADER_BYTES, Header, Identity};
use format::{Frames, NextFrame};
use reader::JournalReader;

use super::record::Record;

/// What is not as it was written.
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
    /// Whether the last segment says that an older build wrote it, which could not read what this one appends.
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
        // What a killed process wrote may not be durable yet, and sled must not come to be ahead of it.
        file.sync_all().map_err(|source| JournalError::io(&path, source))?;
        Ok(Self {
            directory: directory.to_owned(),
            identity: tail.header.identity,
            segment_bytes,
            snapshot,
            segments,
            last_order: tail.last_order,
            file,
            is_older: tail.header.format < FORMAT,
        })
    }

    /// Where its files are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
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

    /// What has to be read to build the index.
    pub(crate) fn reader(&self) -> JournalReader {
        JournalReader {
            directory: self.directory.clone(),
            identity: self.identity,
            snapshot: self.snapshot,
            oldest: self.segments.first().map_or(0, |segment| segment.base),
        }
    }

    /// Whether it is time for a new segment.
    pub(crate) fn is_full(&self) -> bool {
        self.is_older || self.segments.last().is_some_and(|segment| segment.length >= self.segment_bytes)
    }

    /// Begins a new segment, unless the last one is empty. Gives its header.
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
            // If this fails as well, the next opening does it.
            files::discard_unfinished(&segment_path(&self.directory, header.position)).ok();
        })?;
        self.is_older = false;
        if !is_empty {
            self.segments.push(Segment { base: header.position, length: HEADER_BYTES });
        }
        Ok(())
    }

    /// Makes the journal one that can be appended to, after an error: cuts off what was not acknowledged, begins
    /// a new segment, and proves by a frame without records that it is written and synced.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        let Some(last) = self.segments.last() else { return Err(io::ErrorKind::NotFound.into()) };
        // A descriptor of its own: one that has seen a sync fail is told of no further failure.
        let file = File::options().write(true).open(segment_path(&self.directory, last.base))?;
        if file.metadata()?.len() < last.length {
            return Err(io::Error::other("the last segment has lost its end"));
        }
        file.set_len(last.length)?;
        // Before the new segment is there: a segment that goes on where the next one begins is damage.
        file.sync_all()?;
        let (header, is_empty) = self.next_header();
        self.begin_segment(&header, is_empty)?;
        self.append(&[], self.last_order)
    }

    /// Appends one frame of records, the highest order among which is `last_order`, and makes it durable.
    /// After an error nothing more may be written before [`Journal::resume`]: what is on the disk is not known.
    pub(crate) fn append(&mut self, payload: &[u8], last_order: u64) -> io::Result<()> {
        let frame = format::seal(payload)?;
        self.file.write_all(&frame)?;
        self.file.sync_data()?;
        self.last_order = self.last_order.max(last_order);
        if let Some(segment) = self.segments.last_mut() {
            segment.length += frame.len() as u64;
        }
        Ok(())
    }

    /// From here on writes to this file, be it one that cannot be written.
    #[cfg(test)]
    pub(crate) fn write_to(&mut self, file: File) {
        self.file = file;
    }

    /// Takes note of a snapshot that stands for all segments before its position, which are gone.
    pub(crate) fn compacted(&mut self, snapshot: Snapshot) {
        self.segments.retain(|segment| segment.base >= snapshot.position);
        self.snapshot = Some(snapshot);
    }
}

/// What is intact of the last segment.
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

/// A last segment without a whole header is what a crash while creating it leaves.
fn drop_torn_segment(directory: &Path, listing: &mut JournalFiles) -> Result<(), JournalError> {
    if let Some(torn) = listing.segments.pop_if(|segment| segment.length < HEADER_BYTES) {
        let path = segment_path(directory, torn.base);
        tracing::warn!(file = %path.display(), "the journal's last segment was never begun; removed it");
        fs::remove_file(&path).map_err(|source| JournalError::io(&path, source))?;
    }
    Ok(())
}

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

/// The segments that count beside the newest snapshot, if they are there without a gap.
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

pub(crate) fn create_segment(directory: &Path, header: &Header) -> io::Result<File> {
    files::UnfinishedFile::create(segment_path(directory, header.position), header)?.finish()
}

pub(crate) fn random_identity() -> io::Result<Identity> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Identity(bytes))
}
