//! Keys and values of the index, in snapshots and deltas alike: numbers in big endian, a repository as upstream (u32), length (u16) and
//! name, a digest as a byte for its algorithm and its bytes.
//!
//! There is one order of all keys, because a batch of sled is atomic in one tree only. The first byte of a key is its
//! space:
//!
//! | Key | Value |
//! |---|---|
//! | `0` | in deltas: what the delta says of itself, see [`crate::index::local::sled`] |
//! | `1`, repository, subject, order | a link: flags, kinds, version, referrer, descriptor |
//! | `2`, repository, referrer | the *reverse entry*, from a referrer to its links: flags, order, version, time of the first 404, links, descriptor |
//! | `3`, upstream, subject, name | how many referrers the subject has in the repository of this name |
//! | `4`, repository | how many referrers it has |
//!
//! A query scans one range of links, in the order of pushes. The repository comes first, so that what is read
//! together lies together: with nine million links under random keys and cold caches, sled inserts 110 a second.
//! Each part of a key has a fixed length, begins with its length or stands last, so no name is the prefix of
//! another one's key.
//!
//! A link repeats what a query sends, so that a query needs no second look-up; a descriptor that would be repeated
//! too often stands in the reverse entry alone.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};

use crate::index::record::ReferrerKey;
use crate::index::referrer_state::ReferrerState;
use crate::index::{Entry, Order, Repository, Version};
use crate::oci::{Algorithm, Digest, LinkKinds};

/// The first byte of links.
pub(super) const LINK_SPACE: u8 = 1;
/// No key is less.
pub(super) const FIRST: [u8; 1] = [LINK_SPACE];
/// The prefix of reverse entries.
pub(crate) const REVERSE: [u8; 1] = [2];

const REPOSITORIES: u8 = 3;
const REFERRERS: u8 = 4;
/// The prefix of the numbers of referrers of all repositories.
pub(super) const REFERRERS_IN: [u8; 1] = [REFERRERS];

const UPSTREAM_BYTES: usize = 4;
const NAME_LENGTH_BYTES: usize = 2;
/// Of the longest digest, with its algorithm.
const DIGEST_BYTES: usize = 1 + 64;
const ORDER_BYTES: usize = 8;
const VERSION_BYTES: usize = 8;
/// Longer names make their keys grow.
const LONGEST_USUAL_NAME: usize = 64;

/// The prefix of all links in the repository.
pub(super) fn links_in(repository: &Repository) -> Vec<u8> {
    new_key(LINK_SPACE, repository, 0)
}

/// The prefix of all links to `subject`.
pub(super) fn links_to(repository: &Repository, subject: &Digest) -> Vec<u8> {
    let mut key = new_key(LINK_SPACE, repository, DIGEST_BYTES + ORDER_BYTES);
    put_digest(&mut key, subject);
    key
}

/// The key of the link from the referrer with this order.
pub(super) fn link(repository: &Repository, subject: &Digest, order: Order) -> Vec<u8> {
    let mut key = links_to(repository, subject);
    key.put_u64(order.0);
    key
}

/// The order in the key of a link.
pub(super) fn order_of_link(key: &[u8]) -> Option<Order> {
    key.last_chunk().map(|order| Order(u64::from_be_bytes(*order)))
}

/// The repository in the key of a link.
pub(super) fn repository_of_link(key: &[u8]) -> Option<Repository> {
    take_repository(&mut key.strip_prefix(&FIRST)?)
}

/// The subject in the key of a link.
pub(super) fn subject_of_link(key: &[u8]) -> Option<Digest> {
    let mut rest = key.strip_prefix(&FIRST)?;
    take_repository(&mut rest)?;
    take_digest(&mut rest)
}

/// The key of a referrer's reverse entry.
pub(crate) fn reverse_entry(referrer: &ReferrerKey) -> Vec<u8> {
    let mut key = new_key(REVERSE[0], &referrer.repository, DIGEST_BYTES);
    put_digest(&mut key, &referrer.digest);
    key
}

/// The referrer in the key of a reverse entry.
pub(crate) fn referrer_of_reverse_entry(key: &[u8]) -> Option<ReferrerKey> {
    let mut rest = key.strip_prefix(&REVERSE)?;
    let repository = take_repository(&mut rest)?;
    let digest = take_digest(&mut rest)?;
    rest.is_empty().then_some(ReferrerKey { repository, digest })
}

/// The repository in the key of the number of its referrers.
pub(super) fn repository_of_referrers_in(key: &[u8]) -> Option<Repository> {
    let mut rest = key.strip_prefix(&[REFERRERS])?;
    let repository = take_repository(&mut rest)?;
    rest.is_empty().then_some(repository)
}

fn take_repository(bytes: &mut &[u8]) -> Option<Repository> {
    let upstream = bytes.try_get_u32().ok()?;
    let length = bytes.try_get_u16().ok()?;
    let name = bytes.split_off(..usize::from(length))?;
    let name = str::from_utf8(name).ok()?.parse().ok()?;
    Some(Repository { upstream, name })
}

/// The prefix of the counts of all repositories in which `subject` has referrers.
pub(super) fn repositories_of(upstream: u32, subject: &Digest) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + UPSTREAM_BYTES + DIGEST_BYTES + LONGEST_USUAL_NAME);
    key.put_u8(REPOSITORIES);
    key.put_u32(upstream);
    put_digest(&mut key, subject);
    key
}

/// The key of the number of referrers that `subject` has in the repository.
pub(crate) fn repository_of(subject: &Digest, repository: &Repository) -> Vec<u8> {
    let mut key = repositories_of(repository.upstream, subject);
    key.put_slice(repository.name.as_str().as_bytes());
    key
}

/// The key of the number of referrers in the repository.
pub(crate) fn referrers_in(repository: &Repository) -> Vec<u8> {
    new_key(REFERRERS, repository, 0)
}

/// A key in this space that begins with the repository, with room for `more` bytes.
fn new_key(space: u8, repository: &Repository, more: usize) -> Vec<u8> {
    // Sized: growing byte by byte costs more than all the rest, and a push makes some twenty keys.
    let length = 1 + UPSTREAM_BYTES + NAME_LENGTH_BYTES + repository.name.as_str().len();
    let mut key = Vec::with_capacity(length + more);
    key.put_u8(space);
    put_repository(&mut key, repository);
    key
}

/// The prefix of the numbers of referrers in all repositories of an upstream.
pub(super) fn repositories_with_referrers(upstream: u32) -> Vec<u8> {
    let mut key = vec![REFERRERS];
    key.put_u32(upstream);
    key
}

/// The prefix of the reverse entries of a repository.
pub(super) fn reverse_entries(repository: &Repository) -> Vec<u8> {
    let mut key = REVERSE.to_vec();
    put_repository(&mut key, repository);
    key
}

fn put_repository(key: &mut Vec<u8>, repository: &Repository) {
    let name = repository.name.as_str();
    key.put_u32(repository.upstream);
    // A repository name has at most 255 bytes.
    key.put_u16(u16::try_from(name.len()).unwrap_or(u16::MAX));
    key.put_slice(name.as_bytes());
}

/// Adds a digest: a byte for its algorithm, then the digest itself.
pub(super) fn put_digest(bytes: &mut Vec<u8>, digest: &Digest) {
    bytes.put_u8(match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    });
    bytes.put_slice(digest.as_bytes());
}

/// Takes a digest from the beginning.
pub(super) fn take_digest(bytes: &mut &[u8]) -> Option<Digest> {
    let (algorithm, length) = match bytes.try_get_u8().ok()? {
        1 => (Algorithm::Sha256, 32),
        2 => (Algorithm::Sha512, 64),
        _ => return None,
    };
    Digest::from_bytes(algorithm, bytes.split_off(..length)?)
}

const PENDING: u8 = 1;
/// The descriptor stands in the reverse entry, not in the links.
const DESCRIPTOR_IN_REVERSE: u8 = 2;
/// The descriptor is another manifest's claim.
const CLAIMED: u8 = 4;
/// Of a reverse entry: it has the time of the upstream's first 404.
const ABSENT: u8 = 8;
/// Of a pending referrer: it was confirmed once.
const WAS_CONFIRMED: u8 = 16;
/// Up to this many bytes in all, the descriptor is repeated in each link. Without a limit, a manifest of 4 MiB,
/// half of it annotations and half references, would take many gigabytes.
const REPEATED_BYTES: usize = 64 << 10;

/// All entries of a referrer, keys and values: its links, and the reverse entry last.
pub(crate) fn entries(referrer: &ReferrerKey, state: &ReferrerState) -> Vec<(Vec<u8>, Vec<u8>)> {
    let repeats = state.links.len() * state.descriptor.len() <= REPEATED_BYTES || state.links.len() == 1;
    let descriptor_in_reverse = !repeats || state.links.is_empty();
    let flags = [
        (state.pending, PENDING),
        (descriptor_in_reverse, DESCRIPTOR_IN_REVERSE),
        (state.claimed, CLAIMED),
        (state.pending && state.was_confirmed, WAS_CONFIRMED),
        (state.absent_since.is_some(), ABSENT),
    ];
    let flags = flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).sum();
    let link = |(subject, kinds): (&Digest, &LinkKinds)| {
        let key = link(&referrer.repository, subject, state.order);
        let descriptor = if descriptor_in_reverse { "" } else { &state.descriptor };
        (key, encode_link(flags, *kinds, state.version, &referrer.digest, descriptor))
    };
    let mut entries: Vec<_> = state.links.iter().map(link).collect();
    entries.push((reverse_entry(referrer), encode_reverse_entry(flags, state)));
    entries
}

fn encode_link(
    flags: u8,
    kinds: LinkKinds,
    version: Version,
    referrer: &Digest,
    descriptor: &str,
) -> Vec<u8> {
    let mut value = Vec::with_capacity(2 + VERSION_BYTES + DIGEST_BYTES + descriptor.len());
    value.put_u8(flags);
    value.put_u8(kinds.bits());
    value.put_u64(version.0);
    put_digest(&mut value, referrer);
    value.put_slice(descriptor.as_bytes());
    value
}

fn encode_reverse_entry(flags: u8, state: &ReferrerState) -> Vec<u8> {
    let descriptor = if flags & DESCRIPTOR_IN_REVERSE == 0 { "" } else { &state.descriptor };
    let numbers = 1 + ORDER_BYTES + VERSION_BYTES + 8 + 4;
    let mut value = Vec::with_capacity(numbers + state.links.len() * (DIGEST_BYTES + 1) + descriptor.len());
    value.put_u8(flags);
    value.put_u64(state.order.0);
    value.put_u64(state.version.0);
    if let Some(since) = state.absent_since {
        value.put_u64(since);
    }
    value.put_u32(u32::try_from(state.links.len()).unwrap_or(u32::MAX));
    for (subject, kinds) in &state.links {
        put_digest(&mut value, subject);
        value.put_u8(kinds.bits());
    }
    value.put_slice(descriptor.as_bytes());
    value
}

/// A value whose descriptor may stand elsewhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored<T> {
    /// The value; its descriptor is empty if it stands elsewhere.
    pub(super) value: T,
    pub(super) has_descriptor: bool,
}

/// Decodes a link from its key and value.
pub(super) fn decode_link(key: &[u8], mut value: &[u8]) -> Option<Stored<Entry>> {
    let flags = value.try_get_u8().ok()?;
    let kinds = LinkKinds::from_bits(value.try_get_u8().ok()?);
    let version = Version(value.try_get_u64().ok()?);
    let digest = take_digest(&mut value)?;
    let descriptor = str::from_utf8(value).ok()?.to_owned();
    let order = order_of_link(key)?;
    let (pending, was_confirmed) = confirmation(flags);
    let entry = Entry { order, digest, kinds, pending, was_confirmed, version, descriptor };
    Some(Stored { value: entry, has_descriptor: flags & DESCRIPTOR_IN_REVERSE == 0 })
}

/// Decodes a reverse entry.
pub(super) fn decode_reverse_entry(mut value: &[u8]) -> Option<Stored<ReferrerState>> {
    let flags = value.try_get_u8().ok()?;
    let order = Order(value.try_get_u64().ok()?);
    let version = Version(value.try_get_u64().ok()?);
    let absent_since = if flags & ABSENT == 0 { None } else { Some(value.try_get_u64().ok()?) };
    let mut links = BTreeMap::new();
    for _ in 0..value.try_get_u32().ok()? {
        let subject = take_digest(&mut value)?;
        links.insert(subject, LinkKinds::from_bits(value.try_get_u8().ok()?));
    }
    let descriptor = str::from_utf8(value).ok()?.to_owned();
    let (pending, was_confirmed) = confirmation(flags);
    let claimed = flags & CLAIMED != 0;
    let state =
        ReferrerState { order, pending, was_confirmed, absent_since, version, claimed, descriptor, links };
    Some(Stored { value: state, has_descriptor: flags & DESCRIPTOR_IN_REVERSE != 0 })
}

/// A number of referrers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    InRepository(u64),
    OfSubject(u64),
}

/// The number of referrers under this key, if it is one.
pub(super) fn decode_count(key: &[u8], value: &[u8]) -> Option<Count> {
    let count = value.try_into().ok().map(u64::from_be_bytes)?;
    match *key.first()? {
        REPOSITORIES => Some(Count::OfSubject(count)),
        REFERRERS => Some(Count::InRepository(count)),
        _ => None,
    }
}

/// Whether the key is that of a number of referrers.
pub(crate) fn is_count(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(REPOSITORIES | REFERRERS)))
}

/// Whether the value of a reverse entry says that the referrer is pending.
pub(super) fn is_pending(value: &[u8]) -> bool {
    value.first().is_some_and(|flags| flags & PENDING != 0)
}

/// Whether it is pending, and whether it was ever confirmed.
fn confirmation(flags: u8) -> (bool, bool) {
    let pending = flags & PENDING != 0;
    (pending, !pending || flags & WAS_CONFIRMED != 0)
}

/// What must hold of any bytes: what can be read is read as it was written.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(key: &[u8], value: &[u8]) {
    drop((decode_link(key, value), repository_of_link(key), subject_of_link(key)));
    let referrer = referrer_of_reverse_entry(key);
    if let Some(referrer) = &referrer {
        assert_eq!(reverse_entry(referrer), key);
    }
    if let (Some(referrer), Some(stored)) = (referrer, decode_reverse_entry(value)) {
        for (key, value) in entries(&referrer, &stored.value) {
            assert!(decode_link(&key, &value).is_some() || decode_reverse_entry(&value).is_some());
        }
    }
}

#[cfg(test)]
mod tests;
