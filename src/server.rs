//! Listens, serves and drains: both listeners, HTTP/1.1 and HTTP/2 on each connection, and a shutdown within
//! a limit.

mod access_log;
pub mod app;
mod asked;
mod connection;
mod doors;
mod handlers;
mod live;
mod logs;
mod loops;
mod opening;
mod reload;
mod request_log;
pub mod service_manager;
mod watched;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use http::uri::Authority;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::app::Parts;
use self::doors::Doors;
use self::live::Live;
use self::reload::Reloader;
use crate::admin::{Admin, Background, Control, ReloadRequest};
use crate::config::{self, Config, Mode, SweepConfig, UpstreamName};
use crate::http::limits::{Connections, Load};
use crate::index::{Index, IndexSettings, OpenError};
use crate::jobs::{Desk, sweep};
use crate::notifications::{Notifications, NotificationsError};
use crate::proxy::forward::Peer;
use crate::referrers_tags::{ReferrersTags, ReferrersTagsError};
use crate::server::service_manager::Inherited;
use crate::telemetry::{LineLogError, Metrics, Traces, TracesError};
use crate::tls::TlsError;
use crate::web::WebError;
use logs::Logs;
use opening::{tell_when_open, tell_when_ready};

pub use loops::refuse_loops;
pub use reload::Reloading;

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
    /// A socket was handed over for no setting.
    #[error(
        "the socket {0} was handed over (LISTEN_FDS), but it is at the port of none of listen, admin_listen and \
         web.listen: give the unit of the socket and these settings the same ports"
    )]
    Inherited(SocketAddr),
    /// A socket that was handed over has no address.
    #[error("a socket that was handed over (LISTEN_FDS) cannot be used: {0}")]
    Unreadable(#[source] io::Error),
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
    /// Traces cannot be sent.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// The access log or the audit log cannot be opened.
    #[error("cannot open a log: {0}")]
    Log(#[from] LineLogError),
    /// The system does not let refshim wait for SIGHUP.
    #[error("cannot wait for signals: {0}")]
    Signal(#[source] io::Error),
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
    live: watch::Receiver<Arc<Live>>,
    reloader: Arc<Reloader>,
    reloads: mpsc::Receiver<ReloadRequest>,
    web: Option<TcpListener>,
    admin: Arc<Admin>,
    desk: Arc<Desk>,
    sweeps: SweepConfig,
    connections: Connections,
    log_hangup: Signal,
    /// When opening the index began.
    opening: Instant,
    /// How long queries wait for that.
    index_limit: Duration,
}

impl Server {
    /// Binds both listeners, unless they are inherited, and starts to open the index.
    pub async fn start(reloading: Reloading, mut inherited: Inherited) -> Result<Self, StartError> {
        let Reloading { sources, loaded, filter } = reloading;
        let config = &loaded.config;
        let clients = inherited.listen(config.listen).await?;
        let admins = inherited.listen(config.admin_listen).await?;
        let web = match config.web.listen {
            Some(address) => Some(inherited.listen(address).await?),
            None => None,
        };
        inherited.all_taken()?;
        // The bound address and not the configured one, whose port may be 0.
        if let Ok(own) = clients.local_addr() {
            refuse_loops(config, own)?;
        }
        let metrics = Arc::new(Metrics::new());
        metrics.begin_at_zero(config);
        metrics.loaded_configuration(true);
        let logs = Logs::open(config, &metrics)?;
        let log_hangup = signal(SignalKind::hangup()).map_err(StartError::Signal)?;
        let opening = Instant::now();
        let index = Index::open(IndexSettings::of(config))?;
        begin(config, &index, &metrics);
        let tags = Arc::new(ReferrersTags::open(config, &index, &metrics)?);
        let (load, tasks, traces) = (Load::default(), TaskTracker::new(), Traces::new(&config.traces)?);
        let parts = Parts { index, tags, metrics, traces, logs, load, tasks };
        let live = Live::new(config, &parts, None)?;
        let notifications = Arc::new(Notifications::open(config, &parts.index, &parts.metrics)?);
        let desk = Arc::new(Desk::new(config, &parts.index, &parts.metrics));
        let (acceptor, acceptor_now) = watch::channel(live.acceptor.clone());
        let background = Background {
            notifications: Arc::clone(&notifications),
            tags: Arc::clone(&parts.tags),
            acceptor: acceptor_now,
        };
        let index_counts = config.index.database.as_ref().is_none_or(|database| database.readiness);
        let (upstreams, upstreams_now) = watch::channel(live.upstreams.clone());
        let (ask, reloads) = mpsc::channel(1);
        let admin = Admin::new(
            (parts.index.clone(), index_counts),
            &upstreams_now,
            background,
            Arc::clone(&desk),
            Control { reloads: ask, filter: filter.clone() },
            Arc::clone(&parts.metrics),
        );
        let connections = Connections::new(config.limits.connections);
        let (sweeps, index_limit) = (config.sweep.clone(), config.timeouts.index);
        let (live, live_now) = watch::channel(Arc::new(live));
        let reloader = Arc::new(Reloader {
            sources,
            loaded: Mutex::new(loaded),
            filter,
            live,
            upstreams,
            acceptor,
            parts,
            connections: connections.clone(),
            notifications,
        });
        Ok(Self {
            clients,
            admins,
            live: live_now,
            reloader,
            reloads,
            web,
            admin: Arc::new(admin),
            desk,
            sweeps,
            connections,
            log_hangup,
            opening,
            index_limit,
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
        self.web.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `shutdown`; then accepts no more connections, lets requests in progress finish within the
    /// limit, and closes the index. Reloads the configuration and TLS files at each `hangup`.
    pub async fn serve(self, shutdown: impl Future<Output = ()>, hangup: Signal) {
        let (open, ending) = (TaskTracker::new(), CancellationToken::new());
        let Parts { index, tags, metrics, logs, tasks, .. } = &self.reloader.parts;
        let live = || Arc::clone(&self.live.borrow());
        let has_tls = live().acceptor.is_some();
        let doors = Doors { connections: &open, shutdown: &ending };
        let with_tls = || live().of_a_connection();
        let clients = doors.accept(&self.clients, &self.connections, with_tls, |client, place| {
            Live::service(self.live.clone(), Peer::new(client, has_tls), place)
        });
        let admin = &self.admin;
        let admin_connections = Connections::new(ADMIN_CONNECTIONS);
        let without_tls = || (live().timeouts.clone(), None);
        let admins = doors.accept(&self.admins, &admin_connections, without_tls, |client, place| {
            let admin = Arc::clone(admin);
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
        let visitors = doors.visit(self.web.as_ref(), &web_connections, &self.live, admin);
        self.reloader.notifications.work(tasks, &ending);
        // Each registry once, and none that may be told nothing of.
        let swept = |it: &&config::UpstreamConfig| it.shares.is_none() && it.mode != Mode::Pass;
        for upstream in self.desk.upstreams().filter(swept).cloned() {
            let (desk, index, sweeps) = (Arc::clone(&self.desk), index.clone(), self.sweeps.clone());
            let metrics = metrics.of_upstream(&upstream.name);
            tasks.spawn(sweep(desk, index, upstream, sweeps, metrics, ending.clone()));
        }
        tags.work(tasks, &ending);
        // The first of these futures to end ends serving.
        tokio::select! {
            () = clients => {}
            () = admins => {}
            () = visitors => {}
            () = admin.watch_upstreams() => {}
            () = Arc::clone(&self.reloader).watch(hangup, self.reloads) => {}
            () = logs.watch(self.log_hangup) => {}
            () = tell_when_ready(index, self.index_limit) => {}
            () = tell_when_open(index, self.opening) => {}
            () = shutdown => {}
        }
        // Closed and not just left alone: the system would go on accepting connections that nobody serves.
        drop((self.clients, self.admins, self.web));
        tracing::info!(connections = open.len(), "draining");
        service_manager::stopping().await;
        ending.cancel();
        // What they did stays, and the same again goes on from there.
        self.desk.stop_all();
        open.close();
        // Pushes that outlived their clients, too: what the registry took is still to be recorded.
        tasks.close();
        let drained = async { tokio::join!(open.wait(), tasks.wait()) };
        let limit = self.live.borrow().timeouts.shutdown;
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!(?limit, "some requests did not end within the limit");
        }
        // After everything that writes to it.
        if tokio::time::timeout(limit, index.close()).await.is_err() {
            tracing::warn!("the index did not close within the limit; the next start replays its journal");
        }
        self.reloader.parts.traces.close().await;
        logs.close().await;
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
    warn_of_idle_settings(config);
}

fn warn_of_idle_settings(config: &Config) {
    for table in config.without_effect() {
        tracing::warn!(table, "the settings of [{table}] have no effect in the modes of the upstreams");
    }
}

/// Binds an address.
///
/// # Errors
/// It is in use, or is none of this machine.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}
