//! A connection by HTTP/1.1. It has no task of its own: whoever sends a request by it moves it on, first for the head of
//! the answer and then for each frame of the body ([`Carrier`]); between two requests it is in the pool, and nobody
//! does. Only while a client still sends a request's body has it a task, since the registry may take that at another
//! pace than the client reads the answer.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;
use tokio::task::coop::unconstrained;

use super::connection::{BUFFER_BYTES, Closed, Failure, MAX_HEADERS, failure};
use super::pool::KeptBy;
use crate::http::body::{Backlog, Body, Carrier, Outlet, Received};
use crate::http::limits::ReadSize;
use crate::http::stream::BoundedStream;

/// How often a connection is moved on in a row before other tasks get their turn. With no limit, a task that has used up
/// its share of the runtime would spin: tokio answers "not now" to all it reads, and wakes it at once.
const TURNS: usize = 4;

/// One connection.
pub(super) struct Http1 {
    sender: http1::SendRequest<Body>,
    wire: Wire,
    /// What is queued of a request's body.
    backlog: Arc<Backlog>,
    pool: Option<KeptBy>,
}

/// What has to be moved on.
struct Wire {
    /// `None` when it has ended.
    connection: Option<Connection>,
    gate: Arc<Gate>,
    /// Of the gate: the connection is polled with this one alone.
    waker: Waker,
}

type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send + Sync>>;

/// Wakes the task that moves the connection on, but not for what happens while that task does: the parts of a connection
/// wake each other, and each time the task would run once more for nothing.
#[derive(Debug, Default)]
struct Gate {
    state: AtomicU8,
    user: AtomicWaker,
}

/// The connection is being moved on.
const MOVING: u8 = 1;
/// It was woken since that began.
const WOKEN: u8 = 2;

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(WOKEN, Ordering::AcqRel) & MOVING == 0 {
            self.user.wake();
        }
    }
}

/// Begins HTTP/1.1 on a new connection, which goes to the pool after each request.
///
/// # Errors
/// Those of hyper.
pub(super) async fn begin(
    io: impl Read + Write + Send + Sync + Unpin + 'static,
    read_size: ReadSize,
    pool: Option<KeptBy>,
) -> hyper::Result<Box<Http1>> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER_BYTES).max_headers(MAX_HEADERS);
    let stream = BoundedStream::new(TokioIo::new(io), read_size);
    let backlog = stream.backlog();
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let gate = Arc::new(Gate::default());
    let waker = Waker::from(Arc::clone(&gate));
    let wire = Wire { connection: Some(Box::pin(connection.with_upgrades())), gate, waker };
    Ok(Box::new(Http1 { sender, wire, backlog, pool }))
}

impl Http1 {
    /// Whether it can take a request, as far as was seen when it was last moved on.
    pub(super) fn is_ready(&self) -> bool {
        self.wire.connection.is_some() && self.sender.is_ready()
    }

    /// Whether it is still open. Called while nobody uses it: only so is it noticed that the registry closed it.
    pub(super) fn is_open(&mut self) -> bool {
        self.wire.move_on();
        self.is_ready()
    }

    /// Sends a request, the URI of which is absolute.
    pub(super) async fn send(
        mut self: Box<Self>,
        mut request: Box<Request<Body>>,
    ) -> Result<Response<Received>, Failure> {
        name_host(&mut request);
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
        let is_streamed = request.body().is_streamed();
        if is_streamed {
            // The client may send faster than the registry takes it.
            request.body_mut().send_through(Outlet::Http1(Arc::clone(&self.backlog)));
        }
        let mut answer = pin!(self.sender.try_send_request(*request));
        if is_streamed {
            tokio::spawn(self.move_on_alone());
            let answer = answer.await.map_err(|error| failure(error, false))?;
            return Ok(answer.map(Received::from));
        }
        let mut answered = None;
        let mut part = |cx: &mut Context<'_>| answer.as_mut().poll(cx).map(|answer| answered = Some(answer));
        poll_fn(|cx| self.wire.carry(cx, &mut part)).await;
        // A connection that ends gives back what it did not send. If it gives nothing back, the upstream may have processed
        // the request, so it must not count as unsent: that would be sent again, whatever it does.
        let answer = answered.ok_or_else(Closed::with_the_request)?.map_err(|error| failure(error, false))?;
        Ok(answer.map(|body| Received::by(self, body)))
    }

    /// Moves it on until it is free for the next request.
    async fn move_on_alone(mut self: Box<Self>) {
        let Self { sender, wire, .. } = &mut *self;
        poll_fn(|cx| wire.carry(cx, &mut |cx| sender.poll_ready(cx).map(drop))).await;
        self.keep();
    }

    fn keep(self: Box<Self>) {
        if self.is_ready()
            && let Some(pool) = self.pool.clone()
        {
            self.wire.gate.user.take();
            pool.keep(self);
        }
    }
}

impl Wire {
    fn carry(
        &mut self,
        cx: &mut Context<'_>,
        part: &mut dyn FnMut(&mut Context<'_>) -> Poll<()>,
    ) -> Poll<()> {
        let Self { connection, gate, waker } = self;
        gate.user.register(cx.waker());
        let mut own = Context::from_waker(waker);
        for _ in 0..TURNS {
            // Before anything is looked at: what changes from here on sets `WOKEN`.
            gate.state.store(MOVING, Ordering::Release);
            if part(&mut own).is_ready() {
                gate.state.store(0, Ordering::Release);
                return Poll::Ready(());
            }
            if has_ended(connection, &mut own) {
                gate.state.store(0, Ordering::Release);
                // The answer, or what it gave back.
                let _is_done = without_budget(&mut own, part);
                return Poll::Ready(());
            }
            if gate.state.swap(0, Ordering::AcqRel) & WOKEN == 0 {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Moves the connection on while nobody waits for anything of it.
    fn move_on(&mut self) {
        self.gate.state.store(MOVING, Ordering::Release);
        let Self { connection, waker, .. } = self;
        let _has_ended =
            without_budget(&mut Context::from_waker(waker), |cx| Poll::Ready(has_ended(connection, cx)));
        self.gate.state.store(0, Ordering::Release);
    }
}

/// Polls what is not polled again if it is not ready. To a task that has used up its share of the runtime, tokio's
/// sockets and channels say that they are not ready, whatever there is: an answer that came would pass for none, and a
/// connection that the registry closed for an open one.
fn without_budget<T>(cx: &mut Context<'_>, poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    pin!(unconstrained(poll_fn(poll))).poll(cx)
}

/// Moves a connection on as far as it goes now, and says whether it has ended.
fn has_ended(connection: &mut Option<Connection>, cx: &mut Context<'_>) -> bool {
    // Its errors are those of its requests. What it did not send comes back when it is dropped.
    connection.take_if(|connection| connection.as_mut().poll(cx).is_ready());
    connection.is_none()
}

impl Carrier for Http1 {
    fn carry(
        &mut self,
        cx: &mut Context<'_>,
        part: &mut dyn FnMut(&mut Context<'_>) -> Poll<()>,
    ) -> Poll<()> {
        self.wire.carry(cx, part)
    }

    fn release(mut self: Box<Self>) {
        if !self.is_ready() {
            self.wire.move_on();
        }
        if self.wire.connection.is_none() || self.is_ready() {
            return self.keep();
        }
        // The registry answered before it had the whole request.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(self.move_on_alone());
        }
    }
}

impl fmt::Debug for Http1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1").field("is_ready", &self.is_ready()).finish_non_exhaustive()
    }
}

/// Sets `Host` to that of the URI, if there is none.
fn name_host(request: &mut Request<Body>) {
    if !request.headers().contains_key(HOST)
        && let Some(authority) = request.uri().authority()
        // Without the user of a redirect's target.
        && let Some(host) = authority.as_str().rsplit('@').next()
        && let Ok(host) = HeaderValue::from_str(host)
    {
        request.headers_mut().insert(HOST, host);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use bytes::Bytes;
    use http::Method;
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::coop::{consume_budget, has_budget_remaining};

    use super::*;

    /// More than a task may do before it has to let others run.
    const SHARE: usize = 160;

    /// A registry that answers a request and ends the connection, all at once and whatever the budget of the task.
    struct Answering {
        answer: &'static [u8],
        is_asked: bool,
        reader: Option<Waker>,
    }

    impl AsyncRead for Answering {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.is_asked {
                self.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            into.put_slice(std::mem::take(&mut self.answer));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Answering {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.is_asked = true;
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Uses up so much of the task's share of the runtime, and goes on in the same turn.
    async fn use_up(units: usize) {
        poll_fn(|cx| {
            for _ in 0..units {
                let _is_left = pin!(consume_budget()).poll(cx);
            }
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn an_answer_counts_whatever_the_task_did_before_it() {
        for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            for used in 0..SHARE {
                tokio::task::yield_now().await;
                let answer = b"HTTP/1.1 202 Accepted\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                let io = Answering { answer, is_asked: false, reader: None };
                let http1 = begin(TokioIo::new(io), ReadSize::Large, None).await.unwrap();
                let request = Request::builder().method(&method).uri("http://registry/v2/");
                let request = request.body(Body::whole(Bytes::from_static(b"body"))).unwrap();
                use_up(used).await;
                let answer = http1.send(Box::new(request)).await;
                assert!(answer.is_ok_and(|answer| answer.status() == 202), "{method} after {used}");
            }
        }
    }

    #[tokio::test]
    async fn a_body_ends_whatever_the_task_did_before_it() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbody"[..],
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nbody",
        ] {
            for used in 0..SHARE {
                tokio::task::yield_now().await;
                let io = Answering { answer, is_asked: false, reader: None };
                let http1 = begin(TokioIo::new(io), ReadSize::Large, None).await.unwrap();
                let request = Request::get("http://registry/v2/").body(Body::empty()).unwrap();
                let answer = http1.send(Box::new(request)).await.unwrap();
                use_up(used).await;
                assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "body", "after {used}");
            }
        }
    }

    #[tokio::test]
    async fn that_the_registry_closed_is_seen_whatever_the_task_did_before() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, registry) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let mut http1 = begin(TokioIo::new(client.unwrap()), ReadSize::Large, None).await.unwrap();
        assert!(http1.is_open());
        registry.unwrap().0.shutdown().await.unwrap();
        // Until the runtime knows of it.
        while http1.wire.connection.is_some() {
            tokio::task::yield_now().await;
            use_up(SHARE).await;
            assert!(!has_budget_remaining());
            http1.is_open();
        }
        assert!(!http1.is_open());
    }
}
