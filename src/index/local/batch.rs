//! The records of one group commit while they are being decided on, and the index as they leave it.
//!
//! Writes of the same batch see each other: a look-up answers from the store with all records of the batch so far
//! applied, although none of them is on disk yet.

use std::sync::Arc;

use super::sorted::SortedError;
use super::store::{Changes, Store, StoreError, View};
use crate::index::decision::{Decision, LookUp};
use crate::index::record::{Record, ReferrerKey};
use crate::index::referrer_state::ReferrerState;
use crate::index::{Version, WriteError};

/// Of a frame with one push.
const USUAL_BYTES: usize = 1024;

/// Records that will be one frame of the journal.
#[derive(Debug)]
pub(crate) struct WriteBatch {
    position: u64,
    records: u64,
    payload: serde_json::Result<Vec<u8>>,
    /// What is read, where it is written, and what the records change. None while sled is being opened.
    index: Option<(Arc<View>, Arc<Store>, Changes)>,
    error: Option<StoreError>,
    /// Why the write that is being decided on cannot be recorded, if so.
    refusal: Option<WriteError>,
}

impl WriteBatch {
    /// An empty batch for the frame at `position`.
    pub(crate) fn new(position: u64, store: Option<Arc<Store>>) -> Self {
        let index = store.map(|store| (store.view(), store, Changes::default()));
        Self {
            position,
            records: 0,
            payload: Ok(Vec::with_capacity(USUAL_BYTES)),
            index,
            error: None,
            refusal: None,
        }
    }

    /// Why the write decided on last cannot be recorded, if so: what it depends on is in a part of the snapshot that
    /// cannot be read. Everything else can.
    pub(crate) fn take_refusal(&mut self) -> Option<WriteError> {
        self.refusal.take()
    }

    /// Notes that something could not be looked up.
    fn failed(&mut self, error: StoreError) {
        match error {
            StoreError::Snapshot(SortedError::Damaged { .. } | SortedError::Needed) => {
                self.refusal = Some(WriteError::Damaged);
            }
            StoreError::Snapshot(SortedError::Io { .. }) => self.refusal = Some(WriteError::Failed),
            error @ (StoreError::Sled(_)
            | StoreError::Panicked(_)
            | StoreError::Directory(_)
            | StoreError::Damaged(_)) => self.error = Some(error),
        }
    }

    /// The state of a referrer after the records so far.
    pub(crate) fn find(&mut self, key: &ReferrerKey) -> LookUp<'_> {
        // The batch is not given up at the first failure: what it says is durable in the journal whatever becomes of
        // sled, so the rest is decided as if sled were not open yet.
        if self.error.is_some() {
            return LookUp::Unavailable;
        }
        if let Some((view, _, changes)) = &mut self.index
            && let Err(error) = changes.find(view, key)
        {
            self.failed(error);
            return LookUp::Unavailable;
        }
        let Some((_, _, changes)) = &self.index else { return LookUp::Unavailable };
        changes.found(key).map_or(LookUp::Unknown, LookUp::Found)
    }

    /// Adds a record and returns the version it gives to its referrer; none if the write is refused.
    fn push(&mut self, record: &Record) -> Option<Version> {
        // Of a write all that comes behind it, too: its caller is told that it failed.
        if self.refusal.is_some() {
            return None;
        }
        let version = Version::of(self.position, self.records);
        // Before it is part of the payload: what is in there must be applied.
        if let (Some((view, _, changes)), None) = (&mut self.index, &self.error)
            && let Err(error) = changes.apply(view, record, version)
        {
            self.failed(error);
        }
        if self.refusal.is_some() {
            return None;
        }
        if let Ok(payload) = &mut self.payload
            && let Err(error) = record.write_to(payload)
        {
            self.payload = Err(error);
        }
        self.records += 1;
        Some(version)
    }

    /// Adds what was decided of this referrer, and returns the version that it makes, if any.
    pub(crate) fn record(&mut self, decision: Decision, key: &ReferrerKey) -> Option<Version> {
        match decision {
            Decision::Nothing => None,
            Decision::Record(record) => self.push(&record),
            Decision::IfNews(record) => self.push_if_news(&record, key),
            Decision::Both(first, second) => {
                self.push(&first)?;
                self.push(&second)
            }
        }
    }

    /// Adds the record only if it changes more than the version; in place of it a plain [`Record::Confirmed`] if that
    /// has the same effect, because it is far shorter.
    fn push_if_news(&mut self, record: &Record, key: &ReferrerKey) -> Option<Version> {
        let LookUp::Found(state) = self.find(key) else { return self.push(record) };
        let version = Version(state.version.0.saturating_add(1));
        let after = |record| ReferrerState::after(Some(state.clone()), record, version);
        let changed = after(record.clone());
        if changed == Some(ReferrerState { version, ..state.clone() }) {
            return None;
        }
        let confirmed = Record::Confirmed(key.clone());
        let suffices = changed == after(confirmed.clone());
        self.push(if suffices { &confirmed } else { record })
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
            (Some((_, store, changes)), None) => store.write(changes, end),
            (None, None) => Ok(()),
        }
    }
}
