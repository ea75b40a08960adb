//! Writes a sorted file.

use std::io::{self, Write};

use super::Contents;
use super::block::{self, BLOCK_BYTES, BlockAt, Kind, Trailer};
use crate::index::local::journal::format;

/// Writes a sorted file. Without [`SortedWriter::finish`] it is incomplete.
pub(crate) struct SortedWriter<W> {
    output: W,
    offset: u64,
    /// Entries that are not written yet.
    block: Vec<u8>,
    /// A key not greater than the first of them, and greater than all before.
    first: Vec<u8>,
    last: Vec<u8>,
    table: Vec<u8>,
    table_blocks: Vec<Vec<u8>>,
    blocks: u64,
    entries: u64,
}

impl<W: Write> SortedWriter<W> {
    /// Writes to `output`, of which the first byte gets this offset.
    pub(crate) fn new(output: W, offset: u64) -> Self {
        Self {
            output,
            offset,
            block: Vec::with_capacity(2 * BLOCK_BYTES),
            first: Vec::new(),
            last: Vec::new(),
            table: Vec::new(),
            table_blocks: Vec::new(),
            blocks: 0,
            entries: 0,
        }
    }

    /// Adds an entry; its key must be greater than all before.
    pub(crate) fn append(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if self.entries > 0 && key <= self.last.as_slice() {
            return Err(io::Error::other("entries are out of order"));
        }
        // A block of its own for what is large: those beside it are read without it. And none with keys of two kinds: of
        // what is said twice, in each kind once, damage takes one.
        let is_full = self.block.len() + key.len() + value.len() > BLOCK_BYTES;
        if !self.block.is_empty() && (is_full || key.first() != self.last.first()) {
            self.write_block()?;
        }
        if self.block.is_empty() {
            self.first = shortest_between(&self.last, key).to_vec();
        }
        block::put_entry(&mut self.block, key, value).ok_or(io::ErrorKind::FileTooLarge)?;
        self.last.clear();
        self.last.extend_from_slice(key);
        self.entries += 1;
        Ok(())
    }

    fn write_block(&mut self) -> io::Result<()> {
        let payload = block::seal(Kind::Entries, &self.block).ok_or(io::ErrorKind::FileTooLarge)?;
        self.block.clear();
        let at = self.write_payload(&payload)?;
        block::put_entry(&mut self.table, &self.first, &at.encode()).ok_or(io::ErrorKind::FileTooLarge)?;
        self.blocks += 1;
        // It is written behind all entries; compressed it waits in a third of the memory.
        if self.table.len() >= BLOCK_BYTES {
            self.seal_table()?;
        }
        Ok(())
    }

    fn seal_table(&mut self) -> io::Result<()> {
        let sealed = block::seal(Kind::Table, &self.table).ok_or(io::ErrorKind::FileTooLarge)?;
        self.table_blocks.push(sealed);
        self.table.clear();
        Ok(())
    }

    fn write_payload(&mut self, payload: &[u8]) -> io::Result<BlockAt> {
        let frame = format::seal(payload)?;
        self.output.write_all(&frame)?;
        let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let at = BlockAt { offset: self.offset, length, checksum: format::checksum_of(payload)? };
        self.offset += frame.len() as u64;
        Ok(at)
    }

    /// Completes the file, with these numbers in its trailer. Returns the output, and the offset behind the last byte.
    pub(crate) fn finish(mut self, numbers: [u64; 3]) -> io::Result<(W, u64)> {
        if !self.block.is_empty() {
            self.write_block()?;
        }
        if !self.table.is_empty() {
            self.seal_table()?;
        }
        let table = self.offset;
        for payload in std::mem::take(&mut self.table_blocks) {
            self.write_payload(&payload)?;
        }
        let contents = Contents { entries: self.entries, numbers };
        self.write_payload(&Trailer { table, blocks: self.blocks, contents }.encode())?;
        Ok((self.output, self.offset))
    }
}

/// The shortest key that is greater than `before` and not greater than `key`: all that the table of contents needs of
/// `key`, a third of it.
fn shortest_between<'k>(before: &[u8], key: &'k [u8]) -> &'k [u8] {
    let common = before.iter().zip(key).take_while(|(one, other)| one == other).count();
    key.get(..=common).unwrap_or(key)
}

impl<W> std::fmt::Debug for SortedWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SortedWriter").field("offset", &self.offset).finish_non_exhaustive()
    }
}
