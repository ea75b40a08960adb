//! A client's connection byte for byte: which protocol it speaks, heads that are ambiguous or too long, and
//! writes that the client lets wait.
//!
//! An ambiguous request could be read in two ways (request smuggling). With several hosts, it depends on the
//! reader whom it is for. With both Content-Length and Transfer-Encoding, something in front of refshim may
//! have taken the one for the end of the body and refshim the other (RFC 9112, section 6.1). hyper goes by
//! Transfer-Encoding and hides the other field, so that heads are looked at here as they come in.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http::header::{CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING};
use http::{Request, Version};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::body::Backlog;
use crate::limits::Place;

/// `\n\r\n`, the longest form of an empty line behind a line.
const LONGEST_END: usize = 3;
/// What a client says first in HTTP/2 (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What hyper writes before a body, in one piece. It answers nothing: what is read behind it is that body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The longest head of a client's request. Twice of what any client was seen to send: cookies and tokens of
/// 64 KiB.
pub const MAX_HEAD_BYTES: usize = 128 * 1024;
/// A longer head's memory is given back with it, so that idle connections stay small.
const KEPT_BYTES: usize = 4 * 1024;

/// The head that a connection brought last: what was read since something was last written. Not all
/// heads are caught so: one that is sent before the answer to the request before it is not. Cheap to
/// clone.
#[derive(Clone, Debug, Default)]
pub struct LastHead(Arc<Mutex<Recording>>);

#[derive(Debug, Default)]
struct Recording {
    state: State,
    bytes: Vec<u8>,
}

/// The protocol that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// All that is read belongs to the head.
    #[default]
    InHead,
    /// The head was read; what follows is its body.
    Complete,
    /// HTTP/2, which has no such heads.
    Http2,
}

/// How a request can be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguity {
    /// It has both a length and a transfer coding.
    #[error("the request has both Content-Length and Transfer-Encoding")]
    Length,
    /// It has lengths that differ.
    #[error("the request has several Content-Lengths")]
    Lengths,
    /// It names no host or several (RFC 9112, section 3.2).
    #[error("the request must have one Host")]
    Host,
}

impl LastHead {
    /// What is ambiguous about this request, the connection's last.
    #[must_use]
    pub fn ambiguity<B>(&self, request: &Request<B>) -> Option<Ambiguity> {
        let hosts = request.headers().get_all(HOST).iter().count();
        if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
            Some(Ambiguity::Host)
        } else {
            self.has_two_lengths(request).then_some(Ambiguity::Length)
        }
    }

    /// Leaves one length where several are the same. hyper does it in HTTP/1.1.
    ///
    /// # Errors
    /// They differ.
    pub fn unify_lengths<B>(request: &mut Request<B>) -> Result<(), Ambiguity> {
        let mut lengths = request.headers().get_all(CONTENT_LENGTH).iter();
        let (Some(first), Some(second)) = (lengths.next(), lengths.next()) else { return Ok(()) };
        if second != first || lengths.any(|length| length != first) {
            return Err(Ambiguity::Lengths);
        }
        let length = first.clone();
        request.headers_mut().insert(CONTENT_LENGTH, length);
        Ok(())
    }

    /// Whether it was seen to have both a length and a transfer coding. hyper closes the connection after
    /// one that was not seen.
    fn has_two_lengths<B>(&self, request: &Request<B>) -> bool {
        if !request.headers().contains_key(TRANSFER_ENCODING) {
            return false;
        }
        let recording = self.lock();
        has_field(&recording.bytes, &CONTENT_LENGTH) && has_field(&recording.bytes, &TRANSFER_ENCODING)
    }

    /// How many of these bytes belong to a head that is not finished; none if it is.
    fn read(&self, bytes: &[u8]) -> Option<usize> {
        let mut recording = self.lock();
        if recording.state != State::InHead {
            return None;
        }
        // Empty lines in front of a request are skipped (RFC 9112, section 2.2).
        let skipped = if recording.bytes.is_empty() { leading_line_ends(bytes) } else { 0 };
        let looked_at = recording.bytes.len().saturating_sub(LONGEST_END - 1);
        recording.bytes.extend_from_slice(bytes.get(skipped..).unwrap_or_default());
        let unseen = recording.bytes.get(looked_at..).unwrap_or_default();
        if let Some(end) = end_of_head(unseen) {
            recording.bytes.truncate(looked_at + end);
            recording.state = State::Complete;
            return None;
        }
        if recording.bytes.len() > MAX_HEAD_BYTES {
            // hyper refuses it.
            *recording = Recording { state: State::Complete, bytes: Vec::new() };
        }
        Some(bytes.len())
    }

    fn speaks_http2(&self) {
        *self.lock() = Recording { state: State::Http2, bytes: Vec::new() };
    }

    fn wrote(&self, bytes: &[u8]) {
        let mut recording = self.lock();
        if recording.state == State::Complete && bytes != CONTINUE {
            recording.state = State::InHead;
            if recording.bytes.capacity() > KEPT_BYTES {
                recording.bytes = Vec::new();
            } else {
                recording.bytes.clear();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of the first empty line. Lines may end without a carriage return (RFC 9112, section 2.2).
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let behind_empty_line = |start: usize| {
        let rest = bytes.get(start..)?;
        let empty = [&b"\n"[..], b"\r\n"].into_iter().find(|empty| rest.starts_with(empty))?;
        Some(start + empty.len())
    };
    let mut lines = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    lines.find_map(behind_empty_line)
}

fn leading_line_ends(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
}

fn has_field(head: &[u8], name: &HeaderName) -> bool {
    head.split(|byte| *byte == b'\n').any(|line| {
        let field = line.split(|byte| *byte == b':').next().unwrap_or_default();
        field.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()) && field.len() < line.len()
    })
}

/// A client's stream whose heads are looked at. The connection's place is kept as long as this is, also by a
/// tunnel.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    head: LastHead,
    place: Arc<Place>,
    /// What [`Watched::protocol`] read, until it is read again.
    read_before: Vec<u8>,
    holds_head: bool,
    /// While a write waits for the client: whoever is slow to take what was written is not idle.
    is_waiting: bool,
    backlog: Arc<Backlog>,
}

impl<S> Watched<S> {
    /// Looks at what is read from `stream`.
    pub fn new(stream: S, head: LastHead, place: Arc<Place>) -> Self {
        let backlog = Arc::default();
        Self { stream, head, place, read_before: Vec::new(), holds_head: false, is_waiting: false, backlog }
    }

    /// Tells whether writes wait for the client.
    #[must_use]
    pub fn backlog(&self) -> Arc<Backlog> {
        Arc::clone(&self.backlog)
    }

    fn look_at(&mut self, bytes: &[u8]) {
        match self.head.read(bytes) {
            Some(unfinished) => {
                self.holds_head = true;
                self.place.hold_head(unfinished);
            }
            None if self.holds_head => {
                self.holds_head = false;
                self.place.release_head();
            }
            None => {}
        }
    }

    fn wrote<T>(&mut self, written: Poll<T>) -> Poll<T> {
        match (&written, self.is_waiting) {
            (Poll::Pending, false) => {
                self.is_waiting = true;
                self.place.begin_wait();
                self.backlog.begin();
            }
            (Poll::Ready(_), true) => {
                self.is_waiting = false;
                self.place.end_wait();
                self.backlog.end();
            }
            (Poll::Pending, true) | (Poll::Ready(_), false) => {}
        }
        written
    }
}

impl<S: AsyncRead + Unpin> Watched<S> {
    /// What the client speaks, by the first bytes, which are then read again. Takes as long as the client
    /// lets it.
    ///
    /// # Errors
    /// Reading fails.
    pub async fn protocol(&mut self) -> io::Result<Protocol> {
        let mut first = [0; HTTP2_PREFACE.len()];
        let mut length = 0;
        let protocol = loop {
            let read = self.stream.read(first.get_mut(length..).unwrap_or_default()).await?;
            length += read;
            let all = first.get(..length).unwrap_or_default();
            if read == 0 || !HTTP2_PREFACE.starts_with(all) {
                break Protocol::Http1;
            }
            if length == HTTP2_PREFACE.len() {
                self.head.speaks_http2();
                break Protocol::Http2;
            }
        };
        self.read_before.extend_from_slice(first.get(..length).unwrap_or_default());
        Ok(protocol)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read_before.is_empty() {
            let mut first = std::mem::take(&mut self.read_before);
            self.read_before = first.split_off(first.len().min(buffer.remaining()));
            buffer.put_slice(&first);
            self.look_at(&first);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        if !bytes.is_empty() {
            self.look_at(bytes);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.head.wrote(bytes);
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut parts = slices.iter().filter(|slice| !slice.is_empty());
        let (first, second) = (parts.next(), parts.next());
        self.head.wrote(first.filter(|_| second.is_none()).map_or(&[], |only| only));
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.wrote(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(parts: &[&str], expected: bool) {
        let request = Request::builder().header(TRANSFER_ENCODING, "chunked").body(()).unwrap();
        let head = LastHead::default();
        head.read(b"GET / HTTP/1.1\r\ncontent-length: 1\r\n\r\nx");
        head.wrote(b"HTTP/1.1 200 OK\r\n");
        for part in parts {
            head.read(part.as_bytes());
        }
        assert_eq!(head.has_two_lengths(&request), expected, "{}", parts.last().unwrap_or(&""));
    }

    #[test]
    fn a_length_beside_a_transfer_coding_is_seen_wherever_it_stands() {
        let te = "Transfer-Encoding: chunked\r\n";
        check(&["PUT / HTTP/1.1\r\n", te, "\r\n"], false);
        check(&["PUT / HTTP/1.1\r\n", te, "content-LENGTH: 5\r\n\r\n"], true);
        check(&["PUT / HTTP/1.1\r\nContent-Length:5\r\n", te, "\r\n"], true);
        check(&["PUT / HTTP/1.1\r\n", te, "\r\ncontent-length: 5\r\n\r\n"], false);
        check(&["PUT / HTTP/1.1\r\n", te, "x: content-length: 5\r", "\n\r", "\nx"], false);
        check(&["PUT / HTTP/1.1\r\n", te, "x-content-length: 5\r\n\r\n"], false);
        check(&["PUT /?content-length HTTP/1.1\r\n", te, "\r\n"], false);
        check(&["\r\n\r\n\nPUT / HTTP/1.1\r\n", te, "content-length: 5\r\n\r\n"], true);
        check(&["\r", "\n", "PUT / HTTP/1.1\r\n", te, "content-length: 5\r\n\r\n"], true);
        check(&["PUT / HTTP/1.1\ncontent-length: 5\n", te, "\n"], true);
        check(&["PUT / HTTP/1.1\n", te, "\n", "content-length: 5\n\n"], false);
        check(&["PUT / HTTP/1.1\r\n", te, "x: y\n", "\r\n", "content-length: 5\n\n"], false);
        check(&["rest of a body\r\n\r\n", "PUT / HTTP/1.1\r\n", te, "\r\n"], false);
        check(&[&"x".repeat(MAX_HEAD_BYTES + 1), "\r\n", te, "content-length: 5\r\n\r\n"], false);
    }

    #[test]
    fn a_body_behind_100_continue_is_no_head() {
        let request = Request::builder().header(TRANSFER_ENCODING, "chunked").body(()).unwrap();
        let head = LastHead::default();
        assert_eq!(head.read(b"PUT / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 99\r\n\r\n"), None);
        head.wrote(CONTINUE);
        assert_eq!(head.read(b"a: b\ncontent-length: 1\n"), None);
        head.wrote(b"HTTP/1.1 201 Created\r\n\r\n");
        assert!(head.read(b"PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n").is_some());
        assert!(!head.has_two_lengths(&request));
    }

    #[track_caller]
    fn check_lengths(lengths: &[&str], expected: Result<&[&str], Ambiguity>) {
        let request = Request::builder();
        let request = lengths.iter().fold(request, |request, length| request.header(CONTENT_LENGTH, *length));
        let mut request = request.body(()).unwrap();
        let unified = LastHead::unify_lengths(&mut request);
        let left = request.headers().get_all(CONTENT_LENGTH);
        match expected {
            Ok(expected) => {
                assert_eq!(unified, Ok(()), "{lengths:?}");
                assert!(left.iter().eq(expected), "{lengths:?}");
            }
            Err(expected) => assert_eq!(unified, Err(expected), "{lengths:?}"),
        }
    }

    #[test]
    fn equal_lengths_are_one() {
        check_lengths(&[], Ok(&[]));
        check_lengths(&["5"], Ok(&["5"]));
        check_lengths(&["5", "5", "5"], Ok(&["5"]));
        check_lengths(&["5", "6"], Err(Ambiguity::Lengths));
        check_lengths(&["5", "5", "6"], Err(Ambiguity::Lengths));
    }

    #[track_caller]
    fn check_hosts(version: Version, hosts: &[&str], expected: Option<Ambiguity>) {
        let request = Request::builder().version(version);
        let request =
            hosts.iter().fold(request, |request, host| request.header(HOST, *host)).body(()).unwrap();
        assert_eq!(LastHead::default().ambiguity(&request), expected, "{version:?} {hosts:?}");
    }

    #[test]
    fn a_request_of_http_1_1_has_one_host_and_no_other_has_two() {
        check_hosts(Version::HTTP_11, &["a"], None);
        check_hosts(Version::HTTP_11, &[], Some(Ambiguity::Host));
        check_hosts(Version::HTTP_11, &["a", "a"], Some(Ambiguity::Host));
        check_hosts(Version::HTTP_10, &[], None);
        check_hosts(Version::HTTP_10, &["a", "b"], Some(Ambiguity::Host));
        check_hosts(Version::HTTP_2, &[], None);
    }

    #[test]
    fn a_request_without_a_transfer_coding_is_read_one_way() {
        let request = Request::builder().header(CONTENT_LENGTH, "5").body(()).unwrap();
        assert!(!LastHead::default().has_two_lengths(&request));
    }
}
