//! Requests that no registry client sends on a good day, byte for byte: what can be read in one way
//! arrives as it came, and what can be read in two is refused.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Face, RawAnswer, Refshim, Request as Received, Scripted, exchange};

const NOTHING: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
const SMUGGLED: &str = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";
const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

struct Scene {
    upstream: Scripted,
    refshim: Refshim,
    _directory: tempfile::TempDir,
}

async fn scene(upstream: Scripted) -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    Scene { upstream, refshim, _directory: directory }
}

impl Scene {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.refshim.address).await.unwrap()
    }

    fn last(&self) -> Received {
        self.upstream.requests().last().unwrap().clone()
    }
}

/// One request over HTTP/2, its URI as it stands.
async fn over_http2(address: SocketAddr, request: Request<Empty<Bytes>>) -> Response<Incoming> {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let builder = http2::Builder::new(TokioExecutor::new()).max_header_list_size(1 << 20).handshake(stream);
    let (mut sender, connection) = builder.await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

#[tokio::test]
async fn a_target_arrives_as_it_was_sent() {
    let scene = scene(Scripted::answering(NOTHING)).await;
    let long_name = format!("/v2/{}/manifests/latest", "a/".repeat(200) + &"b".repeat(300));
    let long_query = format!("/v2/a/tags/list?last={}", "x".repeat(60_000));
    for target in [
        "/",
        "/v2/../etc/passwd",
        "/v2/a/../../b/./c",
        "/..",
        "//v2//a//b",
        "/v2/a//manifests//latest",
        "/v2/a/manifests/../references",
        "/v2/%2e%2e/a",
        "/v2/a%2Fb/tags/list",
        "/v2/a%2fb/manifests/latest",
        &format!("/v2/a/manifests/sha256%3A{DIGEST}"),
        &format!("/v2/a/blobs/sha256%3a{DIGEST}"),
        "/v2/a/blobs/uploads/1?_state=%2B+%3D&_state=&&x",
        "/v2/a/tags/list?",
        "/v2/A/manifests/latest?x=%zz&y={|}",
        "/v2/%00%ff",
        "/v2/caf%C3%A9/\u{e9}",
        &long_name,
        &long_query,
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nhost: h\r\n\r\n");
        let answer = exchange(&mut scene.connect().await, request).await.unwrap();
        assert_eq!(answer.status, 200, "{target}");
        let bytes: String = target.bytes().map(char::from).collect();
        let expected = format!("GET {bytes} HTTP/1.1");
        assert_eq!(scene.last().line, expected);
        for method in ["GET", "PUT", "DELETE", "PURGE"] {
            let request = Request::builder().method(method).uri(format!("http://h{target}"));
            let answer = over_http2(scene.refshim.address, request.body(Empty::new()).unwrap()).await;
            assert_eq!(answer.status(), 200, "{method} {target}");
            assert_eq!(scene.last().line, format!("{method} {bytes} HTTP/1.1"));
        }
    }
}

#[tokio::test]
async fn other_forms_of_a_target_are_understood() {
    let scene = scene(Scripted::answering(NOTHING)).await;
    for (line, expected) in [
        ("GET http://elsewhere.example/v2/a?x HTTP/1.1", "GET /v2/a?x HTTP/1.1"),
        ("GET http://elsewhere.example HTTP/1.1", "GET / HTTP/1.1"),
        ("OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.1"),
        ("OPTIONS /v2/ HTTP/1.1", "OPTIONS /v2/ HTTP/1.1"),
        ("get /v2/ HTTP/1.1", "get /v2/ HTTP/1.1"),
        ("SOME!#$%&'*+-.^_`|~METHOD /v2/ HTTP/1.1", "SOME!#$%&'*+-.^_`|~METHOD /v2/ HTTP/1.1"),
    ] {
        let request = format!("{line}\r\nhost: elsewhere.example\r\n\r\n");
        let answer = exchange(&mut scene.connect().await, request).await.unwrap();
        assert_eq!((answer.status, scene.last().line), (200, expected.to_owned()));
        assert_eq!(scene.last().header("host"), Some(&*scene.upstream.address.to_string()));
    }
    let connect = "CONNECT elsewhere.example:443 HTTP/1.1\r\nhost: elsewhere.example\r\n\r\n";
    assert_eq!(exchange(&mut scene.connect().await, connect).await.unwrap().status, 501);
}

#[tokio::test]
async fn a_client_of_http_1_0_is_served() {
    let chunked =
        "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let scene = scene(Scripted::answering(chunked)).await;
    let answer = exchange(&mut scene.connect().await, "GET /v2/ HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"abc"[..]));
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(scene.last().line, "GET /v2/ HTTP/1.1");

    let scene = self::scene(Scripted::answering(NOTHING)).await;
    let mut kept = scene.connect().await;
    for _ in 0..2 {
        let put = "PUT /v2/a HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(exchange(&mut kept, put).await.unwrap().status, 200);
        assert_eq!(scene.last().body, b"abc");
    }
}

/// Fields of 64 KiB in all, many short ones and one long one.
fn long_fields() -> [Vec<(String, String)>; 2] {
    let many = (0..128).map(|number| (format!("x-field-{number}"), "v".repeat(500)));
    [many.collect(), vec![("x-long".to_owned(), "v".repeat(64 << 10))]]
}

#[tokio::test]
async fn a_header_of_64_kib_passes_both_ways() {
    for fields in long_fields() {
        let lines: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = lines.concat();
        let sent = head.clone();
        let upstream = Scripted::start(move |exchange| {
            exchange
                .answer(&format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{sent}content-length: 0\r\n\r\n"));
        });
        let scene = scene(upstream).await;
        let request = format!("GET /v2/ HTTP/1.1\r\nhost: h\r\n{head}\r\n");
        let answer = exchange(&mut scene.connect().await, request).await.unwrap();
        assert_eq!(answer.status, 200);
        let got = scene.last();
        for (name, value) in &fields {
            assert_eq!((got.header(name), answer.header(name)), (Some(&**value), Some(&**value)));
        }
        let mut request = Request::builder().uri("http://h/v2/");
        for (name, value) in &fields {
            request = request.header(name, value);
        }
        let answer = over_http2(scene.refshim.address, request.body(Empty::new()).unwrap()).await;
        let got = scene.last();
        for (name, value) in &fields {
            assert_eq!(
                (got.header(name), answer.headers()[name].to_str().unwrap()),
                (Some(&**value), &**value)
            );
        }
    }
}

#[tokio::test]
async fn bytes_beyond_ascii_pass_in_a_header_both_ways() {
    const VALUE: &[u8] = b"caf\xe9 \xc3\xa9\t\x80\xff";
    let upstream = Scripted::start(|exchange| {
        use std::io::Write as _;
        let answer =
            [b"HTTP/1.1 200 OK\r\nconnection: close\r\nx-obs: ", VALUE, b"\r\ncontent-length: 0\r\n\r\n"];
        exchange.stream.write_all(&answer.concat()).unwrap();
    });
    let scene = scene(upstream).await;
    let latin1: String = VALUE.iter().copied().map(char::from).collect();
    for path in ["/v2/", "/v2/a/manifests/latest"] {
        let start = format!("GET {path} HTTP/1.1\r\nhost: h\r\nx-obs: ");
        let request = [start.as_bytes(), VALUE, b"\r\n\r\n"].concat();
        let answer = exchange(&mut scene.connect().await, request).await.unwrap();
        assert_eq!((scene.last().header("x-obs"), answer.header("x-obs")), (Some(&*latin1), Some(&*latin1)));

        let request = Request::builder().uri(format!("http://h{path}"));
        let request = request.header("x-obs", HeaderValue::from_bytes(VALUE).unwrap());
        let answer = over_http2(scene.refshim.address, request.body(Empty::new()).unwrap()).await;
        assert_eq!(
            (scene.last().header("x-obs"), answer.headers()["x-obs"].as_bytes()),
            (Some(&*latin1), VALUE)
        );
    }
}

#[tokio::test]
async fn what_can_be_read_two_ways_is_refused_and_never_arrives() {
    let scene = scene(Scripted::answering(NOTHING)).await;
    for fields in [
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5, 6",
        "content-length: +5",
        "content-length: 0x5",
        "content-length: 99999999999999999999",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding : chunked",
        "transfer-encoding:\x0bchunked",
        "x: a\nb",
        "x: a\rb",
        "x: a\0b",
        "x: a\r\n folded: b",
        " x: a",
        "x y: a",
        ": a",
    ] {
        for (before, path) in [("", "/v2/a/blobs/uploads/1"), ("\r\n\r\n", "/v2/a/manifests/latest")] {
            let line = format!("PUT {path} HTTP/1.1");
            let request = format!("{before}{line}\r\nhost: h\r\n{fields}\r\n\r\n{SMUGGLED}");
            let mut stream = scene.connect().await;
            let answer = exchange(&mut stream, request).await.unwrap();
            assert_eq!(answer.status, 400, "{fields:?}: {answer:?}");
            let mut rest = Vec::new();
            // Closed, or reset with something unread: either is the end.
            if stream.read_to_end(&mut rest).await.is_ok() {
                assert_eq!(rest, b"", "{fields:?}");
            }
            assert_eq!(scene.upstream.requests().len(), 0, "{fields:?}");
        }
    }
}

/// RFC 9112, section 6.1: the coding alone counts, and nothing that follows on the connection is read.
#[tokio::test]
async fn a_length_beside_a_transfer_coding_is_not_passed_on_and_ends_the_connection() {
    let scene = scene(Scripted::answering(NOTHING)).await;
    for fields in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "Transfer-Encoding: chunked\r\nx: y\r\nContent-Length: 5",
        "content-length: 5\ntransfer-encoding: chunked",
        "content-length: 5\r\ntransfer-encoding: chunked\r\ncontent-length: 6",
    ] {
        let before = scene.upstream.requests().len();
        let request = format!("PUT /v2/a HTTP/1.1\r\nhost: h\r\n{fields}\r\n\r\n3\r\nabc\r\n{SMUGGLED}");
        let mut stream = scene.connect().await;
        let answer = exchange(&mut stream, request).await.unwrap();
        let got = scene.last();
        assert_eq!((answer.status, &got.body[..]), (200, &b"3\r\nabc\r\n0\r\n\r\n"[..]), "{fields:?}");
        assert_eq!(got.header("content-length"), None, "{fields:?}");
        let mut rest = Vec::new();
        if stream.read_to_end(&mut rest).await.is_ok() {
            assert_eq!(rest, b"", "{fields:?}");
        }
        assert_eq!(scene.upstream.requests().len(), before + 1, "{fields:?}");
    }
}

#[tokio::test]
async fn lines_that_end_without_a_carriage_return_are_read_one_way() {
    let scene = scene(Scripted::answering(NOTHING)).await;
    let mut stream = scene.connect().await;
    for request in [
        "PUT /v2/a HTTP/1.1\nhost: h\ncontent-length: 3\n\nabc",
        "PUT /v2/b HTTP/1.1\nhost: h\ntransfer-encoding: chunked\n\n3\r\nabc\r\n0\r\n\r\n",
        "PUT /v2/c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ] {
        let answer = exchange(&mut stream, request).await.unwrap();
        assert_eq!((answer.status, &scene.last().line[..8]), (200, &request[..8]), "{answer:?}");
    }
}

#[tokio::test]
async fn a_length_that_is_told_twice_alike_is_one_length() {
    let scene = scene(Scripted::answering(NOTHING)).await;
    let request = "PUT /v2/a HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc";
    let answer = exchange(&mut scene.connect().await, request).await.unwrap();
    let got = scene.last();
    assert_eq!((answer.status, &got.body[..]), (200, &b"abc"[..]));
    assert_eq!(got.headers.iter().filter(|(name, _)| name == "content-length").count(), 1);
}

#[tokio::test]
async fn a_request_names_one_host() {
    let scene = scene(Scripted::answering(NOTHING)).await;
    for hosts in ["", "host: a\r\nhost: b\r\n", "host: a\r\nhost: a\r\n"] {
        let request = format!("GET /v2/ HTTP/1.1\r\n{hosts}\r\n");
        assert_eq!(exchange(&mut scene.connect().await, request).await.unwrap().status, 400, "{hosts:?}");
    }
    assert_eq!(scene.upstream.requests().len(), 0);
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_in_their_order() {
    let upstream = Scripted::start(|exchange| {
        let path = exchange.request.line.split(' ').nth(1).unwrap().to_owned();
        let length = path.len();
        exchange.answer(&format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{path}"
        ));
    });
    let scene = scene(upstream).await;
    let mut stream = scene.connect().await;
    let requests = [0, 1, 2, 3, 4].map(|number| format!("GET /v2/{number} HTTP/1.1\r\nhost: h\r\n\r\n"));
    stream.write_all(requests.concat().as_bytes()).await.unwrap();
    for number in 0..5 {
        let answer = RawAnswer::read(&mut stream).await.unwrap();
        assert_eq!(answer.body, format!("/v2/{number}").as_bytes());
    }
}

/// What HEAD and GET of an answer with these fields give: its status, its lengths, and its body.
async fn read_answer(face: Face, fields: &[&str], body: &'static str) -> [(u16, Vec<String>, Vec<u8>); 2] {
    let fields = [fields, &[""]].concat().join("\r\n");
    let upstream = Scripted::start(move |exchange| {
        let is_head = exchange.request.line.starts_with("HEAD");
        let body = if is_head { "" } else { body };
        exchange.answer(&format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{fields}\r\n{body}"));
    });
    let scene = face.before(upstream.address, &[]).await;
    let mut answers = Vec::new();
    for method in [reqwest::Method::HEAD, reqwest::Method::GET] {
        let answer = scene.client.send(scene.client.request(method, "/v2/a/blobs/x")).await;
        let lengths = answer.headers.get_all("content-length").iter();
        let lengths = lengths.map(|length| length.to_str().unwrap().to_owned()).collect();
        answers.push((answer.status.as_u16(), lengths, answer.body));
    }
    answers.try_into().unwrap()
}

#[tokio::test]
async fn an_answer_has_one_length_or_is_none() {
    let forms = [
        "5",
        "5, 5",
        "5,5,5",
        "+5",
        "-5",
        "05",
        "5, 6",
        "6",
        "5,",
        "",
        "0x5",
        "5 5",
        "5;5",
        "99999999999999999999",
    ];
    let mut combinations: Vec<Vec<&str>> = forms.iter().map(|form| vec![*form]).collect();
    for first in ["5", "5, 5", "+5", "6"] {
        combinations.extend(["5", "5,5", "6", "+5", ""].map(|second| vec![first, second]));
    }
    for (number, values) in combinations.iter().enumerate() {
        let face = Face::ALL[number % Face::ALL.len()];
        let fields: Vec<String> = values.iter().map(|value| format!("content-length: {value}")).collect();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let mut elements = values.iter().flat_map(|value| value.split(',')).map(|element| {
            let element = element.trim();
            let is_number = !element.is_empty() && element.bytes().all(|byte| byte.is_ascii_digit());
            element.parse::<u64>().ok().filter(|_| is_number)
        });
        let first = elements.next().flatten();
        let is_valid = first.is_some() && elements.all(|element| element == first);
        // A longer length than the body would be a body that breaks off.
        if is_valid && first != Some(5) {
            continue;
        }
        for (is_get, (status, lengths, body)) in
            read_answer(face, &fields, "hello").await.into_iter().enumerate()
        {
            if is_valid {
                assert_eq!((status, lengths.len()), (200, 1), "{face:?} {values:?} {lengths:?}");
                assert_eq!(lengths[0].parse(), Ok(5), "{face:?} {values:?}");
                assert_eq!(body, if is_get == 1 { &b"hello"[..] } else { b"" }, "{face:?} {values:?}");
            } else {
                assert_eq!(status, 502, "{face:?} {values:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_transfer_coding_comes_before_a_length_and_only_chunks_are_known() {
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    for (number, lengths) in ["", "content-length: 3", "content-length: 5, 6"].into_iter().enumerate() {
        for coding in
            ["chunked", "Chunked", "gzip, chunked", "chunked, chunked", "gzip", "xchunked", "identity"]
        {
            let face = Face::ALL[number % Face::ALL.len()];
            let coding_field = format!("transfer-encoding: {coding}");
            let fields: Vec<&str> =
                [&*coding_field, lengths].into_iter().filter(|field| !field.is_empty()).collect();
            for (is_get, (status, lengths, body)) in
                read_answer(face, &fields, chunks).await.into_iter().enumerate()
            {
                if coding.eq_ignore_ascii_case("chunked") {
                    assert_eq!(status, 200, "{face:?} {fields:?}");
                    assert_eq!(body, if is_get == 1 { &b"hello"[..] } else { b"" }, "{face:?} {fields:?}");
                    assert!(
                        lengths.is_empty() || is_get == 1 && lengths == ["5"],
                        "{face:?} {fields:?} {lengths:?}"
                    );
                } else {
                    assert_eq!(status, 502, "{face:?} {fields:?}");
                }
            }
        }
    }
}
