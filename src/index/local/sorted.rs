//! A file of sorted entries, keys and values, that is written once and then only read.
//!
//! # On disk
//! Behind a header that the caller writes come frames as in the journal (marker, length, CRC32C, payload; see
//! [`super::journal::format`]): blocks of entries, then the blocks of the table of contents, and last the *trailer*,
//! which says where that table begins and how much there is of everything. A payload begins with a byte for its kind
//! ([`block`]). The table has the length and the checksum of each block, and a key at which it may begin.
//!
//! The keys of a block have the same first byte. A look-up reads one block, a scan as many as its entries lie in. A block has some 8 KiB before it is compressed:
//! larger ones make a look-up dearer, smaller ones the table of contents, which is in memory.
//!
//! # Why not a library
//! Of those there are, `lsm-tree` 3.1 alone reports every flipped bit; its scans take two to three times as long, for 32
//! more dependencies. `sstable` 0.11 leaves out a damaged block and goes on, and `tantivy-sstable` 0.27 has no checksums
//! (of 300 flipped bits, 234 made a full scan wrong or short without a word): a list that is too short is what this index
//! must never give. `fst` 0.4 wants the file in memory.
//!
//! # What proves what
//! - The trailer proves the table of contents by its numbers, and that the file is complete.
//! - The table proves each block by its checksum: also that it is *this* block, and not an older one that a disk put in
//!   its place.
//! - A block that is not as it was written is an error of all look-ups and scans that would need it, and of nothing
//!   else. It is never skipped.
//! - If the table or the trailer is damaged, the table is made anew from the blocks themselves. Then the keys between
//!   two blocks that do not follow each other are unreadable like those of a damaged block.

use std::path::PathBuf;
use std::{fmt, io};

mod block;
mod reader;
pub(crate) mod sorter;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use reader::{Entries, SortedFile};
pub(crate) use sorter::Sorter;
pub(crate) use writer::SortedWriter;

/// Why a sorted file cannot be read, here or at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SortedError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is damaged at byte {offset}: {what}", path.display())]
    Damaged { path: PathBuf, offset: u64, what: &'static str },
    /// Something was recorded that cannot be told without a damaged block.
    #[error("what was recorded of it needs a damaged block of the snapshot")]
    Needed,
}

/// What the writer counted, for the trailer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Entries.
    pub(crate) entries: u64,
    /// What the caller wants to have said in the trailer.
    pub(crate) numbers: [u64; 3],
}

/// An unreadable part of a sorted file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hole {
    /// Where it begins in the file, and how many bytes it has.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// The keys that it may hold: from the first on, and less than the second if there is one.
    pub(crate) from: Vec<u8>,
    pub(crate) to: Option<Vec<u8>>,
    pub(crate) what: &'static str,
}

impl fmt::Debug for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, bytes, what, .. } = self;
        write!(f, "{bytes} bytes at {offset}: {what}")
    }
}

impl Hole {
    /// Whether the key may be in it.
    pub(crate) fn may_hold(&self, key: &[u8]) -> bool {
        self.from.as_slice() <= key && self.to.as_ref().is_none_or(|to| key < to.as_slice())
    }
}
