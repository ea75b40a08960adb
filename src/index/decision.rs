//! What each kind of write makes of the state that it meets. Pure, and the same for both engines.
//!
//! A decision is made on the state as it is when it is written, which may be younger than what the caller saw. So
//! callers name the [`Version`] that they saw, and a stale decision changes nothing or only makes the referrer pending.

use super::record::{Record, Recorded, ReferrerKey};
use super::referrer_state::{ReferrerState, is_own};
use super::{Observation, Order, Referrer, Removed, Version};
use crate::oci::Link;

/// The result of looking up a referrer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LookUp<'a> {
    /// It is in the index, in this state.
    Found(&'a ReferrerState),
    /// It is not in the index.
    Unknown,
    /// The index cannot be read now: sled is being opened, or it failed. Then what is decided is right whatever the
    /// state is: pending in place of confirmed, doubted in place of removed.
    Unavailable,
}

/// What is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing.
    Nothing,
    /// This.
    Record(Record),
    /// This, if it changes more than the version.
    IfNews(Record),
    /// These two, together.
    Both(Record, Record),
}

/// A manifest is about to be sent upstream. Of its links, only those in its bytes are told: that the upstream has the
/// manifest does not show that it accepted a tag, so what a tag says is recorded with the confirmation.
pub(crate) fn begin(found: LookUp<'_>, key: &ReferrerKey, referrer: &Referrer, order: Order) -> Decision {
    let links: Vec<Link> =
        referrer.links.iter().filter(|link| link.kind.is_in_the_bytes()).cloned().collect();
    match found {
        // A new version even where nothing else changes: a removal decided on before this PUT must be detected as
        // stale, or it would take away what the upstream is about to have again.
        LookUp::Found(state) if !state.pending => Decision::Record(Record::Confirmed(key.clone())),
        LookUp::Unknown | LookUp::Unavailable if links.is_empty() => Decision::Nothing,
        LookUp::Found(_) | LookUp::Unknown | LookUp::Unavailable => {
            let descriptor = referrer.descriptor.clone();
            Decision::Record(Record::Begun(Recorded::new(key.clone(), order, true, descriptor, links)))
        }
    }
}

/// The upstream accepted the manifest. `doubted` if it was deleted while it was being PUT, maybe after the upstream had
/// accepted it: it stays pending, and the next query asks. `order` is for a referrer that is not known any more.
pub(crate) fn confirm(
    found: LookUp<'_>,
    key: &ReferrerKey,
    referrer: &Referrer,
    order: Order,
    doubted: bool,
) -> Decision {
    let record = |order| {
        let Referrer { descriptor, links, .. } = referrer.clone();
        Record::Accepted(Recorded::new(key.clone(), order, doubted, descriptor, links))
    };
    match found {
        LookUp::Found(state) if !state.pending && state.has(&referrer.links) => Decision::Nothing,
        LookUp::Found(state) => Decision::IfNews(record(state.order)),
        LookUp::Unknown | LookUp::Unavailable => Decision::Record(record(order)),
    }
}

/// The upstream refused the manifest. Only what these PUTs themselves added goes, as version `made`: what anybody else
/// recorded since stays.
pub(crate) fn refuse(found: LookUp<'_>, key: &ReferrerKey, made: Option<Version>) -> Decision {
    match (found, made) {
        (LookUp::Found(state), Some(made)) if state.pending && state.version == made => {
            Decision::Record(Record::Removed(key.clone()))
        }
        (LookUp::Found(_) | LookUp::Unknown | LookUp::Unavailable, _) => Decision::Nothing,
    }
}

/// The upstream serves the referrer as `served`.
pub(crate) fn settle(found: LookUp<'_>, key: &ReferrerKey, seen: Version, served: &Referrer) -> Decision {
    match found {
        LookUp::Found(state) if state.version == seen => {
            let links = served.links.iter().filter(|link| is_own(link.kind)).cloned().collect();
            let descriptor = served.descriptor.clone();
            Decision::IfNews(Record::Settled(Recorded::new(
                key.clone(),
                state.order,
                false,
                descriptor,
                links,
            )))
        }
        // What cannot be compared stays as it is, and the next query asks again.
        LookUp::Found(_) | LookUp::Unknown | LookUp::Unavailable => Decision::Nothing,
    }
}

/// The upstream deleted the referrer.
pub(crate) fn remove(
    found: LookUp<'_>,
    key: &ReferrerKey,
    seen: Version,
    is_being_put: bool,
) -> (Removed, Decision) {
    match if_unchanged(found, seen, is_being_put) {
        Ok(_absent_since) => (Removed::Gone, Decision::Record(Record::Removed(key.clone()))),
        Err(Removed::Doubted) => (Removed::Doubted, disown(found, key)),
        Err(removed) => (removed, Decision::Nothing),
    }
}

/// The upstream answered 404 at `now`, to a caller that can read the repository. Times are in microseconds.
pub(crate) fn absent(
    found: LookUp<'_>,
    key: &ReferrerKey,
    seen: Version,
    is_being_put: bool,
    (now, forget_after): (u64, u64),
) -> (Removed, Decision) {
    let absent_since = match if_unchanged(found, seen, is_being_put) {
        Ok(absent_since) => absent_since,
        Err(Removed::Doubted) => return (Removed::Doubted, make_pending(key)),
        Err(removed) => return (removed, Decision::Nothing),
    };
    // One 404 proves nothing: Quay and distribution on S3 lag behind their own 201 by seconds, and one node of several
    // may be wrong for a moment. So the time of the first one is recorded, and only an absence that lasts removes the
    // referrer.
    match absent_since {
        None => (Removed::Doubted, Decision::Record(Record::Absent { referrer: key.clone(), since: now })),
        Some(since) if now.saturating_sub(since) >= forget_after => {
            (Removed::Gone, Decision::Record(Record::Removed(key.clone())))
        }
        // No record: each query asks for this until the referrer is forgotten.
        Some(_) => (Removed::Doubted, Decision::Nothing),
    }
}

/// When the referrer's absence began, if any; an error if it must not be removed, because it is unknown, was changed
/// since it was `seen`, or is being PUT.
fn if_unchanged(found: LookUp<'_>, seen: Version, is_being_put: bool) -> Result<Option<u64>, Removed> {
    match found {
        LookUp::Unknown => Err(Removed::Unknown),
        LookUp::Found(state) if state.version == seen && !is_being_put => Ok(state.absent_since),
        LookUp::Found(_) | LookUp::Unavailable => Err(Removed::Doubted),
    }
}

/// Makes a confirmed referrer pending. Only then: a client without any right to the referrer can have this asked for as
/// often as it likes.
pub(crate) fn doubt(found: LookUp<'_>, key: &ReferrerKey) -> Decision {
    match found {
        LookUp::Found(ReferrerState { pending: false, .. }) | LookUp::Unavailable => make_pending(key),
        LookUp::Found(_) | LookUp::Unknown => Decision::Nothing,
    }
}

/// Makes the referrer pending, and no more than a claim: somebody deleted it, or meant to. So it is not listed on the
/// strength of having been there, as others are while the registry cannot be asked.
fn disown(found: LookUp<'_>, key: &ReferrerKey) -> Decision {
    match found {
        LookUp::Found(state) if state.was_confirmed => {
            let claim = Recorded { pending: true, ..Recorded::of(key.clone(), state.clone()) };
            let claim = Record::Recorded(Recorded { was_confirmed: false, version: None, ..claim });
            Decision::Both(Record::Removed(key.clone()), claim)
        }
        LookUp::Found(_) | LookUp::Unknown | LookUp::Unavailable => make_pending(key),
    }
}

/// Makes the referrer pending. Also if it is already: the new version makes a confirmation that was decided on what the
/// upstream served before come too late.
fn make_pending(key: &ReferrerKey) -> Decision {
    Decision::Record(Record::Doubted(key.clone()))
}

/// Whether something says what is not known yet, and if so what is recorded. Pending: what may have been deleted since
/// it was read (`deletion`), and what only another manifest tells of.
pub(crate) fn observe(
    found: LookUp<'_>,
    key: &ReferrerKey,
    observation: Observation,
    deletion: bool,
    next_order: impl FnOnce() -> Order,
) -> Decision {
    let Observation { referrer: Referrer { descriptor, links, .. }, claimed } = observation;
    let unsure = deletion || claimed;
    let (order, pending) = match found {
        LookUp::Found(state) => {
            // An observation need not be all that the bytes say. So it confirms nothing that a client claimed and that
            // it does not repeat: that stays pending until the manifest itself is read.
            let pending = unsure || (state.pending && !state.is_within(&links));
            let says_more = !state.has(&links)
                || (state.claimed && !claimed)
                || (state.pending && !pending)
                || (state.absent_since.is_some() && !unsure);
            if !says_more {
                return Decision::Nothing;
            }
            (state.order, pending)
        }
        LookUp::Unknown | LookUp::Unavailable if links.is_empty() => return Decision::Nothing,
        LookUp::Unknown => (next_order(), unsure),
        LookUp::Unavailable => (next_order(), true),
    };
    let recorded = Recorded::new(key.clone(), order, pending, descriptor, links);
    Decision::Record(Record::Recorded(Recorded { claimed, ..recorded }))
}
