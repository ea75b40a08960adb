//! What a stretch of records does to the index: collected here, then written as one batch.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{Store, StoreError};
use crate::index::Version;
use crate::index::local::record::{Record, ReferrerKey};
use crate::index::local::referrer_state::ReferrerState;

/// Changes that are not written yet, and what of the store they were made on.
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
    /// What is known of a referrer after the changes so far.
    pub(crate) fn find(
        &mut self,
        store: &Store,
        key: &ReferrerKey,
    ) -> Result<Option<&ReferrerState>, StoreError> {
        Ok(self.change(store, key)?.after.as_ref())
    }

    /// Adds what `record` changes.
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
                let state = store.state(key)?;
                Ok(entry.insert(Change { before: state.clone(), after: state }))
            }
        }
    }
}
