//! How many referrers a repository has, and in which repositories a manifest is a subject: how many it has in
//! each.

use std::collections::HashMap;

use super::changes::Change;
use super::{Meta, Store, StoreError, layout};
use crate::index::Repository;
use crate::index::local::record::ReferrerKey;
use crate::oci::{Digest, RepositoryName};

/// By how much the numbers of referrers change, by key.
#[derive(Debug, Default)]
pub(super) struct ReferrerCounts(HashMap<Vec<u8>, i64>);

impl ReferrerCounts {
    /// Adds what the change of one referrer does.
    pub(super) fn add(&mut self, referrer: &ReferrerKey, change: &Change) {
        for (state, step) in [(&change.before, -1), (&change.after, 1)] {
            let Some(state) = state else { continue };
            *self.0.entry(layout::referrers_in(&referrer.repository)).or_default() += step;
            for subject in state.links.keys() {
                *self.0.entry(layout::repository_of(subject, &referrer.repository)).or_default() += step;
            }
        }
    }

    /// Adds the new numbers to the batch.
    pub(super) fn write(
        self,
        store: &Store,
        meta: &mut Meta,
        batch: &mut sled::Batch,
    ) -> Result<(), StoreError> {
        for (key, step) in self.0.into_iter().filter(|(_, step)| *step != 0) {
            let before = store.tree.get(&key)?;
            let count = match &before {
                None => 0,
                Some(value) => decode(value)?,
            };
            let count =
                count.checked_add_signed(step).ok_or(StoreError::Damaged("referrers are miscounted"))?;
            if let Some(before) = before {
                meta.subtract(&key, &before);
            }
            if count == 0 {
                batch.remove(key);
            } else {
                let value = count.to_be_bytes();
                meta.add(&key, &value);
                batch.insert(key, &value);
            }
        }
        Ok(())
    }
}

fn decode(value: &[u8]) -> Result<u64, StoreError> {
    let value = value.try_into().map_err(|_| StoreError::Damaged("a number of referrers is unreadable"))?;
    Ok(u64::from_be_bytes(value))
}

impl Store {
    /// How many referrers a repository has.
    pub(crate) fn referrers_in(&self, repository: &Repository) -> Result<u64, StoreError> {
        super::guarded(|| {
            self.tree.get(layout::referrers_in(repository))?.map_or(Ok(0), |count| decode(&count))
        })
    }

    /// The repositories of an upstream in which `subject` has referrers, by name.
    pub(crate) fn repositories(
        &self,
        upstream: u32,
        subject: &Digest,
    ) -> Result<Vec<RepositoryName>, StoreError> {
        super::guarded(|| {
            let prefix = layout::repositories_of(upstream, subject);
            let name = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
                let (key, _) = entry?;
                let name = key.strip_prefix(prefix.as_slice()).and_then(|name| str::from_utf8(name).ok());
                let name = name.and_then(|name| name.parse().ok());
                name.ok_or(StoreError::Damaged("the name of a repository is unreadable"))
            };
            self.tree.scan_prefix(&prefix).map(name).collect()
        })
    }
}
