//! Connections to an upstream: their limits, why a request by one has no answer, and HTTP/2.
//!
//! hyper hands a request by HTTP/2 to its connection's task through a queue. If the task ends at that very moment, the
//! request stays in the queue, and neither an answer nor an error ever comes (hyper #4122). It was certainly not sent
//! then. Whether this can have happened is known as soon as the request is in the queue: only if the connection is closed.

use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::header::HOST;
use http::{Request, Response};
use hyper::client::conn::{TrySendError, http2};
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use super::SharedError;
use crate::http::body::{Body, Received};
use crate::http::limits::ReadSize;

/// The most header fields of a message, on either side: more than any client or registry sends.
pub const MAX_HEADERS: usize = 512;
/// The longest head of an upstream's answer.
pub const MAX_HEAD_BYTES: u32 = 512 * 1024;

/// The largest buffer of a connection. hyper keeps the head of a message in it, so it cannot be smaller than that.
pub const BUFFER_BYTES: usize = MAX_HEAD_BYTES as usize;

/// HTTP/2 flow control of a connection: the largest window there is (RFC 9113, section 6.9.1). Each stream has its
/// own window; a limit for all together would let one slow client stop every other request on the connection.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// How long a request that came to a closing connection has to come back from it or leave its queue, which takes
/// microseconds.
const QUEUE_LIMIT: Duration = Duration::from_secs(1);

/// The window of an HTTP/2 stream: how much of an answer may wait for its client.
fn stream_window(read_size: ReadSize) -> u32 {
    match read_size {
        ReadSize::Large => 1 << 20,
        ReadSize::Medium => 256 << 10,
        ReadSize::Small => 128 << 10,
    }
}

/// When an HTTP/2 connection whose upstream says nothing is closed: PINGs, sent while requests are open, notice a
/// connection that a NAT or firewall dropped silently.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeepAlive {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

pub(super) type Http2 = http2::SendRequest<Body>;

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection could be made.
    Connect(SharedError),
    /// There is no answer on this connection.
    Exchange {
        error: BoxError,
        is_http2: bool,
        /// The connection did not take the request.
        is_unsent: bool,
        /// The request, if it came back.
        request: Option<Box<Request<Body>>>,
    },
}

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
#[error("the connection ended as the request came to it")]
pub(super) struct Closed;

impl Closed {
    /// The request may have been sent.
    pub(super) fn with_the_request() -> Failure {
        Failure::Exchange { error: Box::new(Self), is_http2: false, is_unsent: false, request: None }
    }
}

/// In the extensions of a request for as long as it is in the queue: HTTP/2 keeps nothing of them.
#[derive(Clone)]
struct InQueue(Arc<()>);

/// Begins HTTP/2. The connection runs until the upstream ends it, or all of what is returned is dropped and its
/// streams have ended.
///
/// # Errors
/// Those of hyper.
pub(super) async fn http2(
    io: impl Read + Write + Send + Unpin + 'static,
    read_size: ReadSize,
    keep_alive: KeepAlive,
) -> hyper::Result<Http2> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(stream_window(read_size))
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD_BYTES)
        .keep_alive_interval(keep_alive.interval)
        .keep_alive_timeout(keep_alive.timeout);
    let (sender, connection) = builder.handshake(io).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends a request by HTTP/2, the URI of which is absolute.
pub(super) async fn by_http2(
    mut sender: Http2,
    mut request: Box<Request<Body>>,
) -> Result<Response<Received>, Failure> {
    request.headers_mut().remove(HOST);
    let queued = InQueue(Arc::default());
    let is_queued = Arc::downgrade(&queued.0);
    request.extensions_mut().insert(queued);
    let mut answer = pin!(sender.try_send_request(*request));
    let may_be_lost = sender.is_closed();
    // Or the queue of an ended connection would stay for as long as this waits for its answer, with what is lost in it.
    drop(sender);
    let answer = if may_be_lost {
        match timeout(QUEUE_LIMIT, &mut answer).await {
            Ok(answer) => answer,
            Err(_) if Weak::strong_count(&is_queued) > 0 => return Err(lost()),
            // It was the last to be sent.
            Err(_) => answer.await,
        }
    } else {
        answer.await
    };
    answer.map(|answer| answer.map(Received::from)).map_err(|error| failure(error, true))
}

pub(super) fn failure(mut error: TrySendError<Request<Body>>, is_http2: bool) -> Failure {
    let request = error.take_message().map(Box::new);
    let error = error.into_error().into();
    Failure::Exchange { error, is_http2, is_unsent: request.is_some(), request }
}

/// The request is in the queue of a connection that has ended.
fn lost() -> Failure {
    Failure::Exchange { error: Box::new(Closed), is_http2: true, is_unsent: true, request: None }
}
