//! How much is read at once from a connection, by how many there are.
//!
//! hyper doubles the read buffer of a connection in its place whenever a read fills it, and never makes it smaller. So
//! what is read at once is, up to twice, what a connection takes for as long as it lasts: whether the other side is slow,
//! or it is idle and was fast once.

/// How much is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadSize {
    /// Half a megabyte, for throughput.
    Large,
    /// 64 KiB. On loopback a byte takes a quarter more CPU time.
    Medium,
    /// 16 KiB, and twice the CPU time, for as many connections as there may be.
    Small,
}

/// So many may be large, and take some 18 MiB.
const FEW: usize = 16;
/// So many may be large or medium; the medium ones take another 20 MiB.
const SOME: usize = 160;

impl ReadSize {
    /// Every size.
    pub const ALL: [Self; 3] = [Self::Large, Self::Medium, Self::Small];

    /// The size for one of so many. One that has grown is still among them, so there are never more large ones than may be,
    /// also if one grows after the other.
    #[must_use]
    pub fn for_one_of(count: usize) -> Self {
        if count <= FEW {
            Self::Large
        } else if count <= SOME {
            Self::Medium
        } else {
            Self::Small
        }
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Large => 512 << 10,
            Self::Medium => 64 << 10,
            Self::Small => 16 << 10,
        }
    }
}
