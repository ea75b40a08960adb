//! Stamps of lists: a number for each repository that every write to its lists changes. Repositories share numbers, or
//! they would take memory for each that ever was written; a write then ends what is kept of another one too, which costs
//! a scan.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;

use crate::index::{Repository, Stamp};

/// How many numbers there are: with a thousand writes a second to other repositories, each changes every 16 seconds.
const NUMBERS: u64 = 1 << 14;
/// How far the numbers of two stores are apart: further than one store lives to count.
const APART: u64 = 1 << 40;

/// Stores that there were so far in this process.
static STORES: AtomicU64 = AtomicU64::new(0);

/// The stamps of one store. Those of another are never the same: what it was read from may have been lost.
#[derive(Debug)]
pub(super) struct Stamps {
    numbers: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// A write to the lists of these repositories. Their stamps change when it is dropped.
pub(super) struct Changed<'a> {
    pub(super) stamps: &'a Stamps,
    pub(super) repositories: HashSet<Repository>,
}

impl Default for Stamps {
    fn default() -> Self {
        let first = STORES.fetch_add(1, Ordering::Relaxed).wrapping_mul(APART);
        Self { numbers: (0..NUMBERS).map(|_| AtomicU64::new(first)).collect(), hasher: RandomState::new() }
    }
}

impl Stamps {
    /// The stamp of a repository's lists now.
    pub(super) fn of(&self, repository: &Repository) -> Option<Stamp> {
        // Acquire: whoever sees a stamp sees what was written before it changed.
        Some(Stamp(self.number(repository)?.load(Ordering::Acquire)))
    }

    fn number(&self, repository: &Repository) -> Option<&AtomicU64> {
        let place = self.hasher.hash_one(repository) % NUMBERS;
        self.numbers.get(usize::try_from(place).ok()?)
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        for number in self.repositories.iter().filter_map(|repository| self.stamps.number(repository)) {
            number.fetch_add(1, Ordering::Release);
        }
    }
}
