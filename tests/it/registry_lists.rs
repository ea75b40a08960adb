//! What the registry itself lists: merged, verified, asked for anew, and never a shorter list.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::referrers::{Scene, digests, referrers, referrers_tag, scene_with, signature};
use crate::support::{Content, IMAGE_INDEX, Refshim, Scripted, about};

/// A registry with `subject` at its digest, of which everything else is scripted.
pub(crate) fn upstream(
    subject: &Content,
    script: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
) -> Scripted {
    let subject = subject.clone();
    Scripted::start(move |exchange| {
        exchange.read_body();
        let line = exchange.request.line.clone();
        match script(&line) {
            Some(answer) => exchange.answer(&answer),
            None if line.contains(&format!("/manifests/{}", subject.digest)) => {
                exchange.answer_manifest(&subject);
            }
            None => exchange.answer_status("404 Not Found"),
        }
    })
}

pub(crate) fn answer(status: &str, content_type: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_referrers_tag_is_listed_as_far_as_it_tells_the_truth_and_always_anew() {
    let Scene { client, image, registry, .. } = &scene_with(&[("REFERRERS_UPSTREAM_TTL", "0s")]).await;
    let direct = registry.client();
    let tag = referrers_tag(image);
    let (first, second, third) = (
        signature(image, image, "application/x", "1"),
        signature(image, image, "application/x", "2"),
        signature(image, image, "application/x", "3"),
    );
    let stranger = about(image, image, "names no subject");
    for content in [&first, &second, &third, &stranger] {
        direct.push("a", content).await;
    }
    let mut lying = Content::index(&[&first, &stranger]);
    lying = lying.changed(|index| {
        index["manifests"][0]["artifactType"] = json!("application/lie");
        index["manifests"][0]["annotations"] = json!({"name": "lie"});
    });
    direct.push_as("a", &tag, &lying).await;
    let entries = referrers(client, "a", &image.digest, "").await;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["artifactType"], "application/x");
    assert_eq!(entries[0]["annotations"], json!({"name": "1"}));
    assert_eq!(digests(client, "a", &image.digest, "").await, [first.digest.clone()]);

    // Round refshim, and through it.
    direct.push_as("a", &tag, &Content::index(&[&first, &second])).await;
    assert_eq!(digests(client, "a", &image.digest, "").await, [first.digest.clone(), second.digest.clone()]);
    client.push_as("a", &tag, &Content::index(&[&first, &second, &third])).await;
    let all = [&first, &second, &third].map(|content| content.digest.clone());
    assert_eq!(digests(client, "a", &image.digest, "").await, all);
    // The list is no parent of what it lists.
    assert_eq!(client.referrers("a", &first.digest, "").await, Vec::<String>::new());

    // Gone behind refshim's back, with its entry; and gone from the list alone.
    direct.delete(&format!("/v2/a/manifests/{}", first.digest)).await;
    direct.push_as("a", &tag, &Content::index(&[&second])).await;
    assert_eq!(digests(client, "a", &image.digest, "").await, [second.digest, third.digest]);
}

#[tokio::test]
async fn what_passes_through_is_seen_in_the_next_query_whatever_is_remembered() {
    let Scene { client, image, registry, .. } = &scene_with(&[("REFERRERS_UPSTREAM_TTL", "5m")]).await;
    assert_eq!(referrers(client, "a", &image.digest, "").await, Vec::<Value>::new());
    let (first, second) =
        (signature(image, image, "application/x", "1"), signature(image, image, "application/x", "2"));
    client.push("a", &first).await;
    assert_eq!(digests(client, "a", &image.digest, "").await, [first.digest.clone()]);
    registry.client().push("a", &second).await;
    client.push_as("a", &referrers_tag(image), &Content::index(&[&first, &second])).await;
    assert_eq!(digests(client, "a", &image.digest, "").await, [first.digest.clone(), second.digest.clone()]);
    client.delete(&format!("/v2/a/manifests/{}", first.digest)).await;
    assert_eq!(digests(client, "a", &image.digest, "").await, [second.digest]);
}

#[tokio::test]
async fn what_is_no_referrers_api_lists_nothing() {
    let image = Content::image("{}", "x");
    let list =
        json!({"manifests": [signature(&image, &image, "application/x", "1").descriptor()]}).to_string();
    let cases = [
        answer("200 OK", "text/html", "<html>log in</html>"),
        answer("200 OK", "application/json", &list),
        answer("200 OK", IMAGE_INDEX, "<html>"),
        answer("303 See Other\r\nlocation: https://example.com/", "text/html", ""),
        answer("401 Unauthorized", "text/plain", ""),
        answer("404 Not Found", "application/json", r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#),
        answer("405 Method Not Allowed", "text/plain", ""),
        answer("501 Not Implemented", "text/plain", ""),
    ];
    for said in cases {
        let case = said.clone();
        let upstream = upstream(&image, move |line| line.contains("/referrers/").then(|| said.clone()));
        let directory = tempfile::tempdir().unwrap();
        let refshim = Refshim::start(upstream.address, directory.path()).await;
        assert_eq!(referrers(&refshim.client(), "a", &image.digest, "").await, Vec::<Value>::new(), "{case}");
    }
}

#[tokio::test]
async fn the_upstreams_own_list_is_merged_page_by_page() {
    let image = Content::image("{}", "x");
    let own: Vec<Content> =
        (0..3).map(|n| signature(&image, &image, "application/x", &n.to_string())).collect();
    let page = |contents: &[Content]| {
        let mut entries: Vec<Value> = contents.iter().map(Content::descriptor).collect();
        for entry in &mut entries {
            entry["artifactType"] = json!("application/x");
        }
        json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries}).to_string()
    };
    let link = format!("link: </v2/a/referrers/{}?page=2>; rel=\"next\"", image.digest);
    let first = answer(&format!("200 OK\r\n{link}"), IMAGE_INDEX, &page(&own[..2]));
    let second = answer("200 OK", IMAGE_INDEX, &page(&own[1..]));
    let upstream = upstream(&image, move |line| {
        let is_second = line.contains("page=2");
        line.contains("/referrers/").then(|| if is_second { second.clone() } else { first.clone() })
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let expected: Vec<String> = own.iter().map(|content| content.digest.clone()).collect();
    for _ in 0..2 {
        assert_eq!(digests(&refshim.client(), "a", &image.digest, "").await, expected);
        let found = digests(&refshim.client(), "a", &image.digest, "?artifactType=application/x").await;
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn a_failed_question_is_no_shorter_list() {
    let image = Content::image("{}", "x");
    let content = signature(&image, &image, "application/x", "1");
    let tag = referrers_tag(&image);
    let list = answer("200 OK", IMAGE_INDEX, &json!({"manifests": [content.descriptor()]}).to_string());
    let broken = "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.oci.image.index.v1+json\r\ncontent-length: 99\r\n\r\n{";
    for place in ["/referrers/", &format!("/manifests/{tag}"), &format!("/manifests/{}", content.digest)] {
        let cases = [
            ("500 Failed", StatusCode::BAD_GATEWAY),
            ("429 Too Many Requests\r\nretry-after: 7", StatusCode::TOO_MANY_REQUESTS),
            ("503 Not Now\r\nretry-after: 7", StatusCode::SERVICE_UNAVAILABLE),
            ("", StatusCode::BAD_GATEWAY),
        ];
        for (status, expected) in cases {
            let fails = Arc::new(Mutex::new(true));
            let (failing, list, tag, place) =
                (Arc::clone(&fails), list.clone(), tag.clone(), place.to_owned());
            let upstream = upstream(&image, move |line| {
                if line.contains(&place) && *failing.lock().unwrap() {
                    let failed = answer(status, "text/plain", "");
                    return Some(if status.is_empty() { broken.to_owned() } else { failed });
                }
                line.contains(&format!("/manifests/{tag}")).then(|| list.clone())
            });
            let directory = tempfile::tempdir().unwrap();
            let refshim = Refshim::start(upstream.address, directory.path()).await;
            let client = refshim.client();
            let path = format!("/v2/a/referrers/{}", image.digest);
            let failed = client.get(&path).await;
            assert_eq!(failed.status, expected, "{status}");
            if expected != StatusCode::BAD_GATEWAY {
                assert_eq!(failed.header("retry-after"), "7");
            }
            // The failure is not remembered.
            *fails.lock().unwrap() = false;
            assert_eq!(client.get(&path).await.status, StatusCode::OK);
        }
    }
}

/// GitLab takes the referrers tag for the digest, and gives the subject itself.
#[tokio::test]
async fn a_subject_at_its_own_referrers_tag_is_no_list() {
    let child = Content::image("{}", "x");
    let index = Content::index(&[&child]);
    let body = String::from_utf8(index.bytes.clone()).unwrap();
    let (tag, asked) = (referrers_tag(&index), Arc::new(AtomicUsize::new(0)));
    let (child_digest, children) = (child.digest.clone(), Arc::clone(&asked));
    let upstream = upstream(&index, move |line| {
        children.fetch_add(usize::from(line.contains(&child_digest)), Ordering::SeqCst);
        line.contains(&format!("/manifests/{tag}")).then(|| answer("200 OK", IMAGE_INDEX, &body))
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    assert_eq!(referrers(&refshim.client(), "a", &index.digest, "").await, Vec::<Value>::new());
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}
