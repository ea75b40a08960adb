//! An upstream that answers by the head of a request alone and resets the connection, as a registry does that
//! refuses an upload: its answer arrives, however much of the body is on its way.

use futures_util::future::join_all;
use reqwest::{Body, Method};

use crate::support::{Client, Face, Scripted};

const STATUSES: [&str; 3] = ["401 Unauthorized", "413 Content Too Large", "400 Bad Request"];

/// The answer, by the status that the path names. It ends the connection, as Go's server does when a body was not read:
/// otherwise the next request could be sent on a connection that is being reset, and nobody could repeat it.
fn refusal(line: &str) -> String {
    let status = STATUSES.iter().find(|status| line.contains(&status[..3])).unwrap_or(&STATUSES[0]);
    format!(
        "HTTP/1.1 {status}\r\nwww-authenticate: Basic realm=\"x\"\r\ncontent-length: 7\r\nconnection: close\r\n\r\nrefused"
    )
}

/// Uploads of all kinds at once, so that answer and body cross in every way.
async fn check(client: &Client, told: &str) {
    let lengths = [1_000, 100_000, 4_000_000];
    let kinds = lengths.iter().flat_map(|length| STATUSES.map(|status| (*length, status)));
    for (length, status) in kinds {
        let sent = (0..8).map(async |number| {
            let path = format!("/v2/a/blobs/uploads/{}", &status[..3]);
            let request = client.request(if number % 2 == 0 { Method::PATCH } else { Method::PUT }, &path);
            let request = if number & 2 == 0 { request } else { request.header("expect", "100-continue") };
            let request = if number & 4 == 0 {
                request.body(vec![0; length])
            } else {
                let pieces: Vec<_> = (0..10).map(|_| Ok::<_, std::io::Error>(vec![0; length / 10])).collect();
                request.body(Body::wrap_stream(futures_util::stream::iter(pieces)))
            };
            let answer = client.try_send(request).await;
            let answer = answer.unwrap_or_else(|error| panic!("{told} {length} {number}: {error:?}"));
            assert_eq!(answer.status.as_str(), &status[..3], "{told} {length} {number}: {answer:?}");
            assert_eq!(answer.header("www-authenticate"), "Basic realm=\"x\"");
            assert_eq!(answer.body, b"refused");
        });
        join_all(sent).await;
    }
}

#[tokio::test]
async fn an_answer_to_an_upload_arrives_though_the_connection_is_reset() {
    let upstream = Scripted::start(|exchange| {
        let answer = refusal(&exchange.request.line);
        exchange.answer(&answer);
    });
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        check(&scene.client, &format!("{face:?}")).await;
    }
}
