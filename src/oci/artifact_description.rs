//! What a manifest is, as lists of referrers show it: `signature (cosign)`, `attestation (SLSA provenance v1, SPDX)`,
//! `SBOM (SPDX)`. By its descriptor and, where that says too little, by its layers.

use std::collections::BTreeSet;

use super::artifact_kind::{BUNDLE, SIMPLE_SIGNING, is_attestation};
use super::{ArtifactKind, Descriptor, LinkKind, LinkKinds, media_type, predicate_of};

/// How many predicates of one manifest are told. Whoever pushes it writes as many as they like.
const PREDICATES: usize = 4;
/// Who makes or reads artifacts with these words in their types.
const FORMATS: [(&str, &str); 12] = [
    (SIMPLE_SIGNING, "cosign"),
    ("vnd.dev.cosign.artifact.sig", "cosign"),
    (BUNDLE, "sigstore"),
    ("vnd.cncf.notary.", "notation"),
    ("spdx", "SPDX"),
    ("cyclonedx", "CycloneDX"),
    ("syft", "Syft"),
    ("openvex", "OpenVEX"),
    ("sarif", "SARIF"),
    ("trivy", "Trivy"),
    ("slsa", "SLSA"),
    ("csaf", "CSAF"),
];
/// Names of predicates by how their types begin; behind a blank the rest of the type follows, a version.
const NAMES: [(&str, &str); 7] = [
    ("https://slsa.dev/provenance/", "SLSA provenance "),
    ("https://slsa.dev/verification_summary/", "SLSA verification summary "),
    ("https://spdx.dev/Document", "SPDX"),
    ("https://cyclonedx.org/bom", "CycloneDX"),
    ("https://cosign.sigstore.dev/attestation/vuln/", "vulnerabilities"),
    ("https://in-toto.io/attestation/vulns", "vulnerabilities"),
    ("https://openvex.dev/ns", "OpenVEX"),
];

/// What a manifest claims to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactDescription {
    /// In one word.
    pub kind: ArtifactKind,
    /// Its artifact type, else its media type; text that others wrote.
    pub raw_type: String,
    /// The types of the statements in it; text that others wrote.
    pub predicates: Vec<String>,
    /// Whether it is a signed statement or several (in-toto), whatever they state.
    is_attestation: bool,
    format: Option<&'static str>,
}

impl ArtifactDescription {
    /// What a descriptor says.
    #[must_use]
    pub fn of(descriptor: &Descriptor) -> Self {
        let Descriptor { media_type, artifact_type, annotations, .. } = descriptor;
        let kind = ArtifactKind::of(media_type, artifact_type.as_deref(), annotations);
        let raw_type = artifact_type.clone().unwrap_or_else(|| media_type.clone());
        Self {
            kind,
            is_attestation: kind != ArtifactKind::Signature && is_attestation(&lower(&raw_type)),
            format: format_of(&raw_type),
            predicates: predicate_of(annotations).map(str::to_owned).into_iter().collect(),
            raw_type,
        }
    }

    /// Whether only the layers tell what a referrer by these links is: cosign's tags and `BuildKit`'s attestations look
    /// like images.
    #[must_use]
    pub fn is_vague(&self, links: LinkKinds) -> bool {
        let by_tag_or_index: LinkKinds = [LinkKind::Cosign, LinkKind::Attestation].into_iter().collect();
        match self.kind {
            ArtifactKind::Image | ArtifactKind::Other => links.intersects(by_tag_or_index),
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

    /// Adds what its layers say.
    pub fn clear_up<'l>(&mut self, layers: impl Iterator<Item = &'l Descriptor> + Clone) {
        let of_layer =
            |layer: &'l Descriptor| (ArtifactKind::of_layer(&layer.media_type, &layer.annotations), layer);
        let telling = layers.clone().map(of_layer).min_by_key(|(kind, _)| *kind);
        if let Some((kind, layer)) = telling.filter(|(kind, _)| *kind != ArtifactKind::Other) {
            self.kind = kind;
            self.is_attestation |=
                kind != ArtifactKind::Signature && is_attestation(&lower(&layer.media_type));
            self.format = format_of(&layer.media_type).or(self.format);
        }
        let told: BTreeSet<&str> = layers.filter_map(|layer| predicate_of(&layer.annotations)).collect();
        self.predicates.extend(told.into_iter().take(PREDICATES).map(str::to_owned));
    }

    /// Its name for people, with what is known of it.
    #[must_use]
    pub fn label(&self) -> String {
        let predicates: Vec<String> = self.predicates.iter().map(|predicate| name_of(predicate)).collect();
        match (self.kind, self.format) {
            _ if self.is_attestation && !predicates.is_empty() => {
                format!("attestation ({})", predicates.join(", "))
            }
            (ArtifactKind::Other, _) => self.raw_type.clone(),
            (ArtifactKind::Attestation, _) | (_, None) => self.family().name().to_owned(),
            (_, Some(format)) => format!("{} ({format})", self.family().name()),
        }
    }

    /// What it is counted as: a signed statement as an attestation, whatever it states.
    #[must_use]
    pub fn family(&self) -> ArtifactKind {
        if self.is_attestation { ArtifactKind::Attestation } else { self.kind }
    }

    /// Whether it is of this type: its raw type (media types do not depend on case, RFC 6838, section 4.2), or a word
    /// for a kind ([`ArtifactKind::slug`]). An attestation is also what it states.
    #[must_use]
    pub fn is_called(&self, word: &str) -> bool {
        let is_a = |kind: ArtifactKind| kind.slug().eq_ignore_ascii_case(word);
        self.raw_type.eq_ignore_ascii_case(word)
            || is_a(self.kind)
            || (self.is_attestation && is_a(ArtifactKind::Attestation))
            || self.predicates.iter().any(|predicate| is_a(ArtifactKind::of_predicate(predicate)))
    }
}

fn lower(name: &str) -> String {
    media_type::essence(name).to_ascii_lowercase()
}

fn format_of(name: &str) -> Option<&'static str> {
    let name = lower(name);
    FORMATS.iter().find(|(word, _)| name.contains(word)).map(|(_, format)| *format)
}

/// The name of a type of predicate; the type itself, if it is not well known.
fn name_of(predicate: &str) -> String {
    let known = NAMES.iter().find_map(|(prefix, name)| Some((name, predicate.strip_prefix(prefix)?)));
    match known {
        Some((name, version)) if name.ends_with(' ') => format!("{name}{version}"),
        Some((name, _)) => (*name).to_owned(),
        None => predicate.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const IN_TOTO: &str = "application/vnd.in-toto+json";

    fn descriptor(media_type: &str, artifact_type: Option<&str>, pairs: &[(&str, &str)]) -> Descriptor {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(Algorithm::Sha256, b""),
            size: 0,
            artifact_type: artifact_type.map(str::to_owned),
            annotations: annotations.collect(),
            data: None,
        }
    }

    #[track_caller]
    fn check(artifact_type: &str, pairs: &[(&str, &str)], layers: &[Descriptor], expected: &str) {
        let descriptor = descriptor(media_type::IMAGE_MANIFEST, Some(artifact_type), pairs);
        let mut found = ArtifactDescription::of(&descriptor);
        if !layers.is_empty() {
            found.clear_up(layers.iter());
        }
        assert_eq!(found.label(), expected);
    }

    #[test]
    fn a_descriptor_says_what_it_is() {
        check("application/vnd.cncf.notary.signature", &[], &[], "signature (notation)");
        check("application/vnd.dev.cosign.artifact.sig.v1+json", &[], &[], "signature (cosign)");
        check("application/vnd.example.signature", &[], &[], "signature");
        check("application/spdx+json", &[], &[], "SBOM (SPDX)");
        check("application/vnd.CycloneDX+json; version=1.5", &[], &[], "SBOM (CycloneDX)");
        check("application/sarif+json", &[], &[], "vulnerability report (SARIF)");
        check("application/vnd.openvex+json", &[], &[], "VEX document (OpenVEX)");
        check(IMAGE_CONFIG, &[], &[], "image");
        check("application/x", &[], &[], "application/x");
        let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let of = |predicate: &str, expected| {
            check(bundle, &[("dev.sigstore.bundle.predicateType", predicate)], &[], expected);
        };
        of("https://sigstore.dev/cosign/sign/v1", "signature (sigstore)");
        of("https://slsa.dev/provenance/v1", "attestation (SLSA provenance v1)");
        of("https://example.com/own", "attestation (https://example.com/own)");
        check(bundle, &[], &[], "attestation");
    }

    #[test]
    fn layers_say_what_it_is_where_the_descriptor_does_not() {
        let layer =
            |media_type, predicate| descriptor(media_type, None, &[("in-toto.io/predicate-type", predicate)]);
        let signed = descriptor(SIMPLE_SIGNING, None, &[]);
        check(IMAGE_CONFIG, &[], &[signed], "signature (cosign)");
        check(IMAGE_CONFIG, &[], &[descriptor("text/spdx+json", None, &[])], "SBOM (SPDX)");
        let attested =
            [layer(IN_TOTO, "https://spdx.dev/Document"), layer(IN_TOTO, "https://slsa.dev/provenance/v1")];
        check(IMAGE_CONFIG, &[], &attested, "attestation (SLSA provenance v1, SPDX)");
        check(IMAGE_CONFIG, &[], &[descriptor("a/layer", None, &[])], "image");
    }

    #[test]
    fn it_is_found_by_its_type_and_by_a_word() {
        let sbom = descriptor(media_type::IMAGE_MANIFEST, Some("application/spdx+json"), &[]);
        let mut attestation = descriptor(media_type::IMAGE_MANIFEST, Some(IMAGE_CONFIG), &[]);
        attestation.artifact_type = Some(IN_TOTO.to_owned());
        let (sbom, mut attestation) = (ArtifactDescription::of(&sbom), ArtifactDescription::of(&attestation));
        attestation.clear_up(
            [descriptor(IN_TOTO, None, &[("in-toto.io/predicate-type", "https://slsa.dev/provenance/v1")])]
                .iter(),
        );
        let called = |it: &ArtifactDescription, words: &[&str]| -> Vec<bool> {
            words.iter().map(|word| it.is_called(word)).collect()
        };
        assert_eq!(
            called(&sbom, &["sbom", "SBOM", "Application/SPDX+json", "signature"]),
            [true, true, true, false]
        );
        assert_eq!(
            called(&attestation, &["attestation", "provenance", IN_TOTO, "sbom"]),
            [true, true, true, false]
        );
    }
}
