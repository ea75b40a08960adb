//! The answer of `/references`.

use base64::Engine as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, Content, Refshim, Registry, about, digest_of};

struct Scene {
    client: Client,
    image: Content,
    _refshim: Refshim,
    registry: Registry,
    _directory: tempfile::TempDir,
}

async fn scene() -> Scene {
    scene_with(&[]).await
}

async fn scene_with(settings: &[(&'static str, &str)]) -> Scene {
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
    Scene { client, image, _refshim: refshim, registry, _directory: directory }
}

/// Follows `Link` to the end; all digests, and how many pages there were.
async fn all_pages(client: &Client, path: &str) -> (Vec<String>, usize) {
    let (mut digests, mut pages, mut path) = (Vec::new(), 0, path.to_owned());
    loop {
        let answer = client.get(&path).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        pages += 1;
        let entries = answer.json()["manifests"].as_array().unwrap().clone();
        digests.extend(entries.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()));
        match answer.headers.get("link") {
            None => return (digests, pages),
            Some(link) => {
                let link = link.to_str().unwrap();
                let next = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
                path = String::from(next);
                assert!(path.starts_with("/v2/a/manifests/sha256:"), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn pages_follow_each_other_in_the_order_of_pushes() {
    let Scene { client, image, .. } = &scene().await;
    let mut pushed = Vec::new();
    for n in 0..7 {
        let content = about(image, image, &n.to_string());
        client.push("a", &content).await;
        pushed.push(content.digest);
    }
    let path = "/v2/a/manifests/latest/references";
    assert_eq!(all_pages(client, path).await, (pushed.clone(), 1));
    assert_eq!(all_pages(client, &format!("{path}?n=3")).await, (pushed.clone(), 3));
    assert_eq!(all_pages(client, &format!("{path}?n=7")).await, (pushed.clone(), 1));
    assert_eq!(all_pages(client, &format!("{path}?n=1&kind=reference")).await, (pushed.clone(), 7));
    let (found, _) = all_pages(client, &format!("{path}?n=2&annotation=name%3D5")).await;
    assert_eq!(found, pushed[5..6]);
}

#[tokio::test]
async fn a_page_ends_by_bytes() {
    let Scene { client, image, .. } = &scene_with(&[("REFERENCES_PAGE_BYTES", "64KiB")]).await;
    let mut pushed = Vec::new();
    for n in 0..10 {
        let content = about(image, image, &format!("{n}{}", "x".repeat(20_000)));
        client.push("a", &content).await;
        pushed.push(content.digest);
    }
    let path = "/v2/a/manifests/latest/references";
    assert_eq!(all_pages(client, path).await, (pushed, 4));
    let answer = client.get(path).await;
    assert!(answer.body.len() <= 64 * 1024 + 200, "{}", answer.body.len());
}

#[tokio::test]
async fn filters_narrow_and_are_named() {
    let Scene { client, image, .. } = &scene().await;
    let typed = |artifact_type: &str, key: &str| {
        image.changed(|manifest| {
            manifest["artifactType"] = artifact_type.into();
            manifest["annotations"] = json!({key: "1"});
            manifest["reference"] = image.descriptor();
        })
    };
    let (sbom, signature) = (typed("application/sbom", "a"), typed("application/signature", "b"));
    let parent = Content::index(&[image]);
    for content in [&sbom, &signature, &parent] {
        client.push("a", content).await;
    }
    let check = async |query: &str, applied: Option<&str>, expected: &[&Content]| {
        let answer = client.get(&format!("/v2/a/manifests/latest/references{query}")).await;
        let entries = answer.json()["manifests"].as_array().unwrap().clone();
        let found: Vec<&str> = entries.iter().map(|entry| entry["digest"].as_str().unwrap()).collect();
        let expected: Vec<&str> = expected.iter().map(|content| content.digest.as_str()).collect();
        assert_eq!(found, expected, "{query}");
        let header = answer.headers.get("oci-filters-applied").map(|value| value.to_str().unwrap());
        assert_eq!(header, applied, "{query}");
    };
    check("", None, &[&sbom, &signature, &parent]).await;
    check("?unknown=1", None, &[&sbom, &signature, &parent]).await;
    check("?artifactType=application/sbom", Some("artifactType"), &[&sbom]).await;
    check(
        "?artifactType=application/sbom&artifactType=application/signature",
        Some("artifactType"),
        &[&sbom, &signature],
    )
    .await;
    check("?kind=parent", Some("kind"), &[&parent]).await;
    check("?kind=subject", Some("kind"), &[]).await;
    check("?mediaType=application/vnd.oci.image.index.v1%2Bjson", Some("mediaType"), &[&parent]).await;
    check("?annotation=a", Some("annotation"), &[&sbom]).await;
    check("?annotation=a%3D2", Some("annotation"), &[]).await;
    check("?annotation=b&kind=reference", Some("annotation,kind"), &[&signature]).await;
}

#[tokio::test]
async fn inline_puts_the_manifests_into_the_answer() {
    let Scene { client, image, .. } = &scene_with(&[("REFERENCES_PAGE_BYTES", "64KiB")]).await;
    let small = about(image, image, "small");
    let large = about(image, image, &"x".repeat(40_000));
    let other = about(image, image, "other");
    for content in [&small, &large, &other] {
        client.push("a", content).await;
    }
    let listed = client.references("a", "latest", "?inline=true").await;
    let data = |entry: &Value| {
        entry["data"].as_str().map(|data| base64::engine::general_purpose::STANDARD.decode(data).unwrap())
    };
    let found: Vec<_> = listed.iter().map(data).collect();
    assert_eq!(found, [Some(small.bytes), None, Some(other.bytes)]);
}

#[tokio::test]
async fn a_referrer_that_vanished_is_left_out_of_an_inlined_answer_and_forgotten() {
    let scene = scene().await;
    let Scene { client, image, .. } = &scene;
    let (first, second) = (about(image, image, "1"), about(image, image, "2"));
    client.push("a", &first).await;
    client.push("a", &second).await;
    let behind = scene.registry.client();
    let deleted = behind.delete(&format!("/v2/a/manifests/{}", first.digest)).await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED);
    assert_eq!(client.referrers("a", "latest", "?inline=true").await, [second.digest.clone()]);
    assert_eq!(client.referrers("a", "latest", "").await, [second.digest]);
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let Scene { client, image, .. } = &scene().await;
    client.push("a", &about(image, image, "1")).await;
    let path = "/v2/a/manifests/latest/references?kind=reference&n=1";
    let (get, head) = (client.get(path).await, client.head(path).await);
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    for name in ["content-type", "content-length", "oci-filters-applied"] {
        assert_eq!(head.header(name), get.header(name));
    }
}

#[tokio::test]
async fn malformed_queries_are_refused() {
    let Scene { client, .. } = &scene().await;
    let check = async |path: &str, status: StatusCode, code: &str| {
        let answer = client.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.error_code(), code, "{path}");
    };
    let bad = StatusCode::BAD_REQUEST;
    check("/v2/a/manifests/sha256:XYZ/references", bad, "DIGEST_INVALID").await;
    check("/v2/a/manifests/md5:00/references", bad, "DIGEST_INVALID").await;
    check("/v2/a/manifests/-/references", bad, "TAG_INVALID").await;
    check("/v2/A/manifests/latest/references", bad, "NAME_INVALID").await;
    check("/v2/a/manifests/latest/references?n=0", bad, "PAGINATION_NUMBER_INVALID").await;
    check("/v2/a/manifests/latest/references?n=x", bad, "PAGINATION_NUMBER_INVALID").await;
    check("/v2/a/manifests/latest/references?last=x", bad, "UNSUPPORTED").await;
    check("/v2/a/manifests/latest/references?kind=x", bad, "UNSUPPORTED").await;
    check("/v2/a/manifests/latest/references?annotation=", bad, "UNSUPPORTED").await;
    check("/v2/a/manifests/none/references", StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN").await;
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        let answer = client.send(client.request(method, "/v2/a/manifests/latest/references")).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(answer.header("allow"), "GET, HEAD, POST");
    }
}

#[tokio::test]
async fn what_nothing_refers_to_gives_an_empty_list() {
    let Scene { client, image, .. } = &scene().await;
    assert_eq!(client.referrers("a", &image.digest, "").await, Vec::<String>::new());
    assert_eq!(client.referrers("a", &digest_of(b"never pushed"), "").await, Vec::<String>::new());
    assert_eq!(client.referrers("never/pushed", &image.digest, "").await, Vec::<String>::new());
}

#[tokio::test]
async fn repositories_are_apart() {
    let Scene { client, image, .. } = &scene().await;
    client.push("a", &about(image, image, "1")).await;
    let other = client.image("a/b", "image").await;
    assert_eq!(other.digest, image.digest);
    client.push("a/b", &other).await;
    assert_eq!(client.referrers("a/b", &image.digest, "").await, Vec::<String>::new());
    assert_eq!(client.referrers("a", &image.digest, "").await.len(), 1);
}

#[tokio::test]
async fn a_path_that_theregistrys_grammar_claims_is_theregistrys() {
    let Scene { client, image, .. } = &scene().await;
    client.image("a/manifests", "image").await;
    client.push_as("a/manifests", "references", image).await;
    let (_, _, digest) = client.served("a/manifests", "references").await;
    assert_eq!(digest, image.digest);
}
