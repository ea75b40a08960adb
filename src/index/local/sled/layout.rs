//! The keys in sled. One tree, so that one batch is atomic; the first byte tells the spaces apart.
//!
//! - `0`: [`META`], what the index says of itself.
//! - `1`, repository, subject, order: a link. What a query reads, in the order of pushes.
//! - `2`, repository, referrer: the way back, from a referrer to its links.
//! - `3`, upstream, subject, name: how many referrers the subject has in the repository of this name.
//! - `4`, repository: how many referrers it has.
//!
//! Each part has a fixed length, begins with it or stands last, so that no name is the prefix of another's.

use bytes::{Buf, BufMut};

use crate::index::local::record::ReferrerKey;
use crate::index::{Order, Repository};
use crate::oci::{Algorithm, Digest};

/// The key of the index's own data.
pub(super) const META: [u8; 1] = [0];
const LINKS: u8 = 1;
/// The prefix of the way back.
pub(super) const BACK: [u8; 1] = [2];

const REPOSITORIES: u8 = 3;
const REFERRERS: u8 = 4;

/// The beginning of the keys of all links to `subject`.
pub(super) fn links_to(repository: &Repository, subject: &Digest) -> Vec<u8> {
    let mut key = vec![LINKS];
    put_repository(&mut key, repository);
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

/// The key of the way back from a referrer.
pub(super) fn back(referrer: &ReferrerKey) -> Vec<u8> {
    let mut key = BACK.to_vec();
    put_repository(&mut key, &referrer.repository);
    put_digest(&mut key, &referrer.digest);
    key
}

/// The referrer in the key of a way back.
pub(super) fn referrer_of_back(key: &[u8]) -> Option<ReferrerKey> {
    let mut rest = key.strip_prefix(&BACK)?;
    let upstream = rest.try_get_u32().ok()?;
    let length = rest.try_get_u16().ok()?;
    let name = rest.split_off(..usize::from(length))?;
    let name = std::str::from_utf8(name).ok()?.parse().ok()?;
    let digest = take_digest(&mut rest)?;
    rest.is_empty().then_some(ReferrerKey { repository: Repository { upstream, name }, digest })
}

/// The beginning of the keys of all repositories in which `subject` has referrers.
pub(super) fn repositories_of(upstream: u32, subject: &Digest) -> Vec<u8> {
    let mut key = vec![REPOSITORIES];
    key.put_u32(upstream);
    put_digest(&mut key, subject);
    key
}

/// The key of the number of referrers that `subject` has in the repository.
pub(super) fn repository_of(subject: &Digest, repository: &Repository) -> Vec<u8> {
    let mut key = repositories_of(repository.upstream, subject);
    key.put_slice(repository.name.as_str().as_bytes());
    key
}

/// The key of the number of referrers in the repository.
pub(super) fn referrers_in(repository: &Repository) -> Vec<u8> {
    let mut key = vec![REFERRERS];
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

/// Takes a digest off the beginning.
pub(super) fn take_digest(bytes: &mut &[u8]) -> Option<Digest> {
    let (algorithm, length) = match bytes.try_get_u8().ok()? {
        1 => (Algorithm::Sha256, 32),
        2 => (Algorithm::Sha512, 64),
        _ => return None,
    };
    Digest::from_bytes(algorithm, bytes.split_off(..length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, digest: Digest) {
        let repository = Repository { upstream: 3, name: name.parse().unwrap() };
        let referrer = ReferrerKey { repository, digest };
        let key = back(&referrer);
        assert_eq!(referrer_of_back(&key), Some(referrer));
        assert_eq!(referrer_of_back(&key[..key.len() - 1]), None);
        assert_eq!(referrer_of_back(&[&key[..], &[0]].concat()), None);
    }

    #[test]
    fn of_the_way_back_tell_the_referrer() {
        check("a", Digest::Sha256([7; 32]));
        check(&"a".repeat(255), Digest::Sha512([7; 64]));
    }

    #[test]
    fn of_links_stand_in_the_order_of_pushes() {
        let of = |name: &str, subject: u8, order| {
            let repository = Repository { upstream: 0, name: name.parse().unwrap() };
            link(&repository, &Digest::Sha256([subject; 32]), Order(order))
        };
        let keys = [of("a", 1, 1), of("a", 1, 256), of("a", 2, 0), of("b", 0, 0), of("aa", 0, 0)];
        assert!(keys.is_sorted());
        assert_eq!(order_of_link(&keys[1]), Some(Order(256)));
    }
}
