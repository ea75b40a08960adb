//! An image for two platforms as an OCI layout, new bytes in every test run, so that nothing a tool
//! remembers of an earlier run is about it.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Content, IMAGE_MANIFEST, descriptor, digest_of};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Writes the layout; the image index is tagged `v1`.
pub(super) fn write(layout: &Path) {
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let images = ["amd64", "arm64"].map(|architecture| image(layout, architecture));
    let mut index = Content::index(&[&images[0], &images[1]]).value;
    for (entry, architecture) in index["manifests"].as_array_mut().unwrap().iter_mut().zip(["amd64", "arm64"])
    {
        entry["platform"] = json!({"architecture": architecture, "os": "linux"});
    }
    let index = index.to_string().into_bytes();
    keep(layout, &index);
    let mut entry = descriptor("application/vnd.oci.image.index.v1+json", &index);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    let top = json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(layout.join("index.json"), top.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string()).unwrap();
}

fn image(layout: &Path, architecture: &str) -> Content {
    let content = tempfile::tempdir().unwrap();
    std::fs::write(content.path().join("hello"), format!("{architecture} {}", content.path().display()))
        .unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(content.path()).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let tar = run("tar", &["--owner=0", "--group=0", "-cf", "-", "hello"]);
    std::fs::write(content.path().join("layer.tar"), &tar).unwrap();
    let layer = run("gzip", &["-nc", "layer.tar"]);
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(&tar)]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "refshim test"}],
    });
    let config = config.to_string().into_bytes();
    let manifest: Value = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer)],
    });
    let manifest = Content::new(IMAGE_MANIFEST, &manifest);
    for blob in [&layer, &config, &manifest.bytes] {
        keep(layout, blob);
    }
    manifest
}

fn keep(layout: &Path, blob: &[u8]) {
    let digest = digest_of(blob);
    std::fs::write(layout.join("blobs").join(digest.replace(':', "/")), blob).unwrap();
}
