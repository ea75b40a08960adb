//! Sorts more entries than memory holds: sorts as many as fit, writes them to a temporary file, and in the end merges
//! all of those.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::block::{self, BLOCK_BYTES, Kind};
use crate::index::local::journal::format::{self, Frames, NextFrame};

/// Sorts entries by key; those of equal keys stay in their order.
#[derive(Debug)]
pub(crate) struct Sorter {
    /// Where the temporary files are. They have no names, so nothing is left of them after a crash.
    directory: PathBuf,
    memory: usize,
    /// Keys and values, one behind the other.
    bytes: Vec<u8>,
    entries: Vec<Place>,
    runs: Vec<File>,
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

impl Sorter {
    /// A sorter that uses about this many bytes of memory, and the directory for temporary files.
    pub(crate) fn new(directory: &Path, memory: usize) -> Self {
        let directory = directory.to_owned();
        Self { directory, memory, bytes: Vec::new(), entries: Vec::new(), runs: Vec::new() }
    }

    /// Adds an entry.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let used = self.bytes.len() + self.entries.len() * size_of::<Place>();
        if used + key.len() + value.len() > self.memory && !self.entries.is_empty() {
            self.spill()?;
        }
        let too_large = |_| io::ErrorKind::FileTooLarge;
        let place = Place {
            start: self.bytes.len(),
            key: u16::try_from(key.len()).map_err(too_large)?,
            value: u32::try_from(value.len()).map_err(too_large)?,
        };
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.entries.push(place);
        Ok(())
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.entries.sort_by(|one, other| one.key(bytes).cmp(other.key(bytes)));
    }

    fn spill(&mut self) -> io::Result<()> {
        self.sort();
        let mut output = BufWriter::new(tempfile::tempfile_in(&self.directory)?);
        let mut block = Vec::with_capacity(2 * BLOCK_BYTES);
        for place in &self.entries {
            let put = block::put_entry(&mut block, place.key(&self.bytes), place.value(&self.bytes));
            put.ok_or(io::ErrorKind::FileTooLarge)?;
            if block.len() >= BLOCK_BYTES {
                write_block(&mut output, &mut block)?;
            }
        }
        write_block(&mut output, &mut block)?;
        let mut file = output.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        self.runs.push(file);
        self.bytes.clear();
        self.entries.clear();
        Ok(())
    }

    /// All entries, sorted.
    pub(crate) fn finish(mut self) -> io::Result<SortedEntries> {
        if self.runs.is_empty() {
            self.sort();
            let (bytes, places) = (self.bytes.into(), self.entries.into_iter());
            return Ok(SortedEntries(Sorted::InMemory { bytes, places }));
        }
        self.spill()?;
        // Given back before the merge begins.
        drop((self.bytes, self.entries));
        let mut runs = Vec::with_capacity(self.runs.len());
        let mut heads = BinaryHeap::with_capacity(self.runs.len());
        for (index, file) in self.runs.into_iter().enumerate() {
            let length = file.metadata()?.len();
            let mut run = Run { frames: Frames::new(BufReader::new(file), 0, length), block: Bytes::new() };
            if let Some((key, value)) = run.next()? {
                heads.push(Reverse((key, index, value)));
            }
            runs.push(run);
        }
        Ok(SortedEntries(Sorted::Merged { runs, heads }))
    }
}

fn write_block(output: &mut impl io::Write, block: &mut Vec<u8>) -> io::Result<()> {
    let payload = block::seal(Kind::Entries, block).ok_or(io::ErrorKind::FileTooLarge)?;
    block.clear();
    output.write_all(&format::seal(&payload)?)
}

/// One temporary file.
#[derive(Debug)]
struct Run {
    frames: Frames<BufReader<File>>,
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

impl Iterator for SortedEntries {
    type Item = io::Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Sorted::InMemory { bytes, places } => {
                let place = places.next()?;
                let value = place.start + usize::from(place.key);
                let end = value + place.value as usize;
                Some(Ok((bytes.slice(place.start..value), bytes.slice(value..end))))
            }
            Sorted::Merged { runs, heads } => {
                let Reverse((key, index, value)) = heads.pop()?;
                match runs.get_mut(index).map(Run::next) {
                    Some(Ok(Some((key, value)))) => heads.push(Reverse((key, index, value))),
                    Some(Ok(None)) | None => {}
                    Some(Err(error)) => return Some(Err(error)),
                }
                Some(Ok((key, value)))
            }
        }
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
            let entries: Vec<_> = sorter.finish().unwrap().map(Result::unwrap).collect();
            assert_eq!(entries.len(), 500);
            assert!(entries.is_sorted(), "values grow with their place");
        }
    }
}
