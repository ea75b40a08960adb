//! A delta: what changed since a snapshot, in a sled of its own. Only this module knows sled.
//!
//! A *delta* says of a key what its value is, or that it is removed; of all other keys what lies below it holds, an
//! older delta or the snapshot. Keys and values are described in [`super::store::layout`].
//!
//! sled 0.34.7 does not sync, panics on damaged files (47 of 75 with flipped bytes) and at times reads wrong data
//! from them, so nothing rests on it alone:
//! - Every batch holds the journal's position and a sum over all entries ([`meta`]), checked at every opening.
//! - Every value has a checksum with its key, checked whenever it is read.
//! - Every call that may panic is guarded; a panic is an error, upon which the delta is built anew from the journal.
//! - It is flushed by its own timer only. What it loses in a crash is applied again from the journal. Its
//!   `flush_async` is never used: it can deadlock on sled's own I/O threads.
//! - The alphas of 1.0 are no way out: one of them lost all data two openings after a kill.

use std::fs::{self, File};
use std::ops::{Bound, Deref};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

mod meta;

pub(crate) use meta::Meta;

use super::journal::format::Identity;
use super::sorted::SortedError;
use super::store::StoreError;

/// How long an opening waits for the threads of an instance that this process has just closed.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// The key of the description of the delta.
const META: [u8; 1] = [0];
/// The first byte of a value says what it is, and four bytes of checksum follow.
const THERE: u8 = 1;
const REMOVED: u8 = 0;
const UNREADABLE: u8 = 2;
const PREFIX_BYTES: usize = 5;

/// A key or value, where it was read.
#[derive(Clone, Debug)]
pub(crate) enum Slice {
    InFile(Bytes),
    /// From this byte on.
    InSled(sled::IVec, usize),
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::InFile(bytes) => bytes,
            Self::InSled(bytes, start) => bytes.get(*start..).unwrap_or_default(),
        }
    }
}

/// What a delta says of a key.
#[derive(Debug)]
pub(crate) enum Said {
    Value(Slice),
    Removed,
}

/// What is written of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Value(Vec<u8>),
    Removed,
    /// It cannot be told, because a damaged part of the snapshot would be needed. Whoever reads it gets that as an error.
    Unreadable,
}

/// A delta. One thread writes, any number read.
#[derive(Debug)]
pub(crate) struct Delta {
    tree: sled::Db,
    path: PathBuf,
    /// Whether nothing lies below, so that nothing has to be said of what is removed.
    is_lowest: bool,
}

/// The way in which a delta is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeltaSettings {
    pub(crate) cache_bytes: u64,
    pub(crate) flush_interval: Duration,
}

impl Delta {
    /// Opens or creates the delta in `path` and checks every entry. A new one begins with what is said of what lies
    /// `below`; one that lies over something else counts as damaged. Returns what it says of itself.
    pub(crate) fn open(
        path: &Path,
        settings: DeltaSettings,
        below: Meta,
    ) -> Result<(Self, Meta), StoreError> {
        guarded(|| {
            remove_unfinished_snapshots(path)?;
            wait_for_lock(path);
            let flush_every = u64::try_from(settings.flush_interval.as_millis()).unwrap_or(u64::MAX);
            let tree = sled::Config::new()
                .path(path)
                .cache_capacity(settings.cache_bytes)
                // Never None: sled collects its garbage only in the thread of this timer.
                .flush_every_ms(Some(flush_every.max(1)))
                .open()?;
            let meta = verified(&tree, below)?;
            Ok((Self { tree, path: path.to_owned(), is_lowest: below.base == 0 }, meta))
        })
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the delta says of a key; nothing if it does not know it.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Said>, StoreError> {
        let Some(value) = self.tree.get(key)? else { return Ok(None) };
        Ok(Some(opened(key, value)?.map_or(Said::Removed, Said::Value)))
    }

    /// The keys in a range, in order, each with its value, or nothing if it is removed.
    pub(crate) fn range(&self, from: Bound<&[u8]>, to: Option<&[u8]>) -> DeltaEntries {
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        DeltaEntries(self.tree.range::<&[u8], _>((from, to)))
    }

    /// Writes keys, and what the delta says of itself, all or nothing. The sum in `meta` is brought up to date.
    ///
    /// In one atomic batch, because sled flushes whenever it likes: after a crash it may have lost any number of
    /// the last batches, and the position tells from where the journal must be applied again.
    pub(crate) fn write(
        &self,
        writes: impl IntoIterator<Item = (Vec<u8>, Write)>,
        meta: &mut Meta,
    ) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, write) in writes {
            if let Some(before) = self.tree.get(&key)? {
                meta.subtract(&key, &before);
            }
            match write {
                Write::Removed if self.is_lowest => batch.remove(key),
                Write::Value(_) | Write::Removed | Write::Unreadable => {
                    let value = sealed(&key, &write);
                    meta.add(&key, &value);
                    batch.insert(key, value);
                }
            }
        }
        batch.insert(&META, meta.encode());
        Ok(self.tree.apply_batch(batch)?)
    }

    /// Reads and checks every value.
    pub(crate) fn check(&self, go_on: impl Fn() -> bool) -> Result<(), StoreError> {
        let mut values = self.range(Bound::Excluded(&META), None);
        while go_on() {
            match values.next() {
                Some(value) => value.map(|_| ())?,
                None => break,
            }
        }
        Ok(())
    }

    /// Proves that it can be read.
    pub(crate) fn probe(&self) -> Result<(), StoreError> {
        guarded(|| Ok(self.tree.get(META).map(|_| ())?))
    }

    /// Hands everything to the operating system. Not durable: see the module.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        guarded(|| Ok(self.tree.flush().map(|_| ())?))
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        Self::Sled(error.to_string())
    }
}

/// The entries of a delta.
pub(crate) struct DeltaEntries(sled::Iter);

impl std::fmt::Debug for DeltaEntries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeltaEntries").finish_non_exhaustive()
    }
}

impl Iterator for DeltaEntries {
    type Item = Result<(Slice, Option<Slice>), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let open = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = entry?;
            let value = opened(&key, value)?;
            Ok((Slice::InSled(key, 0), value))
        };
        self.0.next().map(open)
    }
}

/// Of which journal the sled in this directory is made, and up to which position, whichever build wrote it; nothing if
/// it cannot be told.
pub(crate) fn applied_in(path: &Path) -> Option<(Identity, u64)> {
    let read = || {
        remove_unfinished_snapshots(path)?;
        wait_for_lock(path);
        let tree = sled::Config::new().path(path).cache_capacity(1 << 20).open()?;
        Ok(tree.get(META)?.and_then(|meta| Meta::applied_of_any_format(&meta)))
    };
    guarded(read).ok().flatten()
}

/// Runs `act`; a panic in it is an error. sled panics on damaged files.
pub(crate) fn guarded<T>(act: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    panic::catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(StoreError::Panicked(text.unwrap_or_default()))
    })
}

fn checksum(key: &[u8], kind: u8, value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(key), &[kind]), value)
}

fn sealed(key: &[u8], write: &Write) -> Vec<u8> {
    let (kind, content) = match write {
        Write::Value(value) => (THERE, value.as_slice()),
        Write::Removed => (REMOVED, &[][..]),
        Write::Unreadable => (UNREADABLE, &[][..]),
    };
    let mut sealed = Vec::with_capacity(PREFIX_BYTES + content.len());
    sealed.push(kind);
    sealed.extend(checksum(key, kind, content).to_be_bytes());
    sealed.extend_from_slice(content);
    sealed
}

fn opened(key: &[u8], value: sled::IVec) -> Result<Option<Slice>, StoreError> {
    let damaged = StoreError::Damaged("a value is not as it was written");
    let Some(([kind, expected @ ..], content)) = value.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(damaged);
    };
    if checksum(key, *kind, content) != u32::from_be_bytes(*expected) {
        return Err(damaged);
    }
    match *kind {
        THERE => Ok(Some(Slice::InSled(value, PREFIX_BYTES))),
        REMOVED if content.is_empty() => Ok(None),
        UNREADABLE if content.is_empty() => Err(SortedError::Needed.into()),
        _ => Err(damaged),
    }
}

/// What must hold of any bytes.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(key: &[u8], value: &[u8]) {
    if let Ok(Some(content)) = opened(key, value.into()) {
        assert_eq!(sealed(key, &Write::Value(content.to_vec())), value);
    }
    let written = opened(key, sealed(key, &Write::Value(value.to_vec())).into());
    assert_eq!(written.ok().flatten().as_deref(), Some(value));
    assert!(matches!(opened(key, sealed(key, &Write::Removed).into()), Ok(None)));
    assert!(opened(key, sealed(key, &Write::Unreadable).into()).is_err());
    if let Some(meta) = Meta::decode(value) {
        assert_eq!(meta.encode(), value);
    }
}

/// Reads what the delta says of itself and checks every entry against it.
fn verified(tree: &sled::Db, below: Meta) -> Result<Meta, StoreError> {
    let Some(meta) = tree.get(META)? else {
        let empty = tree.iter().next().transpose()?.is_none();
        return if empty { Ok(below) } else { Err(StoreError::Damaged("it has no head")) };
    };
    let meta =
        Meta::decode(&meta).ok_or(StoreError::Damaged("its head is unreadable or of another format"))?;
    if meta.identity != below.identity {
        return Err(StoreError::Damaged("it is made from another journal"));
    }
    if meta.base != below.base {
        return Err(StoreError::Damaged("it lies over another snapshot"));
    }
    let mut found = Meta { entries: 0, sum: 0, ..meta };
    for entry in tree.range(META.to_vec()..) {
        let (key, value) = entry?;
        if *key != META {
            found.add(&key, &value);
        }
        // In damaged files the iteration may run in a circle and never end.
        if found.entries > meta.entries {
            break;
        }
    }
    if found == meta {
        Ok(meta)
    } else {
        Err(StoreError::Damaged("its entries are not those that were written"))
    }
}

/// Removes what a kill during sled's opening leaves: while such a file is there, every further opening reports
/// corruption.
fn remove_unfinished_snapshots(path: &Path) -> Result<(), StoreError> {
    if !path.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Waits until sled's files are not locked. Its own threads may keep them a moment longer than the instance that was
/// closed, and opening them then would be taken for damage. Another process cannot have them: it would hold the lock
/// on the data directory.
fn wait_for_lock(path: &Path) {
    let Ok(file) = File::open(path.join("db")) else { return };
    let begun = Instant::now();
    while file.try_lock().is_err() && begun.elapsed() < LOCK_LIMIT {
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<(Delta, Meta), StoreError> {
        let settings = DeltaSettings { cache_bytes: 1 << 20, flush_interval: Duration::from_millis(100) };
        Delta::open(path, settings, Meta::empty(Identity([7; 16])))
    }

    /// What opening says after `tamper`, which sled itself finds in order.
    #[track_caller]
    fn check(tamper: impl FnOnce(&sled::Db), expected: Option<&str>) {
        let directory = tempfile::tempdir().unwrap();
        let (delta, mut meta) = open(directory.path()).unwrap();
        let value = |n| if n < 15 { Write::Value(vec![n; 20]) } else { Write::Removed };
        let values = (1..20).map(|n| (vec![n], value(n)));
        delta.write(values, &mut meta).unwrap();
        tamper(&delta.tree);
        drop(delta);
        let error = open(directory.path()).err();
        let expected = expected.map(|what| format!("the index in sled is damaged: {what}"));
        assert_eq!(error.map(|error| error.to_string()), expected);
    }

    #[test]
    fn what_was_not_written_as_it_is_is_noticed() {
        let first = |tree: &sled::Db| tree.get_gt(META).unwrap().unwrap();
        let entries = Some("its entries are not those that were written");
        check(|_| {}, None);
        check(|tree| drop(tree.remove(first(tree).0)), entries);
        check(|tree| drop(tree.insert(first(tree).0, "other")), entries);
        check(|tree| drop(tree.insert([1, 2, 3], "one too many")), entries);
        let swap = |tree: &sled::Db| {
            let (one, of_one) = first(tree);
            let (other, of_other) = tree.get_gt(&one).unwrap().unwrap();
            tree.insert(one, of_other).unwrap();
            tree.insert(other, of_one).unwrap();
        };
        check(swap, entries);
        check(|tree| drop(tree.remove(META)), Some("it has no head"));
        let head = Some("its head is unreadable or of another format");
        check(|tree| drop(tree.insert(META, "head")), head);
        let other = Meta::empty(Identity([8; 16])).encode();
        check(|tree| drop(tree.insert(META, other)), Some("it is made from another journal"));
        let other = Meta { base: 5, ..Meta::empty(Identity([7; 16])) }.encode();
        check(|tree| drop(tree.insert(META, other)), Some("it lies over another snapshot"));
    }

    #[test]
    fn a_value_that_changes_under_an_open_delta_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (delta, mut meta) = open(directory.path()).unwrap();
        let value = || Write::Value(vec![9; 20]);
        delta.write([(vec![1], value()), (vec![2], value())], &mut meta).unwrap();
        let (one, other) = (delta.tree.get([1]).unwrap().unwrap(), sealed(&[2], &Write::Removed));
        for wrong in [&one[..], &other[..other.len() - 1], &[], &[THERE; 9]] {
            delta.tree.insert([2], wrong).unwrap();
            assert!(delta.get(&[2]).is_err(), "{wrong:?}");
            assert!(delta.check(|| true).is_err());
        }
        delta.tree.insert([2], other).unwrap();
        assert!(matches!(delta.get(&[2]), Ok(Some(Said::Removed))));
        assert!(matches!(delta.get(&[3]), Ok(None)));
        assert!(matches!(delta.get(&[1]), Ok(Some(Said::Value(value))) if *value == [9; 20]));
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = guarded::<()>(|| panic!("of this {}", "kind")).unwrap_err();
        assert_eq!(error.to_string(), "sled panicked: of this kind");
    }
}
