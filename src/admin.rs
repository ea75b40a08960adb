//! The admin listener: is the process up, can it do its work, and the numbers. Never on the port that
//! clients use.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::body::Body;
use crate::index::Index;
use crate::telemetry::Metrics;
use crate::upstream::{Upstream, question};

/// For how long an answer of the upstream, or a write of the index, speaks for now.
const FRESH: Duration = Duration::from_secs(10);
/// How long a readiness probe waits for the upstream.
const PROBE_WAIT: Duration = Duration::from_secs(5);

/// What the admin listener looks at.
#[derive(Debug)]
pub struct Admin {
    index: Index,
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
    wrote: Mutex<Option<Instant>>,
}

impl Admin {
    /// Looks at these.
    #[must_use]
    pub fn new(index: Index, upstream: Arc<Upstream>, metrics: Arc<Metrics>) -> Self {
        Self { index, upstream, metrics, wrote: Mutex::new(None) }
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

    async fn readiness(&self) -> Response<Body> {
        let (index, upstream) = tokio::join!(self.index_works(), self.upstream_answers());
        let ready = index.is_ok() && upstream.is_ok();
        let line = |part: &str, state: Result<(), String>| match state {
            Ok(()) => format!("{part}: ok\n"),
            Err(reason) => format!("{part}: {reason}\n"),
        };
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        text(status, line("index", index) + &line("upstream", upstream))
    }

    async fn index_works(&self) -> Result<(), String> {
        if let Some(failure) = self.index.write_failure() {
            return Err(failure);
        }
        let mut wrote = self.wrote.lock().await;
        if !wrote.is_some_and(|at| at.elapsed() < FRESH) {
            *wrote = None;
            self.index.probe().await.map_err(|error| error.to_string())?;
            *wrote = Some(Instant::now());
        }
        Ok(())
    }

    async fn upstream_answers(&self) -> Result<(), String> {
        if self.upstream.answered_ago().is_some_and(|ago| ago < FRESH) {
            return Ok(());
        }
        let ping = self.upstream.send(question(Method::GET, Uri::from_static("/v2/")));
        match tokio::time::timeout(PROBE_WAIT, ping).await {
            Ok(Ok(_any_answer)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err(format!("no answer within {PROBE_WAIT:?}")),
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
