//! Listens, serves and drains: both listeners, HTTP/1.1 and HTTP/2 on each connection, and a shutdown within
//! a limit.

pub mod app;
mod connection;
mod doors;
mod handlers;
mod request_log;
mod watched;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::uri::Authority;
use hyper::body::Incoming;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::doors::Doors;
use crate::admin::{Admin, Background};
use crate::config::{self, Config, Mode, RegistryUrl, SweepConfig, TimeoutsConfig, UpstreamName};
use crate::http::limits::{Connections, Load};
use crate::index::{Index, IndexSettings, OpenError};
use crate::jobs::{Desk, sweep};
use crate::notifications::{Notifications, NotificationsError};
use crate::proxy::forward::{Clients, Peer};
use crate::proxy::upstream::{Upstream, Upstreams};
use crate::referrers_tags::{ReferrersTags, ReferrersTagsError};
use crate::server::app::App;
use crate::telemetry::Metrics;
use crate::tls::{Acceptor, Reload as _, TlsError};
use crate::web::{Web, WebError};

/// Connection limit of the admin listener.
const ADMIN_CONNECTIONS: usize = 1_000;
/// Connection limit of the web page.
const WEB_CONNECTIONS: usize = 1_000;

/// Why refshim could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The setting's value.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Every request would come back to refshim.
    #[error("the upstream {0} is where refshim itself listens: give one of the two another address")]
    Loop(Authority),
    /// The index cannot be opened.
    #[error("cannot open the index: {0}")]
    Index(#[from] OpenError),
    /// Notifications cannot be taken.
    #[error("cannot take notifications: {0}")]
    Notifications(#[from] NotificationsError),
    /// Referrers tags cannot be written.
    #[error("cannot write referrers tags (referrers.write_tags): {0}")]
    ReferrersTags(#[from] ReferrersTagsError),
    /// TLS towards clients cannot be set up.
    #[error("cannot set up TLS towards clients: {0}")]
    ServerTls(#[source] TlsError),
    /// The web page cannot be set up.
    #[error("cannot set up the web page (web.listen): {0}")]
    Web(#[from] WebError),
    /// The client towards an upstream cannot be set up.
    #[error("cannot set up TLS towards the upstream {0}: {1}")]
    Upstream(UpstreamName, #[source] TlsError),
}

/// A refshim whose listeners are bound, and that does not serve yet.
#[derive(Debug)]
pub struct Server {
    clients: TcpListener,
    admins: TcpListener,
    tls: ServerTls,
    known_clients: Arc<Clients>,
    app: Arc<App>,
    web: Option<(TcpListener, Arc<Web>)>,
    admin: Arc<Admin>,
    desk: Arc<Desk>,
    sweeps: SweepConfig,
    metrics: Arc<Metrics>,
    notifications: Arc<Notifications>,
    tags: Arc<ReferrersTags>,
    index: Index,
    tasks: TaskTracker,
    timeouts: TimeoutsConfig,
    connections: Connections,
}

/// Everything that is loaded from TLS files.
#[derive(Clone, Debug)]
struct ServerTls {
    acceptor: Option<Arc<Acceptor>>,
    upstreams: Upstreams,
    notifications: Arc<Notifications>,
    tags: Arc<ReferrersTags>,
    web: Option<Arc<Web>>,
    interval: Duration,
}

impl ServerTls {
    /// Reloads changed files at each interval and each SIGHUP, for ever.
    async fn watch(self, mut hangup: Signal) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                _ = hangup.recv() => {}
            }
            let tls = self.clone();
            // The files may be on a volume that hangs.
            let looked = tokio::task::spawn_blocking(move || {
                tls.acceptor.iter().for_each(|acceptor| acceptor.reload());
                tls.upstreams.iter().for_each(|upstream| upstream.reload());
                tls.notifications.reload();
                tls.tags.reload();
                tls.web.iter().for_each(|web| web.reload());
            });
            if let Err(error) = looked.await {
                tracing::error!(%error, "the TLS files could not be looked at");
            }
        }
    }
}

impl Server {
    /// Binds both listeners and starts to open the index.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let clients = listen(config.listen).await?;
        let admins = listen(config.admin_listen).await?;
        let (metrics, load) = (Arc::new(Metrics::new()), Load::default());
        let upstream = |settings: &config::UpstreamConfig| {
            // The bound address and not the configured one, whose port may be 0.
            if clients.local_addr().is_ok_and(|own| leads_to(&settings.url, own)) {
                return Err(StartError::Loop(settings.url.authority().clone()));
            }
            if settings.tls.insecure_skip_verify {
                tracing::warn!(upstream = %settings.name, "insecure_skip_verify: whoever answers in place of this \
                    upstream is believed, and gets all credentials");
            }
            let upstream = Upstream::new(settings, &metrics);
            upstream
                .map(|upstream| Arc::new(upstream.under(load.clone())))
                .map_err(|error| StartError::Upstream(settings.name.clone(), error))
        };
        let upstreams = Upstreams {
            default: upstream(&config.upstream)?,
            further: config.further_upstreams.iter().map(upstream).collect::<Result<_, _>>()?,
        };
        let acceptor = config.tls.as_ref().map(Acceptor::new).transpose().map_err(StartError::ServerTls)?;
        let index = Index::open(IndexSettings::of(config))?;
        begin(config, &index, &metrics);
        let tasks = TaskTracker::new();
        let tags = Arc::new(ReferrersTags::open(config, &index, &metrics)?);
        let app = App::new(config, &upstreams, &index, &tags, Arc::clone(&metrics), load, tasks.clone());
        let web = match config.web.listen {
            Some(address) => Some((listen(address).await?, Arc::new(app.web(config, &index)?))),
            None => None,
        };
        let notifications = Arc::new(Notifications::open(config, &index, &metrics)?);
        let desk = Arc::new(Desk::new(config, &index, &metrics));
        let background = Background { notifications: Arc::clone(&notifications), tags: Arc::clone(&tags) };
        let (jobs, counted) = (Arc::clone(&desk), Arc::clone(&metrics));
        let index_counts = config.index.database.as_ref().is_none_or(|database| database.readiness);
        let admin = Admin::new(index.clone(), index_counts, &upstreams, background, jobs, counted);
        Ok(Self {
            clients,
            admins,
            tls: ServerTls {
                acceptor: acceptor.map(Arc::new),
                upstreams,
                notifications: Arc::clone(&notifications),
                tags: Arc::clone(&tags),
                web: web.as_ref().map(|(_, web)| Arc::clone(web)),
                interval: config.tls_reload,
            },
            known_clients: Arc::new(Clients::new(config)),
            app: Arc::new(app),
            web,
            admin: Arc::new(admin),
            notifications,
            tags,
            desk,
            sweeps: config.sweep.clone(),
            metrics,
            index,
            tasks,
            timeouts: config.timeouts.clone(),
            connections: Connections::new(config.limits.connections),
        })
    }

    /// The address for clients.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.clients.local_addr()
    }

    /// The address of the admin listener.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admins.local_addr()
    }

    /// The address of the web page, if there is one.
    #[must_use]
    pub fn web_address(&self) -> Option<SocketAddr> {
        self.web.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Serves until `shutdown`; then accepts no more connections, lets requests in progress finish within the
    /// limit, and closes the index. Reloads TLS files at each `hangup`.
    pub async fn serve(self, shutdown: impl Future<Output = ()>, hangup: Signal) {
        let (open, ending) = (TaskTracker::new(), CancellationToken::new());
        let app = self.app;
        let tls = self.tls.acceptor.clone();
        let has_tls = tls.is_some();
        let doors = Doors { connections: &open, shutdown: &ending, timeouts: &self.timeouts };
        let clients = doors.accept(&self.clients, &self.connections, tls.clone(), |client, place| {
            let client = Peer::new(Arc::clone(&self.known_clients), client, has_tls);
            TowerToHyperService::new(Arc::clone(&app).service(client, place))
        });
        let admin = self.admin;
        let admin_connections = Connections::new(ADMIN_CONNECTIONS);
        let admins = doors.accept(&self.admins, &admin_connections, None, |client, place| {
            let admin = Arc::clone(&admin);
            hyper::service::service_fn(move |request: Request<Incoming>| {
                let (admin, busy) = (Arc::clone(&admin), place.begin());
                async move {
                    // Also over the connection limit: a failed health check would get the process restarted.
                    let mut response = admin.answer(client, request).await;
                    response.body_mut().hold(busy);
                    Ok::<_, Infallible>(response)
                }
            })
        });
        let web_connections = Connections::new(WEB_CONNECTIONS);
        let visitors =
            doors.visit(self.web.as_ref(), &web_connections, tls.as_ref(), &self.known_clients, &admin);
        self.notifications.work(&self.tasks, &ending);
        // Each registry once, and none that may be told nothing of.
        let swept = |it: &&config::UpstreamConfig| it.shares.is_none() && it.mode != Mode::Pass;
        for upstream in self.desk.upstreams().filter(swept).cloned() {
            let (desk, index, sweeps) = (Arc::clone(&self.desk), self.index.clone(), self.sweeps.clone());
            let metrics = self.metrics.of_upstream(&upstream.name);
            self.tasks.spawn(sweep(desk, index, upstream, sweeps, metrics, ending.clone()));
        }
        self.tags.work(&self.tasks, &ending);
        let first_look = async {
            admin.look_at_upstreams().await;
            // The first of these futures to end ends serving.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = clients => {}
            () = admins => {}
            () = visitors => {}
            () = first_look => {}
            () = self.tls.watch(hangup) => {}
            () = shutdown => {}
        }
        // Closed and not just left alone: the system would go on accepting connections that nobody serves.
        drop((self.clients, self.admins, self.web));
        tracing::info!(connections = open.len(), "draining");
        ending.cancel();
        // What they did stays, and the same again goes on from there.
        self.desk.stop_all();
        open.close();
        // Pushes that outlived their clients, too: what the registry took is still to be recorded.
        self.tasks.close();
        let drained = async { tokio::join!(open.wait(), self.tasks.wait()) };
        if tokio::time::timeout(self.timeouts.shutdown, drained).await.is_err() {
            tracing::warn!(limit = ?self.timeouts.shutdown, "some requests did not end within the limit");
        }
        // After everything that writes to it.
        if tokio::time::timeout(self.timeouts.shutdown, self.index.close()).await.is_err() {
            tracing::warn!("the index did not close within the limit; the next start replays its journal");
        }
        tracing::info!("stopped");
    }
}

/// Says in which mode each upstream is, and begins its coverage, or ends it where not all that passes is recorded.
fn begin(config: &Config, index: &Index, metrics: &Metrics) {
    for upstream in config.upstreams() {
        let (name, mode, shares) = (&upstream.name, upstream.mode, upstream.shares.as_ref());
        metrics.mode(name, mode);
        if mode != Mode::Full || shares.is_some() {
            let shares = shares.map(tracing::field::display);
            tracing::info!(upstream = %name, %mode, shares, "the upstream {name} is in mode {mode}");
        }
        if config.is_recorded(upstream.number()) {
            index.begin_coverage(upstream.number());
        } else {
            index.void_coverage(upstream.number());
        }
    }
    for table in config.without_effect() {
        tracing::warn!(table, "the settings of [{table}] have no effect in the modes of the upstreams");
    }
}

/// Whether the upstream's URL is this address, as far as can be told without DNS.
fn leads_to(upstream: &RegistryUrl, own: SocketAddr) -> bool {
    let authority = upstream.authority();
    let port = authority.port_u16().unwrap_or(if upstream.is_https() { 443 } else { 80 });
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_own = |host: IpAddr| host == own.ip() || (own.ip().is_unspecified() && host.is_loopback());
    let is_localhost = host == "localhost" && (own.ip().is_loopback() || own.ip().is_unspecified());
    port == own.port() && (is_localhost || host.parse().is_ok_and(is_own))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(upstream: &str, own: &str, expected: bool) {
        assert_eq!(leads_to(&upstream.parse().unwrap(), own.parse().unwrap()), expected, "{upstream} {own}");
    }

    #[test]
    fn an_upstream_that_is_refshim_itself_is_recognised() {
        check("http://127.0.0.1:5000", "127.0.0.1:5000", true);
        check("http://127.0.0.1:5000", "127.0.0.1:5001", false);
        check("http://localhost:5000", "127.0.0.1:5000", true);
        check("http://localhost:5000", "0.0.0.0:5000", true);
        check("http://localhost:5000", "10.0.0.1:5000", false);
        check("http://127.0.0.1", "0.0.0.0:80", true);
        check("https://127.0.0.1", "0.0.0.0:80", false);
        check("http://[::1]:5000", "[::1]:5000", true);
        check("http://registry:5000", "0.0.0.0:5000", false);
    }
}
