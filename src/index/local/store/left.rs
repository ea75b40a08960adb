//! What is left of a damaged snapshot.

use std::ops::Bound;

use super::layout::{self, Stored};
use super::{Slice, StoreError, View};
use crate::index::local::sorted::Hole;
use crate::index::record::{Recorded, ReferrerKey};
use crate::index::referrer_state::ReferrerState;

impl View {
    /// The referrers whose entries are left, each with its state, or why that is lost.
    pub(crate) fn states_left(
        &self,
    ) -> impl Iterator<Item = (ReferrerKey, Result<ReferrerState, StoreError>)> {
        self.left(layout::REVERSE.to_vec()).filter_map(|(key, reverse)| {
            let referrer = layout::referrer_of_reverse_entry(&key)?;
            let state = self.complete(&referrer, reverse).transpose()?;
            Some((referrer, state))
        })
    }

    /// The links whose referrers' entries are in one of these holes.
    pub(crate) fn links_without_referrer(&self, holes: &[Hole]) -> impl Iterator<Item = Recorded> {
        self.left(layout::FIRST.to_vec()).filter_map(|(key, value)| {
            let repository = layout::repository_of_link(&key)?;
            let subject = layout::subject_of_link(&key)?;
            let Stored { value: entry, has_descriptor } = layout::decode_link(&key, &value)?;
            let referrer = ReferrerKey { repository, digest: entry.digest };
            let own = layout::reverse_entry(&referrer);
            if !has_descriptor || !holes.iter().any(|hole| hole.may_hold(&own)) {
                return None;
            }
            let state = ReferrerState {
                order: entry.order,
                // Other links of it may be lost, and the manifest itself tells them all.
                pending: true,
                was_confirmed: entry.was_confirmed,
                absent_since: None,
                version: entry.version,
                claimed: false,
                descriptor: entry.descriptor,
                links: [(subject, entry.kinds)].into(),
            };
            Some(Recorded::of(referrer, state))
        })
    }

    /// The keys of a referrer's links, as far as they are left in the snapshot.
    pub(super) fn links_left_of(&self, referrer: &ReferrerKey) -> impl Iterator<Item = Vec<u8>> {
        let is_its = |(key, value): &(Slice, Slice)| {
            layout::decode_link(key, value).is_some_and(|link| link.value.digest == referrer.digest)
        };
        self.left(layout::links_in(&referrer.repository)).filter(is_its).map(|(key, _)| key.to_vec())
    }

    /// The snapshot's entries of a space, without those that cannot be read.
    fn left(&self, prefix: Vec<u8>) -> impl Iterator<Item = (Slice, Slice)> {
        let end = super::prefix_end(&prefix);
        let entries = self.snapshot.iter().flat_map(move |snapshot| {
            snapshot.file.range(Bound::Included(&prefix), end.as_deref()).flatten()
        });
        entries.map(|(key, value)| (Slice::InFile(key), Slice::InFile(value)))
    }
}
