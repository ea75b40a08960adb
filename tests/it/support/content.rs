//! Manifests to push, real bytes with real digests.

use refshim::oci::{Algorithm, Digest};
use serde_json::{Value, json};

pub(crate) const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest as it is pushed.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: String,
    pub(crate) value: Value,
}

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, bytes).to_string()
}

/// A descriptor of bytes.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "size": bytes.len(), "digest": digest_of(bytes)})
}

/// A small OCI manifest that refers to `subject`, made of the image's blobs and told apart by `name`.
pub(crate) fn about(subject: &Content, image: &Content, name: &str) -> Content {
    image.changed(|manifest| {
        manifest["annotations"] = json!({"name": name});
        manifest["reference"] = subject.descriptor();
    })
}

impl Content {
    pub(crate) fn new(media_type: &str, value: &Value) -> Self {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = digest_of(&bytes);
        Self { media_type: media_type.to_owned(), bytes, digest, value: value.clone() }
    }

    pub(crate) fn image(config: &str, layer: &str) -> Self {
        Self::new(
            IMAGE_MANIFEST,
            &json!({
                "schemaVersion": 2,
                "mediaType": IMAGE_MANIFEST,
                "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
                "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer.as_bytes())],
            }),
        )
    }

    /// An OCI index of these.
    pub(crate) fn index(manifests: &[&Self]) -> Self {
        let manifests: Vec<Value> = manifests.iter().map(|manifest| manifest.descriptor()).collect();
        Self::new(IMAGE_INDEX, &json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests}))
    }

    /// This one with changes; another manifest, therefore.
    pub(crate) fn changed(&self, change: impl FnOnce(&mut Value)) -> Self {
        let mut value = self.value.clone();
        change(&mut value);
        Self::new(&self.media_type, &value)
    }

    pub(crate) fn descriptor(&self) -> Value {
        descriptor(&self.media_type, &self.bytes)
    }
}
