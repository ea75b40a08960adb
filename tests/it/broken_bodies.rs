//! An answer whose body the registry breaks off: its head arrives all the same, and the client hears that
//! the body is not whole.

use futures_util::future::join_all;
use reqwest::Method;

use crate::support::{Client, Face, Scripted};

/// At once, since the head and the break race each other.
const REQUESTS: usize = 20;

async fn expect_head_without_body(client: &Client, path: &str, status: &str, what: &str) {
    let request = client.request(Method::GET, path).header("range", "bytes=9-");
    let answer = request.send().await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_eq!(answer.status().as_str(), &status[..3], "{what}");
    assert_eq!(answer.headers()["content-range"], "bytes */4", "{what}");
    assert!(answer.bytes().await.is_err(), "{what}: passed as whole");
}

#[tokio::test]
async fn the_status_arrives_before_the_body_breaks_off() {
    for (status, body) in
        [("416 Range Not Satisfiable", ""), ("416 Range Not Satisfiable", "abc"), ("200 OK", "")]
    {
        let upstream = Scripted::start(move |exchange| {
            exchange.answer(&format!(
                "HTTP/1.1 {status}\r\ncontent-range: bytes */4\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{body}"
            ));
        });
        for face in Face::ALL {
            let scene = face.before(upstream.address, &[]).await;
            let what = format!("{face:?} {status} {body:?}");
            let paths = ["/v2/a/blobs/x", "/v2/a/manifests/latest"].repeat(REQUESTS / 2);
            join_all(paths.iter().map(|path| expect_head_without_body(&scene.client, path, status, &what)))
                .await;
        }
    }
}
