//! A connection whose two ends agree to speak something else than HTTP (RFC 9110, section 7.8): from
//! then on bytes pass both ways, until one side ends or both are silent for too long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Version};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use super::tokens;
use crate::http::body::Body;

/// The protocol that a client wants, and its side of the connection once it gets it.
pub(super) struct WantedProtocol {
    protocol: HeaderValue,
    client: OnUpgrade,
}

/// What a request asks to be switched to. HTTP/2 in clear is none of it: what is said there would pass
/// unread.
pub(super) fn wanted<B>(request: &mut Request<B>) -> Option<WantedProtocol> {
    let protocol = request.headers().get(UPGRADE)?.clone();
    let is_asked =
        tokens(request.headers(), &CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"));
    let is_http = tokens(request.headers(), &UPGRADE).any(|protocol| protocol.eq_ignore_ascii_case("h2c"));
    (request.version() == Version::HTTP_11 && is_asked && !is_http)
        .then(|| WantedProtocol { protocol, client: hyper::upgrade::on(request) })
}

impl WantedProtocol {
    /// Asks the upstream for the same; the client's side.
    pub(super) fn ask(self, request: &mut Request<Body>) -> OnUpgrade {
        agree(request.headers_mut(), Some(self.protocol));
        self.client
    }
}

/// Says that the connection is switched to this protocol.
pub(super) fn agree(headers: &mut HeaderMap, protocol: Option<HeaderValue>) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
    }
}

/// Passes bytes both ways, to the end of both or until neither sent any for `idle`.
pub(super) async fn join(client: OnUpgrade, upstream: OnUpgrade, idle: Duration) {
    let passed = async {
        let (client, upstream) = (client.await?, upstream.await?);
        let count = Arc::new(AtomicU64::new(0));
        let mut client = CountedStream { stream: TokioIo::new(client), count: Arc::clone(&count) };
        let mut upstream = CountedStream { stream: TokioIo::new(upstream), count: Arc::clone(&count) };
        tokio::select! {
            copied = copy_bidirectional(&mut client, &mut upstream) => { copied?; }
            () = silence(&count, idle) => tracing::debug!(limit = ?idle, "a tunnel was silent for too long"),
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    };
    if let Err(error) = passed.await {
        tracing::debug!(error = &*error, "a tunnel ended early");
    }
}

/// How often a tunnel is looked at within the time that it may be silent.
const LOOKS: u32 = 4;

/// Ends when nothing was counted for `idle`, and at most a quarter of that later.
async fn silence(count: &AtomicU64, idle: Duration) {
    let (mut before, mut alike) = (count.load(Ordering::Relaxed), 0);
    while alike < LOOKS {
        tokio::time::sleep(idle / LOOKS).await;
        let now = count.load(Ordering::Relaxed);
        alike = if now == before { alike + 1 } else { 0 };
        before = now;
    }
}

/// One end of a tunnel, and how much was read from both.
struct CountedStream {
    stream: TokioIo<Upgraded>,
    count: Arc<AtomicU64>,
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
