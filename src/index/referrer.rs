//! What is recorded: referrers, in repositories.

use crate::oci::{Digest, Link, RepositoryName};

/// A repository of one upstream. Links are scoped to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// The upstream's number in the index.
    pub upstream: u32,
    /// Its name in the upstream.
    pub name: RepositoryName,
}

/// A manifest that refers to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// Its digest.
    pub digest: Digest,
    /// Its descriptor as JSON, in the form in which queries send it.
    pub descriptor: String,
    /// Its links; each (subject, kind) once.
    pub links: Vec<Link>,
}

/// A referrer that was found in the upstream, rather than pushed through refshim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The referrer. Without links it only says that the upstream has the manifest, and how it serves it.
    pub referrer: Referrer,
    /// Whether only another manifest tells of it. Then the upstream has to be asked for it, and its own descriptor
    /// is preferred once it is known.
    pub claimed: bool,
}

/// The result of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The referrer was removed.
    Gone,
    /// It is pending instead: it was changed since it was seen, is being PUT, or was not absent for long enough.
    Doubted,
    /// It was not in the index.
    Unknown,
}
