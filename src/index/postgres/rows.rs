//! Rows as values: keys, digests, and the row of a referrer.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use tokio_postgres::Row;

use super::failure::Failure;
use super::unique::is_as_copied;
use crate::index::decision::Decision;
use crate::index::referrer_state::ReferrerState;
use crate::index::{Order, Repository, Version};
use crate::oci::{Algorithm, Digest, LinkKinds};

/// Up to this many bytes a descriptor is repeated in each link, so that a query needs no other table.
const REPEATED_BYTES: usize = 4 << 10;
/// In all links of one referrer together.
const REPEATED_BYTES_IN_ALL: usize = 64 << 10;

/// A referrer's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) state: ReferrerState,
    pub(super) revision: i64,
    pub(super) puts: Puts,
}

impl Head {
    /// Whether it is as it was copied from another index.
    pub(crate) fn is_as_copied(&self) -> bool {
        is_as_copied(signed(self.state.version.0), self.revision)
    }
}

/// What is known of the PUTs of a referrer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Puts {
    /// How many are under way.
    pub(super) count: i32,
    /// Until then; a replica that was killed ends none.
    pub(super) until: i64,
    /// Whether nothing but PUTs told of the referrer, and none of these was accepted or had no outcome.
    pub(super) brought: bool,
    /// Whether it may have been deleted while they were under way.
    pub(super) doubted: bool,
}

impl Puts {
    /// Whether one is under way.
    pub(super) fn any(self, now: i64) -> bool {
        self.count > 0 && self.until >= now
    }

    /// One more, until `until`.
    pub(super) fn begun(self, now: i64, until: i64) -> Self {
        if self.any(now) {
            Self { count: self.count + 1, until: self.until.max(until), ..self }
        } else {
            // Of one that never ended it is not known whether it was accepted.
            Self { count: 1, until, brought: self.brought && self.count == 0, doubted: false }
        }
    }

    /// As they are after something else told of the referrer.
    pub(super) fn told(self, decision: &Decision) -> Self {
        Self { brought: self.brought && *decision == Decision::Nothing, ..self }
    }

    /// One less.
    pub(super) fn ended(self) -> Self {
        let count = (self.count - 1).max(0);
        Self { count, doubted: self.doubted && count > 0, ..self }
    }
}

/// A column as a value, or what is wrong with it.
pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    place: usize,
) -> Result<T, Failure> {
    row.try_get(place).map_err(|error| Failure::Malformed(error.to_string()))
}

/// The key of a repository.
pub(super) fn repository_key(repository: &Repository) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update(repository.upstream.to_be_bytes());
    hash.update(repository.name.as_str());
    hash.finalize().iter().take(16).copied().collect()
}

/// A digest as it is stored.
pub(super) fn digest_key(digest: &Digest) -> Vec<u8> {
    let algorithm = match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    };
    let mut key = Vec::with_capacity(1 + digest.as_bytes().len());
    key.push(algorithm);
    key.extend_from_slice(digest.as_bytes());
    key
}

/// The digest that is stored so.
pub(super) fn digest_of(key: &[u8]) -> Result<Digest, Failure> {
    let digest = match key {
        [1, bytes @ ..] => Digest::from_bytes(Algorithm::Sha256, bytes),
        [2, bytes @ ..] => Digest::from_bytes(Algorithm::Sha512, bytes),
        _ => None,
    };
    digest.ok_or_else(|| Failure::Malformed("a digest is unreadable".to_owned()))
}

pub(super) fn kinds_of(bits: i16) -> Result<LinkKinds, Failure> {
    let bits =
        u8::try_from(bits).map_err(|_| Failure::Malformed("kinds of links are unreadable".to_owned()))?;
    Ok(LinkKinds::from_bits(bits))
}

/// A number that is never negative.
pub(super) fn number(row: &Row, place: usize) -> Result<u64, Failure> {
    let number: i64 = get(row, place)?;
    u64::try_from(number).map_err(|_| Failure::Malformed("a number is negative".to_owned()))
}

/// A number for the database; none of ours comes near its bound.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The row of a referrer, whose columns come first, with this descriptor.
pub(super) fn head(row: &Row, descriptor: String) -> Result<Head, Failure> {
    let subjects: Vec<&[u8]> = get(row, 11)?;
    let kinds: Vec<i16> = get(row, 12)?;
    let mut links = BTreeMap::new();
    for (subject, kinds) in subjects.into_iter().zip(kinds) {
        links.insert(digest_of(subject)?, kinds_of(kinds)?);
    }
    let absent_since: Option<i64> = get(row, 6)?;
    let state = ReferrerState {
        order: Order(number(row, 0)?),
        pending: get(row, 3)?,
        was_confirmed: get(row, 4)?,
        absent_since: absent_since.and_then(|since| u64::try_from(since).ok()),
        version: Version(number(row, 2)?),
        claimed: get(row, 5)?,
        descriptor,
        links,
    };
    let puts =
        Puts { count: get(row, 7)?, until: get(row, 8)?, brought: get(row, 9)?, doubted: get(row, 10)? };
    Ok(Head { state, revision: get(row, 1)?, puts })
}

/// The links of a referrer as two columns: subjects, and kinds.
pub(super) fn columns(links: &BTreeMap<Digest, LinkKinds>) -> (Vec<Vec<u8>>, Vec<i16>) {
    links.iter().map(|(subject, kinds)| (digest_key(subject), i16::from(kinds.bits()))).unzip()
}

/// Where the descriptor of a referrer with so many links stands: in its own row, or in the links.
pub(super) fn placed(descriptor: &str, links: usize) -> (Option<&str>, Option<&str>) {
    let repeats = descriptor.len() <= REPEATED_BYTES && links * descriptor.len() <= REPEATED_BYTES_IN_ALL;
    if repeats && links > 0 { (None, Some(descriptor)) } else { (Some(descriptor), None) }
}
