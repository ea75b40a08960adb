//! The cache of what a registry answered. Every kind of entry has a life time and a maximum number, and a write
//! through refshim to the repository expires all of them at once: a push is visible in the very next query.
//!
//! Most keys begin with an [`Epoch`], the time of a repository between two writes. A question takes the epoch before
//! it is sent and caches its answer under it. So an answer that a write overtook ends up under an epoch that nobody
//! looks up any more; without this order, a list read just before a push would hide the push until it expires.
//!
//! Answers about rights, and those that one caller got but another may not get, are keyed by the caller as well.
//! Only what is certain for every reader of the repository is shared.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ahash::RandomState;
use http::HeaderMap;
use tokio::time::Instant;

use super::question::{Caller, CallerKey};
use crate::index::{Repository, Version};
use crate::oci::Digest;

// The maximum number of entries; at about 200 bytes each, 75 MiB if all are full.
const REPOSITORIES: u64 = 20_000;
const CALLERS: u64 = 50_000;
const MERGES: u64 = 50_000;
const ABSENT: u64 = 100_000;
const STRANGERS: u64 = 100_000;
const ACCESS_CONTROLS: u64 = 1_000;

/// How long a 404 for a manifest is cached for its caller. Short: Quay and distribution on S3 answer 404 for seconds
/// after their own 201.
const ABSENT_FOR: Duration = Duration::from_secs(2);
/// The longest pause before a missing entry of a referrers tag is requested again; it doubles from [`ABSENT_FOR`].
const ABSENT_AT_MOST: Duration = Duration::from_secs(30);
/// How long a proper answer to HEAD vouches for a 404 to HEAD.
const HEAD_TRUSTED_FOR: Duration = Duration::from_secs(5 * 60);
const ACCESS_CONTROL_FOR: Duration = Duration::from_secs(10 * 60);

/// With a keyed hash, since clients choose what is in the keys, that takes a fraction of the standard library's: a query
/// looks up half a dozen.
type Cache<K, V> = moka::sync::Cache<K, V, RandomState>;

/// The time of a repository between two writes through refshim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Epoch(u64);

/// A completed merge: everything that the registry listed of one subject is in the index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    /// When it began.
    pub(super) asked: Instant,
    /// Of the lists that were merged.
    pub(super) fingerprint: ListFingerprint,
    /// Whether a listed manifest was missing, so that the same lists have to be merged again.
    pub(super) is_undecided: bool,
}

/// A hash of the lists that the registry served.
pub(super) type ListFingerprint = [u8; 32];

/// A 404 for a manifest.
#[derive(Clone, Copy, Debug)]
struct Missing {
    told: Instant,
    pause: Duration,
    /// Of the referrer in the index, if it is one. A push through another replica ends no epoch here, but changes the
    /// version, and the 404 says nothing about what was pushed since.
    version: Option<Version>,
}

/// The cache of one registry.
#[derive(Debug)]
pub(super) struct Memory {
    epochs: Cache<Repository, Epoch>,
    latest: Arc<AtomicU64>,
    readable: Cache<(Epoch, CallerKey), ()>,
    /// Shared by all callers, or for one caller if the registry's answer may not hold for others.
    merges: Cache<(Epoch, Option<CallerKey>, Digest), Merge>,
    without_api: Cache<(Epoch, Option<CallerKey>), ()>,
    missing: Cache<(Epoch, CallerKey, Digest), Missing>,
    /// (manifest, subject): the manifest's bytes do not name the subject. That cannot change, so no epoch.
    strangers: Cache<(Digest, Digest), ()>,
    access_controls: Cache<CallerKey, Arc<HeaderMap>>,
    began: Instant,
    /// Milliseconds after `began` until which a 404 to a HEAD counts.
    head_trusted_until: AtomicU64,
}

impl Memory {
    /// Rights expire after `access_ttl`; lists after `upstream_ttl`, but are kept for `stale_for` to answer while the
    /// registry fails.
    pub(super) fn new(access_ttl: Duration, upstream_ttl: Duration, stale_for: Duration) -> Self {
        Self {
            epochs: moka::sync::Cache::builder()
                .max_capacity(REPOSITORIES)
                .build_with_hasher(RandomState::new()),
            latest: Arc::default(),
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

    /// A cache with other life times, which goes on from this one. It is in the same epochs, so a write that is known
    /// to either expires what both remember of the repository.
    pub(super) fn with_lives(
        &self,
        access_ttl: Duration,
        upstream_ttl: Duration,
        stale_for: Duration,
    ) -> Self {
        Self {
            epochs: self.epochs.clone(),
            latest: Arc::clone(&self.latest),
            missing: self.missing.clone(),
            strangers: self.strangers.clone(),
            access_controls: self.access_controls.clone(),
            ..Self::new(access_ttl, upstream_ttl, stale_for)
        }
    }

    /// The current epoch of a repository. To be taken before a question is sent; its answer is cached under it.
    pub(super) fn epoch(&self, repository: &Repository) -> Epoch {
        let next = || Epoch(self.latest.fetch_add(1, Ordering::Relaxed));
        self.epochs.get_with_by_ref(repository, next)
    }

    /// Expires everything cached of a repository, by ending its epoch.
    pub(super) fn forget(&self, repository: &Repository) {
        self.epochs.invalidate(repository);
    }

    /// Whether the registry lately proved that the caller may read the repository.
    pub(super) fn is_readable(&self, epoch: Epoch, caller: &Caller) -> bool {
        self.readable.contains_key(&(epoch, caller.key))
    }

    pub(super) fn set_readable(&self, epoch: Epoch, caller: &Caller) {
        self.readable.insert((epoch, caller.key), ());
    }

    /// The last completed merge of a subject's referrers, for this caller.
    pub(super) fn merge(&self, epoch: Epoch, caller: &Caller, subject: &Digest) -> Option<Merge> {
        let own = self.merges.get(&(epoch, Some(caller.key), subject.clone()));
        let everybodys = self.merges.get(&(epoch, None, subject.clone()));
        own.into_iter().chain(everybodys).max_by_key(|merge| merge.asked)
    }

    /// A merge that `is_sure` counts for everybody who may read the repository.
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

    /// Whether the registry lately showed no referrers API to this caller.
    pub(super) fn is_without_api(&self, epoch: Epoch, caller: &Caller) -> bool {
        let keys = [None, Some(caller.key)];
        keys.into_iter().any(|caller| self.without_api.contains_key(&(epoch, caller)))
    }

    /// Remembers that there is no referrers API: for everybody if that `is_sure`, else for this caller.
    pub(super) fn set_without_api(&self, epoch: Epoch, caller: &Caller, is_sure: bool) {
        self.without_api.insert((epoch, Some(caller.key).filter(|_| !is_sure)), ());
    }

    /// Whether the caller got a 404 for this version of a referrer a moment ago.
    pub(super) fn was_just_missing(
        &self,
        epoch: Epoch,
        caller: &Caller,
        manifest: &Digest,
        version: Version,
    ) -> bool {
        let key = (epoch, caller.key, manifest.clone());
        let is_current =
            |missing: Missing| missing.version == Some(version) && missing.told.elapsed() < ABSENT_FOR;
        self.missing.get(&key).is_some_and(is_current)
    }

    /// Whether it is too early to request a missing entry of a referrers tag again.
    pub(super) fn is_put_off(&self, epoch: Epoch, caller: &Caller, manifest: &Digest) -> bool {
        let key = (epoch, caller.key, manifest.clone());
        self.missing.get(&key).is_some_and(|missing| missing.told.elapsed() < missing.pause)
    }

    /// Whether the caller got a 404 for this manifest in this epoch.
    pub(super) fn was_missing(&self, epoch: Epoch, caller: &Caller, manifest: &Digest) -> bool {
        self.missing.contains_key(&(epoch, caller.key, manifest.clone()))
    }

    /// Remembers that the caller got a 404 for this version of a referrer.
    pub(super) fn set_missing(&self, epoch: Epoch, caller: &Caller, manifest: &Digest, version: Version) {
        let missing = Missing { told: Instant::now(), pause: ABSENT_FOR, version: Some(version) };
        self.missing.insert((epoch, caller.key, manifest.clone()), missing);
    }

    /// Remembers that the caller got a 404 for this entry of a referrers tag. The pause before the next request doubles
    /// each time.
    pub(super) fn put_off(&self, epoch: Epoch, caller: &Caller, manifest: &Digest) {
        let key = (epoch, caller.key, manifest.clone());
        let before = self.missing.get(&key);
        let pause = before.map_or(ABSENT_FOR, |before| (before.pause * 2).min(ABSENT_AT_MOST));
        self.missing.insert(key, Missing { told: Instant::now(), pause, version: None });
    }

    /// Whether the manifest's bytes are known not to name the subject.
    pub(super) fn is_stranger(&self, manifest: &Digest, subject: &Digest) -> bool {
        self.strangers.contains_key(&(manifest.clone(), subject.clone()))
    }

    pub(super) fn set_stranger(&self, manifest: &Digest, subject: &Digest) {
        self.strangers.insert((manifest.clone(), subject.clone()), ());
    }

    /// The CORS headers that the registry lately sent to the caller.
    pub(super) fn access_control(&self, caller: &Caller) -> Option<Arc<HeaderMap>> {
        self.access_controls.get(&caller.key)
    }

    pub(super) fn set_access_control(&self, caller: &Caller, headers: HeaderMap) {
        self.access_controls.insert(caller.key, Arc::new(headers));
    }

    /// Whether a 404 to a HEAD counts, because the registry lately answered another HEAD properly. Some proxies block
    /// HEAD with a 404.
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

fn cache<K, V>(capacity: u64, life: Duration) -> Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    moka::sync::Cache::builder()
        .max_capacity(capacity)
        .time_to_live(life)
        .build_with_hasher(RandomState::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_expires_what_is_remembered_with_other_lives_too() {
        let lives = |seconds: u64| [1, 2, 3].map(|factor| Duration::from_secs(factor * seconds));
        let [access, upstream, stale] = lives(1);
        let before = Memory::new(access, upstream, stale);
        let [access, upstream, stale] = lives(10);
        let after = before.with_lives(access, upstream, stale);
        let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
        for (one, other) in [(&before, &after), (&after, &before)] {
            let epoch = one.epoch(&repository);
            assert_eq!(other.epoch(&repository), epoch);
            one.forget(&repository);
            assert_ne!(other.epoch(&repository), epoch);
        }
    }
}
