//! Manifests on the client's side: the bytes, and the parsed members that name other content.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Error, ErrorKind, Result};
use crate::oci::artifact::CREATED;
use crate::oci::{
    Algorithm, ArtifactDescription, ArtifactKind, Descriptor, Digest, LinkKind, LinkKinds, ManifestLinks,
    Tag, is_image_config, links_of, media_type,
};

const IMAGE: &str = "image";
const INDEX: &str = "index";

/// A manifest. Its bytes are never changed.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its media type, sent as Content-Type.
    pub media_type: String,
    /// The digest of the bytes.
    pub digest: Digest,
    /// The manifest itself, exactly as it was received.
    pub bytes: Bytes,
    members: Members,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Members {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Part>,
    #[serde(default, deserialize_with = "or_default")]
    layers: Vec<Part>,
    #[serde(default, deserialize_with = "or_default")]
    blobs: Vec<Part>,
    #[serde(default, deserialize_with = "or_default")]
    manifests: Vec<Part>,
    #[serde(default)]
    subject: Option<Subject>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Subject {
    digest: Digest,
}

/// An entry of a manifest: a descriptor, with what the client needs of its other members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its type, size, digest and annotations.
    #[serde(flatten)]
    pub descriptor: Descriptor,
    /// The platform of an image in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Where else it is. Such content need not be in the registry (base layers of Windows images).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

/// `os/architecture` or `os/architecture/variant`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    architecture: String,
    os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

impl Manifest {
    /// Parses a manifest. Without a Content-Type its own `mediaType` counts.
    pub(super) fn new(bytes: Bytes, content_type: Option<&str>) -> Result<Self> {
        Self::with_algorithm(Algorithm::Sha256, bytes, content_type)
    }

    /// Parses a manifest and verifies that it has this digest.
    pub fn verified(digest: &Digest, bytes: Bytes, content_type: Option<&str>) -> Result<Self> {
        let manifest = Self::with_algorithm(digest.algorithm(), bytes, content_type)?;
        if manifest.digest == *digest { Ok(manifest) } else { Err(mismatch(digest, &manifest.digest)) }
    }

    fn with_algorithm(algorithm: Algorithm, bytes: Bytes, content_type: Option<&str>) -> Result<Self> {
        let digest = Digest::of(algorithm, &bytes);
        let members: Members = serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(ErrorKind::Malformed, format!("reading the manifest {digest}"), error.to_string())
        })?;
        let own =
            if members.manifests.is_empty() { media_type::IMAGE_MANIFEST } else { media_type::IMAGE_INDEX };
        let stated = members.media_type.as_deref().unwrap_or(own);
        // Storage to which a registry redirects sends a Content-Type of its own, which is not a manifest's.
        let media_type =
            content_type.map(media_type::essence).filter(|given| is_manifest(given)).unwrap_or(stated);
        Ok(Self { media_type: media_type.to_owned(), digest, bytes, members })
    }

    /// The manifests that it lists, if it is an index.
    #[must_use]
    pub fn children(&self) -> &[Part] {
        &self.members.manifests
    }

    /// The files of an artifact, the layers of an image.
    #[must_use]
    pub fn layers(&self) -> &[Part] {
        // The artifact manifests of ORAS and of OCI 1.1-rc call them `blobs`.
        if self.members.layers.is_empty() { &self.members.blobs } else { &self.members.layers }
    }

    /// The blobs that must be where it is: config and layers, without those that have URLs of their own.
    pub fn blobs(&self) -> impl Iterator<Item = &Part> {
        self.members.config.iter().chain(self.layers()).filter(|part| part.urls.is_empty())
    }

    /// The digest in `subject`.
    #[must_use]
    pub fn subject(&self) -> Option<&Digest> {
        self.members.subject.as_ref().map(|subject| &subject.digest)
    }

    /// Its annotations.
    #[must_use]
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.members.annotations
    }

    /// Its annotation of when it was created, RFC 3339.
    #[must_use]
    pub fn created(&self) -> Option<&str> {
        self.members.annotations.get(CREATED).map(String::as_str)
    }

    /// Its `artifactType`, or for an image manifest its config's media type (distribution-spec, "Listing
    /// Referrers").
    #[must_use]
    pub fn artifact_type(&self) -> Option<&str> {
        // An empty one MUST be taken for a missing one (same section).
        let own = self.members.artifact_type.as_deref().filter(|own| !own.is_empty());
        own.or_else(|| self.members.config.as_ref().map(|config| config.descriptor.media_type.as_str()))
    }

    /// Its type as it is shown to people: `image`, `index`, or the artifact type.
    #[must_use]
    pub fn type_name(&self) -> &str {
        match self.artifact_type() {
            Some(artifact_type) if !is_image_config(artifact_type) => artifact_type,
            Some(_) => IMAGE,
            None if self.is_index() => INDEX,
            None => &self.media_type,
        }
    }

    /// What it is, as a referrer by these links.
    #[must_use]
    pub fn description(&self, links: LinkKinds) -> ArtifactDescription {
        let mut what = ArtifactDescription::of(&self.descriptor());
        if what.is_vague(links) {
            what.clear_up(self.layers().iter().map(|layer| &layer.descriptor));
        }
        what
    }

    /// Whether a manifest can state this as its artifact type, and it is not only a word for what it is.
    pub(super) fn could_state_type(name: &str) -> bool {
        ArtifactKind::with_slug(&name.to_ascii_lowercase()).is_none() && !is_manifest(name)
    }

    /// Whether it is an image index or a Docker manifest list.
    #[must_use]
    pub fn is_index(&self) -> bool {
        media_type::is_index(&self.media_type)
    }

    /// Bytes of the manifest and of the blobs that it lists, without those of child manifests.
    #[must_use]
    pub fn content_size(&self) -> u64 {
        self.size()
            + self.members.config.iter().chain(self.layers()).map(|part| part.descriptor.size).sum::<u64>()
    }

    /// Bytes of the manifest.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The manifests that have to be there before it is put: those that it lists, and those that it refers
    /// to.
    #[must_use]
    pub fn needs(&self) -> BTreeSet<Digest> {
        // Registries refuse an index whose children are missing. GitLab and ECR also refuse a referrer before
        // its subject, which they MUST accept (distribution-spec, "Pushing Manifests with Subject").
        let listed = self.children().iter().map(|part| part.descriptor.digest.clone());
        let about = self.subject().cloned();
        listed.chain(about).chain(self.links(None).links.into_iter().map(|link| link.subject)).collect()
    }

    /// The links that it has when it is pushed to this tag.
    #[must_use]
    pub fn links(&self, tag: Option<&Tag>) -> ManifestLinks {
        links_of(&self.bytes, Some(&self.media_type), tag)
    }

    /// Whether it refers to this manifest: by what it says itself, or by a tag or an index that make it a referrer,
    /// which are believed.
    #[must_use]
    pub fn is_about(&self, subject: &Digest, links: LinkKinds) -> bool {
        let by_tag_or_index: LinkKinds = [LinkKind::Cosign, LinkKind::Attestation].into_iter().collect();
        links.intersects(by_tag_or_index)
            || self.links(None).links.iter().any(|link| link.subject == *subject)
    }

    /// Its descriptor in a list of referrers.
    #[must_use]
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size(),
            artifact_type: self.artifact_type().map(str::to_owned),
            annotations: self.members.annotations.clone(),
            data: None,
        }
    }

    /// Its descriptor in `subject` or `reference` of another manifest.
    #[must_use]
    pub fn as_subject(&self) -> Part {
        let descriptor =
            Descriptor { artifact_type: None, annotations: BTreeMap::new(), ..self.descriptor() };
        descriptor.into()
    }
}

/// The error for content that does not match its digest.
pub(super) fn mismatch(expected: &Digest, found: &Digest) -> Error {
    Error::failed(
        format!("checking {expected}"),
        format!("the digest does not match: the content is {found}"),
    )
    .advise(
        "do not use it; the registry, or something on the way, gives out other content than was asked for",
    )
}

fn is_manifest(content_type: &str) -> bool {
    content_type.contains("manifest") || content_type.contains("index")
}

/// `null` as a missing member: it is what clients in Go make of an empty list.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    value: D,
) -> std::result::Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

impl From<Descriptor> for Part {
    fn from(descriptor: Descriptor) -> Self {
        Self { descriptor, platform: None, urls: Vec::new() }
    }
}

impl Platform {
    /// Whether an image for `other` fits. Without a variant, any will do.
    #[must_use]
    pub fn takes(&self, other: &Self) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_none() || self.variant == other.variant)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err("a platform is os/architecture or os/architecture/variant"),
        };
        Ok(Self { architecture: architecture.to_owned(), os: os.to_owned(), variant })
    }
}
