//! The index in sled: built from the journal, and rebuilt whenever it is damaged or missing. Only this module
//! knows sled. Keys and values are described in [`layout`].
//!
//! sled 0.34.7 does not sync, panics on damaged files (47 of 75 with flipped bytes) and at times reads wrong data
//! from them, so nothing rests on it alone:
//! - Every batch holds the journal's position and a sum over all entries ([`meta`]), checked at every opening.
//! - Every call that may panic is guarded; a panic is an error, upon which the index is rebuilt.
//! - It is flushed by its own timer only. What it loses in a crash is applied again from the journal. Its
//!   `flush_async` is never used: it can deadlock on sled's own I/O threads.
//! - The alphas of 1.0 are no way out: one of them lost all data two openings after a kill.

use std::fs::{self, File};
use std::mem::ManuallyDrop;
use std::ops::Bound;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

mod changes;
mod layout;
mod meta;
mod walk;

pub(crate) use changes::Changes;
pub(crate) use meta::Meta;

use super::journal::format::Identity;
use crate::index::record::ReferrerKey;
use crate::index::referrer_state::ReferrerState;
use crate::index::{Entry, Page, Repository, Scan};
use crate::oci::{Digest, RepositoryName};
use layout::Stored;

/// Of one page: more make it grow.
const USUAL_ENTRIES: usize = 16;

/// How long an opening waits for the threads of an instance that this process has just closed.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Why the index in sled cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("sled: {0}")]
    Sled(#[from] sled::Error),
    #[error("sled panicked: {0}")]
    Panicked(String),
    #[error("sled's directory: {0}")]
    Directory(#[from] std::io::Error),
    #[error("the index in sled is damaged: {0}")]
    Damaged(&'static str),
}

/// The index in sled. One thread writes, any number read.
#[derive(Debug)]
pub(crate) struct Store {
    tree: sled::Db,
    numbers: Mutex<Numbers>,
}

/// The description of the index, and how many referrers came and went since it was opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) meta: Meta,
    pub(crate) added: u64,
    pub(crate) removed: u64,
}

impl Store {
    /// Opens or creates the index in `path` and checks every entry. An index built from another journal than
    /// `identity` counts as damaged.
    pub(crate) fn open(
        path: &Path,
        cache_bytes: u64,
        flush_interval: Duration,
        identity: Identity,
    ) -> Result<Self, StoreError> {
        guarded(|| {
            remove_unfinished_snapshots(path)?;
            wait_for_lock(path);
            let flush_every = u64::try_from(flush_interval.as_millis()).unwrap_or(u64::MAX);
            let tree = sled::Config::new()
                .path(path)
                .cache_capacity(cache_bytes)
                // Never None: sled collects its garbage only in the thread of this timer.
                .flush_every_ms(Some(flush_every.max(1)))
                .open()?;
            let meta = Meta::verified(&tree, identity)?;
            Ok(Self { tree, numbers: Mutex::new(Numbers { meta, added: 0, removed: 0 }) })
        })
    }

    /// The numbers as of the last batch.
    pub(crate) fn numbers(&self) -> Numbers {
        *self.lock_numbers()
    }

    fn lock_numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of a referrer.
    pub(crate) fn referrer_state(&self, referrer: &ReferrerKey) -> Result<Option<ReferrerState>, StoreError> {
        guarded(|| match self.tree.get(layout::reverse_entry(referrer))? {
            Some(reverse) => self.complete(referrer, reverse),
            None => Ok(None),
        })
    }

    /// The referrer whose reverse entry is `reverse`, with its descriptor.
    fn complete(
        &self,
        referrer: &ReferrerKey,
        mut reverse: sled::IVec,
    ) -> Result<Option<ReferrerState>, StoreError> {
        loop {
            let Stored { value: mut state, has_descriptor } = layout::decode_reverse_entry(&reverse)
                .ok_or(StoreError::Damaged("a reverse entry is unreadable"))?;
            if has_descriptor {
                return Ok(Some(state));
            }
            if let Some(descriptor) = self.descriptor_in_link(referrer, &state)? {
                state.descriptor = descriptor;
                return Ok(Some(state));
            }
            // A batch was applied between the two look-ups: sled has no snapshot for several reads.
            match self.tree.get(layout::reverse_entry(referrer))? {
                None => return Ok(None),
                Some(again) if again == reverse => {
                    return Err(StoreError::Damaged("a referrer's link is missing"));
                }
                Some(again) => reverse = again,
            }
        }
    }

    fn descriptor_in_link(
        &self,
        referrer: &ReferrerKey,
        state: &ReferrerState,
    ) -> Result<Option<String>, StoreError> {
        let Some(subject) = state.links.keys().next() else { return Ok(None) };
        let key = layout::link(&referrer.repository, subject, state.order);
        let Some(value) = self.tree.get(&key)? else { return Ok(None) };
        let link = decode_link(&key, &value)?;
        Ok(link.has_descriptor.then_some(link.value.descriptor))
    }

    /// One page of the referrers of `subject`, oldest first, from one scan over its links alone.
    pub(crate) fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        scan: &Scan,
    ) -> Result<Page, StoreError> {
        let first = scan.after.map_or_else(
            || Bound::Included(layout::links_to(repository, subject)),
            |after| Bound::Excluded(layout::link(repository, subject, after)),
        );
        let mut behind = layout::links_to(repository, subject);
        behind.extend([0xff; size_of::<u64>() + 1]);
        guarded(|| {
            let entries = Vec::with_capacity(scan.max_entries.min(USUAL_ENTRIES));
            let mut page = Page { entries, more: false };
            let (mut bytes, mut claims) = (0, 0);
            for link in self.tree.range((first, Bound::Excluded(behind))) {
                let (key, value) = link?;
                let Some(entry) = self.complete_entry(repository, decode_link(&key, &value)?)? else {
                    continue;
                };
                if !(scan.accepts)(&entry) {
                    continue;
                }
                bytes += entry.descriptor.len() + 1;
                claims += usize::from(!entry.was_confirmed);
                let fits = (bytes <= scan.max_bytes && claims <= scan.max_claims) || page.entries.is_empty();
                if page.entries.len() >= scan.max_entries || !fits {
                    page.more = true;
                    break;
                }
                page.entries.push(entry);
            }
            Ok(page)
        })
    }

    /// The entry with its descriptor; none if the referrer was removed meanwhile.
    fn complete_entry(
        &self,
        repository: &Repository,
        stored: Stored<Entry>,
    ) -> Result<Option<Entry>, StoreError> {
        let Stored { value: entry, has_descriptor } = stored;
        if has_descriptor {
            return Ok(Some(entry));
        }
        let referrer = ReferrerKey { repository: repository.clone(), digest: entry.digest.clone() };
        let state = self.referrer_state(&referrer)?;
        Ok(state.map(|state| Entry { descriptor: state.descriptor, ..entry }))
    }

    /// All referrers that are there from the beginning of the iteration to its end. Of those added or removed
    /// meanwhile, some.
    pub(crate) fn all(&self) -> impl Iterator<Item = Result<(ReferrerKey, ReferrerState), StoreError>> {
        let complete = |reverse: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, reverse) = reverse?;
            let damaged = StoreError::Damaged("the key of a reverse entry is unreadable");
            let referrer = layout::referrer_of_reverse_entry(&key).ok_or(damaged)?;
            Ok(self.complete(&referrer, reverse)?.map(|state| (referrer, state)))
        };
        self.tree.scan_prefix(layout::REVERSE).filter_map(move |reverse| complete(reverse).transpose())
    }

    /// How many referrers a repository has.
    pub(crate) fn referrers_in(&self, repository: &Repository) -> Result<u64, StoreError> {
        guarded(|| {
            self.tree
                .get(layout::referrers_in(repository))?
                .map_or(Ok(0), |count| changes::decode_count(&count))
        })
    }

    /// The repositories of an upstream in which `subject` has referrers, by name.
    pub(crate) fn repositories(
        &self,
        upstream: u32,
        subject: &Digest,
    ) -> Result<Vec<RepositoryName>, StoreError> {
        guarded(|| {
            let prefix = layout::repositories_of(upstream, subject);
            let name = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
                let (key, _) = entry?;
                let name = key.strip_prefix(prefix.as_slice()).and_then(|name| str::from_utf8(name).ok());
                let name = name.and_then(|name| name.parse().ok());
                name.ok_or(StoreError::Damaged("the name of a repository is unreadable"))
            };
            self.tree.scan_prefix(&prefix).map(name).collect()
        })
    }

    /// Proves that the index can be read.
    pub(crate) fn probe(&self) -> Result<(), StoreError> {
        guarded(|| Ok(self.tree.get(layout::META).map(|_| ())?))
    }

    /// Hands everything to the operating system. Not durable: see the module.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        guarded(|| Ok(self.tree.flush().map(|_| ())?))
    }

    /// Closes a store that failed, without waiting for it.
    pub(crate) fn abandon(store: Arc<Self>) {
        // On a thread of its own, because closing such a sled may panic or never end. If the system gives no thread,
        // the store is kept until the process ends.
        let store = ManuallyDrop::new(store);
        let close = move || {
            let closed = guarded(|| {
                drop(ManuallyDrop::into_inner(store));
                Ok(())
            });
            if let Err(error) = closed {
                tracing::warn!(%error, "an index that failed could not be closed");
            }
        };
        thread::Builder::new().name("index-abandoned".to_owned()).spawn(close).ok();
    }
}

/// Runs `act`; a panic in it is an error. sled panics on damaged files.
pub(crate) fn guarded<T>(act: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    panic::catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(StoreError::Panicked(text.unwrap_or_default()))
    })
}

fn decode_link(key: &[u8], value: &[u8]) -> Result<Stored<Entry>, StoreError> {
    layout::decode_link(key, value).ok_or(StoreError::Damaged("a link is unreadable"))
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
    use crate::index::Version;
    use crate::index::record::{Record, Recorded};
    use crate::oci::{Link, LinkKind};

    const IDENTITY: Identity = Identity([7; 16]);

    fn open(path: &Path) -> Result<Store, StoreError> {
        Store::open(path, 1 << 20, Duration::from_millis(100), IDENTITY)
    }

    fn fill(store: &Store) {
        let mut changes = Changes::default();
        for n in 0..20 {
            let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
            let record = Record::Recorded(Recorded {
                referrer: ReferrerKey { repository, digest: Digest::Sha256([n; 32]) },
                order: u64::from(n),
                pending: false,
                claimed: false,
                was_confirmed: false,
                absent_since: None,
                version: None,
                descriptor: "{}".to_owned(),
                links: vec![Link { subject: Digest::Sha256([99; 32]), kind: LinkKind::Parent }],
            });
            changes.apply(store, record, Version(1)).unwrap();
        }
        store.write(changes, Some(1)).unwrap();
    }

    /// What opening says after `tamper`, which sled itself finds in order.
    #[track_caller]
    fn check(tamper: impl FnOnce(&sled::Db), expected: Option<&str>) {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).unwrap();
        fill(&store);
        tamper(&store.tree);
        drop(store);
        let error = open(directory.path()).err();
        let expected = expected.map(|what| format!("the index in sled is damaged: {what}"));
        assert_eq!(error.map(|error| error.to_string()), expected);
    }

    #[test]
    fn what_was_not_written_as_it_is_is_noticed() {
        let first_link = |tree: &sled::Db| tree.get_gt(layout::META).unwrap().unwrap();
        let entries = Some("its entries are not those that were written");
        check(|_| {}, None);
        check(|tree| drop(tree.remove(first_link(tree).0)), entries);
        check(|tree| drop(tree.insert(first_link(tree).0, "other")), entries);
        check(|tree| drop(tree.insert([1, 2, 3], "one too many")), entries);
        let swap = |tree: &sled::Db| {
            let (one, of_one) = first_link(tree);
            let (other, of_other) = tree.get_gt(&one).unwrap().unwrap();
            tree.insert(one, of_other).unwrap();
            tree.insert(other, of_one).unwrap();
        };
        check(swap, entries);
        check(|tree| drop(tree.remove(layout::META)), Some("it has no head"));
        let head = Some("its head is unreadable or of another format");
        check(|tree| drop(tree.insert(layout::META, "head")), head);
        let other = Meta::empty(Identity([8; 16])).encode();
        check(|tree| drop(tree.insert(layout::META, other)), Some("it is made from another journal"));
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = guarded::<()>(|| panic!("of this {}", "kind")).unwrap_err();
        assert_eq!(error.to_string(), "sled panicked: of this kind");
    }
}
