//! Recognises BuildKit's attestations that are OCI artifacts with a `subject` (its option `oci-artifact`, the default
//! since 0.32). Registries that require the subject first reject them, since BuildKit pushes them before the image.

use serde::Deserialize;

const ATTESTATION_TYPE: &str = "application/vnd.docker.attestation";
const IN_TOTO_LAYER: &str = "application/vnd.in-toto+json";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatementMembers {
    artifact_type: Option<String>,
    config: Option<Described>,
    #[serde(default)]
    layers: Vec<Described>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    media_type: Option<String>,
}

/// Whether a manifest is an attestation by BuildKit.
#[must_use]
pub fn is_buildkit_attestation(manifest: &[u8]) -> bool {
    let Ok(members) = serde_json::from_slice::<StatementMembers>(manifest) else { return false };
    let config_type = members.config.and_then(|config| config.media_type);
    let mut types = members.artifact_type.iter().chain(&config_type);
    let has_type = |layer: &Described| layer.media_type.as_deref() == Some(IN_TOTO_LAYER);
    types.any(|name| name.starts_with(ATTESTATION_TYPE)) || members.layers.iter().any(has_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attestations_are_told_by_their_type_or_their_layers() {
        for (manifest, expected) in [
            (r#"{"artifactType":"application/vnd.docker.attestation.manifest.v1+json"}"#, true),
            (r#"{"config":{"mediaType":"application/vnd.docker.attestation.manifest.v1+json"}}"#, true),
            (
                r#"{"config":{},"layers":[{"mediaType":"x"},{"mediaType":"application/vnd.in-toto+json"}]}"#,
                true,
            ),
            (r#"{"artifactType":"application/vnd.dev.cosign.simplesigning.v1+json","layers":[{}]}"#, false),
            (r#"{"layers":5}"#, false),
            ("", false),
        ] {
            assert_eq!(is_buildkit_attestation(manifest.as_bytes()), expected, "{manifest}");
        }
    }
}
