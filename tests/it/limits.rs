//! What is over a limit is refused, quickly and with the limit's name, and what is below it goes on.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use reqwest::{Method, StatusCode};

use crate::support::{Client, Content, Refshim, Registry, Scripted, Shelf, about, put, shelf_registry};

/// A request's beginning on a connection of its own, which is kept open.
fn hold(refshim: &Refshim, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(refshim.address).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

async fn metric(refshim: &Refshim, line: &str) -> bool {
    Client::new(refshim.admin).text("/metrics").await.lines().any(|found| found == line)
}

/// Waits for what other tasks of the process do; the test's own limit ends it.
async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    while !is_so().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An upstream that begins its answer to what is `/slow`, and never ends it; the rest it answers at once.
fn slow() -> Scripted {
    Scripted::start(|exchange| {
        exchange.read_body();
        if exchange.request.line.contains("/slow") {
            exchange.answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345");
            // Until the other end closes it.
            let _closed = exchange.stream.read(&mut [0]);
        } else {
            exchange.answer_status("200 OK");
        }
    })
}

fn status(stream: &mut TcpStream) -> String {
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8(answer.to_vec()).unwrap()
}

#[tokio::test]
async fn one_connection_too_many_is_told_and_closed() {
    let upstream = slow();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path()).with("LIMITS_CONNECTIONS", "3");
    let refshim = refshim.launch().await;
    let mut held: Vec<TcpStream> =
        (0..3).map(|_| hold(&refshim, "GET /v2/slow HTTP/1.1\r\nhost: a\r\n\r\n")).collect();
    for stream in &mut held {
        assert_eq!(status(stream), "HTTP/1.1 200");
    }
    let mut refused = hold(&refshim, "GET /v2/ HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut answer = String::new();
    refused.read_to_string(&mut answer).unwrap();
    let answer = answer.to_lowercase();
    for part in ["http/1.1 503 ", "retry-after: ", "connection: close", "limits.connections"] {
        assert!(answer.contains(part), "no {part} in {answer}");
    }
    assert!(metric(&refshim, r#"refshim_refused_total{limit="connections"} 1"#).await);
    refshim.logs("limits.connections", 1).await;
    drop(held);
    let client = refshim.client();
    until(async || {
        client.try_send(client.request(Method::GET, "/v2/")).await.is_ok_and(|it| it.status == 200)
    })
    .await;
}

#[tokio::test]
async fn one_client_has_so_many_requests_and_others_have_theirs() {
    let upstream = slow();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path())
        .with("LIMITS_REQUESTS_PER_CLIENT", "2")
        .with("TRUSTED_PROXIES", "127.0.0.1")
        .launch()
        .await;
    let slow = |client: &str| {
        let head = format!("GET /v2/a/blobs/slow HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {client}\r\n\r\n");
        let mut stream = hold(&refshim, &head);
        let answer = status(&mut stream);
        (stream, answer)
    };
    // In progress until the last byte of the body.
    let held = [slow("192.0.2.1"), slow("192.0.2.1")];
    assert!(held.iter().all(|(_, answer)| answer == "HTTP/1.1 200"));
    let client = refshim.client();
    let ask = async |address: &str| {
        client.send(client.request(Method::GET, "/v2/").header("x-forwarded-for", address)).await
    };
    let refused = ask("192.0.2.1").await;
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS")
    );
    refused.header("retry-after");
    assert!(String::from_utf8(refused.body).unwrap().contains("limits.requests_per_client"));
    assert_eq!(ask("192.0.2.2").await.status, StatusCode::OK);
    assert!(metric(&refshim, r#"refshim_refused_total{limit="requests_per_client"} 1"#).await);
    drop(held);
    until(async || ask("192.0.2.1").await.status == StatusCode::OK).await;
}

#[tokio::test]
async fn manifests_are_held_up_to_a_limit_and_other_requests_do_not_mind() {
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
        if exchange.request.line.contains("/held") {
            let _closed = exchange.stream.read(&mut [0]);
        } else {
            exchange.answer_status("201 Created");
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path())
        .with("MANIFESTS_MAX_BYTES", "1MiB")
        .with("LIMITS_MANIFEST_BYTES", "1MiB")
        .launch()
        .await;
    let client = refshim.client();
    let image = Content::image("{}", "x");
    let padded = |bytes: usize| image.changed(|manifest| manifest["x"] = "x".repeat(bytes).into());
    // All that may be held, taken by the upstream and not answered.
    let whole = padded((1 << 20) - 1_000).bytes;
    let head =
        format!("PUT /v2/a/manifests/held HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", whole.len());
    let mut holder = hold(&refshim, &head);
    holder.write_all(&whole).unwrap();
    until(async || upstream.requests().iter().any(|request| request.body.len() == whole.len())).await;
    // What the upstream has taken is held no longer.
    until(async || client.put_manifest("a", "small", &image).await.status == StatusCode::CREATED).await;
    // What is too long to be held passes.
    let long = client.put_manifest("a", "long", &padded(2 << 20)).await;
    assert_eq!(long.status, StatusCode::CREATED);
    assert!(long.header("warning").contains("longer than"));
}

#[tokio::test]
async fn questions_to_a_stalled_registry_do_not_pile_up() {
    // Answers begin and never end: that takes longer than a question waits for its turn.
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
        match exchange.request.line.clone() {
            line if line.starts_with("HEAD") => exchange.answer_status("405 Method Not Allowed"),
            line if line.contains("/manifests/") => {
                exchange.answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{");
                std::thread::sleep(Duration::from_secs(60));
            }
            _ => exchange.answer_status("200 OK"),
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path())
        .with("LIMITS_QUESTIONS", "8")
        .with("TIMEOUTS_RESPONSE", "1s")
        .launch()
        .await;
    let path = |tag: &str| format!("/v2/a/manifests/{tag}/references");
    let ask = |tag: usize| format!("GET {} HTTP/1.1\r\nhost: a\r\n\r\n", path(&tag.to_string()));
    let held: Vec<TcpStream> = (0..8).map(|tag| hold(&refshim, &ask(tag))).collect();
    let is_get = |request: &&crate::support::Request| request.line.starts_with("GET");
    until(async || upstream.requests().iter().filter(is_get).count() >= 8).await;
    let client = refshim.client();
    let refused = client.get(&path("latest")).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    refused.header("retry-after");
    assert!(String::from_utf8(refused.body).unwrap().contains("too many questions"));
    assert_eq!(client.get("/v2/").await.status, StatusCode::OK);
    drop(held);
}

/// A registry that is slow does not turn many equal queries into many questions, nor into errors.
#[tokio::test]
async fn equal_queries_at_once_cost_a_slow_registry_one_of_each_question() {
    let shelf = Shelf::default();
    let image = Content::image("{}", "x");
    let signature = about(&image, &image, "signature");
    put(&shelf, "a", &["latest"], &image);
    let gate = std::sync::Arc::new((std::sync::Mutex::new(true), std::sync::Condvar::new()));
    let door = std::sync::Arc::clone(&gate);
    let upstream = shelf_registry(&shelf, move |turn| {
        if turn.is_read() {
            let (open, changed) = &*door;
            drop(changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
        }
        Some(turn.right.clone())
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path())
        .with("LIMITS_QUESTIONS", "8")
        .with("REFERENCES_ACCESS_TTL", "5m")
        .with("REFERRERS_UPSTREAM_TTL", "5m")
        .launch()
        .await;
    let client = refshim.client();
    let [referrers, references] =
        ["/v2/a/referrers/{}", "/v2/a/manifests/{}/references"].map(|path| path.replace("{}", &image.digest));
    let by_tag = "/v2/a/manifests/latest/references".to_owned();
    let inlined = format!("{references}?inline=true");
    // What is asked for with each query, however lately: the tag, and what is inlined.
    for (path, is_asked_each_time) in
        [(referrers, false), (references, false), (by_tag, true), (inlined, true)]
    {
        // A write that passes ends what is remembered.
        client.push("a", &signature).await;
        *gate.0.lock().unwrap() = false;
        let before = upstream.requests().len();
        let queries: Vec<_> = (0..300)
            .map(|_| {
                let (client, path) = (client.clone(), path.clone());
                tokio::spawn(async move { client.get(&path).await })
            })
            .collect();
        until(async || upstream.requests().len() > before).await;
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        for query in queries {
            assert_eq!(query.await.unwrap().status, StatusCode::OK, "{path}");
        }
        // The subject by HEAD, the referrers tag by GET, and the API.
        let asked = upstream.requests().len() - before;
        assert!(is_asked_each_time || asked <= 4, "{path}: {asked} questions");
    }
}

#[tokio::test]
async fn a_repository_that_is_full_takes_pushes_without_their_links_and_says_so() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim =
        Refshim::prepare(registry.address, directory.path()).with("LIMITS_REPOSITORY_REFERRERS", "2");
    let refshim = refshim.launch().await;
    let client = refshim.client();
    for repository in ["a", "b"] {
        let image = client.image(repository, "image").await;
        client.push(repository, &image).await;
        let [first, second, third] = ["1", "2", "3"].map(|name| about(&image, &image, name));
        client.push(repository, &first).await;
        client.push(repository, &second).await;
        let answer = client.put_manifest(repository, &third.digest, &third).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        assert!(answer.header("warning").contains("too many referrers"));
        let listed = client.referrers(repository, &image.digest, "").await;
        assert_eq!(listed, [first.digest.clone(), second.digest]);
        client.delete(&format!("/v2/{repository}/manifests/{}", first.digest)).await;
        client.push(repository, &third).await;
        assert!(client.referrers(repository, &image.digest, "").await.contains(&third.digest));
    }
    assert!(
        metric(&refshim, r#"refshim_unrecorded_total{upstream="default",reason="repository_full"} 2"#).await
    );
}
