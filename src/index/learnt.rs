//! Recording what was read from the upstream and not pushed through refshim.

use super::draft::{Draft, Found};
use super::record::{Record, Recorded, ReferrerKey};
use super::watches::Watch;
use super::{Learnt, Order};

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
        let pending = disturbed || claimed;
        let order = match draft.find(&key) {
            Found::Known(known) => {
                let says_more =
                    !known.has(&referrer.links) || (known.claimed && !claimed) || (known.pending && !pending);
                if !says_more {
                    continue;
                }
                known.order
            }
            Found::Unknown | Found::Unseen if referrer.links.is_empty() => continue,
            Found::Unknown | Found::Unseen => next_order(),
        };
        draft.push(Record::Recorded(Recorded {
            referrer: key,
            order: order.0,
            pending,
            claimed,
            descriptor: referrer.descriptor,
            links: referrer.links,
        }));
    }
}
