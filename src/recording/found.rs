//! Records the links of a manifest that refshim fetched by itself, with credentials of its own: for a backfill, or
//! because a notification told of it.

use bytes::Bytes;

use super::learnt::{Learnt, learn};
use crate::index::{Index, Repository, UpstreamRead, WriteError};
use crate::oci::{Algorithm, LinkKind, TagOrDigest};
use crate::proxy::error::Error;
use crate::registry::reader::ManifestReader;

/// A manifest that was fetched, and verified by its digest.
#[derive(Debug)]
pub struct Found<'a> {
    /// Where.
    pub repository: &'a Repository,
    /// At what: its digest, or a tag that says what it is about.
    pub target: &'a TagOrDigest,
    /// What its digest was computed with.
    pub algorithm: Algorithm,
    /// Its bytes.
    pub bytes: &'a Bytes,
    /// Its media type.
    pub media_type: &'a str,
}

/// What was recorded.
#[derive(Debug)]
pub struct Recorded {
    /// The kinds of all links.
    pub kinds: Vec<LinkKind>,
    /// Whether it is a referrer itself, and so in the index.
    pub is_referrer: bool,
    /// Why links are left out.
    pub warning: Option<String>,
    /// Whether they are left out because the repository is full, which may change.
    pub is_full: bool,
}

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
pub enum NotRecorded {
    /// It is longer than `manifests.max_bytes`.
    #[error("{0}")]
    TooLong(String),
    /// It could not be parsed.
    #[error(transparent)]
    Unread(#[from] Error),
    /// The index could not be written.
    #[error(transparent)]
    Index(#[from] WriteError),
}

/// Records its links. `watch` began before it was fetched.
///
/// # Errors
/// Nothing of it is recorded.
pub async fn record(
    reader: &ManifestReader,
    index: &Index,
    watch: &UpstreamRead,
    found: Found<'_>,
) -> Result<Recorded, NotRecorded> {
    let Found { repository, target, algorithm, bytes, media_type } = found;
    if bytes.len() > reader.max_bytes() {
        return Err(NotRecorded::TooLong(reader.too_long(repository, target)));
    }
    let read = reader.read(repository, target, algorithm, bytes, Some(media_type)).await?;
    let learnt = learn(reader, index, repository, read, false).await;
    let (kinds, Learnt { observations, warning, is_full, .. }) = (learnt.kinds(), learnt);
    let is_referrer = observations.first().is_some_and(|own| !own.referrer.links.is_empty());
    index.observe(watch, observations).await?;
    Ok(Recorded { kinds, is_referrer, warning, is_full })
}
