//! The admin listener: is the process up, can it do its work, and the numbers. Never on the port that
//! clients use.

mod readiness;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::http::body::Body;
use crate::index::{Index, IndexState};
use crate::proxy::upstream::Upstreams;
use crate::telemetry::Metrics;
use readiness::Readiness;

/// For how long an answer of the upstream, or a write of the index, speaks for now.
const FRESH: Duration = Duration::from_secs(10);

/// What the admin listener looks at.
#[derive(Debug)]
pub struct Admin {
    index: Index,
    upstreams: Vec<Readiness>,
    metrics: Arc<Metrics>,
    wrote: Mutex<Option<Wrote>>,
}

/// A write of the index that went well.
#[derive(Clone, Copy, Debug)]
struct Wrote {
    at: Instant,
    /// How often the index had failed until then.
    failures: u64,
}

impl Admin {
    /// Looks at these.
    #[must_use]
    pub fn new(index: Index, upstreams: &Upstreams, metrics: Arc<Metrics>) -> Self {
        let upstreams = upstreams.iter().map(Readiness::of).collect();
        Self { index, upstreams, metrics, wrote: Mutex::new(None) }
    }

    /// `/healthz`, `/readyz`, `/metrics`.
    pub async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        if *request.method() != Method::GET && *request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => self.readiness().await,
            "/metrics" => metrics(self.metrics.render(&self.index.statistics(), &self.index.state())),
            _ => text(StatusCode::NOT_FOUND, "try /healthz, /readyz or /metrics\n".to_owned()),
        }
    }

    /// Looks at each upstream once, so that the log says at the start which of them is no registry.
    pub async fn look_at_upstreams(&self) {
        join_all(self.upstreams.iter().map(Readiness::look)).await;
    }

    /// Ready while there is something that can be done: the index works and an upstream is a registry that answers.
    async fn readiness(&self) -> Response<Body> {
        let upstreams = join_all(self.upstreams.iter().map(Readiness::look));
        let (index, upstreams) = tokio::join!(self.index_works(), upstreams);
        let ready = index.is_ok() && upstreams.iter().any(Result::is_ok);
        let line = |part: &str, state: Result<(), String>| match state {
            Ok(()) => format!("{part}: ok\n"),
            Err(reason) => format!("{part}: {reason}\n"),
        };
        let mut lines = line("index", index);
        for (upstream, state) in self.upstreams.iter().zip(upstreams) {
            let name = upstream.upstream.name();
            let part = if name.is_default() { "upstream".to_owned() } else { format!("upstream {name}") };
            lines += &line(&part, state);
        }
        text(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, lines)
    }

    /// What costs nothing is looked at each time. A write costs a sync, so one that went well counts for a while,
    /// unless anything has failed since.
    async fn index_works(&self) -> Result<(), String> {
        self.index_state()?;
        // Others may be waiting for a disk that hangs.
        let wrote = tokio::time::timeout(readiness::PROBE_WAIT, self.wrote.lock()).await;
        let mut wrote = wrote.map_err(|_elapsed| format!("no answer within {:?}", readiness::PROBE_WAIT))?;
        let failures = self.index.failures();
        let counts = |wrote: Wrote| wrote.at.elapsed() < FRESH && wrote.failures == failures;
        if !wrote.is_some_and(counts) {
            *wrote = None;
            self.index.probe().await.map_err(|error| error.to_string())?;
            *wrote = Some(Wrote { at: Instant::now(), failures });
        }
        // It may have failed meanwhile.
        self.index_state()
    }

    fn index_state(&self) -> Result<(), String> {
        if let Some(failure) = self.index.write_failure() {
            return Err(failure);
        }
        match self.index.state() {
            IndexState::Ready => Ok(()),
            IndexState::Opening => Err("it is being opened".to_owned()),
            IndexState::Rebuilding(reason) => Err(format!("it is being rebuilt: {reason}")),
            IndexState::Damaged(reason) => Err(reason),
            IndexState::Closed => Err("it is closed".to_owned()),
        }
    }
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
