//! Recording what was read from the upstream and not pushed through refshim.

use super::batch::{LookUp, WriteBatch};
use super::record::{Record, Recorded, ReferrerKey};
use super::watches::ReadMark;
use crate::index::{Observation, Order};

/// Adds to the draft what of this is not known yet. What may have been deleted since it was read, and
/// what nobody has seen itself, is pending.
pub(crate) fn record(
    read: &ReadMark,
    learnt: Vec<Observation>,
    batch: &mut WriteBatch,
    mut next_order: impl FnMut() -> Order,
) {
    let disturbed = read.saw_deletion();
    for Observation { referrer, claimed } in learnt {
        let key = ReferrerKey { repository: read.repository().clone(), digest: referrer.digest };
        let unsure = disturbed || claimed;
        let (order, pending) = match batch.find(&key) {
            LookUp::Found(state) => {
                // What is learnt need not be all that the bytes say. So it cannot confirm claims that it does not
                // repeat: they stay pending until the manifest is asked for.
                let pending = unsure || (state.pending && !state.is_within(&referrer.links));
                let says_more = !state.has(&referrer.links)
                    || (state.claimed && !claimed)
                    || (state.pending && !pending)
                    || (state.absent_since.is_some() && !unsure);
                if !says_more {
                    continue;
                }
                (state.order, pending)
            }
            LookUp::Unknown | LookUp::Unavailable if referrer.links.is_empty() => continue,
            LookUp::Unknown => (next_order(), unsure),
            LookUp::Unavailable => (next_order(), true),
        };
        batch.push(Record::Recorded(Recorded {
            referrer: key,
            order: order.0,
            pending,
            claimed,
            was_confirmed: false,
            absent_since: None,
            version: None,
            descriptor: referrer.descriptor,
            links: referrer.links,
        }));
    }
}
