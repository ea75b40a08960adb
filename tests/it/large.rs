//! Large layers by a real client: the same digests, and constant memory.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{IMAGE_MANIFEST, Refshim, Registry, digest_of};

const LAYER_BYTES: u64 = 1 << 30;
const MEMORY_LIMIT: u64 = 64 << 20;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An OCI layout with one image, whose one layer is a sparse file.
fn layout(directory: &Path) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let layer = directory.join("layer");
    File::create(&layer).unwrap().set_len(LAYER_BYTES).unwrap();
    let sum = run("sha256sum", &[layer.to_str().unwrap()]);
    let sum = sum.split_whitespace().next().unwrap();
    std::fs::rename(&layer, blobs.join(sum)).unwrap();
    let store = |media_type: &str, value: &Value| {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = digest_of(&bytes);
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), &bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": store("application/vnd.oci.image.config.v1+json", &config),
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{sum}"),
            "size": LAYER_BYTES,
        }],
    });
    let mut manifest = store(IMAGE_MANIFEST, &manifest);
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[tokio::test]
async fn a_layer_of_a_gibibyte_goes_in_and_out_in_constant_memory() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, &directory.path().join("data")).await;
    let (source, back) = (directory.path().join("source"), directory.path().join("back"));
    std::fs::create_dir(&source).unwrap();
    layout(&source);
    let remote = format!("docker://{}/big:v1", refshim.address);
    let local = |path: &Path| format!("oci:{}:v1", path.display());
    let copy = |arguments: &[&str]| {
        let mut all =
            vec!["copy", "--insecure-policy", "--preserve-digests", "--dest-oci-accept-uncompressed-layers"];
        all.extend(arguments);
        run("skopeo", &all);
    };
    copy(&["--dest-tls-verify=false", &local(&source), &remote]);
    copy(&["--src-tls-verify=false", &remote, &local(&back)]);
    let digest = |image: &str| {
        let inspected = run("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", image]);
        inspected.trim().to_owned()
    };
    assert_eq!(digest(&local(&back)), digest(&local(&source)));
    assert_eq!(digest(&remote), digest(&local(&source)));
    let peak = refshim.peak_memory();
    assert!(peak < MEMORY_LIMIT, "{peak} bytes");
}
