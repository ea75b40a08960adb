//! The kinds of link from a referrer to its subject, and sets of kinds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The way in which a manifest refers to its subject. `/references` lists all kinds; `/referrers` lists `subject` and
/// `fallback`, and those in `referrers.include`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// A `reference` member of the 2021 proposal, on the manifest or on any descriptor inside it.
    Reference,
    /// The `subject` of OCI 1.1, and of the artifact manifests before it.
    Subject,
    /// The subject is one of the `manifests` of the referrer, an index.
    Parent,
    /// An attestation by buildx: an index entry annotated `vnd.docker.reference.type`.
    Attestation,
    /// The referrer is at a tag of cosign: `<alg>-<hex>.sig`, `.att` or `.sbom`.
    Cosign,
    /// The referrer is listed at the subject's referrers tag, `<alg>-<hex>`.
    Fallback,
}

/// The text is not a kind of link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a kind of link: one of reference, subject, parent, attestation, cosign, fallback")]
pub struct UnknownLinkKind;

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkKinds(u8);

impl LinkKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Reference, Self::Subject, Self::Parent, Self::Attestation, Self::Cosign, Self::Fallback];

    /// All kinds, with their names.
    pub const WORDS: [(&'static str, Self); 6] = [
        Self::Reference.word(),
        Self::Subject.word(),
        Self::Parent.word(),
        Self::Attestation.word(),
        Self::Cosign.word(),
        Self::Fallback.word(),
    ];

    /// The kinds by which something is attached to a manifest, and is copied or kept with it: all but `parent`, the
    /// indexes that list it.
    pub const ATTACHED: [Self; 5] =
        [Self::Reference, Self::Subject, Self::Attestation, Self::Cosign, Self::Fallback];

    /// Whether a manifest's bytes state such a link; else the tag does that the referrer is at or listed at.
    #[must_use]
    pub fn is_in_the_bytes(self) -> bool {
        match self {
            Self::Reference | Self::Subject | Self::Parent | Self::Attestation => true,
            Self::Cosign | Self::Fallback => false,
        }
    }

    /// Whether the referrer's own bytes state such a link; else another manifest or a tag does.
    #[must_use]
    pub fn is_in_own_bytes(self) -> bool {
        match self {
            Self::Reference | Self::Subject | Self::Parent => true,
            Self::Attestation | Self::Cosign | Self::Fallback => false,
        }
    }

    /// Its name in `?kind=`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Subject => "subject",
            Self::Parent => "parent",
            Self::Attestation => "attestation",
            Self::Cosign => "cosign",
            Self::Fallback => "fallback",
        }
    }

    const fn word(self) -> (&'static str, Self) {
        (self.as_str(), self)
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LinkKind {
    type Err = UnknownLinkKind;

    fn from_str(text: &str) -> Result<Self, UnknownLinkKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownLinkKind)
    }
}

impl LinkKinds {
    /// The set as a byte, one bit a kind; the inverse of [`LinkKinds::from_bits`].
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The set with these bits. Unknown bits are kept, so that a kind of a newer version survives in the index.
    #[must_use]
    pub fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Whether the sets have a kind in common.
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its kinds, in the order of the enum.
    pub fn iter(self) -> impl Iterator<Item = LinkKind> {
        LinkKind::ALL.into_iter().filter(move |kind| self.intersects(Self::from(*kind)))
    }
}

impl From<LinkKind> for LinkKinds {
    fn from(kind: LinkKind) -> Self {
        Self(1 << kind as u8)
    }
}

impl FromIterator<LinkKind> for LinkKinds {
    fn from_iter<I: IntoIterator<Item = LinkKind>>(kinds: I) -> Self {
        Self(kinds.into_iter().fold(0, |bits, kind| bits | Self::from(kind).0))
    }
}
