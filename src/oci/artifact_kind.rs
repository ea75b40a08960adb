//! What an artifact is, in a word for people: by its artifact type, by the predicate that it states, or by its layers.
//!
//! A word says what a manifest claims to be. Nothing here verifies a signature.

use std::collections::BTreeMap;

use super::media_type;

/// The config types of images. As an image states no `artifactType`, they are its artifact type (distribution-spec,
/// "Listing Referrers"); so are they of what cosign keeps at its tags.
const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// cosign's payload of a signature (sigstore/cosign, `specs/SIGNATURE_SPEC.md`).
pub(super) const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// A Sigstore bundle, of any version, holds a signature or an attestation (sigstore/cosign, `specs/BUNDLE_SPEC.md`).
pub(super) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// What a bundle states of its content, on its manifest.
const BUNDLE_CONTENT: &str = "dev.sigstore.bundle.content";
/// The annotations that state the type of an in-toto predicate: of a bundle's manifest, of cosign's layers, of
/// `BuildKit`'s layers.
const PREDICATES: [&str; 3] =
    ["dev.sigstore.bundle.predicateType", "predicateType", "in-toto.io/predicate-type"];

/// What an artifact is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ArtifactKind {
    /// A signature of its subject.
    Signature,
    /// A list of what is in its subject.
    Sbom,
    /// How its subject was built (SLSA).
    Provenance,
    /// Known weaknesses of its subject.
    Vulnerabilities,
    /// Which weaknesses do not matter (VEX).
    Vex,
    /// Another statement about its subject (in-toto).
    Attestation,
    /// A container image.
    Image,
    /// An image index or a Docker manifest list.
    Index,
    /// A Helm chart.
    HelmChart,
    /// A WebAssembly module.
    Wasm,
    /// Anything else.
    Other,
}

impl ArtifactKind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Signature,
        Self::Sbom,
        Self::Provenance,
        Self::Vulnerabilities,
        Self::Vex,
        Self::Attestation,
        Self::Image,
        Self::Index,
        Self::HelmChart,
        Self::Wasm,
        Self::Other,
    ];

    /// What a manifest is by its descriptor.
    #[must_use]
    pub fn of(
        manifest_type: &str,
        artifact_type: Option<&str>,
        annotations: &BTreeMap<String, String>,
    ) -> Self {
        let Some(artifact_type) = artifact_type else {
            return if media_type::is_index(manifest_type) { Self::Index } else { Self::Other };
        };
        let name = media_type::essence(artifact_type).to_ascii_lowercase();
        let kind = Self::of_type(&name);
        if kind != Self::Attestation {
            return kind;
        }
        let is_message =
            annotations.get(BUNDLE_CONTENT).is_some_and(|content| content == "message-signature");
        match predicate_of(annotations) {
            Some(predicate) => Self::of_predicate(predicate),
            None if is_message => Self::Signature,
            None => Self::Attestation,
        }
    }

    /// What a manifest is whose descriptor says no more than "image" or "attestation", by a layer.
    #[must_use]
    pub fn of_layer(layer_type: &str, annotations: &BTreeMap<String, String>) -> Self {
        let kind = Self::of_type(&media_type::essence(layer_type).to_ascii_lowercase());
        let predicate = predicate_of(annotations).filter(|_| kind == Self::Attestation);
        predicate.map_or(kind, Self::of_predicate)
    }

    /// What states this type of predicate (in-toto attestation framework, "Predicate types").
    #[must_use]
    pub fn of_predicate(predicate: &str) -> Self {
        let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| predicate.starts_with(prefix));
        if is(&["https://sigstore.dev/cosign/sign/"]) {
            Self::Signature
        } else if is(&["https://slsa.dev/provenance/"]) {
            Self::Provenance
        } else if is(&["https://spdx.dev/Document", "https://cyclonedx.org/bom"]) {
            Self::Sbom
        } else if is(&[
            "https://cosign.sigstore.dev/attestation/vuln/",
            "https://in-toto.io/attestation/vulns",
        ]) {
            Self::Vulnerabilities
        } else if is(&["https://openvex.dev/ns"]) {
            Self::Vex
        } else {
            Self::Attestation
        }
    }

    /// By a media type in lower case.
    fn of_type(name: &str) -> Self {
        let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
        if is_image_config(name) {
            Self::Image
        } else if [SIMPLE_SIGNING, "application/vnd.dev.cosign.artifact.sig.v1+json"].contains(&name)
            || name.starts_with("application/vnd.cncf.notary.")
            || name.ends_with(".signature")
        {
            Self::Signature
        } else if is_attestation(name) {
            Self::Attestation
        } else if has(&["spdx", "cyclonedx", "sbom", "syft"]) {
            Self::Sbom
        } else if has(&["openvex", "+vex", ".vex"]) {
            Self::Vex
        } else if has(&["sarif", "vuln", "trivy"]) {
            Self::Vulnerabilities
        } else if has(&["slsa", "provenance"]) {
            Self::Provenance
        } else if has(&["cncf.helm."]) {
            Self::HelmChart
        } else if has(&["wasm"]) {
            Self::Wasm
        } else {
            Self::Other
        }
    }

    /// The kind with this short name.
    #[must_use]
    pub fn with_slug(slug: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.slug() == slug)
    }

    /// Its short name, in addresses.
    #[must_use]
    pub fn slug(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::Sbom => "sbom",
            Self::Provenance => "provenance",
            Self::Vulnerabilities => "vulnerabilities",
            Self::Vex => "vex",
            Self::Attestation => "attestation",
            Self::Image => "image",
            Self::Index => "index",
            Self::HelmChart => "chart",
            Self::Wasm => "wasm",
            Self::Other => "other",
        }
    }

    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::Sbom => "SBOM",
            Self::Provenance => "provenance",
            Self::Vulnerabilities => "vulnerability report",
            Self::Vex => "VEX document",
            Self::Attestation => "attestation",
            Self::Image => "image",
            Self::Index => "index",
            Self::HelmChart => "Helm chart",
            Self::Wasm => "Wasm module",
            Self::Other => "artifact",
        }
    }
}

/// Whether something of this media type, in lower case, is a signed statement (in-toto), whatever it states.
pub(super) fn is_attestation(name: &str) -> bool {
    name.starts_with(BUNDLE) || ["in-toto", "dsse", "attestation"].iter().any(|word| name.contains(word))
}

/// Whether this artifact type is only the config type of an image.
#[must_use]
pub fn is_image_config(artifact_type: &str) -> bool {
    IMAGE_CONFIGS.contains(&artifact_type)
}

/// The type of the in-toto predicate that these annotations state.
#[must_use]
pub fn predicate_of(annotations: &BTreeMap<String, String>) -> Option<&str> {
    PREDICATES.iter().find_map(|key| annotations.get(*key)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::media_type::{IMAGE_INDEX, IMAGE_MANIFEST};

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[track_caller]
    fn check(artifact_type: &str, pairs: &[(&str, &str)], expected: ArtifactKind) {
        let found = ArtifactKind::of(IMAGE_MANIFEST, Some(artifact_type), &annotations(pairs));
        assert_eq!(found, expected, "{artifact_type}");
    }

    #[test]
    fn artifacts_are_known_by_their_types() {
        use ArtifactKind as K;
        check("application/vnd.oci.image.config.v1+json", &[], K::Image);
        check("application/vnd.cncf.notary.signature", &[], K::Signature);
        check("application/vnd.dev.cosign.artifact.sig.v1+json", &[], K::Signature);
        check("application/spdx+json", &[], K::Sbom);
        check("application/vnd.CycloneDX+json; version=1.5", &[], K::Sbom);
        check("application/sarif+json", &[], K::Vulnerabilities);
        check("application/vnd.openvex+json", &[], K::Vex);
        check("application/vnd.cncf.helm.config.v1+json", &[], K::HelmChart);
        check("application/vnd.wasm.config.v0+json", &[], K::Wasm);
        check("application/x", &[], K::Other);
        assert_eq!(K::of(IMAGE_INDEX, None, &BTreeMap::new()), K::Index);
        assert_eq!(K::of(IMAGE_MANIFEST, None, &BTreeMap::new()), K::Other);
    }

    #[test]
    fn bundles_are_known_by_their_predicate() {
        use ArtifactKind as K;
        let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let of = |predicate: &str, expected| check(bundle, &[(PREDICATES[0], predicate)], expected);
        of("https://sigstore.dev/cosign/sign/v1", K::Signature);
        of("https://slsa.dev/provenance/v1", K::Provenance);
        of("https://spdx.dev/Document/v2.3", K::Sbom);
        of("https://openvex.dev/ns/v0.2.0", K::Vex);
        of("https://cosign.sigstore.dev/attestation/vuln/v1", K::Vulnerabilities);
        of("https://example.com/own", K::Attestation);
        check(bundle, &[(BUNDLE_CONTENT, "message-signature")], K::Signature);
        check(bundle, &[(BUNDLE_CONTENT, "dsse-envelope")], K::Attestation);
        check(bundle, &[], K::Attestation);
    }

    #[test]
    fn what_cosign_keeps_at_its_tags_is_known_by_its_layers() {
        use ArtifactKind as K;
        let none = BTreeMap::new();
        assert_eq!(K::of_layer(SIMPLE_SIGNING, &none), K::Signature);
        let dsse = "application/vnd.dsse.envelope.v1+json";
        assert_eq!(K::of_layer(dsse, &none), K::Attestation);
        let slsa = annotations(&[("predicateType", "https://slsa.dev/provenance/v0.2")]);
        assert_eq!(K::of_layer(dsse, &slsa), K::Provenance);
        let spdx = annotations(&[("in-toto.io/predicate-type", "https://spdx.dev/Document")]);
        assert_eq!(K::of_layer("application/vnd.in-toto+json", &spdx), K::Sbom);
        assert_eq!(K::of_layer("application/vnd.oci.image.layer.v1.tar+gzip", &none), K::Other);
    }
}
