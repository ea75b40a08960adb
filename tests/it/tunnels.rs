//! A connection whose two ends agree on another protocol: bytes pass both ways as they are.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Authority, RawAnswer, Refshim, Scripted, TlsClient, exchange};

const REQUEST: &str = "GET /v2/stream?x HTTP/1.1\r\nhost: h\r\nconnection: upgrade, x-hop\r\nx-hop: 1\r\n\
                       upgrade: echo/1\r\n\r\n";
const AGREED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo/1\r\nx-chosen: y\r\n\r\n";

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connections to refshims in front of this upstream: plain, over TLS, and with HTTP/2 towards it.
async fn connections(upstream: &Scripted) -> Vec<(Box<dyn Stream>, Refshim, tempfile::TempDir)> {
    let authority = Authority::new();
    let identity = authority.server("refshim", &["127.0.0.1"]);
    let directories = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let start = |place: usize| Refshim::prepare(upstream.address, directories[place].path());
    let plain = start(0).launch().await;
    let tls = start(1).with_tls(&identity).launch().await;
    let http2 = start(2).with("UPSTREAMS_DEFAULT_HTTP2", "always").launch().await;
    let streams: [Box<dyn Stream>; 3] = [
        Box::new(TcpStream::connect(plain.address).await.unwrap()),
        Box::new(TlsClient::trusting(&authority).connect(tls.address, "127.0.0.1").await.unwrap().0),
        Box::new(TcpStream::connect(http2.address).await.unwrap()),
    ];
    let with_refshims = streams.into_iter().zip([plain, tls, http2]).zip(directories);
    with_refshims.map(|((stream, refshim), directory)| (stream, refshim, directory)).collect()
}

/// An upstream that agrees, and tells all that came over the connection afterwards.
fn agreeing(first: &'static str, last: &'static str) -> (Scripted, Receiver<Vec<u8>>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let upstream = Scripted::start(move |exchange| {
        exchange.stream.write_all([AGREED, first].concat().as_bytes()).unwrap();
        let mut all = Vec::new();
        exchange.stream.read_to_end(&mut all).unwrap();
        exchange.stream.write_all(last.as_bytes()).unwrap();
        tell.lock().unwrap().send(all).unwrap();
    });
    (upstream, told)
}

#[tokio::test]
async fn bytes_pass_both_ways_also_those_sent_along_and_after_one_side_is_done() {
    let (upstream, told) = agreeing("with the answer", "after the client's end");
    for (mut stream, _refshim, _directory) in connections(&upstream).await {
        let answer = exchange(&mut stream, [REQUEST, "with the request"].concat()).await.unwrap();
        assert_eq!((answer.status, answer.header("upgrade")), (101, Some("echo/1")));
        assert_eq!((answer.header("connection"), answer.header("x-chosen")), (Some("upgrade"), Some("y")));
        let mut first = [0; 15];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"with the answer");
        stream.write_all(b", and later \0\xff").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut last = String::new();
        stream.read_to_string(&mut last).await.unwrap();
        assert_eq!(last, "after the client's end");
        assert_eq!(told.recv().unwrap(), b"with the request, and later \0\xff");
        let request = upstream.requests().last().unwrap().clone();
        assert_eq!((&*request.line, request.header("x-hop")), ("GET /v2/stream?x HTTP/1.1", None));
        assert_eq!(
            (request.header("upgrade"), request.header("connection")),
            (Some("echo/1"), Some("upgrade"))
        );
    }
}

#[tokio::test]
async fn the_client_goes_on_when_the_upstream_is_done() {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let upstream = Scripted::start(move |exchange| {
        exchange.stream.write_all(AGREED.as_bytes()).unwrap();
        exchange.stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        exchange.stream.read_to_end(&mut all).unwrap();
        tell.lock().unwrap().send(all).unwrap();
    });
    for (mut stream, _refshim, _directory) in connections(&upstream).await {
        assert_eq!(exchange(&mut stream, REQUEST).await.unwrap().status, 101);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
        stream.write_all(b"after the upstream's end").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(told.recv().unwrap(), b"after the upstream's end");
    }
}

#[tokio::test]
async fn much_passes_while_both_sides_send() {
    const BYTES: usize = 8 << 20;
    let upstream = Scripted::start(|exchange| {
        exchange.stream.write_all(AGREED.as_bytes()).unwrap();
        let mut block = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = exchange.stream.read(&mut block) {
            exchange.stream.write_all(&block[..read]).unwrap();
        }
    });
    for (mut stream, _refshim, _directory) in connections(&upstream).await {
        assert_eq!(exchange(&mut stream, REQUEST).await.unwrap().status, 101);
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sent: Vec<u8> = (0..=250).cycle().take(BYTES).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut echoed = Vec::new();
        reader.read_to_end(&mut echoed).await.unwrap();
        sending.await.unwrap();
        assert!(echoed == expected, "{} bytes came back", echoed.len());
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_is_heard_and_the_connection_goes_on_in_http() {
    let upstream = Scripted::answering(
        "HTTP/1.1 426 Upgrade Required\r\nconnection: close\r\nx: y\r\ncontent-length: 2\r\n\r\nno",
    );
    for (mut stream, _refshim, _directory) in connections(&upstream).await {
        for _ in 0..2 {
            let answer = exchange(&mut stream, REQUEST).await.unwrap();
            assert_eq!((answer.status, &answer.body[..], answer.header("x")), (426, &b"no"[..], Some("y")));
            assert_eq!(answer.header("connection"), None);
        }
    }
}

#[tokio::test]
async fn what_the_other_end_breaks_off_is_broken_off_here() {
    let (upstream, told) = agreeing("", "");
    for (mut stream, refshim, _directory) in connections(&upstream).await {
        assert_eq!(exchange(&mut stream, REQUEST).await.unwrap().status, 101);
        drop(stream);
        assert_eq!(told.recv().unwrap(), b"");
        refshim.terminate();
        assert!(tokio::task::spawn_blocking(move || refshim.wait()).await.unwrap().success());
    }
}

#[tokio::test]
async fn http2_in_clear_is_not_what_a_client_of_http1_is_switched_to() {
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok");
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let mut stream = TcpStream::connect(refshim.address).await.unwrap();
    let request = "GET /v2/ HTTP/1.1\r\nhost: h\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n\
                   http2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    let answer: RawAnswer = exchange(&mut stream, request).await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]));
    let got = upstream.requests().last().unwrap().clone();
    assert_eq!((got.header("upgrade"), got.header("http2-settings")), (None, None));
}
