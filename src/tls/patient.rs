//! A connection to a registry that still hears its answer when the registry takes nothing more.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Ignores failed writes, so that an early answer is not lost. A registry may reject an upload by its head alone and
/// close the connection without reading the body. The next write then fails while the answer waits to be read, and
/// hyper would give up. So a failed write counts as done, as do all later ones; the read gives the answer or the end
/// of the connection, at once, since a write fails only on a connection that was reset.
#[derive(Debug)]
pub struct Patient {
    stream: TcpStream,
    is_broken: bool,
    is_to_proxy: bool,
}

impl Patient {
    /// Wraps a connection.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, is_broken: false, is_to_proxy: false }
    }

    /// The same for a proxy's: requests that it is to forward name their host in the first line (RFC 9112,
    /// section 3.2.2).
    #[must_use]
    pub fn to_proxy(stream: TcpStream) -> Self {
        Self { is_to_proxy: true, ..Self::new(stream) }
    }

    /// The result of a write, or `expected` if it failed.
    fn written<T>(&mut self, written: io::Result<T>, expected: T) -> io::Result<T> {
        written.or_else(|error| {
            tracing::debug!(%error, "writing to an upstream failed; still reading its answer");
            self.is_broken = true;
            Ok(expected)
        })
    }
}

impl Connection for Patient {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.is_to_proxy)
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_broken {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        Poll::Ready(self.written(written, bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if self.is_broken {
            return Poll::Ready(Ok(length));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices));
        Poll::Ready(self.written(written, length))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(self.written(flushed, ()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
