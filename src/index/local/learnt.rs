//! Recording what was read from the upstream and not pushed through refshim.

use super::batch::{Draft, Found};
use super::record::{Record, Recorded, ReferrerKey};
use super::watches::Watch;
use crate::index::{Learnt, Order};

/// Adds to the draft what of this is not known yet. What may have been deleted since it was read, and
/// what nobody has seen itself, is pending.
pub(crate) fn record(
    watch: &Watch,
    learnt: Vec<Learnt>,
    draft: &mut Draft,
    mut next_order: impl FnMut() -> Order,
) {
    let disturbed = watch.is_disturbed();
    for Learnt { referrer, claimed } in learnt {
        let key = ReferrerKey { repository: watch.repository().clone(), digest: referrer.digest };
        let unsure = disturbed || claimed;
        let (order, pending) = match draft.find(&key) {
            Found::Known(known) => {
                // What is learnt need not be all that the bytes say. So it cannot confirm claims that it does not
                // repeat: they stay pending until the manifest is asked for.
                let pending = unsure || (known.pending && !known.is_within(&referrer.links));
                let says_more = !known.has(&referrer.links)
                    || (known.claimed && !claimed)
                    || (known.pending && !pending)
                    || (known.absent_since.is_some() && !unsure);
                if !says_more {
                    continue;
                }
                (known.order, pending)
            }
            Found::Unknown | Found::Unseen if referrer.links.is_empty() => continue,
            Found::Unknown => (next_order(), unsure),
            Found::Unseen => (next_order(), true),
        };
        draft.push(Record::Recorded(Recorded {
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
