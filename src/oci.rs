//! The nouns of the OCI specifications: names, digests, media types, descriptors, error codes, and
//! which links a manifest carries. Pure: no HTTP, no I/O.

mod descriptor;
mod digest;
mod error_code;
mod link_kind;
mod links;
pub mod media_type;
mod name;

pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, InvalidDigest};
pub use error_code::{ErrorBody, ErrorCode};
pub use link_kind::{LinkKind, LinkKinds, UnknownLinkKind};
pub use links::{
    Attestation, Link, ManifestLinks, Refusal, RefusalReason, is_buildkit_attestation, links_of,
};
pub use name::{InvalidName, InvalidTag, RepositoryName, Tag, TagOrDigest, TagScheme};
