//! An index in a few numbers, by which two are compared.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::index::maintenance::{MaintenanceError, failed};
use crate::index::record::Recorded;

/// An index in numbers. Two that are equal have the same sums, in whatever order they are read; two that are not have
/// others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Number of referrers.
    pub referrers: u64,
    /// Number of links, each subject of a referrer counted once.
    pub links: u64,
    /// Referrers that the registry has to be asked for.
    pub pending: u64,
    /// The sum of the hashes of all referrers with their states and links.
    pub hash: u128,
}

impl Sums {
    /// Adds a referrer.
    pub(super) fn add(&mut self, recorded: &Recorded, links: usize) -> Result<(), MaintenanceError> {
        let text = serde_json::to_vec(recorded).map_err(|error| failed("comparing")(error.into()))?;
        let hash = Sha256::digest(text);
        let half = hash.iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte));
        self.hash = self.hash.wrapping_add(half);
        self.referrers += 1;
        self.links += links as u64;
        self.pending += u64::from(recorded.pending);
        Ok(())
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { referrers, links, pending, hash } = self;
        write!(f, "{referrers} referrers ({pending} pending) with {links} links, sum {hash:032x}")
    }
}
