//! One client's connection from its acceptance to its end. What the client does not do in time ends it: the
//! TLS handshake, the first bytes, each head. The one rule is that a connection without a request in progress
//! is closed after `timeouts.client_headers`, or earlier when another one needs its place.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
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
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use crate::config::TimeoutsConfig;
use crate::http::body::{Body, Outlet, limit_stall};
use crate::http::limits::{Closing, Place};
use crate::proxy::upstream::{BUFFER_BYTES, MAX_HEADERS};
use crate::tls::Acceptor;

use super::watched::{Protocol, WatchedStream};

/// The longest head of a client's request. Twice of what any client was seen to send: cookies and tokens of
/// 64 KiB.
const MAX_HEAD_BYTES: usize = 128 * 1024;

/// How long a connection may last that is only told that there are too many.
const REFUSAL_LIMIT: Duration = Duration::from_secs(5);
/// How long a client has to read that its connection ends, and to send what crossed that.
const GOODBYE: Duration = Duration::from_secs(1);
/// When the system asks a client that says nothing whether it is still there (TCP keep-alive), and how often
/// again. A client that vanished without a word is noticed by nothing else while it is owed an answer.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// HTTP/2 flow control: how much a stream, and a connection, may have under way. Large enough for a
/// blob at full speed, small enough for many clients.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// What is queued of a stream for a client that lets writes wait. It is counted nowhere but by its stream.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Streams of one HTTP/2 connection at a time. RFC 9113 recommends at least 100 (section 6.5.2).
const MAX_STREAMS: u32 = 128;
/// Streams that the client reset before they were looked at, and that refshim reset, before the connection is
/// closed: clients that open and reset streams without end would cost work without a limit (CVE-2023-44487).
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
    /// Serves the client to the end of its connection.
    pub(super) async fn serve(self, tls: Option<Arc<Acceptor>>, stream: TcpStream) {
        let stream = match client_stream(stream, self.timeouts.body_idle) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(client = %self.client, %error, "a client was gone before it was served");
                return;
            }
        };
        let Some(tls) = tls else { return self.serve_http(stream).await };
        // Boxed, as all that follows: a connection keeps nothing of what is behind it.
        match self.in_time(Box::pin(tls.accept(stream))).await {
            Some(Ok(stream)) => self.serve_http(stream).await,
            Some(Err(error)) => tracing::debug!(client = %self.client, %error, "a TLS handshake failed"),
            None => tracing::debug!(client = %self.client, "a TLS handshake took too long"),
        }
    }

    async fn serve_http(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let mut stream = WatchedStream::new(stream, Arc::clone(&self.place));
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
        // Without hyper's own time-out for heads, which would be a second timer for the same.
        builder.max_buf_size(BUFFER_BYTES).max_header_size(MAX_HEAD_BYTES).max_headers(MAX_HEADERS);
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let end = ConnectionEnd { place: &place, limit: limit(&place, &timeouts), shutdown: &shutdown };
        end.of(connection, http1::UpgradeableConnection::graceful_shutdown).await
    }

    async fn serve_http2(
        self,
        stream: WatchedStream<impl AsyncRead + AsyncWrite + Send + Unpin + 'static>,
    ) -> Result<(), hyper::Error> {
        let Self { timeouts, service, place, shutdown, .. } = self;
        let streams = Streams { begun: Arc::default(), idle: timeouts.body_idle };
        let mut builder = http2::Builder::new(streams.clone());
        builder
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS);
        // Without PINGs to see whether the client is there: behind all that is queued on a slow line, they would
        // come too late. Idle connections end anyhow, and so do writes and streams that wait for too long.
        let service = service_fn(move |request| {
            let outlet = streams.begin();
            through(outlet, service.call(request))
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let end = ConnectionEnd { place: &place, limit: limit(&place, &timeouts), shutdown: &shutdown };
        end.of(connection, http2::Connection::graceful_shutdown).await
    }

    /// What `step` comes to, unless the connection is to be closed before.
    async fn in_time<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = step => Some(done),
            _ = self.place.closing(limit(&self.place, &self.timeouts)) => None,
            () = self.shutdown.cancelled() => None,
        }
    }
}

/// The answer, given out through `outlet`. No async block, which would have room for `answer` twice: each request
/// pays for moving that.
fn through(
    outlet: Outlet,
    answer: impl Future<Output = Result<Response<Body>, Infallible>>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> {
    answer.map_ok(|response| response.map(|body| body.through(outlet)))
}

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
    async fn of<C>(&self, connection: C, say_goodbye: impl FnOnce(Pin<&mut C>)) -> hyper::Result<()>
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let mut connection = std::pin::pin!(connection);
        let closing = tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            closing = self.place.closing(self.limit) => closing,
            () = self.shutdown.cancelled() => Closing::Idle,
        };
        say_goodbye(connection.as_mut());
        if closing == Closing::Evicted {
            // Another client waits for its place: as much is said as can be without a wait.
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
                // Whoever waits for its place waits for its end.
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
/// client may take nothing of the answer.
#[derive(Clone, Debug)]
struct Streams {
    /// What is taken of the stream that begins now. hyper calls the service and then at once the executor
    /// with what the service gave, one stream after the other.
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

/// A client that takes nothing for too long is let go.
fn client_stream(stream: TcpStream, idle: Duration) -> io::Result<TcpClientStream> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(idle));
    Ok(Box::pin(stream))
}
