//! The index as it is read: a snapshot, and the deltas that lie over it.
//!
//! The journal's snapshot is sorted, so it is an index of itself ([`snapshot`]). What changed since is in a delta, a
//! sled of its own ([`super::sled`]). A look-up asks the delta first; a scan merges both ([`merge`]). So what an opening
//! has to read, and what sled takes of memory and disk, depends on what is new, not on how much there is: with
//! everything in sled, ten million links took 28 GB, 1.2 GB of memory, and 80 seconds to open.
//!
//! A compaction merges both into the next snapshot ([`super::compaction`]). While that runs there are two deltas: an
//! *older* one, which does not change any more, and the one that is written.
//!
//! What is written is decided in [`changes`]; keys and values are described in [`layout`].

use std::mem::ManuallyDrop;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

mod changes;
pub(crate) mod layout;
mod left;
mod merge;
mod read;
pub(crate) mod snapshot;
mod stamps;
mod walk;

pub(crate) use changes::Changes;
use merge::Merge;
pub(crate) use snapshot::SortedSnapshot;
use stamps::{Changed, Stamps};

use super::sled::{Delta, DeltaSettings, Meta, Said, Slice, Write, guarded};
use super::sorted::SortedError;
use crate::index::{Repository, Stamp};

/// How often it is looked whether a delta is still read.
const READ_LIMIT: Duration = Duration::from_millis(100);

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("sled: {0}")]
    Sled(String),
    #[error("sled panicked: {0}")]
    Panicked(String),
    #[error("sled's directory: {0}")]
    Directory(#[from] std::io::Error),
    #[error("the index in sled is damaged: {0}")]
    Damaged(&'static str),
    /// A part of the snapshot cannot be read. All that does not need it goes on.
    #[error(transparent)]
    Snapshot(#[from] SortedError),
}

/// The index. One thread writes, any number read.
#[derive(Debug)]
pub(crate) struct Store {
    view: RwLock<Arc<View>>,
    /// Of the delta that is written.
    meta: Mutex<Meta>,
    /// Of the older delta, when it was closed to writes.
    older: Mutex<Option<Meta>>,
    stamps: Stamps,
}

/// What the index consists of at one moment. Whoever reads several entries reads them from one view.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The newest first.
    deltas: Vec<Arc<Delta>>,
    snapshot: Option<Arc<SortedSnapshot>>,
}

/// What a compaction merges.
#[derive(Debug)]
pub(crate) struct Older {
    pub(crate) view: View,
    /// What there is in it.
    pub(crate) meta: Meta,
}

impl Store {
    /// Opens the delta in `path`, or creates it, over this snapshot.
    pub(crate) fn open(
        path: &Path,
        settings: DeltaSettings,
        below: Meta,
        snapshot: Option<Arc<SortedSnapshot>>,
    ) -> Result<Self, StoreError> {
        let (delta, meta) = Delta::open(path, settings, below)?;
        let view = RwLock::new(Arc::new(View { deltas: vec![Arc::new(delta)], snapshot }));
        Ok(Self { view, meta: Mutex::new(meta), older: Mutex::default(), stamps: Stamps::default() })
    }

    /// What the index says of itself, as of the last batch.
    pub(crate) fn meta(&self) -> Meta {
        *self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stamp of a repository's lists.
    pub(crate) fn stamp(&self, repository: &Repository) -> Option<Stamp> {
        self.stamps.of(repository)
    }

    /// What is read now.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change_view(&self, change: impl FnOnce(&mut View)) {
        change(Arc::make_mut(&mut self.view.write().unwrap_or_else(PoisonError::into_inner)));
    }

    fn lock_older(&self) -> std::sync::MutexGuard<'_, Option<Meta>> {
        self.older.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the changes and the journal's position that they reach, all or nothing.
    pub(crate) fn write(&self, changes: Changes, applied: u64) -> Result<(), StoreError> {
        // When this returns: the new stamp must not be seen before what it stands for, or the lists of before would be
        // kept under it. After a failure as well, when nobody knows what can be seen.
        let _ended = Changed { stamps: &self.stamps, repositories: changes.repositories() };
        let mut meta = self.meta();
        meta.applied = applied;
        let writes = changes.into_writes(&mut meta)?;
        let view = self.view();
        let delta = view.deltas.first().ok_or(StoreError::Damaged("there is no delta"))?;
        guarded(|| delta.write(writes, &mut meta))?;
        *self.meta.lock().unwrap_or_else(PoisonError::into_inner) = meta;
        Ok(())
    }

    /// Has everything be written to the delta in `path` from now on, which begins at this position of the journal. What
    /// there is so far does not change any more.
    pub(crate) fn begin_delta(
        &self,
        path: &Path,
        settings: DeltaSettings,
        base: u64,
    ) -> Result<(), StoreError> {
        let older = Meta { applied: base, ..self.meta() };
        let (delta, meta) = Delta::open(path, settings, older.over(base))?;
        self.change_view(|view| view.deltas.insert(0, Arc::new(delta)));
        *self.lock_older() = Some(older);
        *self.meta.lock().unwrap_or_else(PoisonError::into_inner) = meta;
        Ok(())
    }

    /// What does not change any more since the newest delta was begun; nothing if it is the only one.
    pub(crate) fn older(&self) -> Option<Older> {
        let meta = (*self.lock_older())?;
        let mut view = View::clone(&self.view());
        view.deltas.remove(0);
        Some(Older { view, meta })
    }

    /// Puts the snapshot in the place of all that it was made from. Returns the threads that remove that.
    pub(crate) fn replace_older(&self, snapshot: Arc<SortedSnapshot>) -> Vec<JoinHandle<()>> {
        let mut replaced = Vec::new();
        self.change_view(|view| {
            view.snapshot = Some(snapshot);
            replaced = view.deltas.split_off(1);
        });
        *self.lock_older() = None;
        replaced.into_iter().filter_map(discard).collect()
    }

    /// Hands everything to the operating system. Not durable: see [`super::sled`].
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.view().deltas.iter().try_for_each(|delta| delta.flush())
    }

    /// Closes a store that failed, without waiting for it.
    pub(crate) fn abandon(store: Arc<Self>) {
        abandon(store);
    }
}

impl View {
    /// A view of nothing but a snapshot.
    pub(crate) fn of(snapshot: Arc<SortedSnapshot>) -> Self {
        Self { deltas: Vec::new(), snapshot: Some(snapshot) }
    }

    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        for delta in &self.deltas {
            match delta.get(key)? {
                Some(Said::Value(value)) => return Ok(Some(value)),
                Some(Said::Removed) => return Ok(None),
                None => {}
            }
        }
        let Some(snapshot) = &self.snapshot else { return Ok(None) };
        Ok(snapshot.file.get(key)?.map(Slice::InFile))
    }

    /// The entries from one key to another, which is not among them; to the last one without.
    fn range(&self, from: Bound<&[u8]>, to: Option<&[u8]>) -> Merge {
        Merge::new(&self.deltas, self.snapshot.as_deref(), from, to)
    }

    /// The entries whose keys begin like this.
    fn prefixed(&self, prefix: &[u8]) -> Merge {
        self.range(Bound::Included(prefix), prefix_end(prefix).as_deref())
    }

    /// All entries, in order.
    pub(crate) fn all(&self) -> Merge {
        self.range(Bound::Included(&layout::FIRST), None)
    }

    /// The deltas, the newest first.
    pub(crate) fn deltas(&self) -> &[Arc<Delta>] {
        &self.deltas
    }

    /// The snapshot.
    pub(crate) fn snapshot(&self) -> Option<&SortedSnapshot> {
        self.snapshot.as_deref()
    }

    /// Proves that the index can be read.
    pub(crate) fn probe(&self) -> Result<(), StoreError> {
        self.deltas.iter().try_for_each(|delta| delta.probe())
    }
}

/// The first key behind all that begin like this, if there is one.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

/// Closes a delta that is not needed any more and removes it, once nobody reads it.
fn discard(delta: Arc<Delta>) -> Option<JoinHandle<()>> {
    // If the system gives no thread, it is kept until the process ends.
    let delta = ManuallyDrop::new(delta);
    let discard = move || {
        let mut delta = ManuallyDrop::into_inner(delta);
        let path = delta.path().to_owned();
        let delta = loop {
            match Arc::try_unwrap(delta) {
                Ok(delta) => break delta,
                Err(read) => delta = read,
            }
            thread::sleep(READ_LIMIT);
        };
        close(delta);
        // If this fails, the next opening removes it.
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(directory = %path.display(), %error, "an old part of the index could not be removed");
        }
    };
    thread::Builder::new().name("index-discarding".to_owned()).spawn(discard).ok()
}

/// Closes what is not read any more, without waiting for it.
fn abandon(it: impl Send + 'static) {
    // On a thread of its own, because closing a sled may take a while, and one that failed may panic or never end. If
    // the system gives no thread, it is kept until the process ends.
    let it = ManuallyDrop::new(it);
    let close = move || close(ManuallyDrop::into_inner(it));
    thread::Builder::new().name("index-abandoned".to_owned()).spawn(close).ok();
}

fn close(it: impl Send) {
    let closed = guarded(|| {
        drop(it);
        Ok(())
    });
    if let Err(error) = closed {
        tracing::warn!(%error, "an index that failed could not be closed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key_that_does_not_begin_so() {
        assert_eq!(prefix_end(&[1, 2]), Some(vec![1, 3]));
        assert_eq!(prefix_end(&[1, 255]), Some(vec![2]));
        assert_eq!(prefix_end(&[255, 255]), None);
    }
}
