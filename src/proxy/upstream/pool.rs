//! The connections to an upstream that are kept for the next request: any number of HTTP/1.1, the one that was used
//! last first, and one of HTTP/2, which all requests share.
//!
//! What is read at once takes memory for as long as the connection lasts, so the more requests are in progress, the less
//! is read: there is a pool for each size.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use http::{Request, Response, Uri};
use hyper_util::client::legacy::connect::Connection as _;
use tokio::time::{Instant, sleep};
use tower::Service as _;

use super::SharedError;
use super::connection::{self, Failure, Http2, KeepAlive};
use super::http1::{self, Http1};
use crate::config::TimeoutsConfig;
use crate::http::body::{Body, Received};
use crate::http::limits::ReadSize;
use crate::tls::{Connector, Protocols};

/// How often idle connections are looked for at most.
const SHORTEST_ROUND: Duration = Duration::from_millis(100);
/// How often at least: so long a connection that the registry has closed takes a file descriptor.
const LONGEST_ROUND: Duration = Duration::from_secs(5);

/// Connections that are read in one size. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Pool(Arc<Inner>);

/// A pool for each [`ReadSize`].
#[derive(Clone, Debug)]
pub(super) struct Pools([Pool; ReadSize::ALL.len()]);

impl Pools {
    /// Makes the pools; nothing is connected yet.
    pub(super) fn new(timeouts: &TimeoutsConfig, connector: &Connector, protocols: Protocols) -> Self {
        Self(ReadSize::ALL.map(|read_size| Pool::new(timeouts, connector.clone(), protocols, read_size)))
    }

    /// The pool of connections that are read in this size.
    pub(super) fn of(&self, read_size: ReadSize) -> &Pool {
        let [large, medium, small] = &self.0;
        match read_size {
            ReadSize::Large => large,
            ReadSize::Medium => medium,
            ReadSize::Small => small,
        }
    }
}

struct Inner {
    connector: Connector,
    protocols: Protocols,
    read_size: ReadSize,
    keep_alive: KeepAlive,
    idle_limit: Duration,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The longest idle first.
    http1: Vec<(Box<Http1>, Instant)>,
    http2: Option<(Http2, Instant)>,
    /// Whether the last connection spoke HTTP/2: then the next one is made for all that wait.
    speaks_http2: bool,
    connecting: Option<Connecting>,
    /// Whether idle connections are looked for.
    is_watched: bool,
}

/// The pool that a connection goes back to, if it is still there.
#[derive(Clone)]
pub(super) struct KeptBy(Weak<Inner>);

impl KeptBy {
    /// Keeps a connection that can take a request.
    pub(super) fn keep(&self, http1: Box<Http1>) {
        if let Some(pool) = self.0.upgrade() {
            Pool(pool).keep_http1(http1);
        }
    }
}

/// The connection that is being made for all who wait for it; `None` if the upstream turned out to speak HTTP/1.1.
type Connecting = Shared<BoxFuture<'static, Result<Option<Http2>, SharedError>>>;

enum Connection {
    Http1(Box<Http1>),
    Http2(Http2),
}

impl Pool {
    fn new(
        timeouts: &TimeoutsConfig,
        connector: Connector,
        protocols: Protocols,
        read_size: ReadSize,
    ) -> Self {
        let keep_alive = KeepAlive { interval: timeouts.pool_idle, timeout: timeouts.body_idle };
        let kept = Kept { speaks_http2: protocols == Protocols::Http2, ..Kept::default() };
        let (idle_limit, kept) = (timeouts.pool_idle, Mutex::new(kept));
        Self(Arc::new(Inner { connector, protocols, read_size, keep_alive, idle_limit, kept }))
    }

    /// Sends a request, the URI of which is absolute and at the upstream, over a kept connection or a new one. One that
    /// comes back from a kept connection, because that ended meanwhile, goes over the next.
    pub(super) async fn send(&self, mut request: Box<Request<Body>>) -> Result<Response<Received>, Failure> {
        let target = request.uri().clone();
        loop {
            let (connection, was_kept) = self.connection(&target).await.map_err(Failure::Connect)?;
            let failure = match self.exchange(connection, request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            // What is lost in the queue of an ended connection is given back with the last handle of it.
            self.0.lock().open_http2();
            match failure {
                Failure::Exchange { request: Some(back), .. } if was_kept => {
                    request = back;
                    request.uri_mut().clone_from(&target);
                }
                failure @ (Failure::Connect(_) | Failure::Exchange { .. }) => return Err(failure),
            }
        }
    }

    async fn exchange(
        &self,
        connection: Connection,
        request: Box<Request<Body>>,
    ) -> Result<Response<Received>, Failure> {
        match connection {
            Connection::Http1(http1) => http1.send(request).await,
            Connection::Http2(sender) => Box::pin(connection::by_http2(sender, request)).await,
        }
    }

    /// A connection, and whether it was kept.
    async fn connection(&self, target: &Uri) -> Result<(Connection, bool), SharedError> {
        loop {
            let connecting = {
                let mut kept = self.0.lock();
                if let Some(found) = kept.take(self.0.idle_limit) {
                    return Ok((found, true));
                }
                kept.speaks_http2
                    .then(|| kept.connecting.get_or_insert_with(|| self.connect_for_all(target)).clone())
            };
            // Boxed, as HTTP/2 below: no request has room for what few need.
            let Some(connecting) = connecting else {
                return Ok((Box::pin(self.connect(target)).await?, false));
            };
            if let Some(http2) = connecting.await? {
                return Ok((Connection::Http2(http2), false));
            }
        }
    }

    /// Connects in a task of its own: whoever asked first may go away while others wait.
    fn connect_for_all(&self, target: &Uri) -> Connecting {
        let (pool, target) = (self.clone(), target.clone());
        let made = tokio::spawn(async move {
            let _ended = Ended(pool.clone());
            match pool.connect(&target).await? {
                Connection::Http1(http1) => pool.keep_http1(http1),
                Connection::Http2(sender) => return Ok(Some(sender)),
            }
            Ok(None)
        });
        made.map(|made| made.unwrap_or_else(|error| Err(SharedError::new(error)))).boxed().shared()
    }

    async fn connect(&self, target: &Uri) -> Result<Connection, SharedError> {
        let Inner { connector, protocols, read_size, keep_alive, .. } = &*self.0;
        let io = connector.clone().call(target.clone()).await.map_err(SharedError::new)?;
        let is_http2 = *protocols == Protocols::Http2 || io.connected().is_negotiated_h2();
        if !is_http2 {
            let kept_by = KeptBy(Arc::downgrade(&self.0));
            let http1 = http1::begin(io, *read_size, Some(kept_by)).await.map_err(SharedError::new)?;
            self.0.lock().speaks_http2 = false;
            return Ok(Connection::Http1(http1));
        }
        let http2 = connection::http2(io, *read_size, *keep_alive).await.map_err(SharedError::new)?;
        let mut kept = self.0.lock();
        kept.speaks_http2 = true;
        // Before the first answer to ALPN, several may connect at once.
        let http2 = kept.open_http2().unwrap_or(http2);
        kept.http2 = Some((http2.clone(), Instant::now()));
        self.watch(&mut kept);
        Ok(Connection::Http2(http2))
    }

    fn keep_http1(&self, http1: Box<Http1>) {
        let mut kept = self.0.lock();
        kept.http1.push((http1, Instant::now()));
        self.watch(&mut kept);
    }

    /// Closes connections that are idle for too long, for as long as any are kept.
    fn watch(&self, kept: &mut Kept) {
        if std::mem::replace(&mut kept.is_watched, true) {
            return;
        }
        let (pool, limit) = (Arc::downgrade(&self.0), self.0.idle_limit);
        tokio::spawn(async move {
            loop {
                sleep(limit.clamp(SHORTEST_ROUND, LONGEST_ROUND)).await;
                let Some(pool) = Weak::upgrade(&pool) else { return };
                let mut kept = pool.lock();
                kept.discard_idle(limit);
                if kept.http1.is_empty() && kept.http2.is_none() {
                    kept.is_watched = false;
                    return;
                }
            }
        });
    }
}

/// Ends what all waited for, also by a panic: or its error would be everybody's for ever.
struct Ended(Pool);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.0.lock().connecting = None;
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("protocols", &self.protocols).finish_non_exhaustive()
    }
}

impl Kept {
    /// A connection for the next request.
    fn take(&mut self, idle_limit: Duration) -> Option<Connection> {
        let now = Instant::now();
        if let Some((_, used)) = &mut self.http2 {
            if now - *used > idle_limit {
                self.http2 = None;
            } else {
                *used = now;
            }
        }
        if let Some(http2) = self.open_http2() {
            return Some(Connection::Http2(http2));
        }
        while let Some((http1, since)) = self.http1.pop() {
            if now - since > idle_limit {
                // All before it have been idle for longer.
                self.http1.clear();
            } else if http1.is_ready() {
                return Some(Connection::Http1(http1));
            }
        }
        None
    }

    /// The HTTP/2 connection. One that has ended is dropped.
    fn open_http2(&mut self) -> Option<Http2> {
        self.http2.take_if(|(sender, _)| sender.is_closed());
        self.http2.as_ref().map(|(sender, _)| sender.clone())
    }

    fn discard_idle(&mut self, limit: Duration) {
        let now = Instant::now();
        self.http1.retain_mut(|(http1, since)| now - *since <= limit && http1.is_open());
        self.http2.take_if(|(sender, used)| sender.is_closed() || now - *used > limit);
    }
}
