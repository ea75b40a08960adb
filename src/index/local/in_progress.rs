//! Which referrers are being PUT right now, so that nothing is forgotten that may be about to exist; and which
//! have to be doubted as soon as that can be written.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::ReferrerKey;
use crate::index::Version;

/// How many doubts may wait. PUTs whose outcome is unknown are far fewer; of clients that are answered 404 while
/// sled is being opened, nobody knows how many there are.
const WAITING_DOUBTS: usize = 100_000;

/// The PUTs in flight, by referrer, and the doubts that wait.
#[derive(Debug, Default)]
pub(crate) struct PutsInProgress(Mutex<PutTable>);

#[derive(Debug, Default)]
struct PutTable {
    groups: HashMap<ReferrerKey, OverlappingPuts>,
    doubts: HashSet<ReferrerKey>,
}

/// PUTs of one referrer that overlap in time.
#[derive(Debug)]
struct OverlappingPuts {
    marks: usize,
    /// Whether one of them made the referrer known.
    created: bool,
    /// The version that the last of them to begin made.
    version: Option<Version>,
    /// Whether the upstream refused each one that has ended.
    all_refused: bool,
    /// Whether it may have been deleted since one of them began.
    doubted: bool,
}

/// How a PUT ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PutOutcome {
    Unknown,
    Accepted,
    Refused,
}

/// One PUT in flight. Dropped without an outcome, the outcome is not known: what the upstream serves has to be
/// asked.
#[derive(Debug)]
pub(crate) struct PutMark {
    in_flight: Arc<PutsInProgress>,
    key: ReferrerKey,
    outcome: PutOutcome,
}

impl PutsInProgress {
    /// Marks a PUT as in flight; `is_first` if the referrer was unknown before, `version` what its record made.
    pub(crate) fn begin(
        self: &Arc<Self>,
        key: ReferrerKey,
        is_first: bool,
        version: Option<Version>,
    ) -> PutMark {
        let mut state = self.lock();
        let none =
            OverlappingPuts { marks: 0, created: false, version: None, all_refused: true, doubted: false };
        let group = state.groups.entry(key.clone()).or_insert(none);
        group.marks += 1;
        group.created |= is_first && version.is_some();
        group.version = version.or(group.version);
        PutMark { in_flight: Arc::clone(self), key, outcome: PutOutcome::Unknown }
    }

    /// Notes that the referrer may have been deleted. Tells whether a PUT of it is in flight.
    pub(crate) fn doubt(&self, key: &ReferrerKey) -> bool {
        let mut state = self.lock();
        let group = state.groups.get_mut(key);
        group.map(|group| group.doubted = true).is_some()
    }

    /// Has the referrer doubted by the next write.
    pub(crate) fn doubt_later(&self, key: ReferrerKey) {
        let mut state = self.lock();
        if state.doubts.len() < WAITING_DOUBTS {
            state.doubts.insert(key);
        }
    }

    /// What has to be doubted.
    pub(crate) fn take_doubts(&self) -> HashSet<ReferrerKey> {
        std::mem::take(&mut self.lock().doubts)
    }

    /// Whether anything has to be doubted.
    pub(crate) fn has_doubts(&self) -> bool {
        !self.lock().doubts.is_empty()
    }

    /// How many referrers have a PUT in flight.
    pub(crate) fn len(&self) -> usize {
        self.lock().groups.len()
    }

    fn lock(&self) -> MutexGuard<'_, PutTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PutMark {
    /// Which referrer is PUT.
    pub(crate) fn key(&self) -> &ReferrerKey {
        &self.key
    }

    /// Whether the referrer may have been deleted while it was PUT.
    pub(crate) fn is_doubted(&self) -> bool {
        self.in_flight.lock().groups.get(&self.key).is_some_and(|group| group.doubted)
    }

    /// Ends it, the upstream having taken the manifest.
    pub(crate) fn end(mut self) {
        self.outcome = PutOutcome::Accepted;
    }

    /// Ends it, the upstream having refused the manifest. If that is all there is to the referrer, because
    /// these PUTs made it known and each was refused, gives the version in which they left it.
    pub(crate) fn refuse(mut self) -> Option<Version> {
        self.outcome = PutOutcome::Refused;
        let state = self.in_flight.lock();
        let group = state.groups.get(&self.key)?;
        let is_all = group.marks == 1 && group.created && group.all_refused;
        group.version.filter(|_| is_all)
    }
}

impl Drop for PutMark {
    fn drop(&mut self) {
        let mut state = self.in_flight.lock();
        let Some(group) = state.groups.get_mut(&self.key) else { return };
        group.marks -= 1;
        group.all_refused &= self.outcome == PutOutcome::Refused;
        if group.marks == 0 {
            state.groups.remove(&self.key);
        }
        drop(state);
        if self.outcome == PutOutcome::Unknown {
            self.in_flight.doubt_later(self.key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Repository;
    use crate::oci::Digest;

    enum Step {
        Begin { created: bool },
        Drop,
        Refuse { all: bool },
        Accept,
    }
    use Step::{Accept, Begin, Drop, Refuse};

    #[track_caller]
    fn check(steps: &[Step]) {
        let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
        let key = ReferrerKey { repository, digest: Digest::Sha256([1; 32]) };
        let in_flight = Arc::new(PutsInProgress::default());
        let (mut marks, mut version) = (Vec::new(), 0);
        for step in steps {
            match step {
                Begin { created } => {
                    version += 1;
                    marks.push(in_flight.begin(key.clone(), *created, Some(Version(version))));
                }
                Drop => drop(marks.pop().unwrap()),
                Refuse { all } => {
                    let expected = all.then_some(Version(version));
                    assert_eq!(marks.pop().unwrap().refuse(), expected);
                }
                Accept => marks.pop().unwrap().end(),
            }
            assert_eq!((in_flight.doubt(&key), in_flight.len()), (!marks.is_empty(), marks.len().min(1)));
            assert!(marks.iter().all(PutMark::is_doubted));
            let expected = HashSet::from_iter(matches!(step, Drop).then(|| key.clone()));
            assert_eq!((in_flight.has_doubts(), in_flight.take_doubts()), (!expected.is_empty(), expected));
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
    }
}
