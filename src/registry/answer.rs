//! What a registry's answer about a manifest means. **A 200 counts only if a manifest came with it**: login pages
//! (HTML or JSON), caches and catch-all web servers answer 200 to anything, and who may see links depends on it.
//! For a digest, the digest must match (`Docker-Content-Digest`, or the hash of the body); for a tag, the body must
//! be a manifest of a manifest's media type.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::http::coding;
use crate::http::header::DOCKER_CONTENT_DIGEST;
use crate::oci::{Algorithm, Digest, TagOrDigest, media_type};

/// The registry's answer about a manifest, to one caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// It exists, and this caller may read it.
    Present(T),
    /// It does not exist, or is hidden from this caller: registries answer 404 to both.
    Absent,
    /// Undecided: this status, and no manifest.
    Odd(StatusCode),
}

/// A manifest that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundManifest {
    /// The digest that was requested, or that the tag points at.
    pub digest: Digest,
    /// The manifest, if it was requested by GET.
    pub manifest: Option<FetchedManifest>,
    /// Whether this proves that the caller may read the repository. An empty index does not: something in front of
    /// the registry may answer one to anything.
    pub is_proof: bool,
}

/// A manifest as the registry served it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedManifest {
    /// Its bytes, without content codings.
    pub bytes: Bytes,
    /// Its own `mediaType`, else the Content-Type, if that is a manifest's.
    pub content_type: Option<String>,
}

impl<T> Answer<T> {
    /// Maps what is present.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Self::Present(there) => Answer::Present(change(there)),
            Self::Absent => Answer::Absent,
            Self::Odd(status) => Answer::Odd(status),
        }
    }
}

impl FetchedManifest {
    /// A manifest that came with these headers. Its own `mediaType` takes precedence over the Content-Type: caches
    /// and object storage get that wrong, while the digest covers the bytes.
    #[must_use]
    pub fn new(headers: &HeaderMap, bytes: Bytes) -> Self {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Named {
            media_type: Option<String>,
        }
        let own = serde_json::from_slice::<Named>(&bytes).ok().and_then(|named| named.media_type);
        let told = content_type(headers).filter(|told| is_manifest_type(told)).map(str::to_owned);
        let content_type = own.filter(|own| is_manifest_type(own)).or(told);
        Self { bytes, content_type }
    }
}

/// `Docker-Content-Digest`, if it holds a digest.
#[must_use]
pub fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

/// `Content-Type`, if it is text.
#[must_use]
pub fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE)?.to_str().ok()
}

/// The manifest of a 200 to a HEAD; none if a GET is needed, because the answer lacks the digest (distribution
/// #2384) or the type of a manifest.
pub(super) fn of_head(asked: &TagOrDigest, headers: &HeaderMap) -> Option<FoundManifest> {
    let digest = content_digest(headers)?;
    let is_asked_for = match asked {
        TagOrDigest::Digest(asked) => *asked == digest,
        TagOrDigest::Tag(_) => true,
    };
    let is_manifest = content_type(headers).is_some_and(is_manifest_type);
    let is_proof = is_asked_for && is_manifest && !may_be_empty(headers);
    is_proof.then_some(FoundManifest { digest, manifest: None, is_proof })
}

/// Whether this may be an empty index, which proves nothing. One with a single descriptor is longer than 200 bytes.
fn may_be_empty(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    length.is_none_or(|length| length < 200)
}

/// The manifest that came with a 200 to a GET, if one did.
pub(super) fn of_get(
    asked: &TagOrDigest,
    headers: &HeaderMap,
    bytes: Bytes,
    limit: usize,
) -> Option<FoundManifest> {
    match asked {
        TagOrDigest::Digest(asked) => {
            let bytes = unpacked(asked, headers, bytes, limit)?;
            // The digest alone proves nothing: a caller may ask for the digest of a page that something in front of
            // the registry serves to everybody.
            let shape = is_manifest(content_type(headers), &bytes);
            let is_proof = shape.is_some_and(|shape| shape.has_parts);
            let manifest = Some(FetchedManifest::new(headers, bytes));
            Some(FoundManifest { digest: asked.clone(), manifest, is_proof })
        }
        TagOrDigest::Tag(_) => {
            let bytes = coding::decode(headers, bytes, limit)?;
            let is_proof = is_manifest(content_type(headers), &bytes)?.has_parts;
            // Only the algorithm is taken from the header; the digest is computed from the bytes.
            let told = content_digest(headers).map_or(Algorithm::Sha256, |told| told.algorithm());
            let digest = Digest::of(told, &bytes);
            Some(FoundManifest { digest, manifest: Some(FetchedManifest::new(headers, bytes)), is_proof })
        }
    }
}

/// The bytes with this digest: as they came, else decoded (some registries gzip manifests, serverless-registry
/// #136).
#[must_use]
pub fn unpacked(digest: &Digest, headers: &HeaderMap, bytes: Bytes, limit: usize) -> Option<Bytes> {
    let is_it = |bytes: &Bytes| Digest::of(digest.algorithm(), bytes) == *digest;
    if is_it(&bytes) {
        return Some(bytes);
    }
    if !headers.contains_key(CONTENT_ENCODING) {
        return None;
    }
    coding::decode(headers, bytes, limit).filter(is_it)
}

/// Whether a Content-Type is that of a manifest or index, of Docker, OCI, ORAS or another vendor.
fn is_manifest_type(content_type: &str) -> bool {
    let essence = media_type::essence(content_type).to_ascii_lowercase();
    let is_vendors = essence.starts_with("application/vnd.");
    is_vendors && ["manifest", "index"].iter().any(|word| essence.contains(word))
}

/// The shape of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Whether it has a config, layers, manifests or blobs; only an empty index has none.
    pub has_parts: bool,
}

/// The shape of a manifest; none if these bytes are not one by their Content-Type, their `mediaType` or their
/// members. A login page may be JSON as well.
#[must_use]
pub fn is_manifest(content_type: Option<&str>, bytes: &[u8]) -> Option<Shape> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct TopMembers {
        schema_version: Option<u64>,
        media_type: Option<String>,
        config: Option<IgnoredAny>,
        layers: Option<Vec<IgnoredAny>>,
        manifests: Option<Vec<IgnoredAny>>,
        blobs: Option<Vec<IgnoredAny>>,
        fs_layers: Option<Vec<IgnoredAny>>,
    }
    let members: TopMembers = serde_json::from_slice(bytes).ok()?;
    let lists = [&members.layers, &members.manifests, &members.blobs, &members.fs_layers];
    let has_parts =
        members.config.is_some() || lists.iter().any(|list| list.as_ref().is_some_and(|it| !it.is_empty()));
    let names_itself = members.media_type.as_deref().is_some_and(is_manifest_type);
    let is_named = names_itself || content_type.is_some_and(is_manifest_type);
    let is_shaped = members.schema_version.is_some() && lists.iter().any(|list| list.is_some());
    (is_named || is_shaped).then_some(Shape { has_parts })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use http::HeaderName;

    use super::*;
    use crate::oci::media_type::{DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST};

    const MANIFEST: &str = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
    const LOGIN: &str = r#"{"error":"log in"}"#;

    fn headers(fields: &[(&HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| ((*name).clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_head_is_believed_only_with_the_digest_that_was_asked_for() {
        let digest = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes());
        let other = Digest::of(Algorithm::Sha512, MANIFEST.as_bytes());
        let by_digest = TagOrDigest::Digest(digest.clone());
        let by_tag: TagOrDigest = "latest".parse().unwrap();
        let of = |asked: &TagOrDigest, digest: &str, content_type: &str| {
            let fields =
                [(&DOCKER_CONTENT_DIGEST, digest), (&CONTENT_TYPE, content_type), (&CONTENT_LENGTH, "500")];
            let fields = headers(&fields);
            of_head(asked, &fields).map(|found| found.digest)
        };
        assert_eq!(of(&by_digest, &digest.to_string(), IMAGE_MANIFEST), Some(digest.clone()));
        assert_eq!(of(&by_digest, &digest.to_string(), "text/html"), None);
        assert_eq!(of(&by_digest, &other.to_string(), IMAGE_MANIFEST), None);
        assert_eq!(of(&by_digest, "", IMAGE_MANIFEST), None);
        assert_eq!(of(&by_tag, &other.to_string(), IMAGE_INDEX), Some(other.clone()));
        assert_eq!(of(&by_tag, &other.to_string(), "text/html"), None);
        assert_eq!(of(&by_tag, &other.to_string(), "application/json"), None);
        assert_eq!(of(&by_tag, "", IMAGE_MANIFEST), None);
        let short = [(&DOCKER_CONTENT_DIGEST, &*other.to_string()), (&CONTENT_TYPE, IMAGE_INDEX)];
        assert_eq!(of_head(&by_tag, &headers(&short)), None);
    }

    #[test]
    fn a_get_is_believed_only_with_the_bytes() {
        let digest = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes());
        let by_digest = TagOrDigest::Digest(digest.clone());
        let by_tag: TagOrDigest = "latest".parse().unwrap();
        let of = |asked: &TagOrDigest, content_type: &str, bytes: &'static str| {
            let fields =
                headers(&[(&DOCKER_CONTENT_DIGEST, &digest.to_string()), (&CONTENT_TYPE, content_type)]);
            of_get(asked, &fields, bytes.into(), 1 << 20).map(|found| found.digest)
        };
        for content_type in ["text/html", IMAGE_MANIFEST, "application/octet-stream"] {
            assert_eq!(of(&by_digest, content_type, MANIFEST), Some(digest.clone()));
            assert_eq!(of(&by_digest, content_type, LOGIN), None);
            assert_eq!(of(&by_tag, content_type, MANIFEST), Some(digest.clone()));
        }
        // The digest of the page itself: it is there, and shows nothing.
        let page = TagOrDigest::Digest(Digest::of(Algorithm::Sha256, LOGIN.as_bytes()));
        let found = of_get(&page, &HeaderMap::new(), LOGIN.into(), 1 << 20).unwrap();
        assert!(!found.is_proof);
        assert_eq!(of(&by_tag, "application/json", LOGIN), None);
        assert_eq!(of(&by_tag, "text/html", "<html>"), None);
        // Whatever the header says.
        let own = Digest::of(Algorithm::Sha256, b"{\"manifests\":[]}");
        assert_eq!(of(&by_tag, DOCKER_MANIFEST_LIST, "{\"manifests\":[]}"), Some(own));
    }

    #[test]
    fn an_empty_index_proves_nothing() {
        let shape = |text: &str| is_manifest(Some(IMAGE_INDEX), text.as_bytes()).map(|shape| shape.has_parts);
        assert_eq!(shape(MANIFEST), Some(true));
        assert_eq!(shape(r#"{"schemaVersion":2,"manifests":[{}]}"#), Some(true));
        assert_eq!(shape(r#"{"schemaVersion":2,"manifests":[]}"#), Some(false));
        assert_eq!(shape("{}"), Some(false));
        assert_eq!(shape("<html>"), None);
        assert_eq!(is_manifest(None, b"{}"), None);
    }

    #[test]
    fn what_is_packed_on_the_way_is_unpacked_if_the_digest_is_of_what_was_packed() {
        use std::io::Write as _;
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(MANIFEST.as_bytes()).unwrap();
        let packed = Bytes::from(packed.finish().unwrap());
        let gzip = headers(&[(&CONTENT_ENCODING, "gzip")]);
        let digest = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes());
        let unpack = |digest: &Digest| unpacked(digest, &gzip, packed.clone(), 1 << 20);
        assert_eq!(unpack(&digest).as_deref(), Some(MANIFEST.as_bytes()));
        assert_eq!(unpack(&Digest::of(Algorithm::Sha256, &packed)), Some(packed.clone()));
        assert_eq!(unpack(&Digest::Sha256([0; 32])), None);
    }
}
