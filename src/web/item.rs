//! A manifest as the pages list it: what it is, by its descriptor and, where that says too little, by its layers.

use crate::client::{Manifest, Part};
use crate::oci::artifact::CREATED;
use crate::oci::{ArtifactDescription, ArtifactKind, Descriptor, Digest, LinkKind, LinkKinds};

/// A manifest in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) digest: Digest,
    pub(super) what: ArtifactDescription,
    pub(super) platform: Option<String>,
    /// Bytes of the manifest.
    pub(super) size: u64,
    /// As it states it.
    pub(super) created: Option<String>,
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
        let what = ArtifactDescription::of(&descriptor);
        let Descriptor { digest, size, annotations, .. } = descriptor;
        Self {
            digest,
            what,
            platform: None,
            size,
            created: annotations.get(CREATED).cloned(),
            relation,
            below: Below::NotAsked,
        }
    }

    /// The item of an entry of an index.
    pub(super) fn of_child(part: &Part) -> Self {
        let mut item = Self::of(part.descriptor.clone(), Relation::Child);
        // Entries have no artifact type as a rule; what an index lists is then an image.
        if item.what.kind == ArtifactKind::Other {
            item.what.kind = ArtifactKind::Image;
        }
        let platform = part.platform.as_ref().map(ToString::to_string);
        Self { platform: platform.filter(|platform| platform != "unknown/unknown"), ..item }
    }

    /// Whether only its layers tell what it is.
    pub(super) fn is_vague(&self) -> bool {
        let Relation::Referrer(kinds) = self.relation else { return false };
        self.what.is_vague(kinds)
    }

    /// What it is by its manifest.
    pub(super) fn clear_up(&mut self, manifest: &Manifest) {
        self.what.clear_up(manifest.layers().iter().map(|layer| &layer.descriptor));
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
            _ if self.what.kind == ArtifactKind::Signature => None,
            Below::NotAsked => Some(Signed::NotAsked),
            Below::Listed { items, more } => Some(Signed::by(items, !more)),
        }
    }
}

impl Signed {
    /// By a list, which may be the whole one.
    pub(super) fn by(items: &[Item], is_whole: bool) -> Self {
        let has_one = items.iter().any(|item| item.what.kind == ArtifactKind::Signature);
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
