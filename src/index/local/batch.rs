//! The records of one group commit while they are being decided on, and the index as they leave it.
//!
//! Writes of the same batch see each other: a look-up answers from the store with all records of the batch so far
//! applied, although none of them is on disk yet.

use std::sync::Arc;

use super::sled::{Changes, Store, StoreError};
use crate::index::Version;
use crate::index::decision::{Decision, LookUp};
use crate::index::record::{Record, ReferrerKey};
use crate::index::referrer_state::ReferrerState;

/// Of a frame with one push.
const USUAL_BYTES: usize = 1024;

/// Records that will be one frame of the journal.
#[derive(Debug)]
pub(crate) struct WriteBatch {
    position: u64,
    records: u64,
    payload: serde_json::Result<Vec<u8>>,
    /// The store and what the records change in it. None while sled is being opened.
    index: Option<(Arc<Store>, Changes)>,
    error: Option<StoreError>,
}

impl WriteBatch {
    /// An empty batch for the frame at `position`.
    pub(crate) fn new(position: u64, store: Option<Arc<Store>>) -> Self {
        let index = store.map(|store| (store, Changes::default()));
        Self { position, records: 0, payload: Ok(Vec::with_capacity(USUAL_BYTES)), index, error: None }
    }

    /// The state of a referrer after the records so far.
    pub(crate) fn find(&mut self, key: &ReferrerKey) -> LookUp<'_> {
        // The batch is not given up at the first failure: what it says is durable in the journal whatever becomes of
        // sled, so the rest is decided as if sled were not open yet.
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

    /// Adds a record and returns the version it gives to its referrer.
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

    /// Adds what was decided of this referrer, and returns the version that it makes, if any.
    pub(crate) fn record(&mut self, decision: Decision, key: &ReferrerKey) -> Option<Version> {
        match decision {
            Decision::Nothing => None,
            Decision::Record(record) => Some(self.push(record)),
            Decision::IfNews(record) => self.push_if_news(record, key),
            Decision::Both(first, second) => {
                self.push(first);
                Some(self.push(second))
            }
        }
    }

    /// Adds the record only if it changes more than the version; in place of it a plain [`Record::Confirmed`] if that
    /// has the same effect, because it is far shorter.
    fn push_if_news(&mut self, record: Record, key: &ReferrerKey) -> Option<Version> {
        let LookUp::Found(state) = self.find(key) else { return Some(self.push(record)) };
        let version = Version(state.version.0.saturating_add(1));
        let after = |record| ReferrerState::after(Some(state.clone()), record, version);
        let changed = after(record.clone());
        if changed == Some(ReferrerState { version, ..state.clone() }) {
            return None;
        }
        let confirmed = Record::Confirmed(key.clone());
        let suffices = changed == after(confirmed.clone());
        Some(self.push(if suffices { confirmed } else { record }))
    }

    /// Whether no record was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// How many records were added.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// The payload of the frame.
    pub(crate) fn payload(&self) -> Result<&[u8], String> {
        self.payload.as_deref().map_err(ToString::to_string)
    }

    /// Applies the records to sled. Only called once they are durable, up to the position `end`: sled must never be
    /// ahead of the journal, or a crash would leave it with what nobody can build again.
    pub(crate) fn apply(self, end: u64) -> Result<(), StoreError> {
        match (self.index, self.error) {
            (_, Some(error)) => Err(error),
            (Some((store, changes)), None) => store.write(changes, Some(end)),
            (None, None) => Ok(()),
        }
    }
}
