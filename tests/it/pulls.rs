//! Links are learnt from what is pulled.

use std::collections::BTreeSet;

use serde_json::json;

use crate::referrers::{Scene, digests, scene, signature};
use crate::registry_lists::{answer, upstream};
use crate::support::{Client, Content, Refshim};

/// A plain client pulls, and asks for nothing else.
#[tokio::test]
async fn pulls_fill_an_empty_index() {
    let Scene { client, image, registry, refshim, .. } = &scene().await;
    let direct = registry.client();
    let sbom = signature(image, image, "application/sbom", "sbom");
    let attestation = image.changed(|manifest| manifest["annotations"] = json!({"name": "attestation"}));
    let parent = Content::index(&[image, &attestation]).changed(|index| {
        index["manifests"][1]["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image.digest,
        });
    });
    for content in [&sbom, &attestation, &parent] {
        direct.push_as("a", &content.digest, content).await;
    }
    direct.push_as("a", "multi", &parent).await;
    for reference in ["multi", &image.digest, &attestation.digest, &sbom.digest, &sbom.digest] {
        let (_, _, digest) = client.served("a", reference).await;
        assert!(reference == "multi" || digest == *reference);
    }
    let expected: BTreeSet<String> =
        [&sbom, &attestation, &parent].map(|content| content.digest.clone()).into();
    let admin = Client::new(refshim.admin);
    while !admin.text("/metrics").await.contains("refshim_index_referrers 3") {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let found = client.referrers("a", &image.digest, "").await;
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(digests(client, "a", &image.digest, "").await, [sbom.digest]);
}

#[tokio::test]
async fn what_is_not_what_its_digest_says_teaches_nothing() {
    let image = Content::image("{}", "x");
    let content = signature(&image, &image, "application/x", "1");
    let other = signature(&image, &image, "application/x", "2");
    let (body, path) = (String::from_utf8(other.bytes.clone()).unwrap(), content.digest.clone());
    let media_type = content.media_type.clone();
    let upstream =
        upstream(&image, move |line| line.contains(&path).then(|| answer("200 OK", &media_type, &body)));
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let got = refshim.client().get(&format!("/v2/a/manifests/{}", content.digest)).await;
    assert_eq!(got.body, other.bytes);
    while !refshim.logged("is not what was asked for") {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let metrics = Client::new(refshim.admin).text("/metrics").await;
    assert!(metrics.contains("refshim_index_referrers 0"), "{metrics}");
}
