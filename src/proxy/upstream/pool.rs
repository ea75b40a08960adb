//! How connections to an upstream are pooled, and their sizes.

use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::config;
use crate::http::body::Body;
use crate::tls::{Connector, Protocols};

/// More than any client sends, and than either side of the proxy refuses.
pub const MAX_HEADERS: usize = 512;
/// How long a header may be, at most, on either side.
pub const MAX_HEAD_BYTES: u32 = 512 * 1024;

/// How much of a body is read from a connection at once, at most.
pub const BUFFER_BYTES: usize = MAX_HEAD_BYTES as usize;

/// HTTP/2 flow control: how much of one body may be on its way unread. What a slow client leaves unread
/// must not stop the other requests on the connection, whose own window is therefore without a limit.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// How much of one body may be unread: in HTTP/1.1 by one read, in HTTP/2 by the stream's window.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    read: usize,
    window: u32,
}

/// For throughput.
pub(super) const LARGE: Buffers = Buffers { read: BUFFER_BYTES, window: 1 << 20 };
/// Still as long as the head of an answer may be, which has to fit in.
pub(super) const SMALL: Buffers = Buffers { read: 128 * 1024, window: 128 * 1024 };

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
        .http2_keep_alive_interval(timeouts.pool_idle)
        .http2_keep_alive_timeout(timeouts.body_idle);
    builder.build(connector)
}
