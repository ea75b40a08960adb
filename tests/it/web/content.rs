//! What the pages are shown of: images with everything that can be attached to one.

use serde_json::json;

use crate::referrers::signature;
use crate::support::{Client, Content, IMAGE_INDEX};

const NOTATION: &str = "application/vnd.cncf.notary.signature";

/// An index of two images, each level with something attached.
pub(super) struct App {
    pub(super) index: Content,
    pub(super) amd64: Content,
    arm64: Content,
    attestation: Content,
    signature: Content,
    pub(super) sbom: Content,
    signature_of_sbom: Content,
    bundle: Content,
    by_tag: Content,
}

impl App {
    /// All but the index itself.
    pub(super) fn all(&self) -> [&Content; 8] {
        let Self { amd64, arm64, attestation, signature, sbom, signature_of_sbom, bundle, by_tag, .. } = self;
        [amd64, arm64, attestation, signature, sbom, signature_of_sbom, bundle, by_tag]
    }
}

fn with_platform(content: &Content, architecture: &str) -> serde_json::Value {
    let mut descriptor = content.descriptor();
    descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
    descriptor
}

/// `app:v1`, three levels deep: an SBOM of a part of the index, and a signature of that SBOM.
pub(super) async fn app(client: &Client) -> App {
    let base = client.image("app", "app").await;
    let part = |architecture: &str| {
        base.changed(|manifest| manifest["annotations"] = json!({"architecture": architecture}))
    };
    let (amd64, arm64) = (part("amd64"), part("arm64"));
    let attestation = base.changed(|manifest| {
        manifest["layers"][0]["mediaType"] = "application/vnd.in-toto+json".into();
        manifest["layers"][0]["annotations"] =
            json!({"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"});
    });
    for content in [&amd64, &arm64, &attestation] {
        client.push("app", content).await;
    }
    let mut attested = attestation.descriptor();
    attested["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    attested["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": amd64.digest,
    });
    let parts = [with_platform(&amd64, "amd64"), with_platform(&arm64, "arm64"), attested];
    let index = Content::new(
        IMAGE_INDEX,
        &json!({
            "schemaVersion": 2,
            "mediaType": IMAGE_INDEX,
            "manifests": parts,
            "annotations": {"org.opencontainers.image.created": "2026-11-01T10:00:00Z"},
        }),
    );
    client.push_as("app", "v1", &index).await;
    let signed = signature(&index, &base, NOTATION, "release");
    let bundle = signature(&index, &base, "application/vnd.dev.sigstore.bundle.v0.3+json", "bundle").changed(
        |manifest| {
            manifest["annotations"] = json!({
                "dev.sigstore.bundle.content": "dsse-envelope",
                "dev.sigstore.bundle.predicateType": "https://cosign.sigstore.dev/attestation/vuln/v1",
                "org.opencontainers.image.created": "2026-11-20T08:30:00Z",
            });
        },
    );
    let sbom = signature(&amd64, &base, "application/spdx+json", "sbom").changed(|manifest| {
        manifest["annotations"] = json!({
            "org.example.author": "the build of the 20th",
            "org.opencontainers.image.created": "2026-11-20T08:30:00Z",
        });
        manifest["layers"][0]["mediaType"] = "application/spdx+json".into();
        manifest["layers"][0]["annotations"] = json!({"org.opencontainers.image.title": "sbom.spdx.json"});
    });
    let signature_of_sbom = signature(&sbom, &base, NOTATION, "of the SBOM");
    for content in [&signed, &bundle, &sbom, &signature_of_sbom] {
        client.push("app", content).await;
    }
    let by_tag = base.changed(|manifest| {
        manifest["layers"][0]["mediaType"] = "application/vnd.dev.cosign.simplesigning.v1+json".into();
    });
    client.push_as("app", &format!("{}.sig", arm64.digest.replace(':', "-")), &by_tag).await;
    App { index, amd64, arm64, attestation, signature: signed, sbom, signature_of_sbom, bundle, by_tag }
}

/// `many:v1` with so many referrers: a signature, the last, and SBOMs.
pub(super) async fn many(client: &Client, count: usize) -> Content {
    let image = client.image("many", "many").await;
    client.push_as("many", "v1", &image).await;
    for number in 1..count {
        client
            .push("many", &signature(&image, &image, "application/vnd.cyclonedx+json", &number.to_string()))
            .await;
    }
    client.push("many", &signature(&image, &image, NOTATION, "the last")).await;
    image
}

/// `hostile:v1`, and a referrer that wants to be more than text.
pub(super) struct Hostile {
    pub(super) image: Content,
    pub(super) referrer: Content,
}

pub(super) async fn hostile(client: &Client) -> Hostile {
    let image = client.image("hostile", "hostile").await;
    client.push_as("hostile", "v1", &image).await;
    let script = "<script>alert(1)</script>";
    let referrer = signature(&image, &image, "text/html\"><b>signature</b> $(id)", "x").changed(|manifest| {
        manifest["annotations"] = json!({
            script: script,
            "quote": "\"><img src=x onerror=alert(1)>",
            "single quote": "' onmouseover='alert(1)",
            "link": "javascript:alert(1)",
            "url": "https://evil.example/",
            "order": "\u{202e}gpj.exe \u{2066}isolated\u{2069}",
            "nothing": "a\u{200b}b\u{feff}c",
            "lines": "first\nsecond\r\n\tthird",
            "controls": "\u{1b}[31mred\u{7}",
            "template": "{{ 7 * 7 }} {% raw %}",
            "org.opencontainers.image.created": "yesterday <b>",
            "long": "x".repeat(5_000),
            "\u{202e}key": "right to left",
            "script of people": "\u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{645}\u{631}\u{62d}\u{628}\u{627} \u{4f60}\u{597d}",
        });
        manifest["layers"][0]["mediaType"] = script.into();
        manifest["layers"][0]["annotations"] = json!({
            "org.opencontainers.image.title": "../../etc/<img src=x>\u{202e}",
            "predicateType": "https://slsa.dev/provenance/<script>",
        });
    });
    client.push("hostile", &referrer).await;
    Hostile { image, referrer }
}
