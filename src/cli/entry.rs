//! The one shape in which JSON and templates have a manifest: its descriptor, with its full name and what it is.

use serde::Serialize;

use crate::client::{ListedReferrer, Location, Manifest};
use crate::oci::{ArtifactDescription, Descriptor, Digest, LinkKind, LinkKinds, RepositoryName};

/// A manifest in a result.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    /// `host/name@digest`, which every client takes.
    reference: String,
    /// What it is, in words.
    #[serde(rename = "type")]
    label: String,
    #[serde(flatten)]
    pub(super) descriptor: Descriptor,
    /// By which links it refers to what was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kinds: Vec<LinkKind>,
}

impl Entry {
    /// The entry of a manifest that was read.
    pub(super) fn of(manifest: &Manifest, links: LinkKinds, location: &Location) -> Self {
        Self::new(manifest.descriptor(), &manifest.description(links), links, location)
    }

    /// The entry of a referrer on a list of what refers to something at this location.
    pub(super) fn of_listed(referrer: &ListedReferrer, location: &Location) -> Self {
        let ListedReferrer { descriptor, what, kinds, .. } = referrer;
        Self::new(descriptor.clone(), what, *kinds, &located(referrer.repository.as_ref(), location))
    }

    fn new(
        descriptor: Descriptor,
        what: &ArtifactDescription,
        links: LinkKinds,
        location: &Location,
    ) -> Self {
        Self {
            reference: reference(location, &descriptor.digest),
            label: what.label(),
            descriptor,
            kinds: links.iter().collect(),
        }
    }

    pub(super) fn digest(&self) -> String {
        self.descriptor.digest.to_string()
    }
}

/// The full name of a manifest.
pub(super) fn reference(location: &Location, digest: &Digest) -> String {
    format!("{location}@{digest}")
}

/// Where something is that was found from this location: there, or in another repository of the registry.
pub(super) fn located(repository: Option<&RepositoryName>, from: &Location) -> Location {
    match (from, repository) {
        (Location::Registry { host, .. }, Some(name)) => {
            Location::Registry { host: host.clone(), name: name.clone() }
        }
        (Location::Registry { .. }, None) | (Location::Layout(_), _) => from.clone(),
    }
}
