//! PUTs and upstream reads in progress, so that what they race with is not decided over their heads.
//!
//! Two races are prevented here:
//! - A referrer must not be forgotten while it is being PUT: the upstream may have answered 404 just before it took
//!   the manifest. So a removal marks the PUTs in progress, and the referrer stays, as pending.
//! - A referrer must not be recorded as present by a read that began before it was deleted. So a deletion marks the
//!   reads in progress, and whatever they found is recorded as pending.
//!
//! All of this lives in memory alone. A crash loses nothing by it: a PUT is recorded as pending before its manifest
//! goes upstream, and a read that was not recorded is simply not known.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::index::record::ReferrerKey;
use crate::index::{Repository, Version};

/// How many referrers may wait for their doubt to be written. PUTs whose outcome is unknown are far fewer; clients
/// that are answered 404 while sled is being opened are without number, so the set needs a bound.
const WAITING_DOUBTS: usize = 100_000;

/// The PUTs in progress, by referrer, and the referrers that the next commit doubts.
#[derive(Debug, Default)]
pub(crate) struct PutsInProgress(Mutex<PutTable>);

#[derive(Debug, Default)]
struct PutTable {
    puts: HashMap<ReferrerKey, OverlappingPuts>,
    doubts: HashSet<ReferrerKey>,
}

/// PUTs of one referrer that overlap in time.
#[derive(Debug)]
struct OverlappingPuts {
    count: usize,
    /// Whether one of them added the referrer to the index.
    created: bool,
    /// The version made by the last of them to begin.
    version: Option<Version>,
    /// Whether the upstream refused each one that has ended.
    all_refused: bool,
    /// Whether the referrer may have been deleted since one of them began.
    doubted: bool,
}

/// What was known of a referrer before a PUT of it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing.
    Unknown,
    /// It had this version; none if the index cannot be read now.
    Known(Option<Version>),
}

/// How a PUT ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PutOutcome {
    Unknown,
    Accepted,
    Refused,
}

/// One PUT in progress. Dropped without an outcome (the client or the upstream is gone), it has the referrer doubted:
/// the upstream must be asked whether it took the manifest.
#[derive(Debug)]
pub(crate) struct PutMark {
    puts: Arc<PutsInProgress>,
    key: ReferrerKey,
    outcome: PutOutcome,
}

/// The upstream reads in progress, by a number of their own.
#[derive(Debug, Default)]
pub(crate) struct ReadsInProgress(Mutex<ReadTable>);

#[derive(Debug, Default)]
struct ReadTable {
    last: u64,
    reads: HashMap<u64, (Repository, Arc<AtomicBool>)>,
}

/// One upstream read in progress. Tells whether a referrer of its repository was deleted since it began.
#[derive(Debug)]
pub(crate) struct ReadMark {
    reads: Arc<ReadsInProgress>,
    number: u64,
    repository: Repository,
    deletion: Arc<AtomicBool>,
}

impl PutsInProgress {
    /// Adds a PUT; `before` is the version that the referrer had, if it was known, `version` the one that its record
    /// made, if any.
    pub(crate) fn begin(
        self: &Arc<Self>,
        key: ReferrerKey,
        before: Before,
        version: Option<Version>,
    ) -> PutMark {
        let mut table = self.lock();
        let none =
            OverlappingPuts { count: 0, created: false, version: None, all_refused: true, doubted: false };
        let puts = table.puts.entry(key.clone()).or_insert(none);
        puts.count += 1;
        // What somebody else recorded between two of them is not theirs to take away.
        puts.created &= before == Before::Known(puts.version);
        puts.created |= before == Before::Unknown && version.is_some();
        puts.version = version.or(puts.version);
        PutMark { puts: Arc::clone(self), key, outcome: PutOutcome::Unknown }
    }

    /// Notes that the referrer may have been deleted. Returns whether a PUT of it is in progress.
    pub(crate) fn doubt(&self, key: &ReferrerKey) -> bool {
        let mut table = self.lock();
        let puts = table.puts.get_mut(key);
        puts.map(|puts| puts.doubted = true).is_some()
    }

    /// Whether the referrer is being PUT.
    pub(crate) fn any(&self, key: &ReferrerKey) -> bool {
        self.lock().puts.contains_key(key)
    }

    /// Notes that something else than a PUT told of the referrer: it is not theirs alone any more.
    pub(crate) fn told(&self, key: &ReferrerKey) {
        if let Some(puts) = self.lock().puts.get_mut(key) {
            puts.created = false;
        }
    }

    /// Has the next commit doubt the referrer.
    pub(crate) fn doubt_later(&self, key: ReferrerKey) {
        let mut table = self.lock();
        if table.doubts.len() < WAITING_DOUBTS {
            table.doubts.insert(key);
        }
    }

    /// Takes the referrers to doubt.
    pub(crate) fn take_doubts(&self) -> HashSet<ReferrerKey> {
        std::mem::take(&mut self.lock().doubts)
    }

    /// Whether there are referrers to doubt.
    pub(crate) fn has_doubts(&self) -> bool {
        !self.lock().doubts.is_empty()
    }

    /// How many referrers are being PUT.
    pub(crate) fn len(&self) -> usize {
        self.lock().puts.len()
    }

    fn lock(&self) -> MutexGuard<'_, PutTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PutMark {
    /// The referrer that is being PUT.
    pub(crate) fn key(&self) -> &ReferrerKey {
        &self.key
    }

    /// Whether the referrer may have been deleted while it was being PUT.
    pub(crate) fn is_doubted(&self) -> bool {
        self.puts.lock().puts.get(&self.key).is_some_and(|puts| puts.doubted)
    }

    /// Ends the PUT: the upstream accepted the manifest.
    pub(crate) fn end(mut self) {
        self.outcome = PutOutcome::Accepted;
    }

    /// Ends the PUT: the upstream refused the manifest. Returns the version to remove if nothing else is known of the
    /// referrer, because these PUTs added it and all of them were refused.
    pub(crate) fn refuse(mut self) -> Option<Version> {
        self.outcome = PutOutcome::Refused;
        let table = self.puts.lock();
        let puts = table.puts.get(&self.key)?;
        // Not before the last of them has ended: another one may still be accepted.
        let is_all = puts.count == 1 && puts.created && puts.all_refused;
        puts.version.filter(|_| is_all)
    }
}

impl Drop for PutMark {
    fn drop(&mut self) {
        let mut table = self.puts.lock();
        let Some(puts) = table.puts.get_mut(&self.key) else { return };
        puts.count -= 1;
        puts.all_refused &= self.outcome == PutOutcome::Refused;
        if puts.count == 0 {
            table.puts.remove(&self.key);
        }
        // `doubt_later` takes the same lock.
        drop(table);
        if self.outcome == PutOutcome::Unknown {
            self.puts.doubt_later(self.key.clone());
        }
    }
}

impl ReadsInProgress {
    /// Adds a read of the repository.
    pub(crate) fn begin(self: &Arc<Self>, repository: Repository) -> ReadMark {
        let deletion = Arc::new(AtomicBool::new(false));
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        table.reads.insert(number, (repository.clone(), Arc::clone(&deletion)));
        drop(table);
        ReadMark { reads: Arc::clone(self), number, repository, deletion }
    }

    /// Marks all reads of the repository: one of its referrers may have been deleted.
    pub(crate) fn note_deletion(&self, repository: &Repository) {
        let table = self.lock();
        for (_, deletion) in table.reads.values().filter(|(read, _)| read == repository) {
            deletion.store(true, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ReadTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadMark {
    /// The repository that is being read.
    pub(crate) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Whether a referrer may have been deleted since the read began. Reliable on the committer's thread only:
    /// deletions are noted there, so none can be overlooked in between.
    pub(crate) fn saw_deletion(&self) -> bool {
        self.deletion.load(Ordering::Relaxed)
    }
}

impl Drop for ReadMark {
    fn drop(&mut self) {
        self.reads.lock().reads.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    enum Step {
        Begin {
            created: bool,
        },
        Drop,
        Refuse {
            all: bool,
        },
        Accept,
        /// Somebody else records something.
        Tell,
    }
    use Step::{Accept, Begin, Drop, Refuse, Tell};

    #[track_caller]
    fn check(steps: &[Step]) {
        let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
        let key = ReferrerKey { repository, digest: Digest::Sha256([1; 32]) };
        let puts = Arc::new(PutsInProgress::default());
        let (mut marks, mut version) = (Vec::new(), 0);
        for step in steps {
            match step {
                Begin { created } => {
                    let before =
                        if *created { Before::Unknown } else { Before::Known(Some(Version(version))) };
                    version += 1;
                    marks.push(puts.begin(key.clone(), before, Some(Version(version))));
                }
                Drop => drop(marks.pop().unwrap()),
                Refuse { all } => {
                    let expected = all.then_some(Version(version));
                    assert_eq!(marks.pop().unwrap().refuse(), expected);
                }
                Tell => version += 1,
                Accept => marks.pop().unwrap().end(),
            }
            assert_eq!((puts.doubt(&key), puts.len()), (!marks.is_empty(), marks.len().min(1)));
            assert!(marks.iter().all(PutMark::is_doubted));
            let expected = HashSet::from_iter(matches!(step, Drop).then(|| key.clone()));
            assert_eq!((puts.has_doubts(), puts.take_doubts()), (!expected.is_empty(), expected));
        }
    }

    #[test]
    fn only_what_they_made_known_and_the_upstream_always_refused_may_go() {
        check(&[Begin { created: true }, Refuse { all: true }]);
        check(&[Begin { created: false }, Refuse { all: false }]);
        check(&[
            Begin { created: true },
            Begin { created: false },
            Refuse { all: false },
            Refuse { all: true },
        ]);
        check(&[Begin { created: true }, Begin { created: false }, Drop, Refuse { all: false }]);
        check(&[Begin { created: true }, Drop, Begin { created: false }, Refuse { all: false }]);
        check(&[Begin { created: true }, Begin { created: false }, Accept, Refuse { all: false }]);
        check(&[
            Begin { created: true },
            Tell,
            Begin { created: false },
            Refuse { all: false },
            Refuse { all: false },
        ]);
    }

    #[test]
    fn only_deletions_in_the_repository_while_it_is_watched_count() {
        let repository = |name: &str| Repository { upstream: 0, name: name.parse().unwrap() };
        let reads = Arc::new(ReadsInProgress::default());
        reads.note_deletion(&repository("a"));
        let (one, other) = (reads.begin(repository("a")), reads.begin(repository("b")));
        assert!(!one.saw_deletion());
        reads.note_deletion(&repository("a"));
        assert_eq!((one.saw_deletion(), other.saw_deletion()), (true, false));
        assert!(!reads.begin(repository("a")).saw_deletion());
        drop((one, other));
        assert!(reads.lock().reads.is_empty());
    }
}
