//! Pages as they were last written, kept until a write changes a list of their repository. Most queries ask the same
//! again: an admission controller asks with each pod, and a long list costs a hundred times as much to read and write as
//! to send.
//!
//! - Only what is the same for everybody who may read the repository is kept: pages of settled entries, without inlined
//!   manifests, of the upstream's own namespace. The rights are checked before, and the merge is made, as without.
//! - A page is kept with the stamp that the lists of its repository had before it was read ([`Index::stamp`]), and
//!   counts for as long as they have it. So a query sees each write that was answered before it, as it does without.
//! - An index that several replicas write has no stamps: another replica's write would go unnoticed.

use std::sync::Arc;

use ahash::RandomState;
use bytes::Bytes;
use moka::sync::Cache;

use super::{Next, PageRequest, QueryScope};
use crate::index::{Index, Repository, Stamp};
use crate::oci::{Digest, LinkKinds};
use crate::registry::Question;

/// What a page takes besides its image index and its names.
const PAGE_BYTES: usize = 512;

/// What a page lists.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    pub(super) image_index: Bytes,
    /// The kinds of link of each entry.
    pub(super) kinds: Arc<[LinkKinds]>,
    pub(super) next: Option<Next>,
}

/// The pages that are kept.
#[derive(Debug)]
pub(super) struct KeptPages(Cache<Named, (Stamp, Listing), RandomState>);

/// Where a page is kept, and the stamp of the lists when it was looked for.
#[derive(Debug)]
pub(super) struct KeptPlace {
    named: Named,
    stamp: Stamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Named {
    repository: Repository,
    subject: Digest,
    request: Box<str>,
}

impl KeptPlace {
    /// Where the page of this request is kept; nowhere if it may not be.
    pub(super) fn of(index: &Index, question: &Question, wanted: &PageRequest) -> Option<Self> {
        let Question { visit, subject } = question;
        let is_everybodys = wanted.scope == QueryScope::Repository && !wanted.inline && !visit.is_foreign;
        let request = wanted.name.clone().filter(|_| is_everybodys)?;
        let stamp = index.stamp(&visit.repository)?;
        let named = Named { repository: visit.repository.clone(), subject: subject.clone(), request };
        Some(Self { named, stamp })
    }
}

impl KeptPages {
    /// Keeps at most so many bytes; none with 0.
    pub(super) fn new(bytes: usize) -> Self {
        let size = |named: &Named, (_, listing): &(Stamp, Listing)| {
            let names = named.repository.name.as_str().len() + named.request.len();
            let size = listing.image_index.len() + listing.kinds.len() + names + PAGE_BYTES;
            u32::try_from(size).unwrap_or(u32::MAX)
        };
        Self(Cache::builder().max_capacity(bytes as u64).weigher(size).build_with_hasher(RandomState::new()))
    }

    /// The page that is kept there, if nothing was written since.
    pub(super) fn get(&self, place: &KeptPlace) -> Option<Listing> {
        let (stamp, listing) = self.0.get(&place.named)?;
        (stamp == place.stamp).then_some(listing)
    }

    /// Keeps a page that was read after its place was looked for.
    pub(super) fn keep(&self, KeptPlace { named, stamp }: KeptPlace, listing: Listing) {
        self.0.insert(named, (stamp, listing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(subject: u8, request: &str, stamp: u64) -> KeptPlace {
        let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
        let named = Named { repository, subject: Digest::Sha256([subject; 32]), request: request.into() };
        KeptPlace { named, stamp: Stamp(stamp) }
    }

    fn is_kept(pages: &KeptPages, place: &KeptPlace) -> bool {
        pages.0.run_pending_tasks();
        pages.get(place).is_some()
    }

    #[test]
    fn a_page_is_kept_for_the_same_request_until_the_stamp_changes() {
        for (bytes, is_room) in [(1 << 20, true), (0, false)] {
            let pages = KeptPages::new(bytes);
            let listing = Listing { image_index: "{}".into(), kinds: Arc::default(), next: None };
            pages.keep(place(1, "referrers?", 1), listing);
            assert_eq!(is_kept(&pages, &place(1, "referrers?", 1)), is_room);
            assert!(!is_kept(&pages, &place(1, "referrers?", 2)));
            assert!(!is_kept(&pages, &place(2, "referrers?", 1)));
            assert!(!is_kept(&pages, &place(1, "references?", 1)));
        }
    }
}
