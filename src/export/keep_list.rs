//! What a cleaner of untagged manifests has to keep.

use std::collections::BTreeSet;

use super::each_referrer;
use crate::index::{Index, KnownReferrer, ReadError, Repository};
use crate::oci::{Digest, LinkKind, LinkKinds};

/// What is attached to something in a repository, and what belongs to it: for a cleaner that removes what has no tag.
/// Errs on the side of keeping: what the registry may not have any more is among it.
///
/// An image index is not kept for its children's sake, or no old one would ever be removed; but an index that is
/// attached to something is kept with its children.
///
/// # Errors
/// The index cannot be read.
pub async fn kept(index: &Index, repository: &Repository) -> Result<BTreeSet<Digest>, ReadError> {
    let attached: LinkKinds = LinkKind::ATTACHED.into_iter().collect();
    let mut kept = BTreeSet::new();
    each_referrer(index, repository, |KnownReferrer { digest, links, .. }| {
        if links.values().any(|kinds| kinds.intersects(attached)) {
            let children = links.into_iter().filter(|(_, kinds)| kinds.intersects(LinkKind::Parent.into()));
            kept.extend(children.map(|(child, _)| child));
            kept.insert(digest);
        }
    })
    .await?;
    Ok(kept)
}
