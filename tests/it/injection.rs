//! Names, annotations and media types that try to get out of where they stand.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Content, Refshim, Scripted, Shelf, put, shelf_registry};

const HOSTILE: &str = "x\r\nx-injected: 1\r\n\r\n<script>\u{1b}[31m\u{0}\u{85}\u{2028}\"}],\"x\":[{\"";
const ENCODED: &str =
    "x%0d%0ax-injected:%201%0d%0a%0d%0a%3Cscript%3E%1b[31m%00%c2%85%e2%80%a8%22}],%22x%22:[{%22";

/// A registry that has this image.
fn agreeable(image: &Content) -> Scripted {
    let shelf = Shelf::default();
    put(&shelf, "a", &["latest"], image);
    shelf_registry(&shelf, |turn| Some(turn.right.clone()))
}

#[track_caller]
fn check(answer: &Answer) {
    assert!(!answer.headers.contains_key("x-injected"), "{answer:?}");
    for (name, value) in &answer.headers {
        assert!(value.as_bytes().iter().all(|byte| (b' '..=b'~').contains(byte)), "{name}: {value:?}");
    }
}

#[tokio::test]
async fn what_a_manifest_says_stays_in_its_place_in_answers_and_log_lines() {
    let image = Content::image("{}", "x");
    let upstream = agreeable(&image);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    let hostile = image.changed(|manifest| {
        manifest["mediaType"] = HOSTILE.into();
        manifest["artifactType"] = HOSTILE.into();
        manifest["annotations"] = json!({HOSTILE: HOSTILE});
        manifest["reference"] =
            json!([image.descriptor(), {"digest": HOSTILE}, {"digest": HOSTILE, "size": HOSTILE}]);
    });
    // Without a Content-Type it is the manifest's own media type that is listed.
    let put = client.request(Method::PUT, &format!("/v2/a/manifests/{}", hostile.digest));
    let answer = client.send(put.body(hostile.bytes.clone())).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert!(answer.header("warning").starts_with("299 - \"refshim: malformed links"), "{answer:?}");
    check(&answer);
    let second = hostile.changed(|manifest| manifest["annotations"] = json!({HOSTILE: HOSTILE, "n": "2"}));
    let quoting = Content { media_type: "application/x+\"]}\\".to_owned(), ..second };
    assert_eq!(client.put_manifest("a", &quoting.digest, &quoting).await.status, StatusCode::CREATED);

    let path = format!("/v2/a/manifests/{}/references", image.digest);
    let filters = format!("?annotation={ENCODED}={ENCODED}&artifactType={ENCODED}");
    for (query, listed) in
        [(String::new(), 2), (format!("{filters}&n=1"), 1), (format!("{filters}&mediaType={ENCODED}"), 1)]
    {
        let answer = client.get(&format!("{path}{query}")).await;
        check(&answer);
        let index = answer.json();
        let entries = index["manifests"].as_array().unwrap();
        assert_eq!((entries.len(), index.as_object().unwrap().len()), (listed, 3), "{query}");
        let expected = json!({
            "mediaType": HOSTILE, "digest": hostile.digest, "size": hostile.bytes.len(),
            "artifactType": HOSTILE, "annotations": {HOSTILE: HOSTILE},
        });
        assert_eq!(entries[0], expected);
        let Some(link) = answer.headers.get("link") else { continue };
        let next = link.to_str().unwrap().strip_prefix('<').unwrap().split_once('>').unwrap().0.to_owned();
        let next = client.get(&next).await;
        check(&next);
        assert_eq!(next.json()["manifests"][0]["mediaType"], quoting.media_type);
    }

    for line in refshim.lines() {
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["x-injected"].is_null(), "{line}");
    }
    refshim.logs("malformed links of a manifest are not recorded", 1).await;
}

#[tokio::test]
async fn what_a_path_or_a_query_says_stays_in_its_place() {
    let upstream = agreeable(&Content::image("{}", "x"));
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    let encoded = ENCODED.replace('[', "%5B").replace('{', "%7B").replace('}', "%7D").replace(']', "%5D");
    let digest = format!("sha256:{}", "0a".repeat(32));
    for path in [
        format!("/v2/{encoded}/manifests/latest/references"),
        format!("/v2/a/manifests/{encoded}/references"),
        format!("/v2/a/manifests/sha256:{encoded}/references"),
        format!("/v2/a/referrers/{encoded}"),
        format!("/v2/{encoded}/referrers/{digest}"),
        format!("/v2/a/manifests/{digest}/references?kind={encoded}"),
        format!("/v2/a/manifests/{digest}/references?last={encoded}"),
        format!("/v2/a/manifests/{digest}/references?beyond={encoded}&scope=registry"),
        format!("/v2/a/referrers/{digest}?last={encoded}"),
    ] {
        let answer = client.get(&path).await;
        check(&answer);
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
        answer.error_code();
        check(&client.delete(&path).await);
    }
    check(&client.get(&format!("/v2/a/manifests/latest?ns={encoded}")).await);
    check(&client.get(&format!("/v2/a/referrers/{digest}?ns={encoded}&artifactType={encoded}")).await);
    for line in refshim.lines() {
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string(), "{line}");
    }
}
