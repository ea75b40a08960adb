//! Who is reading from the upstream what refers to what, so that nothing that is deleted meanwhile is
//! recorded as being there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::index::Repository;

/// The watches there are, by a number of their own.
#[derive(Debug, Default)]
pub(crate) struct Watches(Mutex<Watched>);

#[derive(Debug, Default)]
struct Watched {
    last: u64,
    watches: HashMap<u64, (Repository, Arc<AtomicBool>)>,
}

/// Begun before the upstream is asked; tells whether a referrer of the repository was deleted since.
#[derive(Debug)]
pub(crate) struct Watch {
    watches: Arc<Watches>,
    number: u64,
    repository: Repository,
    disturbed: Arc<AtomicBool>,
}

impl Watches {
    /// Watches a repository from now on.
    pub(crate) fn begin(self: &Arc<Self>, repository: Repository) -> Watch {
        let disturbed = Arc::new(AtomicBool::new(false));
        let mut watched = self.lock();
        watched.last += 1;
        let number = watched.last;
        watched.watches.insert(number, (repository.clone(), Arc::clone(&disturbed)));
        drop(watched);
        Watch { watches: Arc::clone(self), number, repository, disturbed }
    }

    /// Notes that a referrer of the repository may have been deleted.
    pub(crate) fn disturb(&self, repository: &Repository) {
        let watched = self.lock();
        for (_, disturbed) in watched.watches.values().filter(|(watched, _)| watched == repository) {
            disturbed.store(true, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// What is watched.
    pub(crate) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Whether a referrer may have been deleted since the watch began. Final only for the committer, which
    /// is where deletions are noted.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.disturbed.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watches.lock().watches.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_deletions_in_the_repository_while_it_is_watched_count() {
        let repository = |name: &str| Repository { upstream: 0, name: name.parse().unwrap() };
        let watches = Arc::new(Watches::default());
        watches.disturb(&repository("a"));
        let (one, other) = (watches.begin(repository("a")), watches.begin(repository("b")));
        assert!(!one.is_disturbed());
        watches.disturb(&repository("a"));
        assert_eq!((one.is_disturbed(), other.is_disturbed()), (true, false));
        assert!(!watches.begin(repository("a")).is_disturbed());
        drop((one, other));
        assert!(watches.lock().watches.is_empty());
    }
}
