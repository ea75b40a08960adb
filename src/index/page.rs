//! What a query of the index asks for, and the page of referrers it gets.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::oci::{Digest, LinkKinds};

/// One referrer of a subject, as a query returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the order of pushes.
    pub order: Order,
    /// Its digest.
    pub digest: Digest,
    /// The kinds of its links to the subject.
    pub kinds: LinkKinds,
    /// Whether the upstream has to be asked if it has the manifest.
    pub pending: bool,
    /// Whether the upstream was ever known to have it. If not, it is only a client's claim.
    pub was_confirmed: bool,
    /// Its version.
    pub version: Version,
    /// Its descriptor as JSON.
    pub descriptor: String,
}

/// Which of a subject's referrers a query asks for.
pub struct Scan {
    /// Only those after this one, with which the page before ended.
    pub after: Option<Order>,
    /// Maximum number of entries.
    pub max_entries: usize,
    /// Maximum length of their descriptors, with one byte more for each. The first entry is returned whatever its
    /// length.
    pub max_bytes: usize,
    /// Maximum number of claims that the upstream never confirmed: each costs a request to the upstream.
    pub max_claims: usize,
    /// A filter, applied before an entry is counted.
    pub accepts: Box<dyn Fn(&Entry) -> bool + Send + Sync>,
}

/// Referrers of a subject, oldest first, the pending ones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The referrers.
    pub entries: Vec<Entry>,
    /// Whether there are more behind them.
    pub more: bool,
}

/// A referrer with all its links, as a walk over a repository returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownReferrer {
    /// Its digest.
    pub digest: Digest,
    /// When it was first recorded.
    pub order: Order,
    /// Whether the upstream has to be asked if it has the manifest.
    pub pending: bool,
    /// Whether the upstream was ever known to have it.
    pub was_confirmed: bool,
    /// Whether the descriptor is another manifest's claim.
    pub claimed: bool,
    /// Its version.
    pub version: Version,
    /// Its descriptor as JSON.
    pub descriptor: String,
    /// The kinds of its links to each subject.
    pub links: BTreeMap<Digest, LinkKinds>,
}

/// Some of the referrers in a repository, by digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryPage {
    /// The referrers.
    pub referrers: Vec<KnownReferrer>,
    /// Whether there are more behind them.
    pub more: bool,
}

/// When a referrer was first recorded, in microseconds since 1970. Strictly increasing over the whole journal, so it
/// is also the place in the order of pushes, and names the place where a page ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Order(pub u64);

/// The text is not an [`Order`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not sixteen hex digits")]
pub struct InvalidOrder;

/// A referrer's version, changed by every record. A removal names the version it was decided on, so that a stale
/// decision is detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

/// A state of the lists of one repository: as long as it is the same, so are they. Only stamps of the same repository are
/// to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(pub(crate) u64);

impl Version {
    /// A version that no referrer has, for a removal by a caller that could not look it up.
    pub const UNKNOWN: Self = Self(0);
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Order {
    type Err = InvalidOrder;

    fn from_str(text: &str) -> Result<Self, InvalidOrder> {
        let is_ours = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let order = u64::from_str_radix(text, 16).ok().filter(|_| is_ours);
        order.map(Self).ok_or(InvalidOrder)
    }
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan")
            .field("after", &self.after)
            .field("max_entries", &self.max_entries)
            .field("max_bytes", &self.max_bytes)
            .field("max_claims", &self.max_claims)
            .finish_non_exhaustive()
    }
}
