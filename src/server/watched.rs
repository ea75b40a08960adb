//! A client's connection at the level of bytes: its protocol, the bytes of incomplete heads, and writes that
//! the client blocks.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::http::body::Backlog;
use crate::http::limits::Place;
use crate::http::stream::BoundedStream;

/// The connection preface, a client's first bytes in HTTP/2 (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A client's stream. Bytes read while no request is in progress belong to an incomplete head. It holds the
/// connection's place until it is dropped, also in a tunnel, for which hyper hands it on.
#[derive(Debug)]
pub(super) struct WatchedStream<S> {
    stream: BoundedStream<S>,
    place: Arc<Place>,
    /// The bytes that [`WatchedStream::protocol`] read, until hyper has read them.
    read_before: Vec<u8>,
    /// Whether a write is blocked: a client that reads slowly is not idle.
    is_waiting: bool,
}

impl<S: AsyncRead> WatchedStream<S> {
    /// Watches `stream`, the connection of this place.
    pub(super) fn new(stream: S, place: Arc<Place>) -> Self {
        let stream = BoundedStream::new(stream, place.read_size());
        Self { stream, place, read_before: Vec::new(), is_waiting: false }
    }
}

impl<S> WatchedStream<S> {
    /// What is queued to be written, for the bodies of answers.
    pub(super) fn backlog(&self) -> Arc<Backlog> {
        self.stream.backlog()
    }

    /// A write means that no head is incomplete: without a request, hyper writes only to reject a head, or
    /// frames of HTTP/2.
    fn answered(&self) {
        self.place.release_head();
    }

    fn took(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.answered();
        self.watch(written)
    }

    fn watch<T>(&mut self, written: Poll<T>) -> Poll<T> {
        match (&written, self.is_waiting) {
            (Poll::Pending, false) => {
                self.is_waiting = true;
                self.place.begin_wait();
            }
            (Poll::Ready(_), true) => {
                self.is_waiting = false;
                self.place.end_wait();
            }
            (Poll::Pending, true) | (Poll::Ready(_), false) => {}
        }
        written
    }
}

impl<S: AsyncRead + Unpin> WatchedStream<S> {
    /// The client's protocol by its first bytes, which are kept for hyper. The caller limits the time.
    ///
    /// # Errors
    /// Reading fails.
    pub(super) async fn protocol(&mut self) -> io::Result<Protocol> {
        let mut first = [0; HTTP2_PREFACE.len()];
        let mut length = 0;
        let protocol = loop {
            let read = self.stream.read(first.get_mut(length..).unwrap_or_default()).await?;
            length += read;
            let all = first.get(..length).unwrap_or_default();
            // `PUT`, `POST` and `PATCH` begin like the preface, and any of them may come byte by byte.
            if read == 0 || !HTTP2_PREFACE.starts_with(all) {
                break Protocol::Http1;
            }
            if length == HTTP2_PREFACE.len() {
                break Protocol::Http2;
            }
        };
        self.read_before.extend_from_slice(first.get(..length).unwrap_or_default());
        Ok(protocol)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read_before.is_empty() {
            let mut first = std::mem::take(&mut self.read_before);
            self.read_before = first.split_off(first.len().min(buffer.remaining()));
            buffer.put_slice(&first);
            self.place.hold_head(first.len());
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read_size = self.place.read_size();
        self.stream.set_read_size(read_size);
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        if !bytes.is_empty() {
            self.place.hold_head(bytes.len());
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.took(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.took(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS takes a write into its own buffer; it is the flush that then waits for the client.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
