//! The answer of `/referrers`, and every kind of link in `/references`.

use std::collections::BTreeSet;

use refshim::oci::{Algorithm, Digest};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, Content, IMAGE_INDEX, Refshim, Registry, Scripted, about};

pub(crate) struct Scene {
    pub(crate) client: Client,
    pub(crate) image: Content,
    pub(crate) refshim: Refshim,
    pub(crate) registry: Registry,
    _directory: tempfile::TempDir,
}

pub(crate) async fn scene() -> Scene {
    scene_with(&[]).await
}

pub(crate) async fn scene_with(settings: &[(&'static str, &str)]) -> Scene {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let mut refshim = Refshim::prepare(registry.address, directory.path());
    for (name, value) in settings {
        refshim = refshim.with(name, value);
    }
    let refshim = refshim.launch().await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push_as("a", "latest", &image).await;
    Scene { client, image, refshim, registry, _directory: directory }
}

/// A manifest whose `subject` is another, made of the image's blobs.
pub(crate) fn signature(subject: &Content, image: &Content, artifact_type: &str, name: &str) -> Content {
    image.changed(|manifest| {
        manifest["artifactType"] = artifact_type.into();
        manifest["annotations"] = json!({"name": name});
        manifest["subject"] = subject.descriptor();
    })
}

/// The referrers tag of a manifest.
pub(crate) fn referrers_tag(subject: &Content) -> String {
    subject.digest.replace(':', "-")
}

/// Asks for referrers and expects an image index to the letter; its entries.
pub(crate) async fn referrers(client: &Client, repository: &str, digest: &str, query: &str) -> Vec<Value> {
    let answer = client.get(&format!("/v2/{repository}/referrers/{digest}{query}")).await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, IMAGE_INDEX), "{answer:?}");
    let index = answer.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(IMAGE_INDEX)));
    index["manifests"].as_array().unwrap().clone()
}

pub(crate) async fn digests(client: &Client, repository: &str, digest: &str, query: &str) -> Vec<String> {
    let entries = referrers(client, repository, digest, query).await;
    entries.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_names_a_subject_is_listed_with_its_type_and_annotations() {
    let Scene { client, image, .. } = &scene().await;
    let typed = signature(image, image, "application/sbom", "1");
    let untyped = image.changed(|manifest| manifest["subject"] = image.descriptor());
    let index = Content::index(&[image]).changed(|index| index["subject"] = image.descriptor());
    for (reference, content) in
        [(&typed.digest, &typed), (&"tag".to_owned(), &untyped), (&index.digest, &index)]
    {
        let answer = client.put_manifest("a", reference, content).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        assert_eq!(answer.header("oci-subject"), image.digest);
    }
    let entries = referrers(client, "a", &image.digest, "").await;
    let mut expected = [typed.descriptor(), untyped.descriptor(), index.descriptor()];
    expected[0]["artifactType"] = json!("application/sbom");
    expected[0]["annotations"] = json!({"name": "1"});
    expected[1]["artifactType"] = image.value["config"]["mediaType"].clone();
    assert_eq!(entries, expected);

    let answer = client.get(&format!("/v2/a/referrers/{}?artifactType=application/sbom", image.digest)).await;
    assert_eq!(answer.header("oci-filters-applied"), "artifactType");
    assert_eq!(answer.json()["manifests"], json!([expected[0]]));
    let config = image.value["config"]["mediaType"].as_str().unwrap().replace('+', "%2B");
    let both = format!("?artifactType=application/sbom&artifactType={config}&ns=docker.io");
    assert_eq!(digests(client, "a", &image.digest, &both).await, [typed.digest, untyped.digest]);
    assert_eq!(digests(client, "a", &image.digest, "?artifactType=none").await, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_not_there_has_an_empty_list_and_what_is_malformed_is_told() {
    let Scene { client, image, .. } = &scene().await;
    let zero = format!("sha256:{}", "0".repeat(64));
    let long = Digest::of(Algorithm::Sha512, b"").to_string();
    for (repository, digest) in [("a", &zero), ("never/pushed", &zero), ("a", &image.digest), ("a", &long)] {
        assert_eq!(referrers(client, repository, digest, "").await, Vec::<Value>::new());
        let path = format!("/v2/{repository}/referrers/{digest}");
        let head = client.head(&path).await;
        assert_eq!((head.status, head.header("content-type")), (StatusCode::OK, IMAGE_INDEX));
        assert_eq!(head.header("content-length"), client.get(&path).await.body.len().to_string());
    }
    for digest in ["latest", "sha256:00", "sha256:XYZ", "md5:00"] {
        let answer = client.get(&format!("/v2/a/referrers/{digest}")).await;
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (StatusCode::BAD_REQUEST, "DIGEST_INVALID")
        );
    }
    let put = client.send(client.request(Method::PUT, &format!("/v2/a/referrers/{zero}"))).await;
    assert_eq!((put.status, put.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD"));
}

#[tokio::test]
async fn a_subject_may_be_missing() {
    let Scene { client, image, .. } = &scene().await;
    let missing = Content::image("{}", "missing");
    let content = signature(&missing, image, "application/x", "1");
    client.push("a", &content).await;
    assert_eq!(digests(client, "a", &missing.digest, "").await, [content.digest]);
}

#[tokio::test]
async fn a_malformed_subject_is_told_to_the_one_who_pushed_it() {
    let upstream =
        Scripted::answering("HTTP/1.1 201 Created\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    let image = Content::image("{}", "x");
    let malformed = image.changed(|manifest| manifest["subject"] = json!({"size": 1}));
    let answer = client.put_manifest("a", "latest", &malformed).await;
    let expected =
        "299 - \"refshim: malformed links are not recorded: subject: the descriptor has no digest\"";
    assert_eq!((answer.status, answer.header("warning")), (StatusCode::CREATED, expected));
    assert!(answer.headers.get("oci-subject").is_none());
    let answer = client.put_manifest("a", "latest", &image).await;
    assert!(answer.headers.get("warning").is_none());
}

#[tokio::test]
async fn oci_subject_is_one_and_only_where_the_registry_took_the_manifest() {
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
        let status = if exchange.request.line.contains("/taken") { "201 Created" } else { "400 Refused" };
        exchange.answer_status(&format!("{status}\r\noci-tag: taken\r\noci-subject: sha256:wrong"));
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    let image = Content::image("{}", "x");
    let content = signature(&image, &image, "application/x", "1");
    let taken = client.put_manifest("a", "taken?tag=b&tag=c", &content).await;
    let subjects: Vec<_> = taken.headers.get_all("oci-subject").iter().collect();
    assert_eq!(subjects, [image.digest.as_str()]);
    assert_eq!(taken.header("oci-tag"), "taken");
    assert!(upstream.requests()[0].line.contains("/taken?tag=b&tag=c "));
    let refused = client.put_manifest("a", "other", &content).await;
    assert_eq!((refused.status, refused.header("oci-subject")), (StatusCode::BAD_REQUEST, "sha256:wrong"));
}

/// One image, referred to in six ways.
#[tokio::test]
async fn every_kind_of_link_is_listed_and_told_apart() {
    let Scene { client, image, registry, refshim, .. } =
        &scene_with(&[("REFERRERS_UPSTREAM_TTL", "0s")]).await;
    let reference = about(image, image, "reference");
    let subject = signature(image, image, "application/x", "subject");
    let listed = signature(image, image, "application/x", "listed");
    let cosign = image.changed(|manifest| manifest["annotations"] = json!({"name": "cosign"}));
    let attestation = image.changed(|manifest| manifest["annotations"] = json!({"name": "attestation"}));
    for content in [&reference, &subject, &attestation] {
        client.push("a", content).await;
    }
    client.push_as("a", &format!("{}.sig", referrers_tag(image)), &cosign).await;
    let parent = Content::index(&[image, &attestation]).changed(|index| {
        index["manifests"][1]["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image.digest,
        });
    });
    client.push("a", &parent).await;
    // By a client that knows no refshim.
    let direct = registry.client();
    direct.push("a", &listed).await;
    direct.push_as("a", &referrers_tag(image), &Content::index(&[&listed])).await;

    let kinds = [
        ("reference", &reference),
        ("subject", &subject),
        ("fallback", &listed),
        ("cosign", &cosign),
        ("attestation", &attestation),
        ("parent", &parent),
    ];
    let all: BTreeSet<String> = client.referrers("a", "latest", "").await.into_iter().collect();
    assert_eq!(all, kinds.iter().map(|(_, content)| content.digest.clone()).collect());
    for (kind, content) in kinds {
        let found = client.referrers("a", "latest", &format!("?kind={kind}")).await;
        assert_eq!(found, [content.digest.clone()], "{kind}");
    }
    assert_eq!(digests(client, "a", &image.digest, "").await, [subject.digest, listed.digest]);
    let metrics = Client::new(refshim.admin).text("/metrics").await;
    assert!(metrics.contains("refshim_index_pending 0"), "{metrics}");
}

#[tokio::test]
async fn more_kinds_are_listed_as_referrers_where_the_operator_says_so() {
    let Scene { client, image, .. } = &scene_with(&[("REFERRERS_INCLUDE", "cosign,reference")]).await;
    let reference = about(image, image, "reference");
    let cosign = image.changed(|manifest| manifest["annotations"] = json!({"name": "cosign"}));
    client.push("a", &reference).await;
    client.push_as("a", &format!("{}.att", referrers_tag(image)), &cosign).await;
    client.push("a", &Content::index(&[image])).await;
    assert_eq!(digests(client, "a", &image.digest, "").await, [reference.digest, cosign.digest]);
}
