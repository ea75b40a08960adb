//! The values in sled: what a query has to send, and what the way back has to tell.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};

use super::layout;
use crate::index::local::record::ReferrerKey;
use crate::index::local::referrer_state::ReferrerState;
use crate::index::{Entry, Order, Version};
use crate::oci::{Digest, LinkKinds};

const PENDING: u8 = 1;
/// Of a link: its descriptor stands in the way back. Of a way back: the descriptor stands here.
const DESCRIPTOR_BACK: u8 = 2;
/// The descriptor is another manifest's word.
const CLAIMED: u8 = 4;
/// Of a way back: it also says since when the upstream has answered 404.
const ABSENT: u8 = 8;
/// Of what is pending: it was confirmed once.
const WAS_CONFIRMED: u8 = 16;
/// Up to how many bytes the descriptor is repeated in each link. Without a limit, a manifest of 4 MiB,
/// half of it annotations and half of it references, would be stored as many gigabytes.
const REPEATED_BYTES: usize = 64 << 10;

/// What is stored for a referrer: keys and values.
pub(super) fn entries(referrer: &ReferrerKey, state: &ReferrerState) -> Vec<(Vec<u8>, Vec<u8>)> {
    let repeats = state.links.len() * state.descriptor.len() <= REPEATED_BYTES || state.links.len() == 1;
    let descriptor_back = !repeats || state.links.is_empty();
    let flags = [
        (state.pending, PENDING),
        (descriptor_back, DESCRIPTOR_BACK),
        (state.claimed, CLAIMED),
        (state.pending && state.was_confirmed, WAS_CONFIRMED),
        (state.absent_since.is_some(), ABSENT),
    ];
    let flags = flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).sum();
    let link = |(subject, kinds): (&Digest, &LinkKinds)| {
        let key = layout::link(&referrer.repository, subject, state.order);
        let descriptor = if descriptor_back { "" } else { &state.descriptor };
        (key, encode_link(flags, *kinds, state.version, &referrer.digest, descriptor))
    };
    let mut entries: Vec<_> = state.links.iter().map(link).collect();
    entries.push((layout::back(referrer), encode_back(flags, state)));
    entries
}

fn encode_link(
    flags: u8,
    kinds: LinkKinds,
    version: Version,
    referrer: &Digest,
    descriptor: &str,
) -> Vec<u8> {
    let mut value = vec![flags, kinds.bits()];
    value.put_u64(version.0);
    layout::put_digest(&mut value, referrer);
    value.put_slice(descriptor.as_bytes());
    value
}

fn encode_back(flags: u8, state: &ReferrerState) -> Vec<u8> {
    let mut value = vec![flags];
    value.put_u64(state.order.0);
    value.put_u64(state.version.0);
    if let Some(since) = state.absent_since {
        value.put_u64(since);
    }
    value.put_u32(u32::try_from(state.links.len()).unwrap_or(u32::MAX));
    for (subject, kinds) in &state.links {
        layout::put_digest(&mut value, subject);
        value.put_u8(kinds.bits());
    }
    if flags & DESCRIPTOR_BACK != 0 {
        value.put_slice(state.descriptor.as_bytes());
    }
    value
}

/// A value whose descriptor may stand elsewhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored<T> {
    /// The value; its descriptor is empty if it stands elsewhere.
    pub(super) value: T,
    pub(super) has_descriptor: bool,
}

/// A link, from its key and value.
pub(super) fn decode_link(key: &[u8], mut value: &[u8]) -> Option<Stored<Entry>> {
    let flags = value.try_get_u8().ok()?;
    let kinds = LinkKinds::from_bits(value.try_get_u8().ok()?);
    let version = Version(value.try_get_u64().ok()?);
    let digest = layout::take_digest(&mut value)?;
    let descriptor = str::from_utf8(value).ok()?.to_owned();
    let order = layout::order_of_link(key)?;
    let (pending, was_confirmed) = confirmation(flags);
    let entry = Entry { order, digest, kinds, pending, was_confirmed, version, descriptor };
    Some(Stored { value: entry, has_descriptor: flags & DESCRIPTOR_BACK == 0 })
}

/// A way back.
pub(super) fn decode_back(mut value: &[u8]) -> Option<Stored<ReferrerState>> {
    let flags = value.try_get_u8().ok()?;
    let order = Order(value.try_get_u64().ok()?);
    let version = Version(value.try_get_u64().ok()?);
    let absent_since = if flags & ABSENT == 0 { None } else { Some(value.try_get_u64().ok()?) };
    let mut links = BTreeMap::new();
    for _ in 0..value.try_get_u32().ok()? {
        let subject = layout::take_digest(&mut value)?;
        links.insert(subject, LinkKinds::from_bits(value.try_get_u8().ok()?));
    }
    let descriptor = str::from_utf8(value).ok()?.to_owned();
    let (pending, was_confirmed) = confirmation(flags);
    let claimed = flags & CLAIMED != 0;
    let state =
        ReferrerState { order, pending, was_confirmed, absent_since, version, claimed, descriptor, links };
    Some(Stored { value: state, has_descriptor: flags & DESCRIPTOR_BACK != 0 })
}

/// Whether it is pending, and whether it was confirmed at any time.
fn confirmation(flags: u8) -> (bool, bool) {
    let pending = flags & PENDING != 0;
    (pending, !pending || flags & WAS_CONFIRMED != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Repository;

    /// Checks what comes back of a referrer with this many subjects and this long a descriptor, and how
    /// many of its entries have the descriptor.
    #[track_caller]
    fn check(subjects: u8, descriptor: usize, pending: bool, descriptors: usize) {
        for was_confirmed in [true, !pending] {
            check_confirmed(subjects, descriptor, (pending, was_confirmed), descriptors);
        }
    }

    #[track_caller]
    fn check_confirmed(
        subjects: u8,
        descriptor: usize,
        (pending, was_confirmed): (bool, bool),
        descriptors: usize,
    ) {
        let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
        let referrer = ReferrerKey { repository, digest: Digest::Sha256([9; 32]) };
        let links = (0..subjects).map(|n| (Digest::Sha512([n; 64]), LinkKinds::from_bits(n + 1))).collect();
        let descriptor = "d".repeat(descriptor);
        let (order, version, claimed) = (Order(5), Version(6), pending);
        let absent_since = pending.then_some(7);
        let state = ReferrerState {
            order,
            pending,
            was_confirmed,
            absent_since,
            version,
            claimed,
            descriptor,
            links,
        };
        let mut entries = entries(&referrer, &state);
        let (_, back) = entries.pop().unwrap();
        let back = decode_back(&back).unwrap();
        let mut found = usize::from(back.has_descriptor);
        let expected = if back.has_descriptor { state.descriptor.clone() } else { String::new() };
        assert_eq!(back.value, ReferrerState { descriptor: expected, ..state.clone() });
        for ((key, value), (subject, kinds)) in entries.iter().zip(&state.links) {
            assert_eq!(*key, layout::link(&referrer.repository, subject, state.order));
            let link = decode_link(key, value).unwrap();
            found += usize::from(link.has_descriptor);
            let descriptor = if link.has_descriptor { state.descriptor.clone() } else { String::new() };
            let expected = Entry {
                order: state.order,
                digest: referrer.digest.clone(),
                kinds: *kinds,
                pending,
                was_confirmed,
                version: state.version,
                descriptor,
            };
            assert_eq!(link.value, expected);
        }
        assert_eq!(found, descriptors);
    }

    #[test]
    fn come_back_with_the_descriptor_in_each_link_or_else_in_the_way_back() {
        check(1, 10, true, 1);
        check(5, 10, false, 5);
        check(0, 10, false, 1);
        check(1, 1 << 20, false, 1);
        check(64, 1 << 10, true, 64);
        check(65, 1 << 10, true, 1);
        check(3, 0, false, 3);
    }
}
