//! Walks over the index: repository by repository, and referrer by referrer. A page costs as much as what is on it,
//! however large the index is, because each is one range of keys.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::{Slice, StoreError, View, guarded, layout, prefix_end};
use crate::index::record::ReferrerKey;
use crate::index::referrer_state::ReferrerState;
use crate::index::{KnownReferrer, Repository, RepositoryPage};
use crate::oci::{Digest, RepositoryName};

/// Bytes of the descriptors on a page after which it ends: a single one may have megabytes of annotations.
const PAGE_BYTES: usize = 4 << 20;

impl View {
    /// The repositories of an upstream that have referrers, in the order of their keys.
    pub(crate) fn referring_repositories(
        &self,
        upstream: u32,
        after: Option<RepositoryName>,
        max: usize,
    ) -> Result<Vec<RepositoryName>, StoreError> {
        let prefix = layout::repositories_with_referrers(upstream);
        let first =
            first(prefix.clone(), after.map(|name| layout::referrers_in(&Repository { upstream, name })));
        guarded(|| {
            let name = |entry: Result<(Slice, Slice), StoreError>| {
                let (key, _) = entry?;
                let repository = layout::repository_of_referrers_in(&key);
                let damaged = StoreError::Damaged("the name of a repository is unreadable");
                Ok(repository.ok_or(damaged)?.name)
            };
            self.range(first.as_ref().map(Vec::as_slice), prefix_end(&prefix).as_deref())
                .take(max)
                .map(name)
                .collect()
        })
    }

    /// All repositories that have referrers.
    pub(crate) fn all_repositories(&self) -> Result<BTreeSet<Repository>, StoreError> {
        guarded(|| {
            let repository = |entry: Result<(Slice, Slice), StoreError>| {
                let damaged = StoreError::Damaged("the name of a repository is unreadable");
                layout::repository_of_referrers_in(&entry?.0).ok_or(damaged)
            };
            self.prefixed(&layout::REFERRERS_IN).map(repository).collect()
        })
    }

    /// A page of the referrers in a repository, by digest.
    pub(crate) fn referrers_by_digest(
        &self,
        repository: &Repository,
        after: Option<Digest>,
        max: usize,
    ) -> Result<RepositoryPage, StoreError> {
        let (states, more) = self.states_by_digest(repository, after, max)?;
        let known = |(digest, state): (Digest, ReferrerState)| KnownReferrer {
            digest,
            order: state.order,
            pending: state.pending,
            was_confirmed: state.was_confirmed,
            claimed: state.claimed,
            version: state.version,
            descriptor: state.descriptor,
            links: state.links,
        };
        Ok(RepositoryPage { referrers: states.into_iter().map(known).collect(), more })
    }

    /// The same as states, and whether there are more.
    pub(crate) fn states_by_digest(
        &self,
        repository: &Repository,
        after: Option<Digest>,
        max: usize,
    ) -> Result<(Vec<(Digest, ReferrerState)>, bool), StoreError> {
        let prefix = layout::reverse_entries(repository);
        let key = |digest| layout::reverse_entry(&ReferrerKey { repository: repository.clone(), digest });
        let first = first(prefix.clone(), after.map(key));
        guarded(|| {
            let mut states = Vec::new();
            let mut bytes = 0;
            for entry in self.range(first.as_ref().map(Vec::as_slice), prefix_end(&prefix).as_deref()) {
                let (key, reverse) = entry?;
                if states.len() >= max || bytes > PAGE_BYTES {
                    return Ok((states, true));
                }
                let damaged = StoreError::Damaged("the key of a reverse entry is unreadable");
                let referrer = layout::referrer_of_reverse_entry(&key).ok_or(damaged)?;
                // None if it was removed meanwhile.
                let Some(state) = self.complete(&referrer, reverse)? else { continue };
                bytes += state.descriptor.len();
                states.push((referrer.digest, state));
            }
            Ok((states, false))
        })
    }
}

fn first(prefix: Vec<u8>, after: Option<Vec<u8>>) -> Bound<Vec<u8>> {
    after.map_or(Bound::Included(prefix), Bound::Excluded)
}
