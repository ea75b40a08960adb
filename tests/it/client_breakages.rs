//! What breaks in registry proxies, each once: a test for every way in which one was seen to break its
//! clients, over every way in which refshim is spoken to and speaks.

use std::io::{Read as _, Write as _};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::{Body, Method, StatusCode};

use crate::support::{Face, Request, Scripted};

const NOTHING: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// The request that the upstream saw last.
fn last(upstream: &Scripted) -> Request {
    upstream.requests().last().unwrap().clone()
}

/// An upstream whose every answer has this header, in which `{host}` stands for the Host it was asked by.
fn with_header(header: &'static str) -> Scripted {
    Scripted::start(move |exchange| {
        exchange.read_body();
        let header = header.replace("{host}", exchange.request.header("host").unwrap());
        let answer =
            format!("HTTP/1.1 202 Accepted\r\nconnection: close\r\n{header}\r\ncontent-length: 0\r\n\r\n");
        exchange.answer(&answer);
    })
}

#[tokio::test]
async fn an_upload_goes_on_the_way_it_came_and_keeps_its_state() {
    for header in [
        "location: http://{host}/v2/a/blobs/uploads/1?_state=x%2Fy%3D%3D&z",
        "location: https://{host}/v2/a/blobs/uploads/1?_state=x%2Fy%3D%3D&z",
        "location: /v2/a/blobs/uploads/1?_state=x%2Fy%3D%3D&z",
    ] {
        let upstream = with_header(header);
        for face in Face::ALL {
            let scene = face.before(upstream.address, &[]).await;
            for method in [Method::POST, Method::PATCH, Method::PUT] {
                let request = scene.client.request(method, "/v2/a/blobs/uploads/").body("x");
                let location = scene.client.send(request).await.header("location").to_owned();
                assert_eq!(location, "/v2/a/blobs/uploads/1?_state=x%2Fy%3D%3D&z", "{face:?} {header}");
            }
        }
    }
}

#[tokio::test]
async fn a_location_outside_the_api_leads_to_the_upstream_again() {
    let upstream = with_header("location: http://{host}/artifacts-uploads/namespaces/p/1?upload_id=%2B");
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        let started = scene.client.send(scene.client.request(Method::POST, "/v2/a/blobs/uploads/")).await;
        let location = started.header("location");
        scene.client.send(scene.client.request(Method::PUT, location).body("x")).await;
        let line = last(&upstream).line;
        assert_eq!(line, "PUT /artifacts-uploads/namespaces/p/1?upload_id=%2B HTTP/1.1", "{face:?}");
    }
}

#[tokio::test]
async fn a_challenge_arrives_byte_for_byte() {
    const CHALLENGE: &str =
        r#"Bearer realm="https://auth.example.com/token",service="registry",scope="repository:a:pull,push""#;
    let upstream = Scripted::answering(
        "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer realm=\"https://auth.example.com/token\",\
         service=\"registry\",scope=\"repository:a:pull,push\"\r\nwww-authenticate: Basic realm=\"x  y\"\r\n\
         connection: close\r\ncontent-length: 0\r\n\r\n",
    );
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        for path in ["/v2/", "/v2/a/manifests/latest", "/v2/a/manifests/latest/references"] {
            let answer = scene.client.get(path).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
            let challenges: Vec<_> = answer.headers.get_all("www-authenticate").iter().collect();
            assert_eq!(challenges, [CHALLENGE, r#"Basic realm="x  y""#], "{face:?} {path}");
        }
    }
}

#[tokio::test]
async fn a_layer_streams_and_is_not_gathered_first() {
    let (arrived, seen) = channel();
    let arrived = Mutex::new(arrived);
    let upstream = Scripted::start(move |exchange| {
        let mut first = [0; 4];
        exchange.stream.read_exact(&mut first).unwrap();
        arrived.lock().unwrap().send(first).unwrap();
        let mut rest = vec![0; 8 << 20];
        exchange.stream.read_exact(&mut rest).unwrap();
        exchange.answer(NOTHING);
    });
    let seen = Arc::new(Mutex::new(seen));
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        let seen = Arc::clone(&seen);
        let rest = futures_util::stream::once(async move {
            let first =
                tokio::task::spawn_blocking(move || seen.lock().unwrap().recv().unwrap()).await.unwrap();
            assert_eq!(&first, b"head");
            Ok(vec![0; 8 << 20])
        });
        let head = futures_util::stream::iter([Ok::<_, std::io::Error>(b"head".to_vec())]);
        let upload = scene.client.request(Method::PATCH, "/v2/a/blobs/uploads/1");
        let upload = upload.header("content-length", 4 + (8 << 20)).body(Body::wrap_stream(head.chain(rest)));
        assert_eq!(scene.client.send(upload).await.status, StatusCode::OK, "{face:?}");
    }
}

#[tokio::test]
async fn a_patch_that_was_half_sent_is_not_sent_again() {
    let upstream = Scripted::start(|exchange| {
        let mut some = [0; 1000];
        exchange.stream.read_exact(&mut some).unwrap();
    });
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        let before = upstream.requests().len();
        let upload = scene.client.request(Method::PATCH, "/v2/a/blobs/uploads/1").body(vec![0; 1 << 20]);
        assert_eq!(scene.client.send(upload).await.status, StatusCode::BAD_GATEWAY, "{face:?}");
        assert_eq!(upstream.requests().len(), before + 1, "{face:?}");
    }
}

#[tokio::test]
async fn bodies_without_a_length_need_none_and_an_empty_one_keeps_its_own() {
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
        exchange.answer(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        );
    });
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>("one"), Ok("two")]);
        let patch = scene.client.request(Method::PATCH, "/v2/a/blobs/uploads/1");
        let answer = scene.client.send(patch.body(Body::wrap_stream(pieces))).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"abc"[..]), "{face:?}");
        assert_eq!(last(&upstream).header("content-length"), None, "{face:?}");
        let body = String::from_utf8(last(&upstream).body).unwrap();
        let data: String = body.split("\r\n").skip(1).step_by(2).collect();
        assert_eq!(data, "onetwo", "{face:?}: {body}");

        let post = scene.client.request(Method::POST, "/v2/a/blobs/uploads/").header("content-length", "0");
        scene.client.send(post).await;
        assert_eq!(last(&upstream).header("content-length"), Some("0"), "{face:?}");
    }
}

#[tokio::test]
async fn no_verb_is_blocked() {
    let upstream = Scripted::answering(NOTHING);
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        for method in
            ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "M-SEARCH"]
        {
            let request = scene.client.request(Method::from_bytes(method.as_bytes()).unwrap(), "/v2/any?x=y");
            assert_eq!(scene.client.send(request).await.status, StatusCode::OK);
            assert_eq!(last(&upstream).line, format!("{method} /v2/any?x=y HTTP/1.1"), "{face:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_breaks_off_breaks_the_upstream_off_and_the_other_way_round() {
    let (gone, seen) = channel();
    let gone = Mutex::new(gone);
    let upstream = Scripted::start(move |exchange| {
        exchange.answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1000000000\r\n\r\nabc");
        if exchange.request.line.contains("endless") {
            let block = vec![0; 64 * 1024];
            while exchange.stream.write_all(&block).is_ok() {}
            gone.lock().unwrap().send(()).unwrap();
        }
    });
    let seen = Arc::new(Mutex::new(seen));
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        let download = scene.client.request(Method::GET, "/v2/a/blobs/endless").send().await.unwrap();
        let mut body = download.bytes_stream();
        assert!(body.next().await.unwrap().is_ok());
        drop(body);
        let seen = Arc::clone(&seen);
        tokio::task::spawn_blocking(move || seen.lock().unwrap().recv().unwrap()).await.unwrap();

        let download = scene.client.request(Method::GET, "/v2/a/blobs/breaks").send().await.unwrap();
        assert_eq!(download.content_length(), Some(1_000_000_000), "{face:?}");
        assert!(download.bytes().await.is_err(), "{face:?}");
    }
}

/// More bodies on one connection than its window holds are left unread, and one more goes on.
#[tokio::test]
async fn a_slow_download_does_not_hold_up_the_others() {
    let upstream = Scripted::start(|exchange| {
        exchange.answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 8388608\r\n\r\n");
        let block = vec![0; 64 * 1024];
        for _ in 0..128 {
            if exchange.stream.write_all(&block).is_err() {
                return;
            }
        }
    });
    for face in [Face::Http1, Face::TlsHttp1, Face::Http2Upstream] {
        let scene = face.before(upstream.address, &[]).await;
        let mut unread = Vec::new();
        for _ in 0..40 {
            let slow = scene.client.request(Method::GET, "/v2/a/blobs/slow").send().await.unwrap();
            let mut body = slow.bytes_stream();
            assert!(body.next().await.unwrap().is_ok());
            unread.push(body);
        }
        let answer = scene.client.get("/v2/a/blobs/fast").await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 8 << 20), "{face:?}");
    }
}

#[tokio::test]
async fn a_head_keeps_its_length_and_a_body_its_encoding() {
    let upstream = Scripted::start(|exchange| {
        let body = if exchange.request.line.starts_with("HEAD") { "" } else { "\u{1f}gz" };
        exchange.answer(&format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-encoding: gzip\r\ncontent-type: a/b\r\n\
             etag: \"x\"\r\nvary: accept\r\ncontent-length: 3\r\n\r\n{body}"
        ));
    });
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        for method in [Method::HEAD, Method::GET] {
            let request =
                scene.client.request(method.clone(), "/v2/a/manifests/x").header("accept-encoding", "gzip");
            let answer = scene.client.send(request).await;
            let fields = ["content-length", "content-encoding", "content-type", "etag", "vary"];
            let found = fields.map(|name| answer.header(name).to_owned());
            assert_eq!(found, ["3", "gzip", "a/b", "\"x\"", "accept"], "{face:?} {method}");
            assert_eq!(answer.body.len(), if method == Method::HEAD { 0 } else { 3 });
            assert_eq!(last(&upstream).header("accept-encoding"), Some("gzip"));
        }
    }
}

#[tokio::test]
async fn the_digest_comes_back_and_accept_goes_up_as_it_was_sent() {
    let upstream = with_header("Docker-Content-Digest: sha256:00");
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        let request = scene.client.request(Method::GET, "/v2/a/manifests/latest");
        let request =
            request.header("accept", "a/b;q=0.5, c/d").header("accept", "e/f").header("accept", "*/*");
        assert_eq!(scene.client.send(request).await.header("docker-content-digest"), "sha256:00");
        let request = last(&upstream);
        let accepted: Vec<_> = request.headers.iter().filter(|(name, _)| name == "accept").collect();
        let values: Vec<&str> = accepted.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["a/b;q=0.5, c/d", "e/f", "*/*"], "{face:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_the_clients_to_follow_and_credentials_go_nowhere_else() {
    let storage = Scripted::answering(NOTHING);
    let target = format!("http://{}/bucket/blob?X-Amz-Signature=a%2Fb", storage.address);
    let location = target.clone();
    let upstream = Scripted::start(move |exchange| {
        exchange.read_body();
        exchange.answer(&format!(
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: {location}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        ));
    });
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        let client = scene.client.as_user("alice", "secret");
        for path in ["/v2/a/blobs/sha256:00", "/v2/a/manifests/latest"] {
            let answer = client.get(path).await;
            assert_eq!(
                (answer.status, answer.header("location")),
                (StatusCode::TEMPORARY_REDIRECT, &*target)
            );
        }
        let query = client.get("/v2/a/manifests/latest/references").await;
        assert_eq!(query.status, StatusCode::BAD_GATEWAY, "{face:?}: a redirect is no verdict");
    }
    // refshim's own questions follow, as nobody.
    for request in storage.requests() {
        assert!(request.line.starts_with("GET ") && request.header("authorization").is_none(), "{request:?}");
    }
}

#[tokio::test]
async fn a_part_of_a_blob_is_asked_for_and_given_as_a_part() {
    let upstream = Scripted::start(|exchange| {
        let answer = if exchange.request.header("range") == Some("bytes=9-") {
            "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-range: bytes */4\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        } else {
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 1-3/4\r\naccept-ranges: bytes\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbcd"
        };
        exchange.answer(answer);
    });
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        for (range, status, content_range) in [
            ("bytes=1-", 206, "bytes 1-3/4"),
            ("bytes=1-3", 206, "bytes 1-3/4"),
            ("bytes=9-", 416, "bytes */4"),
        ] {
            let request = scene.client.request(Method::GET, "/v2/a/blobs/x").header("range", range);
            let answer = scene.client.send(request.header("if-range", "\"x\"")).await;
            assert_eq!((answer.status.as_u16(), answer.header("content-range")), (status, content_range));
            let seen = last(&upstream);
            assert_eq!(
                (seen.header("range"), seen.header("if-range")),
                (Some(range), Some("\"x\"")),
                "{face:?}"
            );
        }
    }
}

#[tokio::test]
async fn the_namespace_and_a_path_before_the_api_are_kept() {
    let upstream = with_header("location: /nexus/repository/docker/v2/a/blobs/uploads/1?x");
    for face in [Face::Http1, Face::Http2, Face::TlsHttp1, Face::TlsHttp2] {
        let url = format!("http://{}/nexus/repository/docker/", upstream.address);
        let scene = face.before_url(&url, &[]).await;
        let answer = scene.client.get("/v2/a/manifests/latest?ns=docker.io").await;
        let line = last(&upstream).line;
        assert_eq!(
            line, "GET /nexus/repository/docker/v2/a/manifests/latest?ns=docker.io HTTP/1.1",
            "{face:?}"
        );
        assert_eq!(answer.header("location"), "/v2/a/blobs/uploads/1?x");
        scene.client.get("/v2").await;
        assert_eq!(last(&upstream).line, "GET /nexus/repository/docker/v2 HTTP/1.1");
        scene.client.get("/service/rest/v1/status").await;
        assert_eq!(last(&upstream).line, "GET /service/rest/v1/status HTTP/1.1");
    }
}

#[tokio::test]
async fn a_refusal_that_sends_clients_elsewhere_arrives_as_it_is() {
    for status in ["403 Forbidden", "429 Too Many Requests", "503 Service Unavailable", "418 I'm a teapot"] {
        let upstream = Scripted::start(move |exchange| {
            exchange.read_body();
            exchange.answer(&format!(
                "HTTP/1.1 {status}\r\nretry-after: 17\r\nratelimit-remaining: 0;w=21600\r\nconnection: close\r\n\
                 content-type: text/html\r\ncontent-length: 4\r\n\r\nbusy"
            ));
        });
        for face in Face::ALL {
            let scene = face.before(upstream.address, &[]).await;
            for method in [Method::GET, Method::PUT] {
                let answer = scene.client.send(scene.client.request(method, "/v2/a/manifests/x")).await;
                let found = (answer.status.as_str(), answer.header("retry-after"), &answer.body[..]);
                assert_eq!(found, (&status[..3], "17", &b"busy"[..]), "{face:?}");
                assert_eq!(answer.header("ratelimit-remaining"), "0;w=21600");
            }
        }
    }
}

#[tokio::test]
async fn forwarded_fields_are_set_and_believed_from_nobody_but_a_trusted_proxy() {
    let upstream = Scripted::answering(NOTHING);
    let fields = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port"];
    for face in [Face::Http1, Face::Http2, Face::TlsHttp1, Face::TlsHttp2] {
        for trusted in [false, true] {
            let settings: &[_] = if trusted { &[("TRUSTED_PROXIES", "127.0.0.0/8")] } else { &[] };
            let scene = face.before(upstream.address, settings).await;
            let request = scene.client.request(Method::GET, "/v2/").header("x-forwarded-for", "192.0.2.1");
            let request =
                request.header("x-forwarded-proto", "gopher").header("x-forwarded-host", "lb.example.com");
            scene.client.send(request.header("x-forwarded-port", "70").header("forwarded", "for=x")).await;
            let seen = last(&upstream);
            let found = fields.map(|name| seen.header(name).map(str::to_owned));
            let own = (
                scene.refshim.address.to_string(),
                if matches!(face, Face::TlsHttp1 | Face::TlsHttp2) { "https" } else { "http" },
            );
            let expected = if trusted {
                ["192.0.2.1, 127.0.0.1", "gopher", "lb.example.com", "70"].map(|value| Some(value.to_owned()))
            } else {
                [Some("127.0.0.1".to_owned()), Some(own.1.to_owned()), Some(own.0), None]
            };
            assert_eq!(found, expected, "{face:?}");
            assert_eq!(seen.header("forwarded"), None);
        }
    }
}

#[tokio::test]
async fn the_next_page_is_asked_for_on_the_way_the_first_one_was() {
    let upstream = with_header("link: <http://{host}/v2/_catalog?last=b&n=1>; rel=\"next\"");
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        let link = scene.client.get("/v2/_catalog?n=1").await.header("link").to_owned();
        assert_eq!(link, "</v2/_catalog?last=b&n=1>; rel=\"next\"", "{face:?}");
    }
}

#[tokio::test]
async fn a_refusal_comes_before_the_body_is_sent() {
    for status in ["401 Unauthorized", "413 Content Too Large"] {
        let upstream = Scripted::start(move |exchange| {
            exchange.answer(&format!(
                "HTTP/1.1 {status}\r\nwww-authenticate: Basic realm=\"x\"\r\nconnection: close\r\ncontent-length: 4\r\n\r\nlate"
            ));
            // As a server does that will not read it: its end is closed, the client may go on for a while.
            exchange.stream.shutdown(std::net::Shutdown::Write).unwrap();
            std::thread::sleep(Duration::from_millis(300));
        });
        for face in Face::ALL {
            let scene = face.before(upstream.address, &[]).await;
            let more = futures_util::stream::unfold(0, |count| async move {
                tokio::time::sleep(Duration::from_millis(u64::from(count > 100))).await;
                (count < 2_000).then(|| (Ok::<_, std::io::Error>(vec![0; 64 * 1024]), count + 1))
            });
            let upload =
                scene.client.request(Method::PATCH, "/v2/a/blobs/uploads/1").body(Body::wrap_stream(more));
            let answer = scene.client.send(upload).await;
            assert_eq!((answer.status.as_str(), &answer.body[..]), (&status[..3], &b"late"[..]), "{face:?}");
            assert_eq!(scene.client.get("/v2/").await.status.as_str(), &status[..3], "{face:?}");
        }
    }
}
