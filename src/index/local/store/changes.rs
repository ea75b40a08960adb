//! Changes of the index: what records make of the referrers, collected in memory and written as one batch.
//!
//! Each change holds the referrer before and after. A batch removes all entries of the state before that the state after
//! does not have, and writes those of the state after.
//!
//! All that has to be looked up is looked up when a record is applied, before anything of it is durable: what cannot be
//! read is an error of this one record then, and not of a batch that must be written.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Meta, StoreError, View, Write, layout};
use crate::index::record::{Record, ReferrerKey};
use crate::index::referrer_state::ReferrerState;
use crate::index::{Order, Repository, Version};

/// Changes that are not written yet.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    referrers: HashMap<ReferrerKey, Change>,
    /// Numbers of referrers before, by key.
    counts: HashMap<Vec<u8>, u64>,
    /// Keys of which nothing can be told, because a damaged part of the snapshot is needed.
    unreadable: Vec<Vec<u8>>,
    /// The repositories of records that could not be applied.
    left_out: Vec<Repository>,
}

#[derive(Debug)]
struct Change {
    before: Option<ReferrerState>,
    after: Option<ReferrerState>,
}

impl Changes {
    /// Looks a referrer up.
    pub(crate) fn find(&mut self, view: &View, key: &ReferrerKey) -> Result<(), StoreError> {
        self.change(view, key).map(|_| ())
    }

    /// The state, after the changes so far, of a referrer that was looked up.
    pub(crate) fn found(&self, key: &ReferrerKey) -> Option<&ReferrerState> {
        self.referrers.get(key).and_then(|change| change.after.as_ref())
    }

    /// Applies a record. After an error nothing of it is applied.
    pub(crate) fn apply(&mut self, view: &View, record: &Record, version: Version) -> Result<(), StoreError> {
        let Some(key) = record.referrer() else { return Ok(()) };
        self.change(view, key)?;
        self.look_up_counts(view, record)?;
        let change = self.change(view, key)?;
        change.after = ReferrerState::after(change.after.take(), record.clone(), version);
        Ok(())
    }

    /// Notes that this record cannot be applied, because a part of the snapshot is damaged: the referrer, and the lists
    /// that it is on or belongs on, are unreadable from now on.
    pub(crate) fn leave_out(&mut self, view: &View, record: &Record) {
        let Some(referrer) = record.referrer() else { return };
        self.left_out.push(referrer.repository.clone());
        self.unreadable.push(layout::reverse_entry(referrer));
        let told = record.recorded().into_iter();
        let told =
            told.flat_map(|recorded| recorded.links.iter().map(|link| (&link.subject, recorded.order)));
        for (subject, order) in told {
            self.unreadable.push(layout::link(&referrer.repository, subject, Order(order)));
            self.unreadable.push(layout::repository_of(subject, &referrer.repository));
        }
        // Dear, but it takes a damaged block and a record that was written when nobody knew of it.
        self.unreadable.extend(view.links_left_of(referrer));
    }

    fn change(&mut self, view: &View, key: &ReferrerKey) -> Result<&mut Change, StoreError> {
        match self.referrers.entry(key.clone()) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let state = view.referrer_state(key)?;
                Ok(entry.insert(Change { before: state.clone(), after: state }))
            }
        }
    }

    /// Looks up the numbers that the record may change.
    fn look_up_counts(&mut self, view: &View, record: &Record) -> Result<(), StoreError> {
        let Some(key) = record.referrer() else { return Ok(()) };
        let changes_links = record.recorded().is_some() || matches!(record, Record::Removed(_));
        if !changes_links {
            return Ok(());
        }
        let told =
            record.recorded().into_iter().flat_map(|recorded| &recorded.links).map(|link| &link.subject);
        let change = self.referrers.get(key);
        let states = change.into_iter().flat_map(|change| [&change.before, &change.after]).flatten();
        let known = states.flat_map(|state| state.links.keys());
        let of_subjects = told.chain(known).map(|subject| layout::repository_of(subject, &key.repository));
        for count in of_subjects.chain([layout::referrers_in(&key.repository)]) {
            if let Entry::Vacant(entry) = self.counts.entry(count) {
                let value = view.get(entry.key())?;
                entry.insert(value.map_or(Ok(0), |value| decode_count(&value))?);
            }
        }
        Ok(())
    }

    /// The repositories whose lists may change.
    pub(super) fn repositories(&self) -> HashSet<Repository> {
        let changed = self.referrers.iter().filter(|(_, change)| change.before != change.after);
        changed.map(|(referrer, _)| &referrer.repository).chain(&self.left_out).cloned().collect()
    }

    /// What is written of all keys that change. The numbers in `meta` are brought up to date.
    pub(super) fn into_writes(self, meta: &mut Meta) -> Result<BTreeMap<Vec<u8>, Write>, StoreError> {
        // Sorted, because sled finds its way to the next key quicker then.
        let mut writes = BTreeMap::new();
        let mut steps: HashMap<Vec<u8>, i64> = HashMap::new();
        for (referrer, change) in self.referrers {
            if change.before == change.after {
                continue;
            }
            count(&referrer, &change, &mut steps);
            if let Some(state) = &change.before {
                meta.discount(state);
                writes.extend(
                    layout::entries(&referrer, state).into_iter().map(|(key, _)| (key, Write::Removed)),
                );
            }
            if let Some(state) = &change.after {
                meta.count(state);
                let entries = layout::entries(&referrer, state).into_iter();
                writes.extend(entries.map(|(key, value)| (key, Write::Value(value))));
            }
        }
        for (key, step) in steps.into_iter().filter(|(_, step)| *step != 0) {
            let before = self.counts.get(&key).copied().ok_or(MISCOUNTED)?;
            let count = before.checked_add_signed(step).ok_or(MISCOUNTED)?;
            let value = || Write::Value(count.to_be_bytes().to_vec());
            writes.insert(key, if count > 0 { value() } else { Write::Removed });
        }
        writes.extend(self.unreadable.into_iter().map(|key| (key, Write::Unreadable)));
        Ok(writes)
    }
}

const MISCOUNTED: StoreError = StoreError::Damaged("referrers are miscounted");

/// Counts one changed referrer.
fn count(referrer: &ReferrerKey, change: &Change, steps: &mut HashMap<Vec<u8>, i64>) {
    // Usual: it was confirmed, and nothing else of it changed.
    if let (Some(before), Some(after)) = (&change.before, &change.after)
        && before.links.keys().eq(after.links.keys())
    {
        return;
    }
    for (state, step) in [(&change.before, -1), (&change.after, 1)] {
        let Some(state) = state else { continue };
        *steps.entry(layout::referrers_in(&referrer.repository)).or_default() += step;
        for subject in state.links.keys() {
            *steps.entry(layout::repository_of(subject, &referrer.repository)).or_default() += step;
        }
    }
}

pub(super) fn decode_count(value: &[u8]) -> Result<u64, StoreError> {
    let value = value.try_into().map_err(|_| StoreError::Damaged("a number of referrers is unreadable"))?;
    Ok(u64::from_be_bytes(value))
}
