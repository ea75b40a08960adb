//! One client's connection, from accept to close. There is one rule for the TLS handshake, the first bytes
//! and each head alike: a connection without a request in progress is closed after `timeouts.client_headers`,
//! or earlier if another one needs its place.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::TryFutureExt as _;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use crate::config::TimeoutsConfig;
use crate::http::body::{Body, Outlet, limit_stall};
use crate::http::limits::{Closing, Place, ReadSize};
use crate::proxy::upstream::{BUFFER_BYTES, MAX_HEADERS};
use crate::tls::Acceptor;

use super::watched::{Protocol, WatchedStream};

/// The longest head of a client's request: twice the longest that clients were seen to send, cookies and
/// tokens of 64 KiB.
const MAX_HEAD_BYTES: usize = 128 * 1024;

/// How long a connection over the limit, which only gets 503, may last.
const REFUSAL_LIMIT: Duration = Duration::from_secs(5);
/// How long a client has to read that its connection ends. A request that it sent before it read that is
/// answered.
const GOODBYE: Duration = Duration::from_secs(1);
/// How often it is looked for the first request of a new connection then.
const LAST_CALL_STEP: Duration = Duration::from_millis(10);
/// TCP keep-alive: when the first probe is sent, and how often it is repeated. Nothing else notices that a
/// client has vanished while it waits for an answer.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// HTTP/2 flow control window of a stream: enough for a blob at full speed, but what a registry does not take of
/// as many uploads as there may be stays in it.
fn stream_window(read_size: ReadSize) -> u32 {
    match read_size {
        ReadSize::Large => 1 << 20,
        ReadSize::Medium => 512 << 10,
        ReadSize::Small => 256 << 10,
    }
}
/// That of a connection is so many times larger.
const STREAM_WINDOWS: u32 = 4;
/// The most that is queued of a stream whose client does not read. No limit but this one counts these bytes.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Concurrent streams of one HTTP/2 connection. RFC 9113 recommends at least 100 (section 6.5.2).
const MAX_STREAMS: u32 = 128;
/// Streams that the client reset before they were accepted, and streams that refshim reset, after which the
/// connection is closed: opening and resetting streams without end would cause unlimited work
/// (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 1_024;

/// One client's connection, until it is served.
pub(super) struct Connection<S> {
    pub(super) timeouts: TimeoutsConfig,
    pub(super) client: SocketAddr,
    pub(super) service: S,
    pub(super) place: Arc<Place>,
    pub(super) shutdown: CancellationToken,
}

impl<S> Connection<S>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    /// Serves the connection until it ends.
    pub(super) async fn serve(self, tls: Option<Arc<Acceptor>>, stream: TcpStream) {
        let stream = match client_stream(stream, self.timeouts.body_idle) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(client = %self.client, %error, "a client was gone before it was served");
                return;
            }
        };
        let Some(tls) = tls else { return self.serve_http(stream).await };
        // Boxed, as each later step: an idle connection would otherwise hold the memory of the largest of
        // them.
        match self.in_time(Box::pin(tls.accept(stream).map_ok(Box::new))).await {
            Some(Ok(stream)) => self.serve_http(stream).await,
            Some(Err(error)) => tracing::debug!(client = %self.client, %error, "a TLS handshake failed"),
            None => tracing::debug!(client = %self.client, "a TLS handshake took too long"),
        }
    }

    async fn serve_http(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let mut stream = WatchedStream::new(stream, Arc::clone(&self.place));
        // By the first bytes and not by ALPN: without TLS there is none, and with TLS a client may do
        // without.
        let protocol = self.in_time(Box::pin(stream.protocol())).await;
        let client = self.client;
        let ended = match protocol {
            Some(Ok(Protocol::Http1)) => Box::pin(self.serve_http1(stream)).await,
            Some(Ok(Protocol::Http2)) => Box::pin(self.serve_http2(stream)).await,
            Some(Err(_)) | None => return,
        };
        if let Err(error) = ended {
            tracing::debug!(%client, %error, "a connection ended early");
        }
    }

    async fn serve_http1(
        self,
        stream: WatchedStream<impl AsyncRead + AsyncWrite + Send + Unpin + 'static>,
    ) -> Result<(), hyper::Error> {
        let Self { timeouts, service, place, shutdown, .. } = self;
        let backlog = stream.backlog();
        let service = service_fn(move |request| {
            let outlet = Outlet::Http1(Arc::clone(&backlog));
            through(outlet, service.call(request))
        });
        let mut builder = http1::Builder::new();
        // Without hyper's time-out for heads: `place.closing` is that timer already, and one for all
        // requests.
        builder.max_buf_size(BUFFER_BYTES).max_header_size(MAX_HEAD_BYTES).max_headers(MAX_HEADERS);
        let connection = pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
        let end = ConnectionEnd { place: &place, limit: limit(&place, &timeouts), shutdown: &shutdown };
        end.of(connection, http1::UpgradeableConnection::graceful_shutdown).await
    }

    async fn serve_http2(
        self,
        stream: WatchedStream<impl AsyncRead + AsyncWrite + Send + Unpin + 'static>,
    ) -> Result<(), hyper::Error> {
        let Self { timeouts, service, place, shutdown, .. } = self;
        let streams = Streams { begun: Arc::default(), idle: timeouts.body_idle };
        let window = stream_window(place.read_size());
        let mut builder = http2::Builder::new(streams.clone());
        builder
            .initial_stream_window_size(window)
            .initial_connection_window_size(window * STREAM_WINDOWS)
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS);
        // Without keep-alive PINGs: behind the data queued for a slow line they come too late, and a download
        // that moves would be cut off. Idle connections, blocked writes and stalled streams have limits of
        // their own.
        let service = service_fn(move |request| {
            let outlet = streams.begin();
            through(outlet, service.call(request))
        });
        let connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let end = ConnectionEnd { place: &place, limit: limit(&place, &timeouts), shutdown: &shutdown };
        end.of(connection, http2::Connection::graceful_shutdown).await
    }

    /// The result of `step`, or `None` if the connection has to be closed before.
    async fn in_time<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            // What is done at the last moment counts.
            biased;
            done = step => Some(done),
            _ = self.place.closing(limit(&self.place, &self.timeouts)) => None,
            () = last_call(&self.place, &self.shutdown) => None,
        }
    }
}

/// The shutdown, and then a moment for the first request of a client that has just connected: it may be on its way, and
/// the client would see a reset connection in place of an answer.
async fn last_call(place: &Place, shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    let end = Instant::now() + GOODBYE;
    while !place.was_used() && Instant::now() < end {
        tokio::time::sleep(LAST_CALL_STEP).await;
    }
}

/// The answer, sent through `outlet`. Not an async block, whose future would have room for `answer` twice:
/// each request would pay for moving it.
fn through(
    outlet: Outlet,
    answer: impl Future<Output = Result<Response<Body>, Infallible>>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> {
    answer.map_ok(|response| response.map(|body| body.through(outlet)))
}

/// How long the connection may be idle.
fn limit(place: &Place, timeouts: &TimeoutsConfig) -> Duration {
    if place.is_served() { timeouts.client_headers } else { REFUSAL_LIMIT }
}

/// What ends a connection.
struct ConnectionEnd<'a> {
    place: &'a Place,
    limit: Duration,
    shutdown: &'a CancellationToken,
}

impl ConnectionEnd<'_> {
    /// Runs a connection to its end, or until it is to be closed.
    async fn of<C>(
        &self,
        mut connection: Pin<&mut C>,
        say_goodbye: impl FnOnce(Pin<&mut C>),
    ) -> hyper::Result<()>
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let closing = tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            closing = self.place.closing(self.limit) => closing,
            () = last_call(self.place, self.shutdown) => Closing::Idle,
        };
        say_goodbye(connection.as_mut());
        if closing == Closing::Evicted {
            // Another client waits for its place: only what can be written without waiting is written.
            return tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = std::future::ready(()) => Ok(()),
            };
        }
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => return ended,
                // Another client waits for its place now.
                () = self.place.evicted() => return Ok(()),
                () = tokio::time::sleep(GOODBYE) => {}
            }
            // A request that crossed the goodbye is still answered.
            if self.place.is_idle() {
                return Ok(());
            }
        }
    }
}

/// hyper's executor for the streams of one HTTP/2 connection: a task for each, with a limit on how long its
/// client may read nothing of the answer.
#[derive(Clone, Debug)]
struct Streams {
    /// The count of what the client has read of the stream that begins now. It gets from the service to the
    /// executor this way because hyper calls one right after the other, for one stream at a time.
    begun: Arc<Mutex<Option<Arc<AtomicU64>>>>,
    idle: Duration,
}

impl Streams {
    fn begin(&self) -> Outlet {
        let (outlet, taken) = Outlet::http2();
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken);
        outlet
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        match self.begun.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(taken) => tokio::spawn(limit_stall(stream, taken, self.idle)),
            None => tokio::spawn(stream),
        };
    }
}

type TcpClientStream = Pin<Box<TimeoutStream<TcpStream>>>;

/// Sets up the socket: keep-alive, and a time-out for blocked writes.
fn client_stream(stream: TcpStream, idle: Duration) -> io::Result<TcpClientStream> {
    // Nagle's algorithm would hold a short answer back until the client acknowledges the one before it.
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(idle));
    Ok(Box::pin(stream))
}
