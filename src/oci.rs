//! The nouns of the OCI specifications: names, digests, media types, descriptors, the image index, error codes, and
//! the links of a manifest. Pure: no HTTP, no I/O, no log.
//!
//! What comes from outside becomes one of these types by `FromStr` or a parser, once, at the edge. All other rooms
//! rely on a [`RepositoryName`], [`Tag`] or [`Digest`] being well formed, and build paths of them without escaping.

mod annotation_filter;
pub mod artifact;
mod artifact_description;
mod artifact_kind;
mod descriptor;
mod digest;
mod digest_prefix;
mod error_code;
mod image_index;
mod link_kind;
mod links;
pub mod media_type;
mod name;
mod visible;

pub use annotation_filter::{AnnotationFilter, InvalidAnnotationFilter};
pub use artifact_description::ArtifactDescription;
pub use artifact_kind::{ArtifactKind, is_image_config, predicate_of};
pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, Hasher, InvalidDigest};
pub use digest_prefix::DigestPrefix;
pub use error_code::{ErrorBody, ErrorCode};
pub use image_index::{ImageIndex, ListEntry, ReferrersList, image_index_of};
pub use link_kind::{LinkKind, LinkKinds, UnknownLinkKind};
pub use links::{
    Attestation, Link, ManifestLinks, Refusal, RefusalReason, is_buildkit_attestation, links_of,
};
pub use name::{InvalidName, InvalidTag, RepositoryName, Tag, TagOrDigest, TagScheme};
pub use visible::visible;
