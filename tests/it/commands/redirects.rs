//! Where a command lets itself be redirected to.

use serde_json::json;

use super::{SBOM, Shell};
use crate::support::{Authority, Client, Content, Http, Registry, Scripted, digest_of};

const TO_ITSELF: &str =
    "HTTP/1.1 302 Found\r\nlocation: /v2/again\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn nothing_is_followed_from_https_to_http() {
    let authority = Authority::new();
    let storage = Scripted::answering("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx");
    let url = format!("http://{}", storage.address);
    let registry = Registry::variant().tls(&authority).redirecting_to(&url).start();
    let client = Client::to(&registry.url(), Http::One, registry.trusted_by());
    client.push_blob("a", b"x").await;
    let image =
        Content::image("{}", "x").changed(|manifest| manifest["config"] = manifest["layers"][0].clone());
    client.push_as("a", "v1", &image).await;
    let image = format!("{}/a:v1", registry.address);
    let ca = authority.certificate();
    for trust in [&["--insecure"][..], &["--ca-file", ca.to_str().unwrap()]] {
        let copy = Shell::new().run(&[&["copy", &image, "oci:out"], trust].concat());
        copy.failed(1, &["reading the blob", &format!("redirected to {url}, which is not encrypted")]);
    }
    assert_eq!(storage.requests().len(), 0);
}

#[test]
fn an_upload_goes_on_where_it_was_redirected_to() {
    let storage = Scripted::start(|exchange| {
        exchange.read_body();
        if exchange.request.line.starts_with("POST") {
            exchange.answer_status("202 Accepted\r\nlocation: /v2/moved/blobs/uploads/1?_state=x");
        } else {
            exchange.answer_status("201 Created");
        }
    });
    let image = Content::image("{}", "x");
    let uploads = format!("http://{}/v2/moved/blobs/uploads/", storage.address);
    let registry = Scripted::start(move |exchange| {
        exchange.read_body();
        let line = exchange.request.line.clone();
        match line.split(' ').next().unwrap() {
            "GET" if line.contains("/manifests/v1") => exchange.answer_manifest(&image),
            "POST" => exchange.answer_status(&format!("307 Temporary Redirect\r\nlocation: {uploads}")),
            "PUT" if line.contains("/manifests/") => exchange.answer_status("201 Created"),
            _ => exchange.answer_status("404 Not Found"),
        }
    });
    let shell = Shell::new();
    shell.write("f", "content");
    shell.ok(&["attach", &format!("{}/a:v1", registry.address), "f", "--artifact-type", SBOM]);
    let sent: Vec<_> = storage
        .requests()
        .into_iter()
        .filter(|request| request.line.starts_with("PUT"))
        .map(|request| (request.line, request.body))
        .collect();
    let expected = [&b"content"[..], b"{}"].map(|content| {
        let digest = digest_of(content).replace(':', "%3A");
        (format!("PUT /v2/moved/blobs/uploads/1?_state=x&digest={digest} HTTP/1.1"), content.to_vec())
    });
    assert_eq!(sent, expected);
}

#[test]
fn redirects_come_to_an_end() {
    let registry = Scripted::answering(TO_ITSELF);
    let tree = Shell::new().run(&["tree", &format!("{}/a:v1", registry.address)]);
    tree.failed(1, &["reading v1", "more than 10 redirects"]);
    assert_eq!(registry.requests().len(), 11);
}

#[test]
fn storage_does_not_say_where_the_credentials_go() {
    let storage = Scripted::start(|exchange| {
        let address = exchange.stream.local_addr().unwrap();
        exchange.answer(&format!(
            "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer realm=\"http://{address}/token\"\r\n\
             content-length: 0\r\nconnection: close\r\n\r\n"
        ));
    });
    let url = format!("http://{}/v2/a", storage.address);
    let registry = Scripted::start(move |exchange| {
        exchange.answer(&format!(
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: {url}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        ));
    });
    let host = registry.address.to_string();
    let shell = Shell::new();
    shell.write(".docker/config.json", json!({"auths": {host.as_str(): {"auth": "YTpi"}}}).to_string());
    shell.run(&["tree", &format!("{host}/a:v1")]).failed(4, &["401"]);
    let lines: Vec<String> = storage.requests().into_iter().map(|request| request.line).collect();
    assert_eq!(lines, ["GET /v2/a HTTP/1.1"]);
}
