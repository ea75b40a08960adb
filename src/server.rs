//! Listens, serves and drains: both listeners, HTTP/1.1 and HTTP/2 on each connection, and a shutdown within
//! a limit.

mod access_log;
pub mod app;
mod asked;
mod connection;
mod handlers;
mod logs;
mod loops;
mod opening;
mod request_log;
mod watched;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::Connection;
use crate::admin::{Admin, Background};
use crate::config::{self, Config, Mode, SweepConfig, TimeoutsConfig, UpstreamName};
use crate::http::body::Body;
use crate::http::limits::{Connections, Load, Place};
use crate::index::{Index, IndexSettings, OpenError};
use crate::jobs::{Desk, sweep};
use crate::notifications::{Notifications, NotificationsError};
use crate::proxy::forward::{Clients, Peer};
use crate::proxy::upstream::{Upstream, Upstreams};
use crate::referrers_tags::{ReferrersTags, ReferrersTagsError};
use crate::server::app::App;
use crate::telemetry::{LineLogError, Metrics};
use crate::tls::{Acceptor, Reload as _, TlsError};
use logs::Logs;
use loops::leads_to;
use opening::tell_when_open;

/// The pause after a failed accept. Without free file descriptors it fails again and again, until a
/// connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connection limit of the admin listener.
const ADMIN_CONNECTIONS: usize = 1_000;

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
    /// The access log or the audit log cannot be opened.
    #[error("cannot open a log: {0}")]
    Log(#[from] LineLogError),
    /// The system does not let refshim wait for SIGHUP.
    #[error("cannot wait for signals: {0}")]
    Signal(#[source] io::Error),
    /// TLS towards clients cannot be set up.
    #[error("cannot set up TLS towards clients: {0}")]
    ServerTls(#[source] TlsError),
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
    logs: Logs,
    log_hangup: Signal,
    /// When opening the index began.
    opening: Instant,
}

/// Everything that is loaded from TLS files.
#[derive(Clone, Debug)]
struct ServerTls {
    acceptor: Option<Arc<Acceptor>>,
    upstreams: Upstreams,
    notifications: Arc<Notifications>,
    tags: Arc<ReferrersTags>,
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
        let own =
            clients.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        let upstreams = upstreams(config, own, &metrics, &load)?;
        metrics.begin_at_zero(config);
        let (logs, log_hangup) =
            (Logs::open(config, &metrics)?, signal(SignalKind::hangup()).map_err(StartError::Signal)?);
        let acceptor = config.tls.as_ref().map(Acceptor::new).transpose().map_err(StartError::ServerTls)?;
        let opening = Instant::now();
        let index = Index::open(IndexSettings::of(config))?;
        begin(config, &index, &metrics);
        let tasks = TaskTracker::new();
        let tags = Arc::new(ReferrersTags::open(config, &index, &metrics)?);
        let app =
            App::new(config, &upstreams, &index, &tags, Arc::clone(&metrics), &logs, (load, tasks.clone()));
        let notifications = Arc::new(Notifications::open(config, &index, &metrics)?);
        let desk = Arc::new(Desk::new(config, &index, &metrics));
        let acceptor = acceptor.map(Arc::new);
        let background = Background {
            notifications: Arc::clone(&notifications),
            tags: Arc::clone(&tags),
            acceptor: acceptor.clone(),
        };
        let (jobs, counted) = (Arc::clone(&desk), Arc::clone(&metrics));
        let index_counts = config.index.database.as_ref().is_none_or(|database| database.readiness);
        let admin = Admin::new(index.clone(), index_counts, &upstreams, background, jobs, counted);
        Ok(Self {
            clients,
            admins,
            tls: ServerTls {
                acceptor,
                upstreams,
                notifications: Arc::clone(&notifications),
                tags: Arc::clone(&tags),
                interval: config.tls_reload,
            },
            known_clients: Arc::new(Clients::new(config)),
            app: Arc::new(app),
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
            logs,
            log_hangup,
            opening,
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

    /// Serves until `shutdown`; then accepts no more connections, lets requests in progress finish within the
    /// limit, and closes the index. Reloads TLS files at each `hangup`.
    pub async fn serve(self, shutdown: impl Future<Output = ()>, hangup: Signal) {
        let (open, ending) = (TaskTracker::new(), CancellationToken::new());
        let app = self.app;
        let tls = &self.tls.acceptor;
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
        self.notifications.work(&self.tasks, &ending);
        // Each registry once, and none that may be told nothing of.
        let swept = |it: &&config::UpstreamConfig| it.shares.is_none() && it.mode != Mode::Pass;
        for upstream in self.desk.upstreams().filter(swept).cloned() {
            let (desk, index, sweeps) = (Arc::clone(&self.desk), self.index.clone(), self.sweeps.clone());
            let metrics = self.metrics.of_upstream(&upstream.name);
            self.tasks.spawn(sweep(desk, index, upstream, sweeps, metrics, ending.clone()));
        }
        self.tags.work(&self.tasks, &ending);
        // The first of these futures to end ends serving.
        tokio::select! {
            () = clients => {}
            () = admins => {}
            () = admin.watch_upstreams() => {}
            () = self.tls.watch(hangup) => {}
            () = self.logs.watch(self.log_hangup) => {}
            () = tell_when_open(&self.index, self.opening) => {}
            () = shutdown => {}
        }
        // Closed and not just left alone: the system would go on accepting connections that nobody serves.
        drop((self.clients, self.admins));
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
        self.logs.close().await;
        tracing::info!("stopped");
    }
}

/// Sets up the client of each upstream. `own` is the address that is bound, and not the configured one, whose port may
/// be 0.
fn upstreams(
    config: &Config,
    own: SocketAddr,
    metrics: &Metrics,
    load: &Load,
) -> Result<Upstreams, StartError> {
    let upstream = |settings: &config::UpstreamConfig| {
        if leads_to(&settings.url, own) {
            return Err(StartError::Loop(settings.url.authority().clone()));
        }
        if settings.tls.insecure_skip_verify {
            tracing::warn!(upstream = %settings.name, "insecure_skip_verify: whoever answers in place of this \
                upstream is believed, and gets all credentials");
        }
        let upstream = Upstream::new(settings, metrics);
        upstream
            .map(|upstream| Arc::new(upstream.under(load.clone())))
            .map_err(|error| StartError::Upstream(settings.name.clone(), error))
    };
    Ok(Upstreams {
        default: upstream(&config.upstream)?,
        further: config.further_upstreams.iter().map(upstream).collect::<Result<_, _>>()?,
    })
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

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

/// What both listeners share.
struct Doors<'a> {
    connections: &'a TaskTracker,
    shutdown: &'a CancellationToken,
    timeouts: &'a TimeoutsConfig,
}

impl Doors<'_> {
    /// Accepts connections for ever, and serves each in a task of its own: a slow TLS handshake delays no
    /// other.
    async fn accept<S>(
        &self,
        listener: &TcpListener,
        connections: &Connections,
        tls: Option<Arc<Acceptor>>,
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
                    let connection = Connection {
                        timeouts: self.timeouts.clone(),
                        client,
                        service: service(client.ip(), Arc::clone(&place)),
                        place,
                        shutdown: self.shutdown.clone(),
                    };
                    self.connections.spawn(connection.serve(tls.clone(), stream));
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
