//! The admin listener: `/healthz` (the process is up), `/readyz` (it can do its work) and `/metrics`, for which it asks
//! for no credentials, so it is never on the clients' port; and `/notifications/…`, where registries tell what was
//! pushed past refshim; and, from this machine alone, jobs, reloading and the log filter.

mod control;
mod jobs;
mod own_machine;
mod readiness;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::config::Mode;
use crate::http::body::Body;
use crate::index::{Index, IndexState};
use crate::jobs::Desk;
use crate::notifications::{self, Notifications};
use crate::proxy::upstream::Upstreams;
use crate::referrers_tags::ReferrersTags;
use crate::telemetry::Metrics;
use crate::tls::Acceptor;
use crate::web::Health;

pub use control::{Control, ReloadRequest};
use jobs::Jobs;
use readiness::Readiness;
pub use readiness::look_at;

/// How long an answer of the upstream, or a write of the index, counts as current.
const FRESH: Duration = Duration::from_secs(10);
/// How long visitors of the web page are told the same.
const HEALTH_LIFE: Duration = Duration::from_secs(2);
/// The longest wait for an index that what is asked for does not depend on.
const INDEX_WAIT: Duration = Duration::from_secs(1);

/// Answers the requests of the admin listener.
#[derive(Debug)]
pub struct Admin {
    index: Index,
    /// Whether refshim is not ready without the index (`index.readiness`).
    index_counts: bool,
    upstreams: Vec<Readiness>,
    metrics: Arc<Metrics>,
    wrote: Mutex<Option<Wrote>>,
    /// What visitors of the web page were told last.
    seen: Mutex<Option<(Instant, Health)>>,
    background: Background,
    jobs: Jobs,
    control: Control,
}

/// What works in the background, and is measured for `/metrics`.
#[derive(Clone, Debug)]
pub struct Background {
    /// Notifications, which come in here.
    pub notifications: Arc<Notifications>,
    /// Referrers tags.
    pub tags: Arc<ReferrersTags>,
    /// The certificates towards clients.
    pub acceptor: watch::Receiver<Option<Arc<Acceptor>>>,
}

/// A successful write of the index.
#[derive(Clone, Copy, Debug)]
struct Wrote {
    at: Instant,
    /// The number of the index's failures until then.
    failures: u64,
}

impl Admin {
    /// An admin listener for these. If the index counts, refshim is not ready without it. A reload replaces the
    /// upstreams by others of the same names.
    #[must_use]
    pub fn new(
        (index, index_counts): (Index, bool),
        upstreams: &watch::Receiver<Upstreams>,
        background: Background,
        desk: Arc<Desk>,
        control: Control,
        metrics: Arc<Metrics>,
    ) -> Self {
        let count = upstreams.borrow().iter().count();
        let upstreams = (0..count).map(|place| Readiness::of(upstreams.clone(), place, &metrics)).collect();
        let jobs = Jobs { desk, index: index.clone() };
        Self {
            index,
            index_counts,
            upstreams,
            metrics,
            wrote: Mutex::new(None),
            seen: Mutex::new(None),
            background,
            jobs,
            control,
        }
    }

    /// The answer to `/healthz`, `/readyz`, `/metrics`, a notification or, from this machine, a job, a reload or the
    /// log filter.
    pub async fn answer(&self, client: IpAddr, request: Request<Incoming>) -> Response<Body> {
        if matches!(request.uri().path(), "/jobs" | "/coverage") {
            return self.jobs.answer(client, request).await;
        }
        if matches!(request.uri().path(), "/reload" | "/log-filter") {
            return self.control.answer(client, request).await;
        }
        if let Some(source) = request.uri().path().strip_prefix(notifications::PATH) {
            let source = source.to_owned();
            let answer = self.background.notifications.answer(&source, request).await;
            let unknown = || text(StatusCode::NOT_FOUND, format!("there is no [notifications.{source}]\n"));
            return answer.unwrap_or_else(unknown);
        }
        if *request.method() != Method::GET && *request.method() != Method::HEAD {
            return not_allowed("GET, HEAD");
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => self.readiness().await,
            "/metrics" => {
                self.background.notifications.measure();
                self.background.tags.measure();
                let acceptor = self.background.acceptor.borrow().clone();
                self.metrics.forget_certificates();
                for certificate in acceptor.iter().flat_map(|acceptor| acceptor.certificates()) {
                    self.metrics.certificate_expires(&certificate.file, certificate.expires);
                }
                self.measure_coverage().await;
                metrics(self.metrics.render(self.index.statistics().as_ref(), &self.index.state()))
            }
            _ => text(StatusCode::NOT_FOUND, "try /healthz, /readyz or /metrics\n".to_owned()),
        }
    }

    /// Looks at each upstream, at the start and from then on, so that the log says when one is no registry, and when it
    /// is one again; never ends.
    pub async fn watch_upstreams(&self) {
        join_all(self.upstreams.iter().map(Readiness::watch)).await;
    }

    /// Whether the parts work, as the web page may say it to anybody.
    pub async fn health(&self) -> Health {
        // One look for all who ask, and not for each: anybody may.
        let mut seen = self.seen.lock().await;
        if let Some((at, health)) = &*seen
            && at.elapsed() < HEALTH_LIFE
        {
            return health.clone();
        }
        let health = self.look_for_visitors().await;
        *seen = Some((Instant::now(), health.clone()));
        health
    }

    async fn look_for_visitors(&self) -> Health {
        let upstreams = join_all(self.upstreams.iter().map(Readiness::look));
        let index = tokio::time::timeout(readiness::PROBE_WAIT, self.index_works());
        let (index, replicas, upstreams) = tokio::join!(index, self.index.replicas(), upstreams);
        let names = self.upstreams.iter().map(|readiness| readiness.upstream().name().clone());
        Health {
            index: index.is_ok_and(|works| works.is_ok()),
            replicas,
            upstreams: names.zip(upstreams.iter().map(Result::is_ok)).collect(),
        }
    }

    /// Asks the index how far the registries are known. It may be in a database that does not answer: then the metrics
    /// say what they said before.
    async fn measure_coverage(&self) {
        if self.index_state().is_err() {
            return;
        }
        let asked = self
            .jobs
            .desk
            .upstreams()
            .map(|upstream| self.metrics.covered(&upstream.name, upstream.number(), &self.index));
        tokio::time::timeout(INDEX_WAIT, join_all(asked)).await.ok();
    }

    /// Ready if the index works, or does not count, and at least one upstream answers as a registry. One broken
    /// upstream of several must not take the others out of service.
    async fn readiness(&self) -> Response<Body> {
        let upstreams = join_all(self.upstreams.iter().map(Readiness::look));
        // With a limit, also because another probe may hold the lock. Without the index's say, whoever asks must not
        // give up waiting for it.
        let limit = if self.index_counts { readiness::PROBE_WAIT } else { INDEX_WAIT };
        let (index, upstreams) = tokio::join!(tokio::time::timeout(limit, self.index_works()), upstreams);
        let index = index.unwrap_or_else(|_elapsed| Err(format!("no answer within {limit:?}")));
        let ready = (index.is_ok() || !self.index_counts) && upstreams.iter().any(Result::is_ok);
        let index = index.map_err(|reason| {
            if self.index_counts {
                reason
            } else {
                format!("{reason} (does not count: index.readiness = false)")
            }
        });
        let line = |part: &str, state: Result<(), String>| {
            format!("{part}: {}\n", state.err().unwrap_or_else(|| "ok".to_owned()))
        };
        let mut lines = line("index", index);
        for (upstream, state) in self.upstreams.iter().zip(upstreams) {
            let upstream = upstream.upstream();
            let name = upstream.name();
            let part = if name.is_default() { "upstream".to_owned() } else { format!("upstream {name}") };
            let part = match upstream.mode() {
                Mode::Full => part,
                mode @ (Mode::Learn | Mode::Pass) => format!("{part} (mode {mode})"),
            };
            lines += &line(&part, state);
        }
        text(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, lines)
    }

    /// Whether the index can be read and written. A probe costs a sync of the disk, so a successful one counts for
    /// [`FRESH`], unless anything failed since.
    async fn index_works(&self) -> Result<(), String> {
        self.index_state()?;
        let mut wrote = self.wrote.lock().await;
        let failures = self.index.failures();
        let counts = |wrote: Wrote| wrote.at.elapsed() < FRESH && wrote.failures == failures;
        if !wrote.is_some_and(counts) {
            *wrote = None;
            self.index.probe().await.map_err(|error| error.to_string())?;
            *wrote = Some(Wrote { at: Instant::now(), failures });
        }
        // Again: the index may have failed during the probe.
        self.index_state()
    }

    fn index_state(&self) -> Result<(), String> {
        if let Some(failure) = self.index.write_failure() {
            return Err(failure);
        }
        match self.index.state() {
            IndexState::Ready => Ok(()),
            IndexState::Opening => Err("being opened".to_owned()),
            IndexState::Rebuilding(reason) => Err(format!("being rebuilt from the journal: {reason}")),
            IndexState::Unreachable(reason) | IndexState::Damaged(reason) => Err(reason),
            IndexState::Closed => Err("closed".to_owned()),
        }
    }
}

/// The answer to another method than these (RFC 9110, section 15.5.6: with `Allow`).
fn not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed}\n"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn metrics(body: String) -> Response<Body> {
    let mut response = text(StatusCode::OK, body);
    let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(open_metrics));
    response
}
