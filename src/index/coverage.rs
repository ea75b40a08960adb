//! How far the index knows what a registry holds: all that passed since refshim came, and all that was there before in
//! what was read since.

use jiff::Timestamp;

/// How far the index knows a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// All that it held was read, and all that was pushed since has passed or was told of.
    Complete,
    /// Only what was pushed since then. What is older may be missing.
    Since(Timestamp),
}

/// When a repository, or everything in an upstream, was last read or told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Covered {
    /// When the last backfill that read all of it began.
    pub backfilled: Option<Timestamp>,
    /// When the last sweep that read all of it began.
    pub swept: Option<Timestamp>,
    /// When the registry last told of a push or a deletion.
    pub notified: Option<Timestamp>,
}

impl Covered {
    /// Whether all that it held at some time was read.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.backfilled.is_some() || self.swept.is_some()
    }

    /// Both together: of each kind the newest.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            backfilled: self.backfilled.max(other.backfilled),
            swept: self.swept.max(other.swept),
            notified: self.notified.max(other.notified),
        }
    }
}
