//! The listeners: each accepts connections, and has each served in a task of its own.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::app::leave_body_out;
use super::connection::Connection;
use super::live::Live;
use crate::admin::Admin;
use crate::config::TimeoutsConfig;
use crate::http::body::Body;
use crate::http::limits::{Connections, Place};
use crate::proxy::forward::Peer;
use crate::tls::Acceptor;

/// The pause after a failed accept. Without free file descriptors it fails again and again, until a
/// connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all listeners share.
pub(super) struct Doors<'a> {
    pub(super) connections: &'a TaskTracker,
    pub(super) shutdown: &'a CancellationToken,
}

impl Doors<'_> {
    /// Serves the web page for ever, if it has a listener.
    pub(super) async fn visit(
        &self,
        listener: Option<&TcpListener>,
        connections: &Connections,
        live: &watch::Receiver<Arc<Live>>,
        admin: &Arc<Admin>,
    ) {
        // The first of the server's futures to end ends serving.
        let Some(listener) = listener else { return std::future::pending().await };
        let settings = || live.borrow().of_a_connection();
        let has_tls = live.borrow().acceptor.is_some();
        self.accept(listener, connections, settings, |visitor, place| {
            let peer = Peer::new(visitor, has_tls);
            let (live, admin) = (live.clone(), Arc::clone(admin));
            hyper::service::service_fn(move |request: Request<Incoming>| {
                let (live, admin) = (Arc::clone(&live.borrow()), Arc::clone(&admin));
                let (peer, place) = (peer.clone(), Arc::clone(&place));
                async move {
                    // Its address is not changed by a reload: where there is a listener, there is a page.
                    let Some(web) = &live.web else { return Ok(Response::new(Body::empty())) };
                    let is_head = *request.method() == Method::HEAD;
                    let mut response = web.answer(&peer, &place, request, admin.health()).await;
                    if is_head {
                        leave_body_out(&mut response);
                    }
                    Ok::<_, Infallible>(response)
                }
            })
        })
        .await;
    }

    /// Accepts connections for ever, each with the settings in force, and serves each in a task of its own: a slow TLS
    /// handshake delays no other.
    pub(super) async fn accept<S>(
        &self,
        listener: &TcpListener,
        connections: &Connections,
        settings: impl Fn() -> (TimeoutsConfig, Option<Arc<Acceptor>>),
        service: impl Fn(IpAddr, Arc<Place>) -> S,
    ) where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        loop {
            match listener.accept().await {
                Ok((stream, client)) => {
                    // Over the limit and its reserve for 503s, the stream is dropped: refusals need a limit,
                    // too.
                    let Some(place) = connections.admit().await else { continue };
                    let (timeouts, tls) = settings();
                    let connection = Connection {
                        timeouts,
                        client,
                        service: service(client.ip(), Arc::clone(&place)),
                        place,
                        shutdown: self.shutdown.clone(),
                    };
                    self.connections.spawn(connection.serve(tls, stream));
                }
                // Never the end of the loop: a client that resets its connection early causes an error, too.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections, trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}
