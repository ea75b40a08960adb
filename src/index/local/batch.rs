//! A group commit in the making: its records, and what the index is like after them.

use std::sync::Arc;

use super::record::{Record, ReferrerKey};
use super::referrer_state::ReferrerState;
use super::sled::{Changes, Store, StoreError};
use crate::index::Version;

/// The records that will be one frame.
#[derive(Debug)]
pub(crate) struct WriteBatch {
    position: u64,
    records: u64,
    payload: serde_json::Result<Vec<u8>>,
    /// What the records make of the index. None if it cannot be seen: sled is still being opened.
    index: Option<(Arc<Store>, Changes)>,
    error: Option<StoreError>,
}

/// What is known of a referrer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LookUp<'a> {
    Found(&'a ReferrerState),
    Unknown,
    /// The index cannot be looked into.
    Unavailable,
}

impl WriteBatch {
    /// Of the frame at `position`.
    pub(crate) fn new(position: u64, store: Option<Arc<Store>>) -> Self {
        let index = store.map(|store| (store, Changes::default()));
        Self { position, records: 0, payload: Ok(Vec::new()), index, error: None }
    }

    /// What is known of a referrer after the records so far.
    pub(crate) fn find(&mut self, key: &ReferrerKey) -> LookUp<'_> {
        // From the first failure on the index counts as unseen: records that suit any state go on.
        if self.error.is_some() {
            return LookUp::Unavailable;
        }
        let Some((store, changes)) = &mut self.index else { return LookUp::Unavailable };
        match changes.find(store, key) {
            Ok(Some(state)) => LookUp::Found(state),
            Ok(None) => LookUp::Unknown,
            Err(error) => {
                self.error = Some(error);
                LookUp::Unavailable
            }
        }
    }

    /// Adds a record; gives the version that it makes.
    pub(crate) fn push(&mut self, record: Record) -> Version {
        if let Ok(payload) = &mut self.payload
            && let Err(error) = record.write_to(payload)
        {
            self.payload = Err(error);
        }
        let version = Version::of(self.position, self.records);
        self.records += 1;
        if let (Some((store, changes)), None) = (&mut self.index, &self.error) {
            self.error = changes.apply(store, record, version).err();
        }
        version
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// How many records there are.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// The frame's payload.
    pub(crate) fn payload(&self) -> Result<&[u8], String> {
        self.payload.as_deref().map_err(ToString::to_string)
    }

    /// Applies the records to the index, now that they are durable up to `end`.
    pub(crate) fn apply(self, end: u64) -> Result<(), StoreError> {
        match (self.index, self.error) {
            (_, Some(error)) => Err(error),
            (Some((store, changes)), None) => store.write(changes, Some(end)),
            (None, None) => Ok(()),
        }
    }
}
