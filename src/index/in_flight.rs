//! Which referrers are being PUT right now, so that nothing is forgotten that may be about to exist.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::ReferrerKey;

/// The PUTs in flight, by referrer.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<HashMap<ReferrerKey, Group>>);

/// PUTs of one referrer that overlap in time.
#[derive(Debug)]
struct Group {
    marks: usize,
    /// Whether one of them made the referrer known.
    created: bool,
    /// Whether the upstream refused each one that has ended.
    all_refused: bool,
    /// Whether it may have been deleted since one of them began.
    doubted: bool,
}

/// One PUT in flight. Dropped without an outcome, the outcome is not known.
#[derive(Debug)]
pub(crate) struct Mark {
    in_flight: Arc<InFlight>,
    key: ReferrerKey,
    refused: bool,
}

impl InFlight {
    /// Marks a PUT as in flight; `created` if it made the referrer known.
    pub(crate) fn begin(self: &Arc<Self>, key: ReferrerKey, created: bool) -> Mark {
        let mut groups = self.lock();
        let none = Group { marks: 0, created: false, all_refused: true, doubted: false };
        let group = groups.entry(key.clone()).or_insert(none);
        group.marks += 1;
        group.created |= created;
        Mark { in_flight: Arc::clone(self), key, refused: false }
    }

    /// Notes that the referrer may have been deleted. Tells whether a PUT of it is in flight.
    pub(crate) fn doubt(&self, key: &ReferrerKey) -> bool {
        let mut groups = self.lock();
        let group = groups.get_mut(key);
        group.map(|group| group.doubted = true).is_some()
    }

    /// How many referrers have a PUT in flight.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ReferrerKey, Group>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mark {
    /// Which referrer is PUT.
    pub(crate) fn key(&self) -> &ReferrerKey {
        &self.key
    }

    /// Whether the referrer may have been deleted while it was PUT.
    pub(crate) fn is_doubted(&self) -> bool {
        self.in_flight.lock().get(&self.key).is_some_and(|group| group.doubted)
    }

    /// Ends it, the upstream having refused the manifest. Tells whether that is all there is to the
    /// referrer: these PUTs made it known, and each was refused.
    pub(crate) fn refuse(mut self) -> bool {
        self.refused = true;
        let groups = self.in_flight.lock();
        groups.get(&self.key).is_some_and(|group| group.marks == 1 && group.created && group.all_refused)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let mut groups = self.in_flight.lock();
        let Some(group) = groups.get_mut(&self.key) else { return };
        group.marks -= 1;
        group.all_refused &= self.refused;
        if group.marks == 0 {
            groups.remove(&self.key);
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
    }
    use Step::{Begin, Drop, Refuse};

    #[track_caller]
    fn check(steps: &[Step]) {
        let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
        let key = ReferrerKey { repository, digest: Digest::Sha256([1; 32]) };
        let in_flight = Arc::new(InFlight::default());
        let mut marks = Vec::new();
        for step in steps {
            match step {
                Begin { created } => marks.push(in_flight.begin(key.clone(), *created)),
                Drop => drop(marks.pop().unwrap()),
                Refuse { all } => assert_eq!(marks.pop().unwrap().refuse(), *all),
            }
            assert_eq!((in_flight.doubt(&key), in_flight.len()), (!marks.is_empty(), marks.len().min(1)));
            assert!(marks.iter().all(Mark::is_doubted));
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
    }
}
