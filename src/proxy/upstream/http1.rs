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
use tokio::runtime::Handle;

use super::connection::{Buffers, Failure, MAX_HEADERS, failure, lost};
use super::pool::KeptBy;
use crate::http::body::{Body, Carrier, Received};

/// How often a connection is moved on in a row before other tasks get their turn. With no limit, a task that has used up
/// its share of the runtime would spin: tokio answers "not now" to all it reads, and wakes it at once.
const TURNS: usize = 4;

/// One connection.
pub(super) struct Http1 {
    sender: http1::SendRequest<Body>,
    wire: Wire,
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
    buffers: Buffers,
    pool: Option<KeptBy>,
) -> hyper::Result<Box<Http1>> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(buffers.read).max_headers(MAX_HEADERS);
    let (sender, connection) = builder.handshake(io).await?;
    let gate = Arc::new(Gate::default());
    let waker = Waker::from(Arc::clone(&gate));
    let wire = Wire { connection: Some(Box::pin(connection.with_upgrades())), gate, waker };
    Ok(Box::new(Http1 { sender, wire, pool }))
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
        mut request: Request<Body>,
    ) -> Result<Response<Received>, Failure> {
        name_host(&mut request);
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
        let is_streamed = request.body().is_streamed();
        let mut answer = pin!(self.sender.try_send_request(request));
        if is_streamed {
            tokio::spawn(self.move_on_alone());
            let answer = answer.await.map_err(|error| failure(error, false))?;
            return Ok(answer.map(Received::from));
        }
        let mut answered = None;
        let mut part = |cx: &mut Context<'_>| answer.as_mut().poll(cx).map(|answer| answered = Some(answer));
        poll_fn(|cx| self.wire.carry(cx, &mut part)).await;
        // A connection that ends gives back all that was to be sent by it.
        let answer = answered.ok_or_else(|| lost(false))?.map_err(|error| failure(error, false))?;
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
                // What it gave back.
                let _is_done = part(&mut own);
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
        has_ended(&mut self.connection, &mut Context::from_waker(&self.waker));
        self.gate.state.store(0, Ordering::Release);
    }
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
