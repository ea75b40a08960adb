//! The state of one referrer, and how each record of the journal changes it. Pure.
//!
//! What is said of a referrer comes from sources of different weight, and this is where they are weighed: the bytes
//! that the upstream serves count more than those a client claims to push, and both more than the claim of another
//! manifest or a tag. A claim never changes what is confirmed.
//!
//! Applying a record twice, or over a state that includes it, changes nothing.

use std::collections::BTreeMap;

use super::record::{Record, Recorded};
use crate::index::{Order, Version};
use crate::oci::{Digest, Link, LinkKind, LinkKinds};

/// The state of a referrer after the records so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReferrerState {
    pub(crate) order: Order,
    pub(crate) pending: bool,
    /// Whether it was ever confirmed, so that it is more than a claim even while it is pending.
    pub(crate) was_confirmed: bool,
    /// When the upstream began to answer nothing but 404 for it, in microseconds since 1970; then it is pending.
    pub(crate) absent_since: Option<u64>,
    pub(crate) version: Version,
    /// Whether the descriptor is another manifest's claim.
    pub(crate) claimed: bool,
    pub(crate) descriptor: String,
    /// The kinds of its links to each subject.
    pub(crate) links: BTreeMap<Digest, LinkKinds>,
}

impl ReferrerState {
    /// The state after `record`, which makes `version`.
    pub(crate) fn after(before: Option<Self>, record: Record, version: Version) -> Option<Self> {
        // A snapshot may include records from the segments that are read after it.
        if before.as_ref().is_some_and(|state| state.version >= version) {
            return before;
        }
        let changed = |change: &dyn Fn(&mut Self)| {
            let mut state = before.clone()?;
            state.version = version;
            change(&mut state);
            Some(state)
        };
        match record {
            // The upstream may refuse the PUT, and its client may have no right to it.
            Record::Begun(_) if before.as_ref().is_some_and(|state| !state.pending) => changed(&|_| {}),
            Record::Recorded(recorded) | Record::Begun(recorded) => {
                Some(Self::recorded(before, recorded, version))
            }
            Record::Accepted(recorded) => match before {
                Some(state) if state.pending => state.replaced(recorded, version),
                before => Some(Self::recorded(before, recorded, version)),
            },
            Record::Settled(recorded) => match before {
                Some(state) => state.replaced(recorded, version),
                None if recorded.links.is_empty() => None,
                None => Some(Self::recorded(None, recorded, version)),
            },
            Record::Confirmed(_) => changed(&|state| {
                state.pending = false;
                state.was_confirmed = true;
                state.absent_since = None;
            }),
            Record::Doubted(_) => changed(&|state| state.pending = true),
            Record::Absent { since, .. } => changed(&|state| {
                state.pending = true;
                state.absent_since = state.absent_since.or(Some(since));
            }),
            Record::Removed(_) => None,
            Record::End { .. } => before,
        }
    }

    fn recorded(before: Option<Self>, recorded: Recorded, version: Version) -> Self {
        let mut state = before.unwrap_or_else(|| Self {
            order: Order(recorded.order),
            pending: true,
            was_confirmed: false,
            absent_since: None,
            version,
            claimed: recorded.claimed,
            descriptor: recorded.descriptor.clone(),
            links: BTreeMap::new(),
        });
        // A confirmed descriptor is how the upstream serves the manifest; a pending one is what a client claimed, and
        // another manifest's claim is less than that.
        let is_better = match (state.claimed, recorded.claimed) {
            (true, false) => true,
            (false, true) => false,
            (true, true) | (false, false) => state.pending && !recorded.pending,
        };
        if is_better {
            state.descriptor = recorded.descriptor;
            state.claimed = recorded.claimed;
        }
        state.pending &= recorded.pending;
        state.was_confirmed |= recorded.was_confirmed || !state.pending;
        state.absent_since = recorded.absent_since.filter(|_| state.pending);
        state.version = version;
        state.add(recorded.links);
        state
    }

    /// The state with this in place of all that was said of its bytes so far. None if no link is left.
    fn replaced(mut self, recorded: Recorded, version: Version) -> Option<Self> {
        for kinds in self.links.values_mut() {
            *kinds = kinds.iter().filter(|kind| !is_own(*kind)).collect();
        }
        self.links.retain(|_, kinds| *kinds != LinkKinds::default());
        self.add(recorded.links);
        let Self { order, links, was_confirmed, .. } = self;
        let Recorded { pending, claimed, descriptor, .. } = recorded;
        let was_confirmed = was_confirmed || !pending;
        let absent_since = None;
        let state = Self { order, pending, was_confirmed, absent_since, version, claimed, descriptor, links };
        Some(state).filter(|state| !state.links.is_empty())
    }

    fn add(&mut self, links: Vec<Link>) {
        for Link { subject, kind } in links {
            let kinds = self.links.entry(subject).or_default();
            *kinds = LinkKinds::from_bits(kinds.bits() | LinkKinds::from(kind).bits());
        }
    }

    /// Whether these links include all that its bytes are said to hold.
    pub(crate) fn is_within(&self, links: &[Link]) -> bool {
        let own = |link: &Link| is_own(link.kind);
        self.links().iter().filter(|link| own(link)).all(|link| links.contains(link))
    }

    /// Whether it has all of these links.
    pub(crate) fn has(&self, links: &[Link]) -> bool {
        links
            .iter()
            .all(|link| self.links.get(&link.subject).is_some_and(|kinds| kinds.intersects(link.kind.into())))
    }

    /// Its links, each (subject, kind) once.
    pub(crate) fn links(&self) -> Vec<Link> {
        let of_subject = |(subject, kinds): (&Digest, &LinkKinds)| {
            let subject = subject.clone();
            kinds.iter().map(move |kind| Link { subject: subject.clone(), kind })
        };
        self.links.iter().flat_map(of_subject).collect()
    }
}

/// Whether links of this kind stand in the referrer's own bytes. Others are told by another manifest (an
/// attestation by the image index that lists it) or by a tag, and stay whatever the bytes turn out to be.
pub(crate) fn is_own(kind: LinkKind) -> bool {
    match kind {
        LinkKind::Reference | LinkKind::Subject | LinkKind::Parent => true,
        LinkKind::Attestation | LinkKind::Cosign | LinkKind::Fallback => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Repository;
    use crate::index::record::ReferrerKey;
    use crate::oci::LinkKind::{Attestation, Parent, Reference};

    fn key() -> ReferrerKey {
        let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
        ReferrerKey { repository, digest: Digest::Sha256([9; 32]) }
    }

    fn links(links: &[(u8, LinkKind)]) -> Vec<Link> {
        links.iter().map(|(n, kind)| Link { subject: Digest::Sha256([*n; 32]), kind: *kind }).collect()
    }

    fn recorded(order: u64, pending: bool, descriptor: &str, to: &[(u8, LinkKind)]) -> Record {
        Record::Recorded(Recorded {
            referrer: key(),
            order,
            pending,
            claimed: false,
            was_confirmed: false,
            absent_since: None,
            version: None,
            descriptor: descriptor.to_owned(),
            links: links(to),
        })
    }

    fn inner(record: &Record) -> Recorded {
        record.recorded().unwrap().clone()
    }

    fn claimed(record: &Record) -> Record {
        Record::Recorded(Recorded { claimed: true, ..inner(record) })
    }

    #[test]
    fn the_word_of_another_manifest_gives_way() {
        let claim = claimed(&recorded(1, true, "word", &[(1, Parent)]));
        let own = recorded(2, true, "own", &[]);
        let settled = Record::Confirmed(key());
        let to: &[_] = &[(1, Parent)];
        check(&[claim.clone(), settled.clone()], Some((1, false, "word", to)));
        check(&[claim.clone(), own.clone()], Some((1, true, "own", to)));
        check(&[claim.clone(), settled, own.clone()], Some((1, false, "own", to)));
        check(&[own, claim], Some((2, true, "own", to)));
    }

    type Summary<'a> = Option<(u64, bool, &'a str, &'a [(u8, LinkKind)])>;

    #[track_caller]
    fn check(records: &[Record], expected: Summary) {
        let mut state = None;
        for (index, record) in (0..).zip(records) {
            state = ReferrerState::after(state, record.clone(), Version::of(0, index));
            // Once more: nothing but the version may change.
            let again = ReferrerState::after(state.clone(), record.clone(), Version::of(0, index));
            assert_eq!(again, state);
        }
        assert_eq!(
            state.as_ref().map(|state| (state.order.0, state.pending, &*state.descriptor, state.links())),
            expected.map(|(order, pending, descriptor, to)| (order, pending, descriptor, links(to))),
        );
        if let Some(state) = state {
            assert_eq!(state.version, Version::of(0, records.len() as u64 - 1));
        }
    }

    #[test]
    fn records_add_up() {
        let pending = recorded(1, true, "claim", &[(1, Parent)]);
        let confirmed = recorded(2, false, "fact", &[(1, Reference), (2, Parent)]);
        let all: &[_] = &[(1, Reference), (1, Parent), (2, Parent)];
        let settled = Record::Confirmed(key());
        let doubted = Record::Doubted(key());
        let removed = Record::Removed(key());
        check(&[], None);
        check(std::slice::from_ref(&pending), Some((1, true, "claim", &[(1, Parent)])));
        check(&[pending.clone(), settled.clone()], Some((1, false, "claim", &[(1, Parent)])));
        check(&[pending.clone(), confirmed.clone()], Some((1, false, "fact", all)));
        check(&[confirmed.clone(), pending.clone()], Some((2, false, "fact", all)));
        check(
            &[confirmed.clone(), recorded(3, false, "other", &[])],
            Some((2, false, "fact", &all_but_last())),
        );
        check(&[confirmed.clone(), doubted.clone()], Some((2, true, "fact", &all_but_last())));
        check(&[confirmed.clone(), removed.clone()], None);
        check(&[confirmed, removed.clone(), pending], Some((1, true, "claim", &[(1, Parent)])));
        check(&[settled], None);
        check(&[doubted], None);
        check(&[removed], None);
    }

    #[test]
    fn what_a_client_claims_gives_way_to_what_the_upstream_says() {
        let claim = Record::Begun(inner(&recorded(1, true, "claim", &[(1, Parent), (2, Reference)])));
        let told = recorded(2, true, "told", &[(3, Attestation)]);
        let accepted = Record::Accepted(inner(&recorded(3, false, "fact", &[(4, Parent)])));
        let other = Record::Accepted(inner(&recorded(4, false, "other", &[(5, Parent)])));
        let settled = Record::Settled(inner(&recorded(5, false, "bytes", &[(6, Parent)])));
        let nothing = Record::Settled(inner(&recorded(5, false, "bytes", &[])));
        check(&[claim.clone(), accepted.clone()], Some((1, false, "fact", &[(4, Parent)])));
        check(&[accepted.clone(), claim.clone()], Some((3, false, "fact", &[(4, Parent)])));
        check(&[accepted.clone(), other.clone()], Some((3, false, "fact", &[(4, Parent), (5, Parent)])));
        let bytes: &[_] = &[(3, Attestation), (6, Parent)];
        check(&[claim.clone(), claimed(&told), settled.clone()], Some((1, false, "bytes", bytes)));
        check(&[accepted.clone(), other, settled.clone()], Some((3, false, "bytes", &[(6, Parent)])));
        check(&[claim.clone(), nothing.clone()], None);
        check(&[claim, told, nothing], Some((1, false, "bytes", &[(3, Attestation)])));
        check(&[settled], Some((5, false, "bytes", &[(6, Parent)])));
    }

    #[test]
    fn a_sign_of_life_ends_an_absence() {
        let whole = recorded(1, false, "", &[(1, Parent)]);
        let absent = |since| Record::Absent { referrer: key(), since };
        let after = |records: &[Record]| {
            let states = (0..).zip(records).fold(None, |state, (index, record)| {
                ReferrerState::after(state, record.clone(), Version::of(0, index))
            });
            states.map(|state| (state.pending, state.absent_since))
        };
        let begun = Record::Begun(inner(&recorded(2, true, "", &[(1, Parent)])));
        assert_eq!(after(&[absent(5)]), None);
        assert_eq!(after(&[whole.clone(), absent(5)]), Some((true, Some(5))));
        assert_eq!(after(&[whole.clone(), absent(5), absent(6)]), Some((true, Some(5))));
        assert_eq!(after(&[whole.clone(), absent(5), Record::Doubted(key())]), Some((true, Some(5))));
        assert_eq!(after(&[whole.clone(), absent(5), begun.clone()]), Some((true, None)));
        assert_eq!(after(&[whole.clone(), absent(5), begun, absent(7)]), Some((true, Some(7))));
        for alive in [whole.clone(), Record::Confirmed(key()), Record::Settled(inner(&whole))] {
            assert_eq!(after(&[whole.clone(), absent(5), alive]), Some((false, None)));
        }
    }

    fn all_but_last() -> [(u8, LinkKind); 2] {
        [(1, Reference), (2, Parent)]
    }

    #[test]
    fn a_confirmation_is_remembered_until_the_removal() {
        let claim = recorded(1, true, "", &[(1, Parent)]);
        let fact = recorded(1, false, "", &[(1, Parent)]);
        let doubted = || Record::Doubted(key());
        let was_confirmed = |records: &[Record]| {
            let after = (0..).zip(records).fold(None, |state, (index, record)| {
                ReferrerState::after(state, record.clone(), Version::of(0, index))
            });
            after.unwrap().was_confirmed
        };
        let absent = Record::Absent { referrer: key(), since: 5 };
        assert!(!was_confirmed(std::slice::from_ref(&claim)));
        assert!(!was_confirmed(&[claim.clone(), absent.clone(), Record::Begun(inner(&claim))]));
        assert!(!was_confirmed(&[claim.clone(), Record::Accepted(inner(&claim))]));
        assert!(!was_confirmed(&[fact.clone(), Record::Removed(key()), claim.clone()]));
        for confirmation in [fact.clone(), Record::Confirmed(key()), Record::Settled(inner(&fact))] {
            assert!(was_confirmed(&[claim.clone(), confirmation.clone(), doubted()]));
            assert!(was_confirmed(&[claim.clone(), confirmation, absent.clone(), claim.clone()]));
        }
        let in_snapshot = Recorded { was_confirmed: true, ..inner(&claim) };
        assert!(was_confirmed(&[Record::Recorded(in_snapshot)]));
    }

    #[test]
    fn tells_whether_links_are_missing() {
        let state = ReferrerState::after(None, recorded(1, true, "", &[(1, Parent)]), Version(1)).unwrap();
        assert!(state.has(&[]));
        assert!(state.has(&links(&[(1, Parent)])));
        assert!(!state.has(&links(&[(1, Reference)])));
        assert!(!state.has(&links(&[(1, Parent), (2, Parent)])));
    }
}
