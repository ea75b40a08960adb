//! Who is reading from the upstream what refers to what, so that nothing that is deleted meanwhile is
//! recorded as being there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::index::Repository;

/// The watches there are, by a number of their own.
#[derive(Debug, Default)]
pub(crate) struct ReadsInProgress(Mutex<ReadTable>);

#[derive(Debug, Default)]
struct ReadTable {
    last: u64,
    reads: HashMap<u64, (Repository, Arc<AtomicBool>)>,
}

/// Begun before the upstream is asked; tells whether a referrer of the repository was deleted since.
#[derive(Debug)]
pub(crate) struct ReadMark {
    reads: Arc<ReadsInProgress>,
    number: u64,
    repository: Repository,
    deletion: Arc<AtomicBool>,
}

impl ReadsInProgress {
    /// Watches a repository from now on.
    pub(crate) fn begin(self: &Arc<Self>, repository: Repository) -> ReadMark {
        let deletion = Arc::new(AtomicBool::new(false));
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        table.reads.insert(number, (repository.clone(), Arc::clone(&deletion)));
        drop(table);
        ReadMark { reads: Arc::clone(self), number, repository, deletion }
    }

    /// Notes that a referrer of the repository may have been deleted.
    pub(crate) fn note_deletion(&self, repository: &Repository) {
        let table = self.lock();
        for (_, deletion) in table.reads.values().filter(|(table, _)| table == repository) {
            deletion.store(true, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ReadTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadMark {
    /// What is watched.
    pub(crate) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Whether a referrer may have been deleted since the watch began. Final only for the committer, which
    /// is where deletions are noted.
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
