//! `/references?scope=registry`.

use std::collections::BTreeSet;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::referrers::{Scene, scene, scene_with};
use crate::support::{Client, Content, Refshim, Registry, Rules, Scripted, TokenService, about};

/// The proposal's demo refers from one repository into another.
#[tokio::test]
async fn what_refers_from_another_repository_is_found_across_the_registry() {
    let Scene { client, image, .. } = &scene().await;
    let here = about(image, image, "here");
    client.push("a", &here).await;
    let mut expected = vec![(here.digest.clone(), Value::Null)];
    for n in 0..5 {
        let repository = format!("elsewhere/{n}");
        let blobs = client.image(&repository, "image").await;
        let content = about(image, &blobs, &repository);
        client.push(&repository, &content).await;
        expected.push((content.digest, json!(repository)));
    }
    let found = async |path: String| {
        let (mut found, mut path) = (Vec::new(), Some(path));
        while let Some(next) = path {
            let page = client.get(&next).await;
            assert_eq!(page.status, StatusCode::OK);
            for entry in page.json()["manifests"].as_array().unwrap() {
                let repository = entry["annotations"]["io.refshim.repository"].clone();
                found.push((entry["digest"].as_str().unwrap().to_owned(), repository));
            }
            path = page.headers.get("link").map(|link| {
                let link = link.to_str().unwrap();
                link.strip_prefix('<').unwrap().split_once('>').unwrap().0.to_owned()
            });
        }
        found
    };
    let path = "/v2/a/manifests/latest/references";
    assert_eq!(found(path.to_owned()).await, expected[..1]);
    assert_eq!(found(format!("{path}?scope=repository")).await, expected[..1]);
    assert_eq!(found(format!("{path}?scope=registry")).await, expected);
    assert_eq!(found(format!("{path}?scope=registry&n=2")).await, expected);
    assert_eq!(found(format!("{path}?scope=registry&n=1&inline=true")).await, expected);
}

#[tokio::test]
async fn repositories_beyond_the_bound_are_on_further_pages() {
    let Scene { client, image, .. } = &scene_with(&[("REFERENCES_SCOPE_REPOSITORIES", "2")]).await;
    let mut expected = BTreeSet::new();
    for n in 0..5 {
        let repository = format!("elsewhere/{n}");
        let blobs = client.image(&repository, "image").await;
        let content = about(image, &blobs, &repository);
        client.push(&repository, &content).await;
        expected.insert(content.digest);
    }
    let mut path = Some("/v2/a/manifests/latest/references?scope=registry".to_owned());
    let (mut found, mut pages) = (Vec::new(), 0);
    while let Some(next) = path {
        let page = client.get(&next).await;
        pages += 1;
        for entry in page.json()["manifests"].as_array().unwrap() {
            found.push(entry["digest"].as_str().unwrap().to_owned());
        }
        path = page.headers.get("link").map(|link| {
            let link = link.to_str().unwrap();
            assert!(!link.contains("elsewhere"), "{link}");
            link.strip_prefix('<').unwrap().split_once('>').unwrap().0.to_owned()
        });
    }
    assert_eq!((found.len(), pages), (5, 3));
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn a_repository_that_a_caller_may_not_read_leaves_no_trace() {
    let image = Content::image("{}", "x");
    let content = about(&image, &image, "1");
    let stored = [image.clone(), content.clone()];
    let upstream = Scripted::start(move |exchange| {
        exchange.read_body();
        let line = exchange.request.line.clone();
        let is_alice = exchange.request.header("authorization").is_some();
        let status = match is_alice || line.contains("/v2/ubuntu/") {
            false => "401 Unauthorized",
            true if line.starts_with("PUT") => "201 Created",
            true => {
                match stored.iter().find(|content| line.contains(&format!("/manifests/{}", content.digest))) {
                    Some(content) => return exchange.answer_manifest(content),
                    None => "404 Not Found",
                }
            }
        };
        exchange.answer_status(status);
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path()).with("REFERRERS_UPSTREAM_TTL", "5m");
    let refshim = refshim.launch().await;
    let alice = refshim.client().as_user("alice", "a");
    let asked = async |client: &Client| {
        let before = upstream.requests().len();
        let path = format!("/v2/ubuntu/manifests/{}/references?scope=registry", image.digest);
        let answer = client.get(&path).await;
        assert_eq!(answer.status, StatusCode::OK);
        let questions = upstream.requests().len() - before;
        (answer.json(), answer.body.len(), answer.headers.get("link").cloned(), questions)
    };
    let bob = refshim.client();
    asked(&bob).await;
    let without_a_link = asked(&bob).await;
    assert_eq!(without_a_link.0["manifests"], json!([]));
    assert_eq!(alice.put_manifest("ref-to-ubuntu", "1", &content).await.status, StatusCode::CREATED);
    assert_eq!(asked(&bob).await, without_a_link);
    let (index, ..) = asked(&alice).await;
    assert_eq!(index["manifests"][0]["digest"], content.digest);
    assert_eq!(index["manifests"][0]["annotations"]["io.refshim.repository"], "ref-to-ubuntu");
}

/// A client with a token for these rights, from the service that the registry believes.
async fn with_token(refshim: &Refshim, service: &TokenService, user: &str, scopes: &[&str]) -> Client {
    refshim.client().with_token(&service.token(Some(user), scopes).await)
}

/// The proposal's demo, before a registry with rights for each repository.
#[tokio::test]
async fn a_reference_from_another_repository_is_found_by_who_may_read_both_and_by_nobody_else() {
    let service = Rules::default()
        .user("alice", "password")
        .user("bob", "password")
        .grant("alice", "repository:*", "pull,push")
        .grant("bob", "repository:ubuntu", "pull")
        .start();
    let registry = Registry::variant().tokens_of(&service).start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).launch().await;
    let both = ["repository:ubuntu:pull,push", "repository:ref-to-ubuntu:pull,push"];
    let alice = with_token(&refshim, &service, "alice", &both).await;
    let bob = with_token(&refshim, &service, "bob", &both).await;
    let alice_in_ubuntu = with_token(&refshim, &service, "alice", &both[..1]).await;

    let image = alice.image("ubuntu", "ubuntu").await;
    alice.push_as("ubuntu", "latest", &image).await;
    let path = "/v2/ubuntu/manifests/latest/references?scope=registry";
    let seen = async |client: &Client| {
        let answer = client.get(path).await;
        let mut headers = answer.headers;
        for of_this_answer in ["date", "x-request-id"] {
            headers.remove(of_this_answer);
        }
        (answer.status, headers, String::from_utf8(answer.body).unwrap())
    };
    let without_a_link = seen(&bob).await;
    assert_eq!(without_a_link.0, StatusCode::OK);

    let blobs = alice.image("ref-to-ubuntu", "ubuntu").await;
    let reference = about(&image, &blobs, "reference");
    alice.push_as("ref-to-ubuntu", "latest", &reference).await;
    assert_eq!(seen(&bob).await, without_a_link);
    assert_eq!(seen(&alice_in_ubuntu).await, without_a_link);
    let found: Value = serde_json::from_str(&seen(&alice).await.2).unwrap();
    assert_eq!(found["manifests"][0]["digest"], reference.digest);
    assert_eq!(found["manifests"][0]["annotations"]["io.refshim.repository"], "ref-to-ubuntu");
    assert_eq!(found["manifests"].as_array().unwrap().len(), 1);
    // What alice was shown is hers alone.
    assert_eq!(seen(&bob).await, without_a_link);

    let theirs = bob.get("/v2/ref-to-ubuntu/manifests/latest/references").await;
    assert_eq!(theirs.status, StatusCode::UNAUTHORIZED);
    let expected = registry.client().get("/v2/ref-to-ubuntu/manifests/latest").await;
    let challenge = expected.header("www-authenticate").replace('"', "");
    assert!(challenge.contains("scope=repository:ref-to-ubuntu:pull"));
    assert!(theirs.header("www-authenticate").replace('"', "").starts_with(&challenge));
}
