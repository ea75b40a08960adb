//! Sorts more entries than memory holds: sorts as many as fit, writes them to a temporary file as a *run*, and in the end
//! merges all runs.
//!
//! Sorting and writing what fitted takes as long as making it did. So it has a thread of its own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use super::block::{self, BLOCK_BYTES, Kind};
use crate::index::local::journal::format::{self, Frames, NextFrame};

/// How much is read and written at once: runs are read in turn, each a little.
const IO_BYTES: usize = 64 << 10;

/// Sorts entries by key; those of equal keys stay in their order.
#[derive(Debug)]
pub(crate) struct Sorter {
    /// Where the temporary file is made.
    directory: PathBuf,
    /// Of one buffer.
    memory: usize,
    filling: Buffer,
    /// The thread that sorts and writes the buffer before, which it gives back empty, with the end of the file.
    spilling: Option<JoinHandle<io::Result<(Buffer, u64)>>>,
    /// What was written, one run behind the other. It has no name, so nothing is left of it after a crash.
    file: Option<Arc<File>>,
    /// Where each run ends.
    ends: Vec<u64>,
}

/// Entries in memory.
#[derive(Debug, Default)]
struct Buffer {
    /// Keys and values, one behind the other.
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Where an entry is in memory.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: usize,
    key: u16,
    value: u32,
}

impl Place {
    fn key(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start..self.start + usize::from(self.key)).unwrap_or_default()
    }

    fn value(self, bytes: &[u8]) -> &[u8] {
        let start = self.start + usize::from(self.key);
        bytes.get(start..start + self.value as usize).unwrap_or_default()
    }
}

impl Buffer {
    fn length(&self) -> usize {
        self.bytes.len() + self.places.len() * size_of::<Place>()
    }

    fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let too_large = |_| io::ErrorKind::FileTooLarge;
        let place = Place {
            start: self.bytes.len(),
            key: u16::try_from(key.len()).map_err(too_large)?,
            value: u32::try_from(value.len()).map_err(too_large)?,
        };
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.places.push(place);
        Ok(())
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.places.sort_by(|one, other| one.key(bytes).cmp(other.key(bytes)));
    }

    /// Writes the entries, sorted, to the end of the file, where this is to stand. Returns the buffer empty, and the end.
    fn spill(mut self, mut file: &File) -> io::Result<(Self, u64)> {
        self.sort();
        let mut output = BufWriter::with_capacity(IO_BYTES, file);
        let mut block = Vec::with_capacity(2 * BLOCK_BYTES);
        for place in &self.places {
            let put = block::put_entry(&mut block, place.key(&self.bytes), place.value(&self.bytes));
            put.ok_or(io::ErrorKind::FileTooLarge)?;
            if block.len() >= BLOCK_BYTES {
                write_block(&mut output, &mut block)?;
            }
        }
        write_block(&mut output, &mut block)?;
        output.into_inner().map_err(io::IntoInnerError::into_error)?;
        self.bytes.clear();
        self.places.clear();
        Ok((self, file.stream_position()?))
    }
}

impl Sorter {
    /// A sorter that uses about this many bytes of memory, and the directory for a temporary file.
    pub(crate) fn new(directory: &Path, memory: usize) -> Self {
        let (directory, memory) = (directory.to_owned(), memory / 2);
        Self { directory, memory, filling: Buffer::default(), spilling: None, file: None, ends: Vec::new() }
    }

    /// Adds an entry.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let is_empty = self.filling.places.is_empty();
        if self.filling.length() + key.len() + value.len() > self.memory && !is_empty {
            self.spill()?;
        }
        self.filling.push(key, value)
    }

    /// Has the buffer sorted and written while another one is filled.
    fn spill(&mut self) -> io::Result<()> {
        let empty = self.spilled()?;
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => Arc::clone(self.file.insert(Arc::new(tempfile::tempfile_in(&self.directory)?))),
        };
        let full = std::mem::replace(&mut self.filling, empty);
        let thread = thread::Builder::new().name("index-sorting".to_owned());
        self.spilling = Some(thread.spawn(move || full.spill(&file))?);
        Ok(())
    }

    /// Waits for the thread that writes a buffer, if there is one. Returns an empty buffer.
    fn spilled(&mut self) -> io::Result<Buffer> {
        let Some(spilling) = self.spilling.take() else { return Ok(Buffer::default()) };
        let (empty, end) = spilling.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        self.ends.push(end);
        Ok(empty)
    }

    /// All entries, sorted.
    pub(crate) fn finish(mut self) -> io::Result<SortedEntries> {
        if self.file.is_none() {
            self.filling.sort();
            let (bytes, places) = (self.filling.bytes.into(), self.filling.places.into_iter());
            return Ok(SortedEntries(Sorted::InMemory { bytes, places }));
        }
        self.spill()?;
        // Given back before the merge begins.
        drop(self.spilled()?);
        let mut runs = Vec::with_capacity(self.ends.len());
        let mut heads = BinaryHeap::with_capacity(self.ends.len());
        let mut start = 0;
        for (index, end) in self.ends.into_iter().enumerate() {
            let Some(file) = &self.file else { break };
            let input = BufReader::with_capacity(IO_BYTES, ReadAt { file: Arc::clone(file), offset: start });
            let mut run = Run { frames: Frames::new(input, start, end), block: Bytes::new() };
            if let Some((key, value)) = run.next()? {
                heads.push(Reverse((key, index, value)));
            }
            runs.push(run);
            start = end;
        }
        Ok(SortedEntries(Sorted::Merged { runs, heads }))
    }
}

fn write_block(output: &mut impl io::Write, block: &mut Vec<u8>) -> io::Result<()> {
    let payload = block::seal(Kind::Entries, block).ok_or(io::ErrorKind::FileTooLarge)?;
    block.clear();
    output.write_all(&format::seal(&payload)?)
}

/// Reads a file from a position of its own.
#[derive(Debug)]
struct ReadAt {
    file: Arc<File>,
    offset: u64,
}

impl Read for ReadAt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

/// What fitted into memory once.
#[derive(Debug)]
struct Run {
    frames: Frames<BufReader<ReadAt>>,
    block: Bytes,
}

impl Run {
    fn next(&mut self) -> io::Result<Option<(Bytes, Bytes)>> {
        let damaged = || io::Error::other("a temporary file is not as it was written");
        loop {
            if let Some(entry) = block::take_entry(&mut self.block).map_err(io::Error::other)? {
                return Ok(Some(entry));
            }
            match self.frames.next()? {
                NextFrame::Intact(payload) => {
                    (_, self.block) = block::open(&payload).ok_or_else(damaged)?;
                }
                NextFrame::Bad => return Err(damaged()),
                NextFrame::End => return Ok(None),
            }
        }
    }
}

/// Entries in the order of their keys.
#[derive(Debug)]
pub(crate) struct SortedEntries(Sorted);

#[derive(Debug)]
enum Sorted {
    InMemory { bytes: Bytes, places: std::vec::IntoIter<Place> },
    Merged { runs: Vec<Run>, heads: BinaryHeap<Reverse<(Bytes, usize, Bytes)>> },
}

impl SortedEntries {
    fn take(&mut self) -> io::Result<Option<(Bytes, Bytes)>> {
        match &mut self.0 {
            Sorted::InMemory { bytes, places } => {
                let Some(place) = places.next() else { return Ok(None) };
                let value = place.start + usize::from(place.key);
                let end = value + place.value as usize;
                Ok(Some((bytes.slice(place.start..value), bytes.slice(value..end))))
            }
            Sorted::Merged { runs, heads } => {
                let Some(mut head) = heads.peek_mut() else { return Ok(None) };
                let Reverse((key, index, value)) = &mut *head;
                let next = runs.get_mut(*index).map(Run::next).transpose()?.flatten();
                let Some((next_key, next_value)) = next else {
                    let Reverse((key, _, value)) = PeekMut::pop(head);
                    return Ok(Some((key, value)));
                };
                // In its place: one way through the heap, not two.
                Ok(Some((std::mem::replace(key, next_key), std::mem::replace(value, next_value))))
            }
        }
    }
}

impl Iterator for SortedEntries {
    type Item = io::Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.take().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_equal_keys_stay_in_their_order_whatever_the_memory() {
        for memory in [0, 100, 1000, 1 << 20] {
            let mut sorter = Sorter::new(&std::env::temp_dir(), memory);
            for n in 0u32..500 {
                let key = (n * 7919) % 50;
                sorter.push(&key.to_be_bytes(), &n.to_be_bytes()).unwrap();
            }
            let mut all = sorter.finish().unwrap();
            let entries: Vec<_> = all.by_ref().map(Result::unwrap).collect();
            assert_eq!(entries.len(), 500);
            assert!(entries.is_sorted(), "values grow with their place");
            assert!(all.next().is_none(), "and stays at the end");
        }
    }

    #[test]
    fn large_entries_are_merged() {
        let mut sorter = Sorter::new(&std::env::temp_dir(), 1 << 20);
        let value = vec![7; 1 << 20];
        for n in (0u32..10).rev() {
            sorter.push(&n.to_be_bytes(), &value).unwrap();
        }
        let all = sorter.finish().unwrap().map(Result::unwrap);
        assert!(all.eq((0u32..10).map(|n| (n.to_be_bytes().to_vec().into(), value.clone().into()))));
    }

    #[test]
    fn what_cannot_be_written_or_read_again_is_an_error() {
        let nowhere = std::env::temp_dir().join("not/there");
        let mut sorter = Sorter::new(&nowhere, 0);
        let pushed = (0u32..3).try_for_each(|n| sorter.push(&n.to_be_bytes(), b""));
        assert_eq!(pushed.unwrap_err().kind(), io::ErrorKind::NotFound);

        let mut sorter = Sorter::new(&std::env::temp_dir(), 64 << 10);
        for n in 0u32..10_000 {
            sorter.push(&n.to_be_bytes(), &n.to_be_bytes()).unwrap();
        }
        let empty = sorter.spilled().unwrap();
        assert!(empty.places.is_empty());
        let file = sorter.file.as_ref().unwrap();
        file.write_all_at(b"?", file.metadata().unwrap().len() / 2).unwrap();
        let mut all = sorter.finish().unwrap();
        assert!(all.any(|entry| entry.is_err()));
    }
}
