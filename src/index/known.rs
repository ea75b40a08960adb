//! What the index knows of one referrer, and how a record of the journal changes it. Pure.

use std::collections::BTreeMap;

use super::record::{Record, Recorded};
use super::{Order, Version};
use crate::oci::{Digest, Link, LinkKinds};

/// A referrer as the records so far make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) order: Order,
    pub(crate) pending: bool,
    pub(crate) version: Version,
    /// Whether the descriptor is another manifest's word.
    pub(crate) claimed: bool,
    pub(crate) descriptor: String,
    /// In which ways it refers to each subject.
    pub(crate) links: BTreeMap<Digest, LinkKinds>,
}

impl Known {
    /// What is known after `record`, the one that makes `version`.
    pub(crate) fn after(before: Option<Self>, record: Record, version: Version) -> Option<Self> {
        let with_pending = |pending| before.clone().map(|known| Self { pending, version, ..known });
        match record {
            Record::Recorded(recorded) => Some(Self::recorded(before, recorded, version)),
            Record::Confirmed(_) => with_pending(false),
            Record::Doubted(_) => with_pending(true),
            Record::Removed(_) => None,
            Record::End { .. } => before,
        }
    }

    fn recorded(before: Option<Self>, recorded: Recorded, version: Version) -> Self {
        let mut known = before.unwrap_or_else(|| Self {
            order: Order(recorded.order),
            pending: true,
            version,
            claimed: recorded.claimed,
            descriptor: recorded.descriptor.clone(),
            links: BTreeMap::new(),
        });
        // What was confirmed is how the upstream serves it; a pending descriptor is only what a client said,
        // and another manifest's word is less than that.
        let is_better = match (known.claimed, recorded.claimed) {
            (true, false) => true,
            (false, true) => false,
            (true, true) | (false, false) => known.pending && !recorded.pending,
        };
        if is_better {
            known.descriptor = recorded.descriptor;
            known.claimed = recorded.claimed;
        }
        known.pending &= recorded.pending;
        known.version = version;
        for Link { subject, kind } in recorded.links {
            let kinds = known.links.entry(subject).or_default();
            *kinds = LinkKinds::from_bits(kinds.bits() | LinkKinds::from(kind).bits());
        }
        known
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Repository;
    use crate::index::record::ReferrerKey;
    use crate::oci::LinkKind;
    use crate::oci::LinkKind::{Parent, Reference};

    fn key() -> ReferrerKey {
        let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
        ReferrerKey { repository, digest: Digest::Sha256([9; 32]) }
    }

    fn links(links: &[(u8, LinkKind)]) -> Vec<Link> {
        links.iter().map(|(n, kind)| Link { subject: Digest::Sha256([*n; 32]), kind: *kind }).collect()
    }

    fn recorded(order: u64, pending: bool, descriptor: &str, to: &[(u8, LinkKind)]) -> Record {
        let descriptor = descriptor.to_owned();
        let claimed = false;
        Record::Recorded(Recorded { referrer: key(), order, pending, claimed, descriptor, links: links(to) })
    }

    fn claimed(record: Record) -> Record {
        let Record::Recorded(recorded) = record else { panic!("{record:?}") };
        Record::Recorded(Recorded { claimed: true, ..recorded })
    }

    #[test]
    fn the_word_of_another_manifest_gives_way() {
        let claim = claimed(recorded(1, true, "word", &[(1, Parent)]));
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
        let mut known = None;
        for (index, record) in (0..).zip(records) {
            known = Known::after(known, record.clone(), Version::of(0, index));
            // Once more: nothing but the version may change.
            let again = Known::after(known.clone(), record.clone(), Version::of(0, index));
            assert_eq!(again, known);
        }
        assert_eq!(
            known.as_ref().map(|known| (known.order.0, known.pending, &*known.descriptor, known.links())),
            expected.map(|(order, pending, descriptor, to)| (order, pending, descriptor, links(to))),
        );
        if let Some(known) = known {
            assert_eq!(known.version, Version::of(0, records.len() as u64 - 1));
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

    fn all_but_last() -> [(u8, LinkKind); 2] {
        [(1, Reference), (2, Parent)]
    }

    #[test]
    fn tells_whether_links_are_missing() {
        let known = Known::after(None, recorded(1, true, "", &[(1, Parent)]), Version(1)).unwrap();
        assert!(known.has(&[]));
        assert!(known.has(&links(&[(1, Parent)])));
        assert!(!known.has(&links(&[(1, Reference)])));
        assert!(!known.has(&links(&[(1, Parent), (2, Parent)])));
    }
}
