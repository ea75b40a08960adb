//! Changes of the index: what records make of the referrers, collected in memory and written to sled as one batch.
//!
//! Each change holds the referrer before and after. A batch removes all entries of the state before and adds those of
//! the state after, so entries need not be compared, and the sum in [`Meta`] follows from the same two states.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{Meta, Store, StoreError, guarded, layout};
use crate::index::Version;
use crate::index::record::{Record, ReferrerKey};
use crate::index::referrer_state::ReferrerState;

/// Changes that are not written yet.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(super) referrers: HashMap<ReferrerKey, Change>,
}

#[derive(Debug)]
pub(super) struct Change {
    pub(super) before: Option<ReferrerState>,
    pub(super) after: Option<ReferrerState>,
}

impl Changes {
    /// The state of a referrer after the changes so far.
    pub(crate) fn find(
        &mut self,
        store: &Store,
        key: &ReferrerKey,
    ) -> Result<Option<&ReferrerState>, StoreError> {
        Ok(self.change(store, key)?.after.as_ref())
    }

    /// Applies a record.
    pub(crate) fn apply(
        &mut self,
        store: &Store,
        record: Record,
        version: Version,
    ) -> Result<(), StoreError> {
        let Some(key) = record.referrer() else { return Ok(()) };
        let change = self.change(store, key)?;
        change.after = ReferrerState::after(change.after.take(), record, version);
        Ok(())
    }

    fn change(&mut self, store: &Store, key: &ReferrerKey) -> Result<&mut Change, StoreError> {
        match self.referrers.entry(key.clone()) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let state = store.referrer_state(key)?;
                Ok(entry.insert(Change { before: state.clone(), after: state }))
            }
        }
    }
}

/// Changes of the numbers of referrers, by key.
#[derive(Debug, Default)]
pub(super) struct ReferrerCounts(HashMap<Vec<u8>, i64>);

impl ReferrerCounts {
    /// Counts one changed referrer.
    pub(super) fn add(&mut self, referrer: &ReferrerKey, change: &Change) {
        // Usual: it was confirmed, and nothing else of it changed.
        if let (Some(before), Some(after)) = (&change.before, &change.after)
            && before.links.keys().eq(after.links.keys())
        {
            return;
        }
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
                Some(value) => decode_count(value)?,
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

pub(super) fn decode_count(value: &[u8]) -> Result<u64, StoreError> {
    let value = value.try_into().map_err(|_| StoreError::Damaged("a number of referrers is unreadable"))?;
    Ok(u64::from_be_bytes(value))
}

impl Store {
    /// Writes the changes and the journal's position that they reach, all or nothing.
    ///
    /// In one atomic batch, because sled flushes whenever it likes: after a crash it may have lost any number of
    /// the last batches, and the position tells from where the journal must be applied again.
    pub(crate) fn write(&self, changes: Changes, applied: Option<u64>) -> Result<(), StoreError> {
        let mut numbers = self.numbers();
        let mut batch = sled::Batch::default();
        numbers.meta.applied = applied;
        let mut counts = ReferrerCounts::default();
        for (referrer, change) in changes.referrers {
            if change.before == change.after {
                continue;
            }
            counts.add(&referrer, &change);
            if let Some(state) = &change.before {
                numbers.meta.discount(state);
                for (key, value) in layout::entries(&referrer, state) {
                    numbers.meta.subtract(&key, &value);
                    batch.remove(key);
                }
            }
            if let Some(state) = &change.after {
                numbers.meta.count(state);
                for (key, value) in layout::entries(&referrer, state) {
                    numbers.meta.add(&key, &value);
                    batch.insert(key, value);
                }
            }
            numbers.added += u64::from(change.before.is_none());
            numbers.removed += u64::from(change.after.is_none());
        }
        guarded(|| {
            counts.write(self, &mut numbers.meta, &mut batch)?;
            batch.insert(&layout::META, numbers.meta.encode());
            Ok(self.tree.apply_batch(batch)?)
        })?;
        *self.lock_numbers() = numbers;
        Ok(())
    }
}
