//! What the upstream said lately, for each repository: which subjects it was asked about, and whether it
//! has a referrers API. Dropped by whatever is written to the repository through refshim.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;

use crate::index::Repository;
use crate::oci::Digest;

/// How many repositories, and how many subjects of each, are remembered.
const REPOSITORIES_REMEMBERED: u64 = 10_000;
const SUBJECTS_REMEMBERED: usize = 10_000;

/// What was said, told apart from what was said before.
pub(super) type Fingerprint = [u8; 32];

/// What is remembered of all repositories.
#[derive(Debug)]
pub(super) struct Memory {
    repositories: Cache<Repository, Arc<OfRepository>>,
    lifetime: Duration,
}

/// What is remembered of one repository. Who asks holds it from before the question on: what was asked
/// before a write is then put where nobody looks any more.
#[derive(Debug)]
pub(super) struct OfRepository {
    lifetime: Duration,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    without_api: Option<Instant>,
    subjects: HashMap<Digest, (Instant, Fingerprint)>,
}

impl Memory {
    /// Believes what was said for `lifetime`.
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { repositories: Cache::new(REPOSITORIES_REMEMBERED), lifetime }
    }

    /// What is remembered of a repository.
    pub(super) fn of(&self, repository: &Repository) -> Arc<OfRepository> {
        let fresh = || Arc::new(OfRepository { lifetime: self.lifetime, said: Mutex::default() });
        self.repositories.get_with_by_ref(repository, fresh)
    }

    /// Forgets all that is remembered of a repository.
    pub(super) fn forget(&self, repository: &Repository) {
        self.repositories.invalidate(repository);
    }
}

impl OfRepository {
    /// Whether the upstream was asked about the subject lately.
    pub(super) fn is_fresh(&self, subject: &Digest) -> bool {
        let said = self.lock();
        said.subjects.get(subject).is_some_and(|(asked, _)| asked.elapsed() < self.lifetime)
    }

    /// What it said then, however long ago.
    pub(super) fn fingerprint(&self, subject: &Digest) -> Option<Fingerprint> {
        self.lock().subjects.get(subject).map(|(_, fingerprint)| *fingerprint)
    }

    /// Remembers that all of what the upstream said is in the index.
    pub(super) fn remember(&self, subject: &Digest, asked: Instant, fingerprint: Fingerprint) {
        let mut said = self.lock();
        if said.subjects.len() >= SUBJECTS_REMEMBERED {
            said.subjects.clear();
        }
        said.subjects.insert(subject.clone(), (asked, fingerprint));
    }

    /// Whether the upstream had no referrers API lately.
    pub(super) fn is_without_api(&self) -> bool {
        self.lock().without_api.is_some_and(|asked| asked.elapsed() < self.lifetime)
    }

    /// Remembers whether it has one.
    pub(super) fn remember_api(&self, asked: Instant, has_one: bool) {
        self.lock().without_api = (!has_one).then_some(asked);
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_said_is_believed_for_a_while_and_not_past_a_write() {
        let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
        let subject = Digest::Sha256([1; 32]);
        let memory = Memory::new(Duration::from_secs(2));
        let before = memory.of(&repository);
        assert_eq!((before.is_fresh(&subject), before.fingerprint(&subject)), (false, None));
        before.remember(&subject, Instant::now(), [7; 32]);
        before.remember_api(Instant::now(), false);
        assert!(memory.of(&repository).is_fresh(&subject));
        assert!(memory.of(&repository).is_without_api());
        assert!(!memory.of(&repository).is_fresh(&Digest::Sha256([2; 32])));

        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!before.is_fresh(&subject));
        assert!(!before.is_without_api());
        assert_eq!(before.fingerprint(&subject), Some([7; 32]));

        memory.forget(&repository);
        before.remember(&subject, Instant::now(), [7; 32]);
        assert!(!memory.of(&repository).is_fresh(&subject));
        assert_eq!(memory.of(&repository).fingerprint(&subject), None);
    }
}
