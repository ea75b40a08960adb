//! Media types, above all those of manifests.

/// OCI image manifest.
pub const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// The artifact manifest of the OCI 1.1 release candidates.
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
/// The artifact manifest of ORAS, the predecessor of OCI's.
pub const ORAS_ARTIFACT: &str = "application/vnd.cncf.oras.artifact.manifest.v1+json";

/// The `Accept` for which a registry serves every manifest as it was pushed. Docker registries convert a manifest whose
/// type is missing here, which changes its digest (distribution #3718).
pub const ACCEPT_EVERY_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.artifact.manifest.v1+json, \
     application/vnd.cncf.oras.artifact.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v1+prettyjws, \
     application/json, */*";

/// Whether manifests of this type list other manifests as their parts.
#[must_use]
pub fn is_index(media_type: &str) -> bool {
    [IMAGE_INDEX, DOCKER_MANIFEST_LIST].iter().any(|index| is_one(media_type, index))
}

/// Whether a `subject` in manifests of this type is a link.
#[must_use]
pub fn has_subject(media_type: &str) -> bool {
    [IMAGE_MANIFEST, IMAGE_INDEX, OCI_ARTIFACT, ORAS_ARTIFACT].iter().any(|with| is_one(media_type, with))
}

/// Whether a Content-Type, with or without parameters, is this media type. Types are case-insensitive (RFC 6838,
/// section 4.2).
#[must_use]
pub fn is_one(content_type: &str, media_type: &str) -> bool {
    essence(content_type).eq_ignore_ascii_case(media_type)
}

/// A Content-Type without its parameters.
#[must_use]
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Whether a media type is among those of a query. Clients send `+json` unencoded, which a query decodes to a space, so
/// a space matches `+` as well.
#[must_use]
pub fn is_among(media_type: &str, wanted: &[String]) -> bool {
    let is_it = |wanted: &str| wanted.eq_ignore_ascii_case(media_type);
    wanted.iter().any(|wanted| is_it(wanted) || (wanted.contains(' ') && is_it(&wanted.replace(' ', "+"))))
}

/// Whether this can be a media type without parameters (RFC 6838, section 4.2).
#[must_use]
pub fn is_valid(text: &str) -> bool {
    let is_name = |name: &str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&byte);
        (1..=127).contains(&name.len()) && name.bytes().all(is_allowed)
    };
    text.split_once('/').is_some_and(|(kind, subtype)| is_name(kind) && is_name(subtype))
}
