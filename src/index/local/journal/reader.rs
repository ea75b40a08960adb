//! Reads the intact journal from a position on, also while it is being appended to.
//!
//! Used to build sled and bring it up to date. The first thing that is not intact is an error; reading a damaged
//! journal as far as possible is [`crate::index::local::maintenance`]'s.

use std::io::{self, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::files::{self, Segment, Snapshot, segment_path, snapshot_path};
use super::format::{Frames, NextFrame};
use super::format::{HEADER_BYTES, Identity};
use super::{Damage, JournalError};
use crate::index::Version;
use crate::index::record::Record;

/// One group commit.
#[derive(Debug)]
pub(crate) struct Commit {
    /// Where its frame begins.
    pub(crate) position: u64,
    /// Where the next one begins.
    pub(crate) end: u64,
    pub(crate) records: Vec<Record>,
    /// Of a snapshot: its position.
    pub(crate) snapshot: Option<u64>,
}

impl Commit {
    /// The records, each with the version that it makes.
    pub(crate) fn into_versions(self) -> impl Iterator<Item = (Version, Record)> {
        let Self { position, records, snapshot, .. } = self;
        (0..).zip(records).map(move |(index, record)| {
            let version = match snapshot {
                Some(position) => Version::in_snapshot(position, &record),
                None => Version::of(position, index),
            };
            (version, record)
        })
    }
}

/// Reads what an index is built from: the snapshot, if there is one, and then the segments.
#[derive(Clone, Debug)]
pub(crate) struct JournalReader {
    pub(super) directory: PathBuf,
    pub(super) identity: Identity,
    pub(super) snapshot: Option<Snapshot>,
}

impl JournalReader {
    /// The directory of its files.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Which journal it is.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// The position from which segments have to be read, after the snapshot if there is one.
    pub(crate) fn start(&self) -> u64 {
        self.snapshot.map_or(0, |snapshot| snapshot.position)
    }

    /// Where the snapshot is, if there is one.
    pub(crate) fn snapshot_position(&self) -> Option<u64> {
        self.snapshot.map(|snapshot| snapshot.position)
    }

    /// A reader of the same journal with this snapshot in place of all before its position.
    pub(crate) fn after(&self, snapshot: Snapshot) -> Self {
        Self { snapshot: Some(snapshot), ..self.clone() }
    }

    /// The commits from one position to another; both have to be where a frame begins or a segment ends.
    pub(crate) fn commits(&self, from: u64, to: u64) -> Commits {
        Commits { directory: self.directory.clone(), identity: self.identity, at: from, to, segment: None }
    }

    /// The records of the snapshot, which is of an older format, one frame at a time, and then the commits from it to a
    /// position, as in [`Self::commits`]. Whether the snapshot is complete is known only at its end.
    pub(crate) fn all(
        &self,
        to: u64,
    ) -> Result<impl Iterator<Item = Result<Commit, JournalError>> + use<>, JournalError> {
        let open = |snapshot: Snapshot| {
            OpenSegment::open(
                snapshot_path(&self.directory, snapshot.position),
                Segment { base: snapshot.position, length: snapshot.length },
                self.identity,
                HEADER_BYTES,
            )
        };
        let segment = self.snapshot.map(open).transpose()?;
        let snapshot =
            segment.map(|segment| SnapshotRecords { segment, referrers: 0, state: Reading::Incomplete });
        Ok(snapshot.into_iter().flatten().chain(self.commits(self.start(), to)))
    }
}

/// The records of a snapshot of an older format.
#[derive(Debug)]
struct SnapshotRecords {
    segment: OpenSegment,
    referrers: u64,
    state: Reading,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Incomplete,
    Complete,
    Ended,
}

impl SnapshotRecords {
    fn read(&mut self) -> Result<Option<Commit>, JournalError> {
        let position = self.segment.position();
        let Some(mut records) = self.segment.next()? else {
            let is_complete = self.state == Reading::Complete;
            let what = "the snapshot is not complete";
            return if is_complete { Ok(None) } else { Err(self.segment.damage(what).into()) };
        };
        let end = records.pop_if(|record| matches!(record, Record::End { .. }));
        self.referrers += records.len() as u64;
        let is_complete = end == Some(Record::End { referrers: self.referrers });
        self.state = if is_complete { Reading::Complete } else { Reading::Incomplete };
        let snapshot = Some(self.segment.base);
        Ok(Some(Commit { position, end: self.segment.position(), records, snapshot }))
    }
}

impl Iterator for SnapshotRecords {
    type Item = Result<Commit, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == Reading::Ended {
            return None;
        }
        let commit = self.read().transpose();
        if !matches!(commit, Some(Ok(_))) {
            self.state = Reading::Ended;
        }
        commit
    }
}

/// The commits between two positions, over as many segments as they lie in.
#[derive(Debug)]
pub(crate) struct Commits {
    directory: PathBuf,
    identity: Identity,
    at: u64,
    to: u64,
    segment: Option<OpenSegment>,
}

impl Iterator for Commits {
    type Item = Result<Commit, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        let commit = self.read().transpose();
        if matches!(commit, Some(Err(_))) {
            self.at = self.to;
        }
        commit
    }
}

impl Commits {
    fn read(&mut self) -> Result<Option<Commit>, JournalError> {
        while self.at < self.to {
            let segment = match &mut self.segment {
                Some(segment) => segment,
                None => self.segment.insert(self.open()?),
            };
            let position = segment.position();
            let Some(records) = segment.next()? else {
                self.at = position;
                self.segment = None;
                continue;
            };
            self.at = segment.position();
            return Ok(Some(Commit { position, end: self.at, records, snapshot: None }));
        }
        Ok(None)
    }

    fn open(&self) -> Result<OpenSegment, JournalError> {
        let listing = files::list(&self.directory)?;
        let segment = listing.segments.iter().rev().find(|segment| segment.base <= self.at);
        let Some(&segment) = segment.filter(|segment| self.at < segment.end()) else {
            let path = segment_path(&self.directory, self.at);
            return Err(Damage::new(&path, 0, "the segment is missing").into());
        };
        let offset = HEADER_BYTES.max(self.at - segment.base);
        // No further: a frame behind it may be half written.
        let segment = Segment { length: segment.length.min(self.to - segment.base), ..segment };
        OpenSegment::open(segment_path(&self.directory, segment.base), segment, self.identity, offset)
    }
}

/// An open file of the journal.
#[derive(Debug)]
struct OpenSegment {
    path: PathBuf,
    base: u64,
    frames: Frames<BufReader<std::fs::File>>,
}

impl OpenSegment {
    fn open(path: PathBuf, segment: Segment, identity: Identity, offset: u64) -> Result<Self, JournalError> {
        let (mut file, header) = files::open(&path, segment.base)?;
        if header.identity != identity {
            return Err(Damage::new(&path, 0, "the file belongs to another journal").into());
        }
        file.seek(SeekFrom::Start(offset)).map_err(|source| JournalError::io(&path, source))?;
        let frames = Frames::new(BufReader::new(file), offset, segment.length);
        Ok(Self { path, base: segment.base, frames })
    }

    fn position(&self) -> u64 {
        self.base + self.frames.offset()
    }

    fn next(&mut self) -> Result<Option<Vec<Record>>, JournalError> {
        match self.frames.next().map_err(|source| JournalError::io(&self.path, source))? {
            NextFrame::Intact(payload) => read_records(&self.path, self.frames.offset(), &payload).map(Some),
            NextFrame::Bad => Err(self.damage("there is no intact frame").into()),
            NextFrame::End => Ok(None),
        }
    }

    fn damage(&self, what: &'static str) -> Damage {
        Damage::new(&self.path, self.frames.offset(), what)
    }
}

/// The records of an intact frame that ends at `offset`.
pub(super) fn read_records(path: &Path, offset: u64, payload: &[u8]) -> Result<Vec<Record>, JournalError> {
    Record::read_all(payload)
        .map_err(|_| Damage::new(path, offset, "the frame before holds something else than records").into())
}

impl JournalError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}
