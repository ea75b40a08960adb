//! Reads a journal that may be damaged: everything intact in its order, and the gaps between.
//!
//! For the commands that check and rebuild an index. Behind a bad frame the next marker is looked for, so one flipped
//! bit costs one frame. A snapshot counts only if it is intact as a whole, because the segments that it replaced may
//! still be there; without an intact one, everything there is gets read.

use std::fs::File;
use std::io::{BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::damaged_snapshot;
use crate::index::local::journal::files::{self, JournalFiles, segment_path, snapshot_path};
use crate::index::local::journal::format::{self, Frames, NextFrame};
use crate::index::local::journal::format::{FIRST_SORTED, HEADER_BYTES, Header, Identity};
use crate::index::local::journal::reader::Commit;
use crate::index::local::journal::{Damage, JournalError};
use crate::index::record::Record;

/// A part of a file that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The file.
    pub path: PathBuf,
    /// Where in the file it begins.
    pub offset: u64,
    /// How many bytes it has; none if whole files are missing.
    pub bytes: u64,
    /// What is wrong there.
    pub what: &'static str,
}

/// One piece of a journal.
#[derive(Debug)]
pub(crate) enum Piece {
    Commit(Commit),
    Gap(Gap),
    /// The last write, interrupted by a crash; nobody was told that it succeeded.
    Torn(Gap),
}

/// The files of a journal that are read, in order.
#[derive(Debug)]
pub(crate) struct JournalSalvage {
    sources: Vec<SalvageFile>,
    identity: Option<Identity>,
}

#[derive(Clone, Debug)]
struct SalvageFile {
    path: PathBuf,
    /// The position that its name says.
    position: u64,
    length: u64,
    is_snapshot: bool,
    is_last: bool,
}

/// How far a file has been read.
struct FileProgress {
    offset: u64,
    referrers: u64,
    is_complete: bool,
}

impl JournalSalvage {
    /// Finds the newest intact snapshot in `directory` and what follows it, or else everything.
    pub(crate) fn find(directory: &Path) -> Result<Self, JournalError> {
        let mut sources = sources(directory, &files::list(directory)?);
        let mut identity = None;
        for source in &sources {
            match files::open(&source.path, source.position) {
                Ok((_, header)) => identity = Some(header.identity),
                Err(JournalError::Damaged(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut salvage = Self { sources: sources.clone(), identity };
        let snapshots = sources.iter().rposition(|source| source.is_snapshot && salvage.is_intact(source));
        if let Some(newest) = snapshots {
            sources.drain(..newest);
            salvage.sources = sources;
        }
        Ok(salvage)
    }

    /// Which journal it is, if a header says so.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Passes each piece to `take`.
    pub(crate) fn read<E: From<JournalError>>(
        &self,
        mut take: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 0;
        for source in &self.sources {
            if source.position != at && !source.is_snapshot {
                let missing = source.position > at;
                let what = if missing {
                    "the files before it are missing"
                } else {
                    "the file before it goes on too long"
                };
                take(Piece::Gap(source.gap(0, 0, what)))?;
            }
            self.read_source(source, &mut take)?;
            at = at.max(source.position + if source.is_snapshot { 0 } else { source.length });
        }
        Ok(())
    }

    fn is_intact(&self, source: &SalvageFile) -> bool {
        match files::open(&source.path, source.position) {
            Ok((_, header)) if Some(header.identity) == self.identity && header.format >= FIRST_SORTED => {
                damaged_snapshot::is_intact(&source.path, header)
            }
            Ok(_) | Err(_) => self.read_source(source, &mut |piece| intact(&piece)).is_ok(),
        }
    }

    fn read_source<E: From<JournalError>>(
        &self,
        source: &SalvageFile,
        take: &mut impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        match files::open(&source.path, source.position) {
            Ok((_, header)) if Some(header.identity) != self.identity => {
                return take(Piece::Gap(source.gap(0, source.length, "the file belongs to another journal")));
            }
            Ok((_, header)) if source.is_snapshot && header.format >= FIRST_SORTED => {
                return damaged_snapshot::read(&source.path, header, take);
            }
            Ok(_) => {}
            Err(JournalError::Damaged(_)) => {
                take(source.bad(0, HEADER_BYTES.min(source.length), "the header is not intact"))?;
                // Which format it has is not known then, but by what stands in it.
                if let (true, Some(identity)) = (source.is_snapshot && source.is_sorted()?, self.identity) {
                    let header = Header::new(identity, source.position, 0);
                    return damaged_snapshot::read(&source.path, header, take);
                }
            }
            Err(error) => return Err(error.into()),
        }
        if source.length > HEADER_BYTES { source.read_frames(take) } else { Ok(()) }
    }
}

impl SalvageFile {
    /// Whether the first intact frame is no record, which is text.
    fn is_sorted(&self) -> Result<bool, JournalError> {
        let io_error = |source| JournalError::io(&self.path, source);
        let mut file = File::open(&self.path).map_err(io_error)?;
        let first = format::next_intact(&mut file, HEADER_BYTES, self.length).map_err(io_error)?;
        let Some(first) = first else { return Ok(false) };
        file.seek(SeekFrom::Start(first)).map_err(io_error)?;
        let frame = Frames::new(BufReader::new(file), first, self.length).next().map_err(io_error)?;
        Ok(matches!(frame, NextFrame::Intact(payload) if payload.first() != Some(&b'{')))
    }

    fn read_frames<E: From<JournalError>>(
        &self,
        take: &mut impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        let io_error = |source| E::from(JournalError::io(&self.path, source));
        let mut file = File::open(&self.path).map_err(io_error)?;
        let mut run = FileProgress { offset: HEADER_BYTES, referrers: 0, is_complete: false };
        while self.read_run(&mut file, &mut run, take)? {
            let (offset, what) = (run.offset, "there is no intact frame");
            let next = format::next_intact(&mut file, offset + 1, self.length).map_err(io_error)?;
            run.offset = next.unwrap_or(self.length);
            let bytes = run.offset - offset;
            take(match next {
                Some(_) => Piece::Gap(self.gap(offset, bytes, what)),
                None => self.bad(offset, bytes, what),
            })?;
        }
        if self.is_snapshot && !run.is_complete {
            take(Piece::Gap(self.gap(self.length, 0, "the snapshot is not complete")))?;
        }
        Ok(())
    }

    /// Reads up to the file's end, or to a bad frame. Returns whether there is one.
    fn read_run<E: From<JournalError>>(
        &self,
        file: &mut File,
        run: &mut FileProgress,
        take: &mut impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<bool, E> {
        let io_error = |source| E::from(JournalError::io(&self.path, source));
        file.seek(SeekFrom::Start(run.offset)).map_err(io_error)?;
        let mut frames = Frames::new(BufReader::new(file), run.offset, self.length);
        loop {
            let payload = match frames.next().map_err(io_error)? {
                NextFrame::Intact(payload) => payload,
                NextFrame::Bad => return Ok(true),
                NextFrame::End => return Ok(false),
            };
            let start = std::mem::replace(&mut run.offset, frames.offset());
            let Ok(records) = Record::read_all(&payload) else {
                take(Piece::Gap(self.gap(start, run.offset - start, "the frame holds no records")))?;
                continue;
            };
            let is_end = |record: &&Record| matches!(record, Record::End { .. });
            run.referrers += (records.len() - records.iter().filter(is_end).count()) as u64;
            run.is_complete = records.last() == Some(&Record::End { referrers: run.referrers });
            let (position, end) = (self.position + start, self.position + run.offset);
            let snapshot = self.is_snapshot.then_some(self.position);
            take(Piece::Commit(Commit { position, end, records, snapshot }))?;
        }
    }

    /// A bad part: torn if it is the end of the last segment, otherwise a gap.
    fn bad(&self, offset: u64, bytes: u64, what: &'static str) -> Piece {
        let gap = self.gap(offset, bytes, what);
        if self.is_last && offset + bytes == self.length { Piece::Torn(gap) } else { Piece::Gap(gap) }
    }

    fn gap(&self, offset: u64, bytes: u64, what: &'static str) -> Gap {
        Gap { path: self.path.clone(), offset, bytes, what }
    }
}

fn intact(piece: &Piece) -> Result<(), JournalError> {
    match piece {
        Piece::Commit(_) => Ok(()),
        Piece::Gap(gap) | Piece::Torn(gap) => Err(Damage::new(&gap.path, gap.offset, gap.what).into()),
    }
}

/// All files, by position; a snapshot before the segment that it leads to.
fn sources(directory: &Path, listing: &JournalFiles) -> Vec<SalvageFile> {
    let last = listing.segments.last().map(|segment| segment.base);
    let segments = listing.segments.iter().map(|segment| SalvageFile {
        path: segment_path(directory, segment.base),
        position: segment.base,
        length: segment.length,
        is_snapshot: false,
        is_last: Some(segment.base) == last,
    });
    let snapshots = listing.snapshots.iter().map(|snapshot| SalvageFile {
        path: snapshot_path(directory, snapshot.position),
        position: snapshot.position,
        length: snapshot.length,
        is_snapshot: true,
        is_last: false,
    });
    let mut sources: Vec<SalvageFile> = snapshots.chain(segments).collect();
    sources.sort_by_key(|source| (source.position, !source.is_snapshot));
    sources
}
