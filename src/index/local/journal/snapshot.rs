//! Writing a snapshot: the whole index as records, which stands for all segments before its position.

use std::io;
use std::path::Path;

use super::files::{UnfinishedFile, snapshot_path};
use super::format;
use super::header::{HEADER_BYTES, Header};
use crate::index::local::record::Record;

/// How long a frame's payload gets before the next one is begun.
const FRAME_BYTES: usize = 1 << 20;

/// A snapshot that is being written. One that is not finished does not count.
pub(crate) struct SnapshotWriter {
    file: UnfinishedFile,
    payload: Vec<u8>,
    referrers: u64,
    length: u64,
}

impl SnapshotWriter {
    pub(crate) fn create(directory: &Path, header: &Header) -> io::Result<Self> {
        let file = UnfinishedFile::create(snapshot_path(directory, header.position), header)?;
        Ok(Self { file, payload: Vec::new(), referrers: 0, length: HEADER_BYTES })
    }

    /// Adds one referrer.
    pub(crate) fn append(&mut self, record: &Record) -> io::Result<()> {
        record.write_to(&mut self.payload)?;
        self.referrers += 1;
        if self.payload.len() >= FRAME_BYTES { self.write_frame() } else { Ok(()) }
    }

    fn write_frame(&mut self) -> io::Result<()> {
        let frame = format::seal(&self.payload)?;
        self.payload.clear();
        self.length += frame.len() as u64;
        self.file.append(&frame)
    }

    /// Makes it count; gives its length.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        Record::End { referrers: self.referrers }.write_to(&mut self.payload)?;
        self.write_frame()?;
        self.file.finish()?;
        Ok(self.length)
    }
}
