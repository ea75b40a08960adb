//! The descriptor of a referrer, as lists of referrers have it (image-spec, `descriptor.md`).

use std::collections::BTreeMap;

use super::Digest;

/// The descriptor of a referrer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The Content-Type that the manifest was pushed with, else its own `mediaType`.
    pub media_type: String,
    /// The digest of the manifest's bytes.
    pub digest: Digest,
    /// The manifest's length in bytes.
    pub size: u64,
    /// The manifest's own `artifactType`; for an image manifest without one, its `config.mediaType`; an index without
    /// one has none (distribution-spec, "Listing Referrers").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// All annotations of the manifest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The manifest's bytes in base64, if the query asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}
