//! Notifications of registries: what was pushed past refshim is recorded soon after.
//!
//! - A registry proves who it is and sends what happened. Each event is on disk ([`crate::queue`]) before it is
//!   answered; what is refused, the registry sends again.
//! - Events are worked off in the background, for each upstream by itself: the manifest is fetched with refshim's own
//!   credentials and recorded as a backfill does. What an event says is never believed, it only says where to look; so
//!   events may be lost, doubled, late and in any order, and what is recorded is what the registry serves.
//! - A deletion is a doubt: the next query asks the registry.
//! - What fails is tried again, with pauses, and dropped with a warning when that has gone on for too long.

mod bodies;
mod event;
mod proof;
mod refusal;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, NotificationSource, UpstreamConfig, UpstreamName};
use crate::http::body::Body;
use crate::index::Index;
use crate::queue::NotQueued;
use crate::telemetry::{Metrics, Notified};
use crate::tls::Reload;
use bodies::Told;
use event::{Action, Event};
use proof::Proof;
use refusal::Refusal;
use worker::Worker;

/// Where notifications are sent to, before the name of the source.
pub const PATH: &str = "/notifications/";
/// The longest body, and the most events in one.
const MOST_BYTES: usize = 4 << 20;
const MOST_EVENTS: usize = 10_000;
/// How many bodies are held at a time.
const BODIES: usize = 16;

/// Takes notifications, and works off what they tell.
#[derive(Debug)]
pub struct Notifications {
    sources: Vec<NotificationSource>,
    workers: Vec<Arc<Worker>>,
    metrics: Arc<Metrics>,
    bodies: Semaphore,
    patience: Duration,
}

/// Notifications cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum NotificationsError {
    /// The queue cannot be opened.
    #[error("the queue of notifications in {}: {source}", .directory.display())]
    Queue {
        /// Where it is.
        directory: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The client of the upstream cannot be set up.
    #[error("the upstream {0}, of which notifications tell: {1}")]
    Client(UpstreamName, crate::client::Error),
}

impl Notifications {
    /// Opens the queues of the upstreams that notifications tell of.
    ///
    /// # Errors
    /// A queue, or a client, cannot be set up.
    pub fn open(config: &Config, index: &Index, metrics: &Arc<Metrics>) -> Result<Self, NotificationsError> {
        let sources = config.notifications.sources.clone();
        let is_told_of =
            |upstream: &&UpstreamConfig| sources.iter().any(|source| source.upstream == upstream.name);
        let worker = |upstream| Worker::new(config, upstream, index, metrics).map(Arc::new);
        let workers = config.upstreams().filter(is_told_of).map(worker).collect::<Result<_, _>>()?;
        let (bodies, metrics) = (Semaphore::new(BODIES), Arc::clone(metrics));
        Ok(Self { sources, workers, metrics, bodies, patience: config.timeouts.body_idle })
    }

    /// Works off the queues until `ending`; what is left is worked off after the next start.
    pub fn work(&self, tasks: &TaskTracker, ending: &CancellationToken) {
        for worker in &self.workers {
            tasks.spawn(Arc::clone(worker).run(ending.clone()));
        }
    }

    /// Measures the queues, for the metrics.
    pub fn measure(&self) {
        self.workers.iter().for_each(|worker| worker.measure());
    }

    /// Takes a notification of this source; nothing if there is no such source.
    pub async fn answer(&self, source: &str, request: Request<Incoming>) -> Option<Response<Body>> {
        let source = self.sources.iter().find(|known| known.name.as_str() == source)?;
        let taken = self.take(source, request).await;
        Some(taken.map_or_else(|refusal| self.refuse(source, &refusal), |told| answered(&told)))
    }

    async fn take(&self, source: &NotificationSource, request: Request<Incoming>) -> Result<Told, Refusal> {
        if *request.method() != Method::POST {
            return Err(Refusal::Method);
        }
        // Before the body: nobody else makes refshim hold one.
        match proof::check(&source.credentials, request.headers()).await {
            Ok(Proof::Right) => {}
            Ok(Proof::Wrong) => return Err(Refusal::Unauthorized),
            Err(problem) => {
                tracing::error!(source = %source.name, problem, "cannot check who sends notifications");
                return Err(Refusal::Unchecked);
            }
        }
        let (head, body) = request.into_parts();
        let told = {
            let _permit = self.bodies.acquire().await;
            let body = self.whole(body).await?;
            bodies::read(source.kind, &head.headers, &body).map_err(Refusal::Malformed)?
        };
        if told.count() > MOST_EVENTS {
            return Err(Refusal::TooMany(told.count()));
        }
        if let (true, Some(problem)) = (told.events.is_empty(), told.malformed.first()) {
            return Err(Refusal::Malformed(problem.clone()));
        }
        for problem in &told.malformed {
            tracing::warn!(source = %source.name, problem, "an event of a notification is malformed");
        }
        let worker = self.workers.iter().find(|worker| *worker.upstream() == source.upstream);
        let queued = worker.ok_or(Refusal::Unchecked)?.queue().add(told.events.clone()).await;
        queued.map_err(|error| match error {
            NotQueued::Full => Refusal::Full,
            NotQueued::NotWritten => Refusal::NotWritten,
        })?;
        self.count(source, &told);
        Ok(told)
    }

    async fn whole(&self, body: Incoming) -> Result<Bytes, Refusal> {
        let whole = Limited::new(body, MOST_BYTES).collect();
        let whole = timeout(self.patience, whole).await.map_err(|_| Refusal::Slow)?;
        let refusal = |error: Box<dyn std::error::Error + Send + Sync>| {
            if error.is::<LengthLimitError>() { Refusal::TooLong } else { Refusal::Broken }
        };
        Ok(whole.map_err(refusal)?.to_bytes())
    }

    fn count(&self, source: &NotificationSource, told: &Told) {
        let of = |action| told.events.iter().filter(|event: &&Event| event.action == action).count();
        for (told, count) in [
            (Notified::Push, of(Action::Push)),
            (Notified::Delete, of(Action::Delete)),
            (Notified::Ignored, told.ignored),
            (Notified::Malformed, told.malformed.len()),
        ] {
            if count > 0 {
                self.metrics.notified(&source.name, told, count);
            }
        }
    }

    fn refuse(&self, source: &NotificationSource, refusal: &Refusal) -> Response<Body> {
        if let Some(counted) = refusal.counted() {
            self.metrics.notified(&source.name, counted, 1);
            tracing::warn!(source = %source.name, reason = %refusal, "a notification is refused");
        }
        refusal.to_response()
    }
}

impl Reload for Notifications {
    fn reload(&self) {
        self.workers.iter().for_each(|worker| worker.reload());
    }
}

fn answered(told: &Told) -> Response<Body> {
    let ignored = told.ignored + told.malformed.len();
    text(StatusCode::OK, format!("{} events queued, {ignored} ignored\n", told.events.len()))
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A field of the head, as text.
fn field<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
