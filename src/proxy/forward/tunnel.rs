//! Tunnels after a switch to another protocol (`Upgrade`, RFC 9110, section 7.8): bytes are copied both ways until
//! both sides end, or neither sends anything for too long.

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

/// The protocol that a client asks for, and the client's side of the tunnel.
pub(super) struct WantedProtocol {
    protocol: HeaderValue,
    client: OnUpgrade,
}

/// The protocol that a request asks to switch to, if any. `h2c` is ignored: requests inside such a tunnel would
/// bypass every check (request smuggling over h2c).
pub(super) fn wanted<B>(request: &mut Request<B>) -> Option<WantedProtocol> {
    let protocol = request.headers().get(UPGRADE)?.clone();
    let is_asked =
        tokens(request.headers(), &CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"));
    let is_http = tokens(request.headers(), &UPGRADE).any(|protocol| protocol.eq_ignore_ascii_case("h2c"));
    (request.version() == Version::HTTP_11 && is_asked && !is_http)
        .then(|| WantedProtocol { protocol, client: hyper::upgrade::on(request) })
}

impl WantedProtocol {
    /// Adds the upgrade to the request for the upstream, and gives the client's side.
    pub(super) fn ask(self, request: &mut Request<Body>) -> OnUpgrade {
        agree(request.headers_mut(), Some(self.protocol));
        self.client
    }
}

/// Sets the fields for a switch to this protocol.
pub(super) fn agree(headers: &mut HeaderMap, protocol: Option<HeaderValue>) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
    }
}

/// Copies bytes both ways until both sides end, or neither sent any for `idle`.
pub(super) async fn join(client: OnUpgrade, upstream: OnUpgrade, idle: Duration) {
    let passed = async {
        let (client, upstream) = (client.await?, upstream.await?);
        let count = Arc::new(AtomicU64::new(0));
        let mut client = CountedStream { stream: TokioIo::new(client), count: Arc::clone(&count) };
        let mut upstream = CountedStream { stream: TokioIo::new(upstream), count: Arc::clone(&count) };
        tokio::select! {
            copied = copy_bidirectional(&mut client, &mut upstream) => { copied?; }
            () = silence(&count, idle) => tracing::debug!(limit = ?idle, "closed an idle tunnel"),
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    };
    if let Err(error) = passed.await {
        tracing::debug!(error = &*error, "a tunnel ended early");
    }
}

/// How often a tunnel is checked within its idle time-out.
const LOOKS: u32 = 4;

/// Ends when nothing was counted for `idle`, at most a quarter later: one timer for each tunnel, none for each read.
async fn silence(count: &AtomicU64, idle: Duration) {
    let (mut before, mut alike) = (count.load(Ordering::Relaxed), 0);
    while alike < LOOKS {
        tokio::time::sleep(idle / LOOKS).await;
        let now = count.load(Ordering::Relaxed);
        alike = if now == before { alike + 1 } else { 0 };
        before = now;
    }
}

/// One end of a tunnel, and a counter of the reads from both.
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
