//! A manifest as the pages list it: what it is, by its descriptor and, where that says too little, by its layers.

use std::collections::BTreeSet;

use crate::client::{Manifest, Part};
use crate::oci::artifact::CREATED;
use crate::oci::{ArtifactKind, Descriptor, Digest, LinkKind, LinkKinds, predicate_of};

/// How many predicates of one manifest are shown.
const PREDICATES: usize = 4;

/// A manifest in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) digest: Digest,
    pub(super) kind: ArtifactKind,
    /// Its artifact type, else its media type; text that others wrote.
    pub(super) raw_type: String,
    pub(super) platform: Option<String>,
    /// Bytes of the manifest.
    pub(super) size: u64,
    /// As it states it.
    pub(super) created: Option<String>,
    /// The types of the statements in it; text that others wrote.
    pub(super) predicates: Vec<String>,
    pub(super) relation: Relation,
    pub(super) below: Below,
}

/// Why a manifest is listed below another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// The other one lists it: a part of an index.
    Child,
    /// It lists the other one.
    Parent,
    /// It refers to the other one.
    Referrer(LinkKinds),
}

/// What is attached to a manifest in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Below {
    /// These. `more` says that there are others.
    Listed { items: Vec<Item>, more: bool },
    /// The page has no room for it, or it could not be asked for.
    NotAsked,
}

/// Whether a signature is attached to a manifest. Nobody has verified it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signed {
    Yes,
    NoneKnown,
    NotAsked,
}

impl Item {
    /// The item of a descriptor in a list of referrers.
    pub(super) fn of(descriptor: Descriptor, relation: Relation) -> Self {
        let Descriptor { media_type, digest, size, artifact_type, annotations, .. } = descriptor;
        let kind = ArtifactKind::of(&media_type, artifact_type.as_deref(), &annotations);
        Self {
            digest,
            kind,
            raw_type: artifact_type.unwrap_or(media_type),
            platform: None,
            size,
            created: annotations.get(CREATED).cloned(),
            predicates: predicate_of(&annotations).map(str::to_owned).into_iter().collect(),
            relation,
            below: Below::NotAsked,
        }
    }

    /// The item of an entry of an index.
    pub(super) fn of_child(part: &Part) -> Self {
        let item = Self::of(part.descriptor.clone(), Relation::Child);
        // Entries have no artifact type as a rule; what an index lists is then an image.
        let kind = if item.kind == ArtifactKind::Other { ArtifactKind::Image } else { item.kind };
        let platform = part.platform.as_ref().map(ToString::to_string);
        Self { kind, platform: platform.filter(|platform| platform != "unknown/unknown"), ..item }
    }

    /// Whether only its layers tell what it is: cosign's tags and `BuildKit`'s attestations look like images.
    pub(super) fn is_vague(&self) -> bool {
        let Relation::Referrer(kinds) = self.relation else { return false };
        let by_tag_or_index: LinkKinds = [LinkKind::Cosign, LinkKind::Attestation].into_iter().collect();
        match self.kind {
            ArtifactKind::Image | ArtifactKind::Other => kinds.intersects(by_tag_or_index),
            ArtifactKind::Attestation => self.predicates.is_empty(),
            ArtifactKind::Signature
            | ArtifactKind::Sbom
            | ArtifactKind::Provenance
            | ArtifactKind::Vulnerabilities
            | ArtifactKind::Vex
            | ArtifactKind::Index
            | ArtifactKind::HelmChart
            | ArtifactKind::Wasm => false,
        }
    }

    /// What it is by its manifest.
    pub(super) fn clear_up(&mut self, manifest: &Manifest) {
        let layers = || manifest.layers().iter().map(|layer| &layer.descriptor);
        let kinds = layers().map(|layer| ArtifactKind::of_layer(&layer.media_type, &layer.annotations));
        if let Some(kind) = kinds.min().filter(|kind| *kind != ArtifactKind::Other) {
            self.kind = kind;
        }
        let told: BTreeSet<&str> = layers().filter_map(|layer| predicate_of(&layer.annotations)).collect();
        self.predicates.extend(told.into_iter().take(PREDICATES).map(str::to_owned));
        self.created = self.created.take().or_else(|| manifest.created().map(str::to_owned));
    }

    /// What is listed below it.
    pub(super) fn items_below(&self) -> &[Self] {
        match &self.below {
            Below::Listed { items, .. } => items,
            Below::NotAsked => &[],
        }
    }

    /// Whether a signature is listed below it; of a signature itself that is no question.
    pub(super) fn signed(&self) -> Option<Signed> {
        match &self.below {
            _ if self.kind == ArtifactKind::Signature => None,
            Below::NotAsked => Some(Signed::NotAsked),
            Below::Listed { items, more } => Some(Signed::by(items, !more)),
        }
    }
}

impl Signed {
    /// By a list, which may be the whole one.
    pub(super) fn by(items: &[Item], is_whole: bool) -> Self {
        let has_one = items.iter().any(|item| item.kind == ArtifactKind::Signature);
        match (has_one, is_whole) {
            (true, _) => Self::Yes,
            (false, true) => Self::NoneKnown,
            (false, false) => Self::NotAsked,
        }
    }
}

impl Relation {
    /// How it is linked, in words.
    pub(super) fn words(self) -> String {
        match self {
            Self::Child => "part of the index".to_owned(),
            Self::Parent => "lists it".to_owned(),
            Self::Referrer(kinds) => {
                // The list at the tag says nothing new beside a `subject`.
                let says_itself = kinds.intersects(LinkKind::Subject.into());
                let told = kinds.iter().filter(|kind| !(says_itself && *kind == LinkKind::Fallback));
                told.map(word).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

fn word(kind: LinkKind) -> &'static str {
    match kind {
        LinkKind::Reference => "reference",
        LinkKind::Subject => "subject",
        LinkKind::Parent => "parent",
        LinkKind::Attestation => "attestation of the index",
        LinkKind::Cosign => "cosign's tag",
        LinkKind::Fallback => "referrers tag",
    }
}
