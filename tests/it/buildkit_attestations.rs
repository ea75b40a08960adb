//! BuildKit pushes an attestation before the image that it is about: a registry that wants the subject to be there
//! first refuses it, and the log says what to do.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::{Client, Content, Face, Scripted};

const REFUSALS: [&str; 6] = [
    "400 Bad Request",
    "404 Not Found",
    "405 Method Not Allowed",
    "422 Unprocessable Content",
    "401 Unauthorized",
    "429 Too Many",
];
const BODY: &str = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"subject"}]}"#;

/// Refuses by the tag's name.
fn refusing() -> Scripted {
    Scripted::start(|exchange| {
        exchange.read_body();
        let status = REFUSALS.iter().find(|status| exchange.request.line.contains(&status[..3]));
        let status = status.unwrap_or(&REFUSALS[0]);
        let length = BODY.len();
        exchange.answer(&format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{BODY}"
        ));
    })
}

/// As BuildKit writes it with `oci-artifact=true`, and the same without what makes it one.
fn manifests() -> [(Content, bool); 4] {
    let image = Content::image("config", "layer");
    let attestation = image.changed(|manifest| {
        manifest["artifactType"] = json!("application/vnd.docker.attestation.manifest.v1+json");
        manifest["layers"][0]["mediaType"] = json!("application/vnd.in-toto+json");
        manifest["subject"] = image.descriptor();
    });
    let by_layer = attestation.changed(|manifest| manifest["artifactType"] = json!("application/other"));
    let signature =
        by_layer.changed(|manifest| manifest["layers"][0]["mediaType"] = json!("application/other"));
    let without_subject = attestation.changed(|manifest| {
        manifest["reference"] = manifest["subject"].take();
    });
    [(attestation, true), (by_layer, true), (signature, false), (without_subject, false)]
}

#[tokio::test]
async fn a_refused_attestation_is_passed_on_and_the_log_says_the_way_out() {
    let upstream = refusing();
    for face in [Face::Http1, Face::Http2, Face::TlsHttp1, Face::TlsHttp2] {
        let scene = face.before(upstream.address, &[]).await;
        let mut expected = 0;
        for (status, (manifest, is_attestation)) in
            REFUSALS.iter().flat_map(|status| manifests().map(|manifest| (status, manifest)))
        {
            let put = scene.client.request(Method::PUT, &format!("/v2/a/manifests/{}", &status[..3]));
            let put = put.header("content-type", &manifest.media_type).body(manifest.bytes.clone());
            let answer = scene.client.send(put).await;
            assert_eq!((answer.status.as_str(), &*answer.body), (&status[..3], BODY.as_bytes()), "{face:?}");
            let is_about_content = !["401", "429"].contains(&&status[..3]);
            if is_attestation && is_about_content {
                expected += 1;
                let line = scene.refshim.logs("oci-artifact=false", expected).await;
                let subject = manifest.value["subject"]["digest"].as_str().unwrap();
                for part in [&manifest.digest, subject, "\"repository\":\"a\"", "\"level\":\"WARN\""] {
                    assert!(line.contains(part), "no {part} in {line}");
                }
            }
            let metrics = Client::new(scene.refshim.admin).text("/metrics").await;
            let count = format!("refshim_attestations_refused_total{{upstream=\"default\"}} {expected}\n");
            assert_eq!(metrics.contains(&count), expected > 0, "{face:?} {status} {metrics}");
        }
        assert_eq!(scene.refshim.count("oci-artifact=false"), expected);
        assert_eq!(scene.client.get("/v2/404").await.status, StatusCode::NOT_FOUND);
    }
}
