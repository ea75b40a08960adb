//! Reads a sorted file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::ops::Bound;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::block::{self, BlockAt, Kind, PREAMBLE_BYTES, TRAILER_BYTES, Trailer};
use super::{Contents, Hole, SortedError};
use crate::index::local::journal::format::{self, Frames, NextFrame};

/// A sorted file that is open for reading.
#[derive(Debug)]
pub(crate) struct SortedFile {
    file: File,
    path: PathBuf,
    table: Table,
    contents: Option<Contents>,
    is_table_intact: bool,
    /// Blocks that were found to be damaged.
    damaged: Mutex<BTreeSet<usize>>,
}

/// The table of contents.
#[derive(Debug, Default)]
struct Table {
    /// The keys at which the blocks may begin, one behind the other.
    keys: Vec<u8>,
    /// Where each block's key ends in `keys`, and the block. What a scan could not read has a length of none.
    blocks: Vec<(u64, BlockAt)>,
}

impl Table {
    fn push(&mut self, key: &[u8], at: BlockAt) {
        self.keys.extend_from_slice(key);
        self.blocks.push((self.keys.len() as u64, at));
    }

    /// The key at which the block may begin; that of the one behind the last is greater than all.
    fn key(&self, index: usize) -> Option<&[u8]> {
        let (end, _) = self.blocks.get(index)?;
        let start =
            index.checked_sub(1).and_then(|before| self.blocks.get(before)).map_or(0, |(end, _)| *end);
        self.keys.get(usize::try_from(start).ok()?..usize::try_from(*end).ok()?)
    }

    fn at(&self, index: usize) -> Option<BlockAt> {
        self.blocks.get(index).map(|(_, at)| *at)
    }

    /// The last block that may begin at or before the key.
    fn find(&self, key: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.blocks.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle).is_some_and(|first| first <= key) { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1)
    }
}

impl SortedFile {
    /// Reads the table of contents of a file of `length` bytes whose frames begin at `offset`.
    pub(crate) fn open(file: File, path: &Path, offset: u64, length: u64) -> Result<Self, SortedError> {
        let io_error = |source| SortedError::Io { path: path.to_owned(), source };
        let read = read_table(&file, offset, length).map_err(io_error)?;
        let is_table_intact = read.is_some();
        let (table, contents) = match read {
            Some((table, contents)) => (table, Some(contents)),
            None => Scan::of(&file, offset, length).map_err(io_error)?,
        };
        let path = path.to_owned();
        Ok(Self { file, path, table, contents, is_table_intact, damaged: Mutex::default() })
    }

    /// What the trailer says; none if it is damaged.
    pub(crate) fn contents(&self) -> Option<Contents> {
        self.contents
    }

    /// Whether the table of contents is as it was written.
    pub(crate) fn is_table_intact(&self) -> bool {
        self.is_table_intact
    }

    /// How many blocks of entries there are.
    pub(crate) fn blocks(&self) -> usize {
        self.table.blocks.len()
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, SortedError> {
        let Some(index) = self.table.find(key) else { return Ok(None) };
        let mut block = self.block(index)?;
        while let Some((found, value)) = self.take(&mut block, index)? {
            if *found >= *key {
                return Ok((*found == *key).then_some(value));
            }
        }
        Ok(None)
    }

    /// The entries from one key to another, which is not among them; to the last one without.
    pub(crate) fn range(self: &Arc<Self>, from: Bound<&[u8]>, to: Option<&[u8]>) -> Entries {
        let first = match from {
            Bound::Included(key) | Bound::Excluded(key) => self.table.find(key).unwrap_or(0),
            Bound::Unbounded => 0,
        };
        let (from, to) = (from.map(<[u8]>::to_vec), to.map(<[u8]>::to_vec));
        Entries { file: Arc::clone(self), next: first, block: Bytes::new(), from, to }
    }

    /// Reads a block from the disk and checks it.
    pub(crate) fn check(&self, index: usize) -> Result<(), SortedError> {
        let mut block = self.block(index)?;
        while self.take(&mut block, index)?.is_some() {}
        Ok(())
    }

    /// A block, as what is lost with it.
    pub(crate) fn hole(&self, index: usize) -> Option<Hole> {
        let at = self.table.at(index)?;
        Some(Hole {
            offset: at.offset,
            bytes: PREAMBLE_BYTES as u64 + u64::from(at.length),
            from: self.table.key(index)?.to_vec(),
            to: self.table.key(index + 1).map(<[u8]>::to_vec),
            what: DAMAGED,
        })
    }

    fn block(&self, index: usize) -> Result<Bytes, SortedError> {
        let Some(at) = self.table.at(index) else { return Ok(Bytes::new()) };
        let read = read_block(&self.file, at);
        let read = read.map_err(|source| SortedError::Io { path: self.path.clone(), source })?;
        read.ok_or_else(|| self.damage(index))
    }

    fn take(&self, block: &mut Bytes, index: usize) -> Result<Option<(Bytes, Bytes)>, SortedError> {
        block::take_entry(block).map_err(|_| self.damage(index))
    }

    /// How many blocks were found to be damaged so far.
    pub(crate) fn damaged(&self) -> usize {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn damage(&self, index: usize) -> SortedError {
        let offset = self.table.at(index).map_or(0, |at| at.offset);
        if self.damaged.lock().unwrap_or_else(PoisonError::into_inner).insert(index) {
            tracing::error!(
                file = %self.path.display(), offset,
                "a block is not as it was written; what needs it is answered with an error, and nothing else: restore a \
                 backup, or keep what is intact (refshim index rebuild)"
            );
        }
        SortedError::Damaged { path: self.path.clone(), offset, what: DAMAGED }
    }
}

const DAMAGED: &str = "the block is not as it was written";

/// Entries of a sorted file, in order. Behind an error, those of the next block follow.
#[derive(Debug)]
pub(crate) struct Entries {
    file: Arc<SortedFile>,
    /// The block to read next.
    next: usize,
    block: Bytes,
    from: Bound<Vec<u8>>,
    to: Option<Vec<u8>>,
}

impl Iterator for Entries {
    type Item = Result<(Bytes, Bytes), SortedError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while self.block.is_empty() {
                let first = self.file.table.key(self.next)?;
                if self.to.as_ref().is_some_and(|to| to.as_slice() <= first) {
                    return None;
                }
                self.next += 1;
                match self.file.block(self.next - 1) {
                    Ok(block) => self.block = block,
                    Err(error) => return Some(Err(error)),
                }
            }
            let (key, value) = match self.file.take(&mut self.block, self.next - 1) {
                Ok(Some(entry)) => entry,
                Ok(None) => continue,
                Err(error) => {
                    self.block.clear();
                    return Some(Err(error));
                }
            };
            if self.to.as_ref().is_some_and(|to| **to <= *key) {
                self.next = self.file.blocks();
                self.block.clear();
                return None;
            }
            match &self.from {
                Bound::Included(from) if *key < **from => {}
                Bound::Excluded(from) if *key <= **from => {}
                Bound::Included(_) | Bound::Excluded(_) | Bound::Unbounded => {
                    self.from = Bound::Unbounded;
                    return Some(Ok((key, value)));
                }
            }
        }
    }
}

/// A block; none if it is not as it was written.
fn read_block(file: &File, at: BlockAt) -> io::Result<Option<Bytes>> {
    // A hole that a scan found.
    if at.checksum == 0 && at.length == 0 {
        return Ok(None);
    }
    let mut frame = vec![0; PREAMBLE_BYTES + at.length as usize];
    match file.read_exact_at(&mut frame, at.offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let payload = format::unseal(&frame, at.checksum);
    Ok(payload.and_then(block::open).filter(|(kind, _)| *kind == Kind::Entries).map(|(_, block)| block))
}

/// The table of contents; none if it is damaged.
fn read_table(file: &File, offset: u64, length: u64) -> io::Result<Option<(Table, Contents)>> {
    let Some(trailer_at) = length.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    let mut bytes = [0; TRAILER_BYTES];
    match file.read_exact_at(&mut bytes, trailer_at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let NextFrame::Intact(payload) = Frames::new(bytes.as_slice(), 0, TRAILER_BYTES as u64).next()? else {
        return Ok(None);
    };
    let Some(trailer) = Trailer::decode(&payload) else { return Ok(None) };
    if trailer.table < offset || trailer.table > trailer_at {
        return Ok(None);
    }
    let mut from = file;
    from.seek(SeekFrom::Start(trailer.table))?;
    let mut frames =
        Frames::new(BufReader::new(from.take(trailer_at - trailer.table)), trailer.table, trailer_at);
    let (mut table, mut end) = (Table::default(), offset);
    loop {
        let payload = match frames.next()? {
            NextFrame::Intact(payload) => payload,
            NextFrame::End => break,
            NextFrame::Bad => return Ok(None),
        };
        let Some((Kind::Table, mut block)) = block::open(&payload) else { return Ok(None) };
        loop {
            let (key, at) = match block::take_entry(&mut block) {
                Ok(Some((key, at))) => (key, BlockAt::decode(&at)),
                Ok(None) => break,
                Err(_) => return Ok(None),
            };
            let Some(at) = at.filter(|at| at.offset == end) else { return Ok(None) };
            end = at.end();
            table.push(&key, at);
        }
    }
    let is_whole = end == trailer.table && table.blocks.len() as u64 == trailer.blocks;
    table.keys.shrink_to_fit();
    table.blocks.shrink_to_fit();
    Ok(is_whole.then_some((table, trailer.contents)))
}

/// Makes a table of contents from the blocks of a file that has lost its own.
#[derive(Default)]
struct Scan {
    table: Table,
    trailer: Option<Trailer>,
    /// The last key so far.
    last: Vec<u8>,
    /// Where the last block of entries ended.
    end: u64,
    /// Whether anything of the table of contents was met.
    met_table: bool,
}

impl Scan {
    fn of(file: &File, offset: u64, length: u64) -> io::Result<(Table, Option<Contents>)> {
        let mut scan = Self { end: offset, ..Self::default() };
        let mut at = offset;
        while at < length {
            let mut from = file;
            from.seek(SeekFrom::Start(at))?;
            let mut frames = Frames::new(BufReader::new(from), at, length);
            loop {
                at = frames.offset();
                match frames.next() {
                    Ok(NextFrame::Intact(payload)) => scan.take(at, &payload, frames.offset() == length)?,
                    Ok(NextFrame::Bad) => break,
                    // Shorter than it was a moment ago.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                    Ok(NextFrame::End) => return Ok(scan.finish()),
                    Err(error) => return Err(error),
                }
            }
            let mut from = file;
            at = format::next_intact(&mut from, at + 1, length)?.unwrap_or(length);
        }
        Ok(scan.finish())
    }

    /// Takes what is intact at this offset. It need not be what was written there last: a disk may have older blocks in
    /// its place, and bytes that a client chose may look like a block. So only what fits behind the last one counts.
    fn take(&mut self, offset: u64, payload: &[u8], is_last: bool) -> io::Result<()> {
        if let Some(trailer) = Trailer::decode(payload) {
            self.trailer = Some(trailer).filter(|_| is_last).or(self.trailer);
            return Ok(());
        }
        let Some((kind, mut block)) = block::open(payload) else { return Ok(()) };
        if kind == Kind::Table {
            // It follows the last block of entries: there is no other between.
            self.met_table |= offset == self.end;
            return Ok(());
        }
        let Ok(Some((first, _))) = block::take_entry(&mut block) else { return Ok(()) };
        let mut last = first.clone();
        let mut fits = self.table.blocks.is_empty() || *first > *self.last;
        while let Ok(Some((key, _))) = block::take_entry(&mut block) {
            fits &= key > last;
            last = key;
        }
        if !fits {
            return Ok(());
        }
        if offset > self.end {
            self.hole();
        }
        let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let at = BlockAt { offset, length, checksum: format::checksum_of(payload)? };
        self.end = at.end();
        // The first block may begin before its first key without anything missing.
        let key = if self.table.blocks.is_empty() { &[][..] } else { &first };
        self.table.push(key, at);
        self.last = last.to_vec();
        Ok(())
    }

    /// Between the last block and the next one there is something that cannot be read.
    fn hole(&mut self) {
        let behind: &[u8] = if self.table.blocks.is_empty() { &[] } else { &[0] };
        let from = [self.last.as_slice(), behind].concat();
        self.table.push(&from, BlockAt { offset: self.end, length: 0, checksum: 0 });
    }

    fn finish(mut self) -> (Table, Option<Contents>) {
        let is_whole = self.met_table || self.trailer.is_some_and(|trailer| trailer.table == self.end);
        if !is_whole {
            self.hole();
        }
        (self.table, self.trailer.map(|trailer| trailer.contents))
    }
}
