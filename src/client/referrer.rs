//! What refers to a manifest, and which of it is wanted.

use std::str::FromStr;

use form_urlencoded::Serializer;

use super::Manifest;
use crate::oci::{Digest, LinkKind, LinkKinds, Tag};

/// A manifest that refers to another.
#[derive(Clone, Debug)]
pub struct Referrer {
    /// The one that refers.
    pub manifest: Manifest,
    /// In which ways.
    pub kinds: LinkKinds,
    /// The tag that makes it refer, as cosign's do.
    pub tag: Option<Tag>,
}

/// Filters. Repeats of one mean "or", different ones "and"; without any, everything is wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Links of these kinds.
    pub kinds: Vec<LinkKind>,
    /// Equal to one of these.
    pub artifact_types: Vec<String>,
    /// Has one of these.
    pub annotations: Vec<AnnotationFilter>,
}

/// `key` or `key=value`.
#[derive(Clone, Debug)]
pub struct AnnotationFilter {
    key: String,
    value: Option<String>,
}

impl FromStr for AnnotationFilter {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, None),
        };
        if key.is_empty() {
            Err("an annotation is key or key=value")
        } else {
            Ok(Self { key: key.to_owned(), value })
        }
    }
}

impl AnnotationFilter {
    fn matches(&self, manifest: &Manifest) -> bool {
        let found = manifest.annotations().get(&self.key);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }

    fn to_parameter(&self) -> String {
        match &self.value {
            Some(value) => format!("{}={value}", self.key),
            None => self.key.clone(),
        }
    }
}

impl Wanted {
    /// What is attached to an image, and copied with it: all but the indexes that it is a part of.
    #[must_use]
    pub fn attached() -> Self {
        let kinds = [
            LinkKind::Reference,
            LinkKind::Subject,
            LinkKind::Attestation,
            LinkKind::Cosign,
            LinkKind::Fallback,
        ];
        Self { kinds: kinds.to_vec(), ..Self::default() }
    }

    /// Whether this is wanted.
    #[must_use]
    pub fn takes(&self, referrer: &Referrer) -> bool {
        let manifest = &referrer.manifest;
        let kinds: LinkKinds = self.kinds.iter().copied().collect();
        (kinds.is_empty() || kinds.intersects(referrer.kinds))
            && (self.artifact_types.is_empty()
                || self.artifact_types.iter().any(|wanted| manifest.artifact_type() == Some(wanted)))
            && (self.annotations.is_empty() || self.annotations.iter().any(|wanted| wanted.matches(manifest)))
    }

    /// The same as parameters of a references query.
    pub(super) fn to_query(&self) -> String {
        let mut query = Serializer::new(String::new());
        query.append_pair("inline", "true");
        for kind in &self.kinds {
            query.append_pair("kind", kind.as_str());
        }
        for artifact_type in &self.artifact_types {
            query.append_pair("artifactType", artifact_type);
        }
        for annotation in &self.annotations {
            query.append_pair("annotation", &annotation.to_parameter());
        }
        query.finish()
    }
}

/// The kinds of link to `subject` that a manifest carries, pushed to this tag.
pub(super) fn kinds_of(manifest: &Manifest, tag: Option<&Tag>, subject: &Digest) -> LinkKinds {
    let links = manifest.links(tag).links.into_iter();
    links.filter(|link| link.subject == *subject).map(|link| link.kind).collect()
}
