//! What one configuration gives, as a whole. A reload makes another one that goes on from the one before; a request
//! sees the same one from its beginning to its end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use tokio::sync::watch;

use super::StartError;
use super::app::{App, Parts};
use crate::config::{self, Config, TimeoutsConfig, TlsConfig};
use crate::http::body::Body;
use crate::http::limits::Place;
use crate::proxy::forward::{Clients, Peer};
use crate::proxy::upstream::{Upstream, Upstreams};
use crate::tls::Acceptor;
use crate::web::Web;

/// Everything that a reload replaces.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) app: App,
    pub(super) upstreams: Upstreams,
    pub(super) acceptor: Option<Arc<Acceptor>>,
    /// The web page, if it has an address.
    pub(super) web: Option<Web>,
    tls: Option<TlsConfig>,
    /// Of a connection, from when it is accepted.
    pub(super) timeouts: TimeoutsConfig,
    pub(super) tls_interval: Duration,
    clients: Clients,
}

impl Live {
    /// Goes on from `before`, if there is one.
    ///
    /// # Errors
    /// TLS cannot be set up. Then `before` is as it was.
    pub(super) fn new(config: &Config, parts: &Parts, before: Option<&Self>) -> Result<Self, StartError> {
        let earlier = |place: usize| before.and_then(|before| before.upstreams.iter().nth(place));
        let made = |settings: &config::UpstreamConfig, place: usize| {
            upstream(settings, parts, earlier(place).map(Arc::as_ref)).map(Arc::new)
        };
        let further = config.further_upstreams.iter().zip(1..);
        let upstreams = Upstreams {
            default: made(&config.upstream, 0)?,
            further: further.map(|(settings, place)| made(settings, place)).collect::<Result<_, _>>()?,
        };
        let acceptor = match before {
            // With the sessions that clients may resume.
            Some(before) if before.tls == config.tls => before.acceptor.clone(),
            Some(_) | None => {
                let made = config.tls.as_ref().map(Acceptor::new).transpose();
                made.map_err(StartError::ServerTls)?.map(Arc::new)
            }
        };
        let logins = config.web.listen.map(|_address| Web::logins(config)).transpose()?;
        // From here on nothing fails: limits that are shared with `before` change.
        let app = App::new(config, &upstreams, parts, before.map(|before| &before.app));
        let web = logins.map(|logins| app.web(config, &parts.index, logins));
        Ok(Self {
            app,
            web,
            upstreams,
            acceptor,
            tls: config.tls.clone(),
            timeouts: config.timeouts.clone(),
            tls_interval: config.tls_reload,
            clients: Clients::new(config),
        })
    }

    /// What counts for a connection from when it is accepted: time-outs, and TLS if it is spoken.
    pub(super) fn of_a_connection(&self) -> (TimeoutsConfig, Option<Arc<Acceptor>>) {
        (self.timeouts.clone(), self.acceptor.clone())
    }

    /// The service for one client's connection: each request is answered by what is in force when it comes.
    pub(super) fn service(
        current: watch::Receiver<Arc<Self>>,
        client: Peer,
        place: Arc<Place>,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<>,
    > + Send
    + Sync
    + use<> {
        // hyper's and not tower's: a service that is always ready needs neither to be cloned for each request, as an
        // adapter would, nor a future that first waits for it.
        service_fn(move |request| {
            let live = Arc::clone(&current.borrow());
            let (mut origin, place) = (live.clients.origin(&client, &request), Arc::clone(&place));
            // Boxed, since it is handed from future to future, each of which has room for it.
            let request = Box::new(request);
            async move { Ok(live.app.serve(&mut origin, &place, request).await) }
        })
    }
}

fn upstream(
    settings: &config::UpstreamConfig,
    parts: &Parts,
    earlier: Option<&Upstream>,
) -> Result<Upstream, StartError> {
    let made = if let Some(earlier) = earlier {
        earlier.with_settings(settings, &parts.metrics)
    } else {
        if settings.tls.insecure_skip_verify {
            tracing::warn!(upstream = %settings.name, "insecure_skip_verify: whoever answers in place of this \
                upstream is believed, and gets all credentials");
        }
        let made = Upstream::new(settings, &parts.metrics);
        made.map(|upstream| upstream.under(parts.load.clone()).traced(parts.traces.clone()))
    };
    made.map_err(|error| StartError::Upstream(settings.name.clone(), error))
}
