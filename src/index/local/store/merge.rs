//! Merges deltas and a snapshot: of each key, what the newest of them says that knows it.

use std::ops::Bound;
use std::sync::Arc;

use super::{SortedSnapshot, StoreError};
use crate::index::local::sled::{Delta, DeltaEntries, Slice};
use crate::index::local::sorted::Entries;

/// Entries in the order of their keys. It ends with the first error.
#[derive(Debug)]
pub(crate) struct Merge {
    /// The newest first.
    sources: Vec<Source>,
    is_over: bool,
}

/// A key, and its value, or nothing if it is removed.
type Head = (Slice, Option<Slice>);

#[derive(Debug)]
struct Source {
    entries: SourceEntries,
    /// The next one that is not passed on yet.
    head: Option<Head>,
    is_read: bool,
}

#[derive(Debug)]
enum SourceEntries {
    Delta(DeltaEntries),
    Snapshot(Entries),
}

impl Merge {
    pub(super) fn new(
        deltas: &[Arc<Delta>],
        snapshot: Option<&SortedSnapshot>,
        from: Bound<&[u8]>,
        to: Option<&[u8]>,
    ) -> Self {
        let deltas = deltas.iter().map(|delta| SourceEntries::Delta(delta.range(from, to)));
        let snapshot = snapshot.map(|snapshot| SourceEntries::Snapshot(snapshot.file.range(from, to)));
        let sources = deltas.chain(snapshot).map(|entries| Source { entries, head: None, is_read: false });
        Self { sources: sources.collect(), is_over: false }
    }

    fn read(&mut self) -> Result<Option<(Slice, Slice)>, StoreError> {
        loop {
            for source in &mut self.sources {
                source.read()?;
            }
            // Of equal keys the first, which is the newest.
            let next = self.sources.iter_mut().filter(|source| source.head.is_some());
            let next = next.min_by(|one, other| one.key().cmp(&other.key()));
            let Some((key, value)) = next.and_then(|source| source.head.take()) else { return Ok(None) };
            for source in &mut self.sources {
                source.head.take_if(|(other, _)| **other == *key);
            }
            if let Some(value) = value {
                return Ok(Some((key, value)));
            }
        }
    }
}

impl Iterator for Merge {
    type Item = Result<(Slice, Slice), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = self.read().transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next
    }
}

impl Source {
    fn key(&self) -> Option<&[u8]> {
        self.head.as_ref().map(|(key, _)| &**key)
    }

    /// Makes sure that there is a head, unless nothing is left.
    fn read(&mut self) -> Result<(), StoreError> {
        if self.head.is_some() || self.is_read {
            return Ok(());
        }
        self.head = match &mut self.entries {
            SourceEntries::Delta(entries) => entries.next().transpose()?,
            SourceEntries::Snapshot(entries) => {
                let entry = entries.next().transpose()?;
                entry.map(|(key, value)| (Slice::InFile(key), Some(Slice::InFile(value))))
            }
        };
        self.is_read = self.head.is_none();
        Ok(())
    }
}
