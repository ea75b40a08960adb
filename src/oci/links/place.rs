//! A place in a manifest.

use std::fmt;

/// A place in a manifest, for the log: `layers[3].reference`.
pub(super) enum ManifestPlace<'a> {
    Document,
    Member(&'static str),
    Element(&'static str, usize),
    Reference(&'a ManifestPlace<'a>),
    ReferenceElement(&'a ManifestPlace<'a>, usize),
}

impl fmt::Display for ManifestPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document => f.write_str("manifest"),
            Self::Member(name) => f.write_str(name),
            Self::Element(name, position) => write!(f, "{name}[{position}]"),
            Self::Reference(holder) => write!(f, "{holder}.reference"),
            Self::ReferenceElement(holder, position) => write!(f, "{holder}.reference[{position}]"),
        }
    }
}
