//! Parses the links of a manifest from its bytes, which are never changed.
//!
//! Only members that can have a link are parsed. Everything else is skipped, so that neither deep nesting nor a large
//! manifest costs memory. A malformed link is left out and reported as a refusal, and a document that cannot be
//! parsed, or has a member twice, has no links. In every case the manifest itself still passes through: rejecting it
//! is the registry's business.
//!
//! A new kind of link is added to [`LinkKind`] and to [`links_of`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Descriptor, Digest, InvalidDigest, LinkKind, Tag, TagScheme, media_type};

mod attestation;
mod in_toto;
mod json;
mod place;

pub use attestation::Attestation;
pub use in_toto::is_buildkit_attestation;
use json::{annotations, each_element, parse, parse_raw, text};
use place::ManifestPlace;

/// The depth to which `reference.reference…` is followed. Nested references are links of the same manifest (as in the
/// 2021 proposal's examples), and recursion must end.
const NESTING_LIMIT: usize = 16;
/// Refusals that are reported for one manifest; the rest is only counted.
const REFUSALS_TOLD: usize = 8;

/// A link of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Link {
    /// The manifest that it refers to.
    pub subject: Digest,
    /// The kind of link.
    pub kind: LinkKind,
}

/// The links of a manifest, and what else a list of referrers needs of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ManifestLinks {
    /// The links, sorted, each once.
    pub links: Vec<Link>,
    /// The digest in `subject`, if that is among the links.
    pub subject: Option<Digest>,
    /// The links of other manifests that it states: its buildx attestations.
    pub attestations: Vec<Attestation>,
    /// The Content-Type it was pushed with, else its own `mediaType`, else the type of its shape.
    pub media_type: String,
    /// Its `artifactType`, else that of its config (distribution-spec, "Listing Referrers").
    pub artifact_type: Option<String>,
    /// Its annotations; values that are not strings are left out.
    pub annotations: BTreeMap<String, String>,
    /// Why links, or the whole document, were left out; the first few.
    pub refusals: Vec<Refusal>,
    /// How many were left out.
    pub refused: usize,
}

/// A malformed link.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `layers[3].reference`
    pub place: String,
    /// What is wrong with it.
    pub reason: RefusalReason,
}

/// What is wrong with a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusalReason {
    /// The document is not JSON, not an object, or has a member twice.
    #[error("not a JSON object in which each member stands once")]
    Unreadable,
    /// Something else is in the place of a descriptor.
    #[error("neither a descriptor nor a list of descriptors")]
    NotADescriptor,
    /// A descriptor without digest.
    #[error("the descriptor has no digest")]
    NoDigest,
    /// The digest is malformed.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// The size is not a number of bytes.
    #[error("the descriptor's size is not an integer from 0 to 2^63-1")]
    Size,
    /// The media type is not a string.
    #[error("the descriptor's mediaType is not a string")]
    MediaType,
    /// An attestation without the digest of its subject.
    #[error("an attestation without the digest of what it is about")]
    NoAttested,
    /// `reference.reference…` too deep.
    #[error("nested more than 16 deep")]
    Nesting,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestMembers<'a> {
    #[serde(borrow)]
    media_type: Option<&'a RawValue>,
    #[serde(borrow)]
    artifact_type: Option<&'a RawValue>,
    #[serde(borrow)]
    annotations: Option<&'a RawValue>,
    #[serde(borrow)]
    subject: Option<&'a RawValue>,
    #[serde(borrow)]
    reference: Option<&'a RawValue>,
    #[serde(borrow)]
    config: Option<&'a RawValue>,
    #[serde(borrow)]
    layers: Option<&'a RawValue>,
    #[serde(borrow)]
    manifests: Option<&'a RawValue>,
    #[serde(borrow)]
    blobs: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DescriptorMembers<'a> {
    #[serde(borrow)]
    media_type: Option<&'a RawValue>,
    #[serde(borrow)]
    digest: Option<&'a RawValue>,
    #[serde(borrow)]
    size: Option<&'a RawValue>,
    #[serde(borrow)]
    artifact_type: Option<&'a RawValue>,
    #[serde(borrow)]
    annotations: Option<&'a RawValue>,
    #[serde(borrow)]
    reference: Option<&'a RawValue>,
}

/// The links of a manifest that was pushed with this Content-Type to this tag. Without a Content-Type the
/// manifest's own `mediaType` counts; parameters are ignored.
#[must_use]
pub fn links_of(manifest: &[u8], content_type: Option<&str>, tag: Option<&Tag>) -> ManifestLinks {
    let mut found = ManifestLinks::default();
    let Some(members) = parse::<ManifestMembers<'_>>(manifest) else {
        found.refuse(&ManifestPlace::Document, RefusalReason::Unreadable);
        return found;
    };
    let essence = content_type.map(media_type::essence);
    let scheme = tag.and_then(Tag::scheme);
    found.media_type = match (essence, text(members.media_type)) {
        (Some(pushed_with), _) if !pushed_with.is_empty() => pushed_with.to_owned(),
        (_, Some(own)) => own.into_owned(),
        (_, None) if members.manifests.is_some() => media_type::IMAGE_INDEX.to_owned(),
        (_, None) => media_type::IMAGE_MANIFEST.to_owned(),
    };
    let is_index = media_type::is_index(&found.media_type);

    found.artifact_type = text(members.artifact_type).filter(|own| !own.is_empty()).map(Cow::into_owned);
    if found.artifact_type.is_none() && !is_index {
        let config = members.config.and_then(parse_raw::<DescriptorMembers<'_>>);
        found.artifact_type = config
            .and_then(|config| text(config.media_type))
            .filter(|own| !own.is_empty())
            .map(Cow::into_owned);
    }
    found.annotations = members.annotations.map(annotations).unwrap_or_default();

    if let Some(TagScheme::Cosign(subject)) = &scheme {
        found.links.push(Link { subject: subject.clone(), kind: LinkKind::Cosign });
    }
    if media_type::has_subject(&found.media_type) {
        found.read_subject(members.subject);
    }
    found.follow_reference(members.reference, &ManifestPlace::Document, 0);
    if let Some(config) = members.config {
        found.read_descriptor(config, &ManifestPlace::Member("config"), None);
    }
    // The entries of an index at a referrers tag are referrers, not parts of it. They become `fallback` links only
    // when a query has verified them: anybody may write that tag.
    let is_parent = is_index && scheme != Some(TagScheme::Referrers);
    for (name, list, kind) in [
        ("layers", members.layers, None),
        ("manifests", members.manifests, is_parent.then_some(LinkKind::Parent)),
        ("blobs", members.blobs, None),
    ] {
        let Some(list) = list else { continue };
        let whole = each_element(list, |position, element| {
            found.read_descriptor(element, &ManifestPlace::Element(name, position), kind);
        });
        if !whole && kind.is_some() {
            found.refuse(&ManifestPlace::Member(name), RefusalReason::NotADescriptor);
        }
    }

    found.links.sort_unstable();
    found.links.dedup();
    found
}

impl ManifestLinks {
    /// Parses a descriptor inside the manifest: itself a link if there is a `kind`, and it may have a `reference` in
    /// any case. The manifest, not the descriptor, is then the referrer (2021 proposal).
    fn read_descriptor(&mut self, descriptor: &RawValue, place: &ManifestPlace<'_>, kind: Option<LinkKind>) {
        match (parse_raw::<DescriptorMembers<'_>>(descriptor), kind) {
            (Some(members), kind) => {
                if let Some(kind) = kind {
                    match subject(&members) {
                        Ok(subject) => {
                            self.links.push(Link { subject, kind });
                            self.read_attestation(&members, place);
                        }
                        Err(reason) => self.refuse(place, reason),
                    }
                }
                self.follow_reference(members.reference, place, 0);
            }
            (None, Some(_)) => self.refuse(place, RefusalReason::NotADescriptor),
            (None, None) => {
                if descriptor.get().starts_with('{') {
                    self.refuse(place, RefusalReason::Unreadable);
                }
            }
        }
    }

    /// Parses an index entry that may be an attestation by buildx.
    fn read_attestation(&mut self, entry: &DescriptorMembers<'_>, place: &ManifestPlace<'_>) {
        match attestation::of(entry) {
            None => {}
            Some(Ok(attestation)) => self.attestations.push(attestation),
            Some(Err(reason)) => self.refuse(place, reason),
        }
    }

    /// Parses a `subject` member.
    fn read_subject(&mut self, member: Option<&RawValue>) {
        let Some(member) = member else { return };
        let members = parse_raw::<DescriptorMembers<'_>>(member).ok_or(RefusalReason::NotADescriptor);
        match members.and_then(|members| subject(&members)) {
            Ok(subject) => {
                self.subject = Some(subject.clone());
                self.links.push(Link { subject, kind: LinkKind::Subject });
            }
            Err(reason) => self.refuse(&ManifestPlace::Member("subject"), reason),
        }
    }

    /// Parses a `reference` member: a descriptor or a list of descriptors.
    fn follow_reference(&mut self, reference: Option<&RawValue>, holder: &ManifestPlace<'_>, depth: usize) {
        let Some(reference) = reference else { return };
        let place = ManifestPlace::Reference(holder);
        if depth == NESTING_LIMIT {
            return self.refuse(&place, RefusalReason::Nesting);
        }
        if reference.get().starts_with('[') {
            each_element(reference, |position, element| {
                self.refer_to(element, &ManifestPlace::ReferenceElement(holder, position), depth);
            });
        } else {
            self.refer_to(reference, &place, depth);
        }
    }

    fn refer_to(&mut self, descriptor: &RawValue, place: &ManifestPlace<'_>, depth: usize) {
        let Some(members) = parse_raw::<DescriptorMembers<'_>>(descriptor) else {
            return self.refuse(place, RefusalReason::NotADescriptor);
        };
        match subject(&members) {
            Ok(subject) => self.links.push(Link { subject, kind: LinkKind::Reference }),
            Err(reason) => self.refuse(place, reason),
        }
        self.follow_reference(members.reference, place, depth + 1);
    }

    fn refuse(&mut self, place: &ManifestPlace<'_>, reason: RefusalReason) {
        self.refused += 1;
        if self.refusals.len() < REFUSALS_TOLD {
            self.refusals.push(Refusal { place: place.to_string(), reason });
        }
    }
}

/// The digest in a descriptor, if its digest, size and media type are well formed.
fn subject(descriptor: &DescriptorMembers<'_>) -> Result<Digest, RefusalReason> {
    let digest = descriptor.digest.ok_or(RefusalReason::NoDigest)?;
    let digest = parse_raw::<Cow<'_, str>>(digest).ok_or(InvalidDigest::Form)?.parse()?;
    if let Some(size) = descriptor.size {
        let size = parse_raw::<u64>(size).ok_or(RefusalReason::Size)?;
        i64::try_from(size).map_err(|_| RefusalReason::Size)?;
    }
    if let Some(media_type) = descriptor.media_type {
        parse_raw::<Cow<'_, str>>(media_type).ok_or(RefusalReason::MediaType)?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests;
