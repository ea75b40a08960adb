//! What the index says of itself.

/// Whether queries are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexState {
    /// Not yet: sled is being opened or built. Writes are accepted.
    Opening,
    /// Yes.
    Ready,
    /// No: sled failed for this reason and is being rebuilt from the journal, with retries. Writes are accepted.
    Rebuilding(String),
    /// No: the database cannot be used, for this reason. It is looked again all the time.
    Unreachable(String),
    /// No, for this reason, until an operator repairs it.
    Damaged(String),
    /// No, the index was closed.
    Closed,
}

/// The index in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Referrers, the pending ones included.
    pub referrers: u64,
    /// Links; several kinds from one referrer to one subject count once.
    pub links: u64,
    /// Pending referrers.
    pub pending: u64,
    /// Referrers that are being PUT.
    pub in_flight: u64,
    /// Length of the journal.
    pub journal_bytes: u64,
    /// Group commits since the start, each with one sync.
    pub commits: u64,
    /// Records written since the start.
    pub records: u64,
    /// Compactions since the start.
    pub compactions: u64,
    /// Blocks of the snapshot that are not as they were written, as far as is known.
    pub damaged: u64,
    /// When all that is stored was last read and checked, in seconds since 1970.
    pub checked: Option<u64>,
}
