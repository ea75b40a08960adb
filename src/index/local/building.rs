//! Building a snapshot from records, of which there may be more than fit into memory.
//!
//! The records are sorted by referrer, each referrer's are added up to its state, and the entries of all states are
//! sorted for the snapshot. Both times most of it goes through temporary files. For what lies in a delta, applying the
//! records to sled is quicker; ten million links in any order take sled twenty minutes and gigabytes.
//!
//! Reading, adding up, sorting and writing go on at the same time, on threads of their own: with a second core at hand it
//! takes about two thirds of the time.
//!
//! This is how a journal of an older build, a dump, and what is intact of a damaged index become an index.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut as _, Bytes};

use super::ahead::ahead;
use super::sorted::Sorter;
use super::store::layout;
use super::store::snapshot::SnapshotWriter;
use crate::index::record::{Record, ReferrerKey};
use crate::index::referrer_state::ReferrerState;
use crate::index::{Repository, Version};

/// What sorting the records takes of memory, and after it what sorting the entries does, all kinds together.
const MEMORY: usize = 128 << 20;

/// Records that a snapshot is built from.
#[derive(Debug)]
pub(crate) struct Building {
    directory: PathBuf,
    records: Sorter,
    added: u64,
}

/// A record, where it stood among all, and the version that it makes.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) place: u64,
    pub(crate) version: Version,
    pub(crate) record: Record,
}

/// Why a snapshot could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("building the snapshot: {0}")]
    Io(#[from] io::Error),
    #[error("building the snapshot: a temporary file is not as it was written")]
    Invalid,
    #[error("the index was closed meanwhile")]
    Stopped,
}

impl Building {
    /// A building with its temporary files in this directory.
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), records: Sorter::new(directory, MEMORY), added: 0 }
    }

    /// How many records were added.
    pub(crate) fn added(&self) -> u64 {
        self.added
    }

    /// Adds a record behind all others.
    pub(crate) fn add(&mut self, version: Version, record: &Record) -> io::Result<()> {
        let Some(referrer) = record.referrer() else { return Ok(()) };
        let mut value = Vec::with_capacity(1024);
        value.put_u64(self.added);
        value.put_u64(version.0);
        record.write_to(&mut value)?;
        self.added += 1;
        self.records.push(&layout::reverse_entry(referrer), &value)
    }

    /// Writes the entries of all referrers to `writer`, in the states that `sum` makes of their records.
    pub(crate) fn write(
        self,
        writer: &mut SnapshotWriter,
        go_on: impl Fn() -> bool,
        sum: &mut impl Sum,
    ) -> Result<(), BuildError> {
        let mut entries = Entries::new(&self.directory);
        let mut current: Option<(Bytes, ReferrerKey)> = None;
        let records = self.records.finish()?.map(|entry| {
            let (key, value) = entry?;
            let bytes = key.len() + value.len();
            Ok::<_, io::Error>((key, decode(&value)?, bytes))
        });
        let records =
            ahead("index-records", records, |record| record.as_ref().map_or(0, |(.., bytes)| *bytes))?;
        for record in records {
            let (key, placed, _) = record?;
            if current.as_ref().is_none_or(|(current, _)| *current != key) {
                if let Some((_, referrer)) = current.take() {
                    entries.add(&referrer, sum.end(&referrer))?;
                }
                let referrer = layout::referrer_of_reverse_entry(&key).ok_or(BuildError::Invalid)?;
                current = Some((key, referrer));
            }
            if let Some((_, referrer)) = &current {
                sum.add(referrer, placed);
            }
            if !go_on() {
                return Err(BuildError::Stopped);
            }
        }
        if let Some((_, referrer)) = current {
            entries.add(&referrer, sum.end(&referrer))?;
        }
        entries.write(writer, go_on)
    }
}

/// Adds up the records of one referrer after the other.
pub(crate) trait Sum {
    /// The next record of this referrer.
    fn add(&mut self, referrer: &ReferrerKey, placed: Placed);
    /// The state that its records make.
    fn end(&mut self, referrer: &ReferrerKey) -> Option<ReferrerState>;
}

/// What the records make in their order.
#[derive(Debug, Default)]
pub(crate) struct PlainSum(Option<ReferrerState>);

impl Sum for PlainSum {
    fn add(&mut self, _: &ReferrerKey, Placed { version, record, .. }: Placed) {
        self.0 = ReferrerState::after(self.0.take(), record, version);
    }

    fn end(&mut self, _: &ReferrerKey) -> Option<ReferrerState> {
        self.0.take()
    }
}

fn decode(mut value: &[u8]) -> io::Result<Placed> {
    let place = value.try_get_u64().map_err(io::Error::other)?;
    let version = Version(value.try_get_u64().map_err(io::Error::other)?);
    Ok(Placed { place, version, record: serde_json::from_slice(value)? })
}

/// The entries of a snapshot, each kind by itself. Referrers come in the order of their keys, so the reverse entries are
/// sorted already, and those that count referrers are small.
#[derive(Debug)]
struct Entries {
    links: Sorter,
    reverse: Sorter,
    counts: Sorter,
    /// How many referrers of this repository there were so far.
    referrers: Option<(Repository, u64)>,
}

impl Entries {
    fn new(directory: &Path) -> Self {
        let sorter = |share| Sorter::new(directory, MEMORY / share);
        Self { links: sorter(2), reverse: sorter(4), counts: sorter(4), referrers: None }
    }

    fn add(&mut self, referrer: &ReferrerKey, state: Option<ReferrerState>) -> io::Result<()> {
        let Some(state) = state else { return Ok(()) };
        let mut links = layout::entries(referrer, &state);
        if let Some((key, value)) = links.pop() {
            self.reverse.push(&key, &value)?;
        }
        links.iter().try_for_each(|(key, value)| self.links.push(key, value))?;
        for subject in state.links.keys() {
            self.count(&layout::repository_of(subject, &referrer.repository), 1)?;
        }
        match &mut self.referrers {
            Some((repository, referrers)) if *repository == referrer.repository => *referrers += 1,
            referrers => {
                let before = referrers.replace((referrer.repository.clone(), 1));
                self.count_referrers(before)?;
            }
        }
        Ok(())
    }

    fn count_referrers(&mut self, referrers: Option<(Repository, u64)>) -> io::Result<()> {
        let Some((repository, referrers)) = referrers else { return Ok(()) };
        self.count(&layout::referrers_in(&repository), referrers)
    }

    fn count(&mut self, key: &[u8], more: u64) -> io::Result<()> {
        self.counts.push(key, &more.to_be_bytes())
    }

    fn write(mut self, writer: &mut SnapshotWriter, go_on: impl Fn() -> bool) -> Result<(), BuildError> {
        let referrers = self.referrers.take();
        self.count_referrers(referrers)?;
        // In the order of their keys.
        for entries in [self.links, self.reverse, self.counts] {
            write_sorted(entries, writer, &go_on)?;
        }
        Ok(())
    }
}

/// Writes the entries, those that count referrers added up.
fn write_sorted(
    entries: Sorter,
    writer: &mut SnapshotWriter,
    go_on: &impl Fn() -> bool,
) -> Result<(), BuildError> {
    let mut counted: Option<(Bytes, u64)> = None;
    let bytes =
        |entry: &io::Result<(Bytes, Bytes)>| entry.as_ref().map_or(0, |(key, value)| key.len() + value.len());
    for entry in ahead("index-entries", entries.finish()?, bytes)? {
        let (key, mut value) = entry?;
        match &mut counted {
            Some((counted, count)) if *counted == key => {
                *count += value.try_get_u64().map_err(io::Error::other)?;
                continue;
            }
            Some((counted, count)) => writer.append(counted, &count.to_be_bytes())?,
            None => {}
        }
        counted = None;
        if layout::is_count(&key) {
            counted = Some((key, value.try_get_u64().map_err(io::Error::other)?));
        } else {
            writer.append(&key, &value)?;
        }
        if !go_on() {
            return Err(BuildError::Stopped);
        }
    }
    if let Some((key, count)) = counted {
        writer.append(&key, &count.to_be_bytes())?;
    }
    Ok(())
}
