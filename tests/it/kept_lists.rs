//! Lists that are kept for who asks the same again: whatever was pushed, deleted or found since, they are those of now.

use reqwest::StatusCode;

use crate::referrers::{Scene, referrers_tag, scene_with, signature};
use crate::support::{Client, Content};

/// What is done to the repository between two queries.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    Push(&'static str),
    Delete(&'static str),
    /// Past refshim, with a referrers tag that lists it.
    PushPast(&'static str),
    /// Past refshim; then a client gets 404 for it.
    DeletePast(&'static str),
    PushElsewhere(&'static str),
}

const CHANGES: [Change; 11] = [
    Change::Nothing,
    Change::Push("1"),
    Change::Nothing,
    Change::Push("2"),
    Change::Push("1"),
    Change::Delete("1"),
    Change::PushPast("3"),
    Change::Push("1"),
    Change::DeletePast("2"),
    Change::PushElsewhere("4"),
    Change::Nothing,
];

/// Every way of asking.
fn ways(image: &Content) -> Vec<String> {
    let filters = ["", "artifactType=application/even"];
    let of_references = ["kind=subject", "n=1", "inline=true"];
    let digest = &image.digest;
    let referrers = filters.map(|query| format!("/v2/a/referrers/{digest}?{query}"));
    let references = filters.into_iter().chain(of_references).flat_map(|query| {
        [digest.as_str(), "latest"].map(|reference| format!("/v2/a/manifests/{reference}/references?{query}"))
    });
    referrers.into_iter().chain(references).collect()
}

fn named(image: &Content, name: &str) -> Content {
    let is_even = name.parse::<u32>().unwrap() % 2 == 0;
    signature(image, image, if is_even { "application/even" } else { "application/odd" }, name)
}

async fn done(change: Change, scene: &Scene, past: &Client) {
    let Scene { client, image, .. } = scene;
    match change {
        Change::Nothing => {}
        Change::Push(name) => client.push("a", &named(image, name)).await,
        Change::Delete(name) => {
            let path = format!("/v2/a/manifests/{}", named(image, name).digest);
            assert_eq!(client.delete(&path).await.status, StatusCode::ACCEPTED);
        }
        Change::PushPast(name) => {
            let content = named(image, name);
            past.push("a", &content).await;
            past.push_as("a", &referrers_tag(image), &Content::index(&[&content])).await;
        }
        Change::DeletePast(name) => {
            let path = format!("/v2/a/manifests/{}", named(image, name).digest);
            assert_eq!(past.delete(&path).await.status, StatusCode::ACCEPTED);
            assert_eq!(client.get(&path).await.status, StatusCode::NOT_FOUND);
        }
        Change::PushElsewhere(name) => {
            let image = client.image("b", "image").await;
            client.push("b", &named(&image, name)).await;
        }
    }
}

/// The list and where it goes on, by a query that nobody asked before if there is a number.
async fn list(client: &Client, way: &str, number: Option<usize>) -> (Vec<u8>, String) {
    let unknown = number.map(|number| format!("&x={number}")).unwrap_or_default();
    let answer = client.get(&format!("{way}{unknown}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{way} {answer:?}");
    let link = answer.headers.get("link").map(|link| link.to_str().unwrap().to_owned());
    (answer.body, link.unwrap_or_default())
}

async fn check(settings: &[(&'static str, &str)]) {
    let scene = scene_with(settings).await;
    let past = scene.registry.client();
    let ways = ways(&scene.image);
    let mut asked = 0;
    for change in CHANGES {
        done(change, &scene, &past).await;
        for way in &ways {
            let first = list(&scene.client, way, None).await;
            let second = list(&scene.client, way, None).await;
            asked += 1;
            let anew = list(&scene.client, way, Some(asked)).await;
            assert_eq!(first, anew, "{change:?} {way}");
            assert_eq!(second, anew, "{change:?} {way}");
        }
    }
    // The lists did change: what is checked above is not one list all along.
    let (last, _) = list(&scene.client, &ways[0], None).await;
    let last = String::from_utf8(last).unwrap();
    let lists = |name: &str| last.contains(&named(&scene.image, name).digest);
    assert_eq!(["1", "2", "3", "4"].map(lists), [true, false, true, false], "{last}");
}

#[tokio::test]
async fn whoever_asks_again_gets_the_list_of_now() {
    check(&[("REFERRERS_UPSTREAM_TTL", "0s")]).await;
}

#[tokio::test]
async fn without_memory_for_lists_they_are_the_same() {
    check(&[("REFERRERS_UPSTREAM_TTL", "0s"), ("REFERENCES_CACHE_BYTES", "0")]).await;
}
