//! Subjects whose list in the registry, at the referrers tag, may lack what was just pushed. With
//! `referrers.write_tags`, each is queued on disk before the push is answered, for [`crate::referrers_tags`] to look
//! at.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::index::Repository;
use crate::oci::{Digest, RepositoryName, TagOrDigest};
use crate::queue::{Event, NotQueued, Queue};
use crate::telemetry::{Metrics, TagFailure};

/// A subject whose list is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Unlisted {
    /// Its repository, of the upstream whose queue it is in.
    pub repository: RepositoryName,
    /// The subject.
    pub subject: Digest,
}

impl Event for Unlisted {
    const NAMED: &'static str = "referrers tags to write";
    const REMEDY: &'static str = "`refshim export`";
}

/// Where pushes to one upstream leave word of such subjects; nowhere, if refshim writes no tags.
#[derive(Clone, Debug)]
pub struct UnlistedSubjects {
    queue: Option<Arc<Queue<Unlisted>>>,
    metrics: Arc<Metrics>,
}

impl UnlistedSubjects {
    /// Those that go to this queue.
    #[must_use]
    pub fn new(queue: Option<Arc<Queue<Unlisted>>>, metrics: Arc<Metrics>) -> Self {
        Self { queue, metrics }
    }

    /// The counters of the same upstream.
    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// The subject whose list a client writes itself with a PUT to here. It may have read that list before refshim
    /// wrote it, and take away what it did not see: so it is looked at again.
    #[must_use]
    pub fn of_list(&self, target: &TagOrDigest) -> Option<Digest> {
        self.queue.as_ref()?;
        match target {
            TagOrDigest::Tag(tag) => tag.subject_of_list(),
            TagOrDigest::Digest(_) => None,
        }
    }

    /// Leaves word of a subject; on disk, when this returns. Gives the warning for the client if too much waits
    /// already: its push is recorded and listed all the same, and an export writes the tag.
    ///
    /// # Errors
    /// The disk does not take it. Then the index will not for long, either.
    pub async fn add(&self, repository: &Repository, subject: &Digest) -> Result<Option<String>, NotQueued> {
        let Some(queue) = &self.queue else { return Ok(None) };
        let unlisted = Unlisted { repository: repository.name.clone(), subject: subject.clone() };
        match queue.add(vec![unlisted]).await {
            Ok(()) => Ok(None),
            Err(error) => {
                let (reason, is_full) = match error {
                    NotQueued::Full => (TagFailure::Full, true),
                    NotQueued::NotWritten => (TagFailure::NotWritten, false),
                };
                self.metrics.tag_failed(reason, true);
                tracing::warn!(repository = %repository.name, %subject, %error,
                    "the referrers tag of a push will not be written; `refshim export` writes it later");
                let warning = format!("the referrers tag of {subject} will not be written: {error}");
                if is_full { Ok(Some(warning)) } else { Err(error) }
            }
        }
    }
}
