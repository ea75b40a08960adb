//! Connection pools to an upstream: buffer sizes, HTTP/2 windows, limits on heads.
//!
//! What a slow client does not read stays in these buffers, so their size times the requests in progress is the
//! memory that slow clients can hold. A megabyte each is needed for throughput; under high load each request gets 128
//! KiB.

use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::config;
use crate::http::body::Body;
use crate::tls::{Connector, Protocols};

/// The most header fields of a message, on either side: more than any client or registry sends.
pub const MAX_HEADERS: usize = 512;
/// The longest head of an upstream's answer.
pub const MAX_HEAD_BYTES: u32 = 512 * 1024;

/// The read buffer of a connection. hyper keeps the head of a message in it, so it cannot be smaller than that.
pub const BUFFER_BYTES: usize = MAX_HEAD_BYTES as usize;

/// HTTP/2 flow control of a connection: the largest window there is (RFC 9113, section 6.9.1). Each stream has its
/// own window; a limit for all together would let one slow client stop every other request on the connection.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// How much of one body may be buffered: the read buffer in HTTP/1.1, the stream's window in HTTP/2.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    read: usize,
    window: u32,
}

/// Large, for throughput.
pub(super) const LARGE: Buffers = Buffers { read: BUFFER_BYTES, window: 1 << 20 };
/// Small, for high load. In HTTP/1.1 this also limits the head of an answer, which has to fit in.
pub(super) const SMALL: Buffers = Buffers { read: 128 * 1024, window: 128 * 1024 };

/// Makes a pool; nothing is connected yet.
pub(super) fn pool(
    timeouts: &config::TimeoutsConfig,
    connector: Connector,
    protocols: Protocols,
    Buffers { read, window }: Buffers,
) -> Client<Connector, Body> {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .pool_idle_timeout(timeouts.pool_idle)
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http1_max_buf_size(read)
        .http1_max_headers(MAX_HEADERS)
        .http2_only(protocols == Protocols::Http2)
        .http2_initial_stream_window_size(window)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEAD_BYTES)
        // PINGs, sent while requests are open, notice a connection that a NAT or firewall dropped silently.
        .http2_keep_alive_interval(timeouts.pool_idle)
        .http2_keep_alive_timeout(timeouts.body_idle);
    builder.build(connector)
}
