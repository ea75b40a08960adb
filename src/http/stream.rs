//! A connection below hyper, whose buffers stay small: so much is read at once as its [`ReadSize`] says, and of what is
//! queued to be written a [`Backlog`] knows how much was.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};

use super::body::Backlog;
use super::limits::ReadSize;

/// So much less than a power of two is read, so that hyper's buffer is not filled and doubled. Not one byte less: what was
/// read is written on at once, and on loopback (segments of 65,483 bytes) would be one segment and a few bytes of another.
const UNFILLED_BYTES: usize = 1024;

/// A connection with bounded reads and writes.
#[derive(Debug)]
pub struct BoundedStream<S> {
    stream: Take<S>,
    read_size: ReadSize,
    backlog: Arc<Backlog>,
}

impl<S: AsyncRead> BoundedStream<S> {
    /// Bounds `stream`, of which nothing is queued yet.
    pub fn new(stream: S, read_size: ReadSize) -> Self {
        Self { stream: stream.take(0), read_size, backlog: Arc::default() }
    }
}

impl<S> BoundedStream<S> {
    /// Changes what is read at once from now on.
    pub fn set_read_size(&mut self, read_size: ReadSize) {
        self.read_size = read_size;
    }

    /// What is queued to be written, for the bodies that are sent by it.
    pub fn backlog(&self) -> Arc<Backlog> {
        Arc::clone(&self.backlog)
    }

    fn took(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.backlog.wrote(bytes);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BoundedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = self.read_size.bytes() - UNFILLED_BYTES;
        self.stream.set_limit(most as u64);
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for BoundedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.stream.get_mut()).poll_write(cx, bytes);
        self.took(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.stream.get_mut()).poll_write_vectored(cx, slices);
        self.took(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has written all, also what it made of a body and what is not counted.
        self.backlog.wrote(usize::MAX);
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}
