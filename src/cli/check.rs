//! `serve --check`: everything that serving begins with, but not serving. What another refshim has, which serves with
//! this configuration, is fine: the check is for what is about to take its place.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::admin::look_at;
use crate::client::AdminClient;
use crate::config::{Config, UpstreamConfig};
use crate::index::{Index, IndexSettings, IndexState, OpenError};
use crate::notifications::Notifications;
use crate::proxy::upstream::Upstream;
use crate::referrers_tags::ReferrersTags;
use crate::server::{StartError, listen, refuse_loops};
use crate::telemetry::Metrics;
use crate::tls::Acceptor;

/// How long a refshim that serves already may take to say so.
const LOOK: Duration = Duration::from_secs(2);
const SERVED: &str = "ok, in use by the refshim that serves already";

/// How one part is. Displayed as a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    part: String,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Fine(String),
    /// Serving begins all the same.
    Warning(String),
    /// Serving does not begin.
    Failure(String),
}

use Outcome::{Failure, Fine, Warning};

impl Found {
    fn new(part: impl Into<String>, outcome: Outcome) -> Self {
        Self { part: part.into(), outcome }
    }

    /// Whether refshim would not start.
    #[must_use]
    pub(super) fn is_failure(&self) -> bool {
        matches!(self.outcome, Failure(_))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = &self.part;
        match &self.outcome {
            Fine(told) => write!(f, "{part}: {told}"),
            Warning(told) => write!(f, "{part}: warning: {told}"),
            Failure(told) => write!(f, "{part}: failed: {told}"),
        }
    }
}

/// Looks at the listeners, the index, what works in the background, TLS, and the upstreams.
pub(super) async fn check(config: &Config) -> Vec<Found> {
    let metrics = Arc::new(Metrics::new());
    let mut all = listeners(config).await;
    all.extend(index(config, &metrics).await);
    if let Some(tls) = &config.tls {
        all.push(Found::new("tls", outcome(Acceptor::new(tls))));
    }
    for settings in config.upstreams() {
        all.push(upstream(settings, &metrics).await);
    }
    all
}

async fn listeners(config: &Config) -> Vec<Found> {
    let mut all = Vec::new();
    let web = config.web.listen.map(|address| ("web.listen", address));
    let listeners = [("listen", config.listen), ("admin_listen", config.admin_listen)];
    for (part, address) in listeners.into_iter().chain(web) {
        let bound = match listen(address).await {
            Ok(listener) if part == "listen" => {
                let own = listener.local_addr().map_err(|source| StartError::Listen { address, source });
                own.and_then(|own| refuse_loops(config, own))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        let is_served = match &bound {
            Err(StartError::Listen { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {
                is_served(config).await
            }
            Ok(()) | Err(_) => false,
        };
        let found = if is_served { Fine(SERVED.to_owned()) } else { outcome(bound) };
        all.push(Found::new(format!("{part} {address}"), found));
    }
    all
}

/// Whether a refshim answers at the admin listener.
async fn is_served(config: &Config) -> bool {
    let Ok(admin) = AdminClient::new(&format!("http://{}", config.admin_listen)) else { return false };
    let answer = timeout(LOOK, admin.look("looking for a refshim that serves", "/healthz")).await;
    matches!(answer, Ok(Ok((true, told))) if told.trim() == "ok")
}

/// The index, and the queues that are opened with it.
async fn index(config: &Config, metrics: &Arc<Metrics>) -> Vec<Found> {
    let part = match &config.index.database {
        Some(database) => format!("index in {}", database.url),
        None => format!("index in {}", config.data_dir.display()),
    };
    let index = match Index::open(IndexSettings::of(config)) {
        Ok(index) => index,
        Err(OpenError::Locked { .. }) => return vec![Found::new(part, Fine(SERVED.to_owned()))],
        Err(error) => return vec![Found::new(part, Failure(error.to_string()))],
    };
    // An index in a data directory takes as long as it needs; a database may never answer.
    let limit = config.index.database.as_ref().map(|_| config.timeouts.index);
    match limit {
        Some(limit) => drop(timeout(limit, index.opened()).await),
        None => index.opened().await,
    }
    let found = match (index.write_failure(), index.state()) {
        (Some(failure), _) => Warning(failure),
        (None, IndexState::Ready) => Fine("ok".to_owned()),
        (None, IndexState::Unreachable(reason) | IndexState::Damaged(reason)) => Warning(reason),
        (None, IndexState::Opening | IndexState::Rebuilding(_) | IndexState::Closed) => {
            Warning("not open yet".to_owned())
        }
    };
    let notifications = outcome(Notifications::open(config, &index, metrics));
    let tags = outcome(ReferrersTags::open(config, &index, metrics));
    index.close().await;
    let parts = [("notifications", notifications), ("referrers tags", tags)];
    let others = parts.into_iter().map(|(part, found)| Found::new(part, found));
    std::iter::once(Found::new(part, found)).chain(others).collect()
}

async fn upstream(settings: &UpstreamConfig, metrics: &Metrics) -> Found {
    let found = match Upstream::new(settings, metrics) {
        Ok(upstream) => look_at(&upstream).await.map_or_else(Warning, |()| Fine("ok".to_owned())),
        Err(error) => Failure(error.to_string()),
    };
    Found::new(format!("upstream {} at {}", settings.name, settings.url), found)
}

fn outcome<T, E: fmt::Display>(result: Result<T, E>) -> Outcome {
    result.map_or_else(|error| Failure(error.to_string()), |_| Fine("ok".to_owned()))
}
