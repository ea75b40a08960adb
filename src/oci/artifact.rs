//! The manifest of an artifact: files about a subject (image-spec, `manifest.md`, "Guidelines for Artifact Usage").

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Algorithm, Descriptor, Digest, media_type};

/// The config of an artifact that has none (image-spec, `manifest.md`, "Guidance for an Empty Descriptor").
pub const EMPTY_CONFIG: &[u8] = b"{}";
const EMPTY_CONFIG_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// The annotation with the name of a file (image-spec, `annotations.md`).
pub const TITLE: &str = "org.opencontainers.image.title";
/// The annotation for the time of creation (the same).
pub const CREATED: &str = "org.opencontainers.image.created";

/// The member by which an artifact refers to its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectMember {
    /// `reference` of the 2021 proposal.
    Reference,
    /// `subject` of OCI 1.1.
    Subject,
    /// Both, for old clients and new ones.
    Both,
}

/// The descriptor of [`EMPTY_CONFIG`].
#[must_use]
pub fn empty_config() -> Descriptor {
    Descriptor {
        media_type: EMPTY_CONFIG_TYPE.to_owned(),
        digest: Digest::of(Algorithm::Sha256, EMPTY_CONFIG),
        size: EMPTY_CONFIG.len() as u64,
        artifact_type: None,
        annotations: BTreeMap::new(),
        data: None,
    }
}

/// The bytes of an image manifest with these files as its layers, about this subject. The same input gives the same
/// bytes.
pub fn artifact_manifest<D: Serialize>(
    artifact_type: &str,
    layers: &[D],
    annotations: &BTreeMap<String, String>,
    (subject, member): (&D, SubjectMember),
) -> Vec<u8> {
    let mut manifest = Map::from_iter([
        ("schemaVersion".to_owned(), json!(2)),
        ("mediaType".to_owned(), json!(media_type::IMAGE_MANIFEST)),
        ("artifactType".to_owned(), json!(artifact_type)),
        ("config".to_owned(), json!(empty_config())),
        ("layers".to_owned(), json!(layers)),
        ("annotations".to_owned(), json!(annotations)),
    ]);
    let (reference, is_subject) = match member {
        SubjectMember::Reference => (true, false),
        SubjectMember::Subject => (false, true),
        SubjectMember::Both => (true, true),
    };
    for (name, _) in [("reference", reference), ("subject", is_subject)].into_iter().filter(|(_, it)| *it) {
        manifest.insert(name.to_owned(), json!(subject));
    }
    Value::Object(manifest).to_string().into_bytes()
}

/// The current time as it stands in [`CREATED`]: to the second, always of the same length.
#[must_use]
pub fn created_now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
