//! What is asked of the index: lists of referrers, the state of one, numbers.

use std::ops::Bound;

use super::layout::{self, Stored};
use super::{Slice, StoreError, View, changes, guarded};
use crate::index::record::ReferrerKey;
use crate::index::referrer_state::ReferrerState;
use crate::index::{Entry, Page, Repository, Scan};
use crate::oci::{Digest, RepositoryName};

/// Of one page: more make it grow.
const USUAL_ENTRIES: usize = 16;

impl View {
    /// The state of a referrer.
    pub(crate) fn referrer_state(&self, referrer: &ReferrerKey) -> Result<Option<ReferrerState>, StoreError> {
        guarded(|| match self.get(&layout::reverse_entry(referrer))? {
            Some(reverse) => self.complete(referrer, reverse),
            None => Ok(None),
        })
    }

    /// The referrer whose reverse entry is `reverse`, with its descriptor.
    pub(super) fn complete(
        &self,
        referrer: &ReferrerKey,
        mut reverse: Slice,
    ) -> Result<Option<ReferrerState>, StoreError> {
        loop {
            let Stored { value: mut state, has_descriptor } = layout::decode_reverse_entry(&reverse)
                .ok_or(StoreError::Damaged("a reverse entry is unreadable"))?;
            if has_descriptor {
                return Ok(Some(state));
            }
            if let Some(descriptor) = self.descriptor_in_links(referrer, &state)? {
                state.descriptor = descriptor;
                return Ok(Some(state));
            }
            // A batch was applied between the two look-ups: sled cannot read several entries as of one moment.
            match self.get(&layout::reverse_entry(referrer))? {
                None => return Ok(None),
                Some(again) if *again == *reverse => {
                    return Err(StoreError::Damaged("a referrer's link is missing"));
                }
                Some(again) => reverse = again,
            }
        }
    }

    /// The descriptor, which is repeated in each link: in the first that can be read.
    fn descriptor_in_links(
        &self,
        referrer: &ReferrerKey,
        state: &ReferrerState,
    ) -> Result<Option<String>, StoreError> {
        let mut unreadable = None;
        for subject in state.links.keys() {
            let key = layout::link(&referrer.repository, subject, state.order);
            let value = match self.get(&key) {
                Ok(Some(value)) => value,
                Ok(None) => return Ok(None),
                Err(error) => {
                    unreadable = Some(error);
                    continue;
                }
            };
            let link = decode_link(&key, &value)?;
            return Ok(link.has_descriptor.then_some(link.value.descriptor));
        }
        unreadable.map_or(Ok(None), Err)
    }

    /// One page of the referrers of `subject`, oldest first, from one scan over its links alone.
    pub(crate) fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        scan: &Scan,
    ) -> Result<Page, StoreError> {
        let first = scan.after.map_or_else(
            || Bound::Included(layout::links_to(repository, subject)),
            |after| Bound::Excluded(layout::link(repository, subject, after)),
        );
        let mut behind = layout::links_to(repository, subject);
        behind.extend([0xff; size_of::<u64>() + 1]);
        guarded(|| {
            let entries = Vec::with_capacity(scan.max_entries.min(USUAL_ENTRIES));
            let mut page = Page { entries, more: false };
            let (mut bytes, mut claims) = (0, 0);
            for link in self.range(first.as_ref().map(Vec::as_slice), Some(&behind)) {
                let (key, value) = link?;
                let Some(entry) = self.complete_entry(repository, decode_link(&key, &value)?)? else {
                    continue;
                };
                if !(scan.accepts)(&entry) {
                    continue;
                }
                bytes += entry.descriptor.len() + 1;
                claims += usize::from(!entry.was_confirmed);
                let fits = (bytes <= scan.max_bytes && claims <= scan.max_claims) || page.entries.is_empty();
                if page.entries.len() >= scan.max_entries || !fits {
                    page.more = true;
                    break;
                }
                page.entries.push(entry);
            }
            Ok(page)
        })
    }

    /// The entry with its descriptor; none if the referrer was removed meanwhile.
    fn complete_entry(
        &self,
        repository: &Repository,
        stored: Stored<Entry>,
    ) -> Result<Option<Entry>, StoreError> {
        let Stored { value: entry, has_descriptor } = stored;
        if has_descriptor {
            return Ok(Some(entry));
        }
        let referrer = ReferrerKey { repository: repository.clone(), digest: entry.digest.clone() };
        let state = self.referrer_state(&referrer)?;
        Ok(state.map(|state| Entry { descriptor: state.descriptor, ..entry }))
    }

    /// All referrers, by repository and digest. It ends with the first error.
    pub(crate) fn states(&self) -> impl Iterator<Item = Result<(ReferrerKey, ReferrerState), StoreError>> {
        let complete = |entry: Result<(Slice, Slice), StoreError>| {
            let (key, reverse) = entry?;
            let referrer = referrer_of(&key)?;
            Ok(self.complete(&referrer, reverse)?.map(|state| (referrer, state)))
        };
        self.prefixed(&layout::REVERSE).filter_map(move |entry| complete(entry).transpose())
    }

    /// How many referrers and links there are, counted one by one.
    pub(crate) fn counted(&self) -> Result<(u64, u64), StoreError> {
        guarded(|| {
            let count = |prefix: &[u8]| -> Result<u64, StoreError> {
                self.prefixed(prefix).try_fold(0, |count, entry| entry.map(|_| count + 1))
            };
            Ok((count(&layout::REVERSE)?, count(&layout::FIRST)?))
        })
    }

    /// How many referrers a repository has.
    pub(crate) fn referrers_in(&self, repository: &Repository) -> Result<u64, StoreError> {
        guarded(|| {
            let count = self.get(&layout::referrers_in(repository))?;
            count.map_or(Ok(0), |count| changes::decode_count(&count))
        })
    }

    /// The repositories of an upstream in which `subject` has referrers, by name.
    pub(crate) fn repositories(
        &self,
        upstream: u32,
        subject: &Digest,
    ) -> Result<Vec<RepositoryName>, StoreError> {
        guarded(|| {
            let prefix = layout::repositories_of(upstream, subject);
            let name = |entry: Result<(Slice, Slice), StoreError>| {
                let (key, _) = entry?;
                let name = key.strip_prefix(prefix.as_slice()).and_then(|name| str::from_utf8(name).ok());
                let name = name.and_then(|name| name.parse().ok());
                name.ok_or(StoreError::Damaged("the name of a repository is unreadable"))
            };
            self.prefixed(&prefix).map(name).collect()
        })
    }
}

fn referrer_of(key: &[u8]) -> Result<ReferrerKey, StoreError> {
    let damaged = StoreError::Damaged("the key of a reverse entry is unreadable");
    layout::referrer_of_reverse_entry(key).ok_or(damaged)
}

fn decode_link(key: &[u8], value: &[u8]) -> Result<Stored<Entry>, StoreError> {
    layout::decode_link(key, value).ok_or(StoreError::Damaged("a link is unreadable"))
}
