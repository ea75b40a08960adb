//! All that is remembered of a registry, in one place. Everything here has a life time and a bound, and is
//! forgotten at once by whatever is written to its repository through refshim.
//!
//! Every key begins with an [`Epoch`], which stands for a repository between two writes. Whoever asks the
//! registry takes the epoch first; what was asked before a write is thus put where nobody looks after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use moka::sync::Cache;
use tokio::time::Instant;

use super::question::{Caller, CallerKey};
use crate::index::Repository;
use crate::oci::Digest;

/// How many of each kind are remembered; at some 200 bytes each, a few ten MiB in all.
const REPOSITORIES: u64 = 20_000;
const CALLERS: u64 = 50_000;
const MERGES: u64 = 50_000;
const ABSENT: u64 = 100_000;
const STRANGERS: u64 = 100_000;
const ACCESS_CONTROLS: u64 = 1_000;

/// For how long a caller who was told 404 for a manifest is not told it again by a further question.
const ABSENT_FOR: Duration = Duration::from_secs(2);
/// The longest that an entry of a referrers tag which is not there goes unasked; doubles from [`ABSENT_FOR`] on.
const ABSENT_AT_MOST: Duration = Duration::from_secs(30);
/// For how long it is believed that HEAD and GET are answered alike.
const HEAD_TRUSTED_FOR: Duration = Duration::from_secs(5 * 60);
const ACCESS_CONTROL_FOR: Duration = Duration::from_secs(10 * 60);

/// A repository between two writes through refshim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Epoch(u64);

/// What the registry listed of one subject, all of which is in the index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    /// When the registry was asked.
    pub(super) asked: Instant,
    /// What it said, told apart from what it said before.
    pub(super) fingerprint: ListFingerprint,
    /// Whether a listed manifest was not there, so that it has to be asked for again.
    pub(super) is_undecided: bool,
}

/// A hash of the lists that the registry gave.
pub(super) type ListFingerprint = [u8; 32];

/// A manifest that somebody was told is not there.
#[derive(Clone, Copy, Debug)]
struct Missing {
    told: Instant,
    pause: Duration,
}

/// What is remembered.
#[derive(Debug)]
pub(super) struct Memory {
    epochs: Cache<Repository, Epoch>,
    latest: AtomicU64,
    readable: Cache<(Epoch, CallerKey), ()>,
    /// Of everybody, or of one caller to whom the registry did not answer for sure.
    merges: Cache<(Epoch, Option<CallerKey>, Digest), Merge>,
    without_api: Cache<(Epoch, Option<CallerKey>), ()>,
    missing: Cache<(Epoch, CallerKey, Digest), Missing>,
    /// (manifest, subject): by its bytes the one does not refer to the other, so that this never changes.
    strangers: Cache<(Digest, Digest), ()>,
    access_controls: Cache<CallerKey, Arc<HeaderMap>>,
    began: Instant,
    /// Milliseconds from `began` until which a 404 to a HEAD is believed.
    head_trusted_until: AtomicU64,
}

impl Memory {
    /// A yes of the registry lives for `access_ttl`, a list for `upstream_ttl`, and one that stands in for
    /// a registry that fails for `stale_for`.
    pub(super) fn new(access_ttl: Duration, upstream_ttl: Duration, stale_for: Duration) -> Self {
        fn cache<K, V>(capacity: u64, life: Duration) -> Cache<K, V>
        where
            K: std::hash::Hash + Eq + Send + Sync + 'static,
            V: Clone + Send + Sync + 'static,
        {
            Cache::builder().max_capacity(capacity).time_to_live(life).build()
        }
        Self {
            epochs: Cache::new(REPOSITORIES),
            latest: AtomicU64::new(0),
            readable: cache(CALLERS, access_ttl),
            merges: cache(MERGES, upstream_ttl.max(stale_for)),
            without_api: cache(CALLERS, upstream_ttl),
            missing: cache(ABSENT, 2 * ABSENT_AT_MOST),
            strangers: cache(STRANGERS, Duration::from_secs(24 * 60 * 60)),
            access_controls: cache(ACCESS_CONTROLS, ACCESS_CONTROL_FOR),
            began: Instant::now(),
            head_trusted_until: AtomicU64::new(0),
        }
    }

    /// The present epoch of a repository. Taken before a question; what is remembered of the answer goes
    /// under it.
    pub(super) fn epoch(&self, repository: &Repository) -> Epoch {
        let next = || Epoch(self.latest.fetch_add(1, Ordering::Relaxed));
        self.epochs.get_with_by_ref(repository, next)
    }

    /// Forgets all that is remembered of a repository.
    pub(super) fn forget(&self, repository: &Repository) {
        self.epochs.invalidate(repository);
    }

    /// Whether the registry lately gave the caller a manifest of the repository.
    pub(super) fn is_readable(&self, epoch: Epoch, caller: &Caller) -> bool {
        self.readable.contains_key(&(epoch, caller.key))
    }

    pub(super) fn set_readable(&self, epoch: Epoch, caller: &Caller) {
        self.readable.insert((epoch, caller.key), ());
    }

    /// The last complete list of a subject's referrers.
    pub(super) fn merge(&self, epoch: Epoch, caller: &Caller, subject: &Digest) -> Option<Merge> {
        let own = self.merges.get(&(epoch, Some(caller.key), subject.clone()));
        let everybodys = self.merges.get(&(epoch, None, subject.clone()));
        // The later one.
        own.into_iter().chain(everybodys).max_by_key(|merge| merge.asked)
    }

    /// One that `is_sure` counts for everybody who may read the repository.
    pub(super) fn set_merge(
        &self,
        epoch: Epoch,
        caller: &Caller,
        subject: &Digest,
        merge: Merge,
        is_sure: bool,
    ) {
        let caller = Some(caller.key).filter(|_| !is_sure);
        self.merges.insert((epoch, caller, subject.clone()), merge);
    }

    /// Whether the registry lately gave this caller no referrers API for the repository.
    pub(super) fn is_without_api(&self, epoch: Epoch, caller: &Caller) -> bool {
        let keys = [None, Some(caller.key)];
        keys.into_iter().any(|caller| self.without_api.contains_key(&(epoch, caller)))
    }

    /// For everybody if that `is_sure`.
    pub(super) fn set_without_api(&self, epoch: Epoch, caller: &Caller, is_sure: bool) {
        self.without_api.insert((epoch, Some(caller.key).filter(|_| !is_sure)), ());
    }

    /// Whether the caller was told a moment ago that this manifest is not there.
    pub(super) fn was_just_missing(&self, epoch: Epoch, caller: &Caller, manifest: &Digest) -> bool {
        let key = (epoch, caller.key, manifest.clone());
        self.missing.get(&key).is_some_and(|missing| missing.told.elapsed() < ABSENT_FOR)
    }

    /// Whether it is too early to ask again for an entry of a referrers tag that is not there.
    pub(super) fn is_put_off(&self, epoch: Epoch, caller: &Caller, manifest: &Digest) -> bool {
        let key = (epoch, caller.key, manifest.clone());
        self.missing.get(&key).is_some_and(|missing| missing.told.elapsed() < missing.pause)
    }

    /// Whether the caller was ever told so, in this epoch.
    pub(super) fn was_missing(&self, epoch: Epoch, caller: &Caller, manifest: &Digest) -> bool {
        self.missing.contains_key(&(epoch, caller.key, manifest.clone()))
    }

    /// Notes that the caller was told that this manifest is not there. With `patience` each time doubles the
    /// pause before the next question.
    pub(super) fn set_missing(&self, epoch: Epoch, caller: &Caller, manifest: &Digest, patience: bool) {
        let key = (epoch, caller.key, manifest.clone());
        let before = self.missing.get(&key).filter(|_| patience);
        let pause = before.map_or(ABSENT_FOR, |before| (before.pause * 2).min(ABSENT_AT_MOST));
        self.missing.insert(key, Missing { told: Instant::now(), pause });
    }

    /// Whether this manifest is known not to refer to that subject.
    pub(super) fn is_stranger(&self, manifest: &Digest, subject: &Digest) -> bool {
        self.strangers.contains_key(&(manifest.clone(), subject.clone()))
    }

    pub(super) fn set_stranger(&self, manifest: &Digest, subject: &Digest) {
        self.strangers.insert((manifest.clone(), subject.clone()), ());
    }

    /// What the registry lately said to the caller of who may read its answers in a browser.
    pub(super) fn access_control(&self, caller: &Caller) -> Option<Arc<HeaderMap>> {
        self.access_controls.get(&caller.key)
    }

    pub(super) fn set_access_control(&self, caller: &Caller, headers: HeaderMap) {
        self.access_controls.insert(caller.key, Arc::new(headers));
    }

    /// Whether the registry lately answered a HEAD as it answers a GET. Some proxies block HEAD, with 404 too.
    pub(super) fn trusts_head(&self) -> bool {
        self.head_trusted_until.load(Ordering::Relaxed) > self.now()
    }

    pub(super) fn trust_head(&self) {
        let life = u64::try_from(HEAD_TRUSTED_FOR.as_millis()).unwrap_or(u64::MAX);
        self.head_trusted_until.store(self.now().saturating_add(life), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
