//! The list of one subject alone, soon after something was pushed about it.

use std::collections::HashMap;

use tokio::sync::Semaphore;

use super::listed;
use super::merge::Merge;
use crate::client::{Error, ReferrersApi, Repository as Place};
use crate::index::{Entry, Index, ReadError, Repository, Scan};
use crate::oci::{Descriptor, Digest};

/// Bytes of the descriptors that are read from the index at a time.
const PAGE_BYTES: usize = 4 << 20;

/// What came of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Whether it had to be written.
    pub is_written: bool,
    /// Referrers that the registry took, and does not show.
    pub missing: usize,
    /// Why it is not known of one whether it is to be listed.
    pub unread: Option<String>,
}

/// Why a list could not be brought level.
#[derive(Debug, thiserror::Error)]
pub enum NotLevel {
    /// The index cannot be read.
    #[error(transparent)]
    Index(#[from] ReadError),
    /// The registry cannot be asked, or does not take the list.
    #[error(transparent)]
    Registry(#[from] Error),
}

/// Writes what the index knows of a subject into the list at its referrers tag, as an export does, but without a look
/// at what only others know of. `turns` limits the requests of all who do so. Where the registry has the referrers API,
/// nothing is written.
///
/// # Errors
/// Then the list is as it was, or as somebody else wrote it.
pub async fn bring_level(
    index: &Index,
    repository: &Repository,
    place: &Place,
    api: &ReferrersApi,
    subject: &Digest,
    turns: &Semaphore,
) -> Result<Level, NotLevel> {
    let is_native = {
        // Never closed.
        let _turn = turns.acquire().await.ok();
        api.listed(place, subject).await?.is_some()
    };
    if is_native {
        return Ok(Level::default());
    }
    let entries = referrers(index, repository, subject).await?;
    let ours: Vec<Digest> = entries.iter().map(|entry| entry.digest.clone()).collect();
    let sure: HashMap<Digest, String> = entries
        .into_iter()
        .filter(|entry| !entry.pending)
        .map(|entry| (entry.digest, entry.descriptor))
        .collect();
    let parsed = |(digest, descriptor): (&Digest, &String)| {
        let descriptor = serde_json::from_str::<Descriptor>(descriptor).ok()?;
        Some((digest.clone(), descriptor))
    };
    let known = sure.iter().filter_map(parsed).collect();
    let mut merge = Merge::new(place, subject, ours).knowing(known);
    let is_written = place.change_list(subject, &mut merge, Some(turns)).await?;
    let missing = merge.absent().filter(|digest| sure.contains_key(*digest)).count();
    Ok(Level { is_written, missing, unread: merge.unread().next() })
}

/// What is listed of a subject, oldest first.
async fn referrers(
    index: &Index,
    repository: &Repository,
    subject: &Digest,
) -> Result<Vec<Entry>, ReadError> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let scan = Scan {
            after: entries.last().map(|last| last.order),
            max_entries: usize::MAX,
            max_bytes: PAGE_BYTES,
            max_claims: usize::MAX,
            accepts: Box::new(|entry| entry.kinds.intersects(listed())),
        };
        let page = index.referrers(repository.clone(), subject.clone(), scan).await?;
        entries.extend(page.entries);
        if !page.more {
            return Ok(entries);
        }
    }
}
