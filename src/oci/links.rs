//! Which links a manifest carries: read from its bytes, which are never changed.
//!
//! Only the members that can hold a link are parsed; everything else is skipped, so that neither
//! deep nesting nor a large manifest costs memory. A malformed link is left out and named among the
//! refusals, a document that cannot be read carries no links at all.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Digest, InvalidDigest, media_type};

/// How deep `reference.reference…` is followed.
const NESTING_LIMIT: usize = 16;
/// How many refusals of one manifest are told; the rest is only counted.
const REFUSALS_TOLD: usize = 8;

/// In which way a manifest refers to its subject (design: "Words").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// `reference` of the 2021 proposal.
    Reference,
    /// `subject` of OCI 1.1.
    Subject,
    /// The subject is one of the manifests of this index.
    Parent,
    /// A buildx attestation.
    Attestation,
    /// A cosign tag.
    Cosign,
    /// An entry of an OCI referrers tag.
    Fallback,
}

/// The text names no kind of link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a kind of link: one of reference, subject, parent, attestation, cosign, fallback")]
pub struct UnknownLinkKind;

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkKinds(u8);

/// One link that a manifest carries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Link {
    /// What the manifest is about.
    pub subject: Digest,
    /// How it says so.
    pub kind: LinkKind,
}

/// What refshim has to know of a manifest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ManifestLinks {
    /// Each subject once for each kind, in no particular order.
    pub links: Vec<Link>,
    /// The type to list the manifest with when the client did not name one.
    pub media_type: String,
    /// By the derivation of the OCI specification.
    pub artifact_type: Option<String>,
    /// The manifest's annotations; values that are no strings are left out.
    pub annotations: BTreeMap<String, String>,
    /// Why links, or the whole document, were left out: the first few.
    pub refusals: Vec<Refusal>,
    /// How many were left out.
    pub refused: usize,
}

/// A place of a manifest that should hold a link and does not.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `layers[3].reference`
    pub place: String,
    /// What is wrong there.
    pub reason: RefusalReason,
}

/// What is wrong with a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusalReason {
    /// The document is not JSON, not an object, or has a member twice.
    #[error("not a JSON object in which each member stands once")]
    Unreadable,
    /// Something else stands where a descriptor is due.
    #[error("neither a descriptor nor a list of descriptors")]
    NotADescriptor,
    /// A descriptor without digest.
    #[error("the descriptor has no digest")]
    NoDigest,
    /// A digest that is none.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// A size that is no number of bytes.
    #[error("the descriptor's size is not an integer from 0 to 2^63-1")]
    Size,
    /// A media type that is no string.
    #[error("the descriptor's mediaType is not a string")]
    MediaType,
    /// `reference.reference…` without end.
    #[error("nested more than 16 deep")]
    Nesting,
}

impl LinkKind {
    const ALL: [Self; 6] =
        [Self::Reference, Self::Subject, Self::Parent, Self::Attestation, Self::Cosign, Self::Fallback];

    /// The word for it in `?kind=`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Subject => "subject",
            Self::Parent => "parent",
            Self::Attestation => "attestation",
            Self::Cosign => "cosign",
            Self::Fallback => "fallback",
        }
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

    /// The set with these bits; bits that stand for no kind are kept.
    #[must_use]
    pub fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Whether the two have a kind in common.
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is no kind in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The kinds in it, in the order of the enum.
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

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    #[serde(borrow)]
    media_type: Option<&'a RawValue>,
    #[serde(borrow)]
    artifact_type: Option<&'a RawValue>,
    #[serde(borrow)]
    annotations: Option<&'a RawValue>,
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
    reference: Option<&'a RawValue>,
}

/// Which links a manifest carries that was pushed with this Content-Type (its parameters are
/// ignored; without one the manifest's own `mediaType` counts).
#[must_use]
pub fn links_of(manifest: &[u8], content_type: Option<&str>) -> ManifestLinks {
    let mut found = ManifestLinks::default();
    let Some(members) = parse::<Manifest<'_>>(manifest) else {
        found.refuse(&Place::Document, RefusalReason::Unreadable);
        return found;
    };
    let essence = content_type.and_then(|value| value.split(';').next()).map(str::trim);
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

    found.follow_reference(members.reference, &Place::Document, 0);
    if let Some(config) = members.config {
        found.read_descriptor(config, &Place::Member("config"), None);
    }
    for (name, list, kind) in [
        ("layers", members.layers, None),
        ("manifests", members.manifests, is_index.then_some(LinkKind::Parent)),
        ("blobs", members.blobs, None),
    ] {
        let Some(list) = list else { continue };
        let whole = each_element(list, |position, element| {
            found.read_descriptor(element, &Place::Element(name, position), kind);
        });
        if !whole && kind.is_some() {
            found.refuse(&Place::Member(name), RefusalReason::NotADescriptor);
        }
    }

    found.links.sort_unstable();
    found.links.dedup();
    found
}

impl ManifestLinks {
    /// A descriptor inside the manifest: itself a link where `kind` says so, and the place of a
    /// `reference` in any case.
    fn read_descriptor(&mut self, descriptor: &RawValue, place: &Place<'_>, kind: Option<LinkKind>) {
        match (parse_raw::<DescriptorMembers<'_>>(descriptor), kind) {
            (Some(members), kind) => {
                if let Some(kind) = kind {
                    match subject(&members) {
                        Ok(subject) => self.links.push(Link { subject, kind }),
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

    /// The value of a `reference` member: a descriptor or a list of them.
    fn follow_reference(&mut self, reference: Option<&RawValue>, holder: &Place<'_>, depth: usize) {
        let Some(reference) = reference else { return };
        let place = Place::Reference(holder);
        if depth == NESTING_LIMIT {
            return self.refuse(&place, RefusalReason::Nesting);
        }
        if reference.get().starts_with('[') {
            each_element(reference, |position, element| {
                self.refer_to(element, &Place::ReferenceElement(holder, position), depth);
            });
        } else {
            self.refer_to(reference, &place, depth);
        }
    }

    fn refer_to(&mut self, descriptor: &RawValue, place: &Place<'_>, depth: usize) {
        let Some(members) = parse_raw::<DescriptorMembers<'_>>(descriptor) else {
            return self.refuse(place, RefusalReason::NotADescriptor);
        };
        match subject(&members) {
            Ok(subject) => self.links.push(Link { subject, kind: LinkKind::Reference }),
            Err(reason) => self.refuse(place, reason),
        }
        self.follow_reference(members.reference, place, depth + 1);
    }

    fn refuse(&mut self, place: &Place<'_>, reason: RefusalReason) {
        self.refused += 1;
        if self.refusals.len() < REFUSALS_TOLD {
            self.refusals.push(Refusal { place: place.to_string(), reason });
        }
    }
}

/// The subject that a descriptor names, if all of its members that say so are well formed.
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

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// `T` must not be satisfied by a list: serde reads structs from lists too.
fn parse_raw<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Option<T> {
    if value.get().starts_with('[') {
        return None;
    }
    serde_json::from_str(value.get()).ok()
}

fn text(value: Option<&RawValue>) -> Option<Cow<'_, str>> {
    value.and_then(parse_raw)
}

fn annotations(value: &RawValue) -> BTreeMap<String, String> {
    let values: BTreeMap<String, &RawValue> = parse_raw(value).unwrap_or_default();
    values.into_iter().filter_map(|(key, value)| Some((key, text(Some(value))?.into_owned()))).collect()
}

/// Gives each element of a JSON list to `visit`, holding one at a time. False if it is no list.
fn each_element<'a>(list: &'a RawValue, visit: impl FnMut(usize, &'a RawValue)) -> bool {
    struct Elements<F>(F);
    impl<'de, F: FnMut(usize, &'de RawValue)> serde::de::Visitor<'de> for Elements<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
            let mut position = 0;
            while let Some(element) = list.next_element::<&'de RawValue>()? {
                (self.0)(position, element);
                position += 1;
            }
            Ok(())
        }
    }
    let mut list = serde_json::Deserializer::from_str(list.get());
    serde::Deserializer::deserialize_seq(&mut list, Elements(visit)).is_ok()
}

/// Where in a manifest, for the log.
enum Place<'a> {
    Document,
    Member(&'static str),
    Element(&'static str, usize),
    Reference(&'a Place<'a>),
    ReferenceElement(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::Sha256([n; 32])
    }

    fn descriptor(n: u8) -> Value {
        json!({"mediaType": media_type::IMAGE_MANIFEST, "digest": digest(n), "size": 7})
    }

    fn with(mut descriptor: Value, reference: &Value) -> Value {
        descriptor["reference"] = reference.clone();
        descriptor
    }

    #[track_caller]
    fn check(manifest: &Value, media_type: &str, expected: &[(LinkKind, u8)], refused: &[&str]) {
        check_bytes(&serde_json::to_vec(manifest).unwrap(), media_type, expected, refused);
    }

    #[track_caller]
    fn check_bytes(manifest: &[u8], media_type: &str, expected: &[(LinkKind, u8)], refused: &[&str]) {
        let found = links_of(manifest, Some(media_type));
        let mut expected: Vec<Link> =
            expected.iter().map(|(kind, n)| Link { subject: digest(*n), kind: *kind }).collect();
        expected.sort();
        assert_eq!(found.links, expected);
        assert_eq!(found.refusals.iter().map(ToString::to_string).collect::<Vec<_>>(), refused);
        assert_eq!(found.refused, refused.len());
    }

    use super::LinkKind::{Parent, Reference};
    use super::media_type::{DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST};

    #[test]
    fn a_reference_is_found_wherever_it_may_stand() {
        let to = descriptor;
        check(&json!({"reference": to(1)}), DOCKER_MANIFEST, &[(Reference, 1)], &[]);
        check(&json!({"manifests": [], "reference": to(1)}), IMAGE_INDEX, &[(Reference, 1)], &[]);
        check(&json!({"config": with(to(9), &to(1))}), IMAGE_MANIFEST, &[(Reference, 1)], &[]);
        check(&json!({"layers": [to(8), with(to(9), &to(1))]}), IMAGE_MANIFEST, &[(Reference, 1)], &[]);
        check(&json!({"blobs": [with(to(9), &to(1))]}), "application/x", &[(Reference, 1)], &[]);
        check(&json!({"manifests": [with(to(9), &to(1))]}), IMAGE_INDEX, &[(Parent, 9), (Reference, 1)], &[]);
        check(
            &json!({"reference": with(to(1), &with(to(2), &to(3)))}),
            IMAGE_MANIFEST,
            &[(Reference, 1), (Reference, 2), (Reference, 3)],
            &[],
        );
        check(
            &json!({"reference": [to(1), to(2), to(1)]}),
            IMAGE_MANIFEST,
            &[(Reference, 1), (Reference, 2)],
            &[],
        );
    }

    #[test]
    fn an_index_is_the_parent_of_its_manifests() {
        check(
            &json!({"manifests": [descriptor(1), descriptor(2)]}),
            DOCKER_MANIFEST_LIST,
            &[(Parent, 1), (Parent, 2)],
            &[],
        );
        check(&json!({"manifests": [descriptor(1)]}), "application/x", &[], &[]);
        check(
            &json!({"manifests": 5}),
            IMAGE_INDEX,
            &[],
            &["manifests: neither a descriptor nor a list of descriptors"],
        );
        check(
            &json!({"manifests": [descriptor(1), 5]}),
            IMAGE_INDEX,
            &[(Parent, 1)],
            &["manifests[1]: neither a descriptor nor a list of descriptors"],
        );
    }

    #[test]
    fn a_malformed_link_is_left_out_and_told() {
        let reference = |value: Value, refusal: &str| {
            check(
                &json!({"reference": value}),
                IMAGE_MANIFEST,
                &[],
                &[&format!("manifest.reference: {refusal}")],
            );
        };
        reference(json!("sha256:"), "neither a descriptor nor a list of descriptors");
        reference(json!(5), "neither a descriptor nor a list of descriptors");
        reference(json!({"size": 1}), "the descriptor has no digest");
        reference(
            json!({"digest": "sha256:XYZ"}),
            "the digest is not the right number of lower-case hex digits",
        );
        reference(json!({"digest": 5}), "a digest has the form algorithm:hex");
        reference(
            json!({"digest": format!("md5:{}", "0".repeat(32))}),
            "the digest's algorithm is neither sha256 nor sha512",
        );
        let size = "the descriptor's size is not an integer from 0 to 2^63-1";
        reference(json!({"digest": digest(1), "size": -1}), size);
        reference(json!({"digest": digest(1), "size": 1u64 << 63}), size);
        reference(json!({"digest": digest(1), "size": "1"}), size);
        reference(json!({"digest": digest(1), "mediaType": 1}), "the descriptor's mediaType is not a string");
        check(
            &json!({"reference": [descriptor(1), "x", descriptor(2)]}),
            IMAGE_MANIFEST,
            &[(Reference, 1), (Reference, 2)],
            &["manifest.reference[1]: neither a descriptor nor a list of descriptors"],
        );
        check(
            &json!({"reference": {"reference": descriptor(1)}}),
            IMAGE_MANIFEST,
            &[(Reference, 1)],
            &["manifest.reference: the descriptor has no digest"],
        );
    }

    #[test]
    fn what_cannot_be_read_carries_no_links() {
        let unreadable = ["manifest: not a JSON object in which each member stands once"];
        check_bytes(b"", IMAGE_MANIFEST, &[], &unreadable);
        check_bytes(b"hello", IMAGE_MANIFEST, &[], &unreadable);
        check_bytes(b"[]", IMAGE_MANIFEST, &[], &unreadable);
        let whole = serde_json::to_vec(&json!({"reference": descriptor(1)})).unwrap();
        check_bytes(&whole[..whole.len() - 1], IMAGE_MANIFEST, &[], &unreadable);
        check_bytes("[".repeat(4 << 20).as_bytes(), IMAGE_MANIFEST, &[], &unreadable);
        let nested = format!("{{\"reference\":{}{}}}", "[".repeat(2 << 20), "]".repeat(2 << 20));
        check_bytes(
            nested.as_bytes(),
            IMAGE_MANIFEST,
            &[],
            &["manifest.reference[0]: neither a descriptor nor a list of descriptors"],
        );
        let twice = format!("{{\"reference\":{0},\"reference\":{0}}}", descriptor(1));
        check_bytes(twice.as_bytes(), IMAGE_MANIFEST, &[], &unreadable);
        let twice = format!("{{\"layers\":[{{\"reference\":{0},\"reference\":{0}}}]}}", descriptor(1));
        check_bytes(
            twice.as_bytes(),
            IMAGE_MANIFEST,
            &[],
            &["layers[0]: not a JSON object in which each member stands once"],
        );
    }

    #[test]
    fn nesting_ends_somewhere() {
        let mut reference = descriptor(0);
        for n in 1..20 {
            reference = with(descriptor(n), &reference);
        }
        let found = links_of(&serde_json::to_vec(&json!({"reference": reference})).unwrap(), None);
        assert_eq!(found.links.len(), NESTING_LIMIT);
        assert_eq!(found.refusals.len(), 1);
        assert_eq!(found.refusals[0].reason, RefusalReason::Nesting);
    }

    #[test]
    fn ten_thousand_references_are_ten_thousand_links() {
        let references: Vec<_> = (0..10_000u32)
            .map(|n| json!({"digest": Digest::of(crate::oci::Algorithm::Sha256, &n.to_be_bytes())}))
            .collect();
        let found = links_of(&serde_json::to_vec(&json!({"reference": references})).unwrap(), None);
        assert_eq!((found.links.len(), found.refused), (10_000, 0));
    }

    #[test]
    fn is_listed_with_the_type_and_annotations_of_the_manifest() {
        let manifest = json!({
            "mediaType": IMAGE_MANIFEST,
            "config": {"mediaType": "application/vnd.config"},
            "annotations": {"a": "b", "n": 5},
        });
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let found = links_of(&bytes, Some("application/x; charset=utf-8"));
        assert_eq!(found.media_type, "application/x");
        assert_eq!(found.artifact_type.as_deref(), Some("application/vnd.config"));
        assert_eq!(found.annotations, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        assert_eq!(links_of(&bytes, None).media_type, IMAGE_MANIFEST);
        assert_eq!(links_of(&bytes, Some(IMAGE_INDEX)).artifact_type, None);
        let own = json!({"artifactType": "own", "config": {"mediaType": "application/vnd.config"}});
        assert_eq!(links_of(&serde_json::to_vec(&own).unwrap(), None).artifact_type.as_deref(), Some("own"));
    }
}
