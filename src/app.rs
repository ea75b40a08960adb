//! The way of a request: every layer in the order in which it is met, and one `match` on the route.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceBuilder};
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};

use crate::access::Access;
use crate::body::Body;
use crate::config::{self, Config};
use crate::error::Error;
use crate::forward::{self, Origin};
use crate::gathering::Gathering;
use crate::index::{Index, Repository};
use crate::learning::Learning;
use crate::listing::Listing;
use crate::manifests::Manifests;
use crate::oci::RepositoryName;
use crate::reading::Reading;
use crate::references::References;
use crate::referrers::Referrers;
use crate::route::Route;
use crate::telemetry::Metrics;
use crate::upstream::Upstream;

/// The number of the one upstream in the index.
const UPSTREAM: u32 = 0;

/// What answers the clients' requests.
#[derive(Debug)]
pub struct App {
    upstream: Arc<Upstream>,
    manifests: Manifests,
    learning: Arc<Learning>,
    references: References,
    referrers: Referrers,
    metrics: Arc<Metrics>,
    request_ids: RequestIds,
}

impl App {
    /// Wires the handlers up; work that outlives its client runs on `tasks`.
    #[must_use]
    pub fn new(
        config: &Config,
        upstream: Arc<Upstream>,
        index: &Index,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Self {
        let config::References { access_ttl, concurrency, .. } = config.references;
        let access = Access::new(Arc::clone(&upstream), access_ttl, config.manifests.max_bytes);
        let access = Arc::new(access);
        let reading = Reading::new(Arc::clone(&metrics), &config.manifests);
        let gathering = Arc::new(Gathering::new(
            Arc::clone(&access),
            index.clone(),
            reading.clone(),
            config.referrers.upstream_ttl,
            concurrency,
        ));
        let learning = Arc::new(Learning::new(
            Arc::clone(&upstream),
            index.clone(),
            reading.clone(),
            Arc::clone(&metrics),
            tasks.clone(),
            config.manifests.learn_bytes,
        ));
        let listing =
            Listing::new(Arc::clone(&access), Arc::clone(&gathering), index.clone(), &config.references);
        let listing = Arc::new(listing);
        Self {
            manifests: Manifests::new(
                Arc::clone(&upstream),
                gathering,
                Arc::clone(&learning),
                index.clone(),
                reading,
                Arc::clone(&metrics),
                tasks,
            ),
            learning,
            references: References::new(Arc::clone(&access), Arc::clone(&listing), Arc::clone(&metrics)),
            referrers: Referrers::new(access, listing, Arc::clone(&metrics), &config.referrers),
            upstream,
            metrics,
            request_ids: RequestIds::new(),
        }
    }

    /// The service for one client's connection.
    #[must_use]
    pub fn service(
        self: Arc<Self>,
        client: IpAddr,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<>,
    > + Clone
    + Send
    + use<> {
        let request_ids = self.request_ids.clone();
        let origin = Origin::from(client);
        ServiceBuilder::new()
            // Outermost: everything behind it logs the id, and the upstream gets it too.
            .layer(SetRequestIdLayer::x_request_id(request_ids))
            // The client can quote the id, whoever answered.
            .layer(PropagateRequestIdLayer::x_request_id())
            .service(tower::service_fn(move |request| {
                let (app, origin) = (Arc::clone(&self), origin.clone());
                async move { Ok(app.handle(origin, request).await) }
            }))
    }

    async fn handle(&self, origin: Origin, request: Request<Incoming>) -> Response<Body> {
        let route = Route::parse(request.method(), request.uri().path());
        let class = route.class();
        let log = RequestLog::of(&request);
        let result = match route {
            // All boxed: what the layers hand on stays small, and no request pays for the largest of these.
            Route::Pass(_) => Box::pin(forward::pass(&self.upstream, &origin, request)).await,
            Route::GetManifest { repository, manifest } => {
                Box::pin(self.learning.get(scoped(repository), manifest, origin, request)).await
            }
            Route::PutManifest { repository, manifest } => {
                Box::pin(self.manifests.put(scoped(repository), manifest, origin, request)).await
            }
            Route::DeleteManifest { repository, digest } => {
                Box::pin(self.manifests.delete(scoped(repository), digest, origin, request)).await
            }
            Route::References { repository, manifest } => {
                Box::pin(self.references.answer(scoped(repository), manifest, &request)).await
            }
            Route::Referrers { repository, subject } => {
                Box::pin(self.referrers.answer(scoped(repository), subject, &request)).await
            }
            Route::QueryMethod(_) => Err(Error::QueryMethod),
            Route::QueryPath(_, malformed) => Err(Error::Path(malformed)),
        };
        let response = result.unwrap_or_else(|error| {
            log.failure(&error);
            error.to_response()
        });
        self.metrics.request(class, response.status());
        log.answered(&response);
        response
    }
}

fn scoped(name: RepositoryName) -> Repository {
    Repository { upstream: UPSTREAM, name }
}

/// What the log says of a request. Paths may hold tokens in their query, so that part is left out.
struct RequestLog {
    method: http::Method,
    uri: http::Uri,
    request_id: Option<HeaderValue>,
    began: std::time::Instant,
}

impl RequestLog {
    fn of(request: &Request<Incoming>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            request_id: request.headers().get("x-request-id").cloned(),
            began: std::time::Instant::now(),
        }
    }

    fn failure(&self, error: &Error) {
        let (method, path, request_id) = (&self.method, self.uri.path(), self.request_id());
        let causes = causes(error);
        if error.is_the_clients() {
            tracing::info!(%method, path, request_id, causes, "refused a request: {error}");
        } else {
            tracing::warn!(%method, path, request_id, causes, "a request failed: {error}");
        }
    }

    fn answered(&self, response: &Response<Body>) {
        tracing::debug!(method = %self.method, path = self.uri.path(), request_id = self.request_id(),
            status = response.status().as_u16(), duration_ms = self.began.elapsed().as_secs_f64() * 1e3,
            "answered");
    }

    fn request_id(&self) -> &str {
        self.request_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default()
    }
}

/// The chain of sources behind an error, outermost first.
fn causes(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |cause| cause.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Ids that differ between processes and between requests of one.
#[derive(Clone, Debug)]
struct RequestIds {
    process: u64,
    count: Arc<AtomicU64>,
}

impl RequestIds {
    fn new() -> Self {
        use std::hash::BuildHasher as _;
        let process = std::hash::RandomState::new().hash_one(std::process::id());
        Self { process, count: Arc::default() }
    }
}

impl MakeRequestId for RequestIds {
    fn make_request_id<B>(&mut self, _request: &Request<B>) -> Option<RequestId> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let id = HeaderValue::try_from(format!("{:016x}-{count:x}", self.process)).ok()?;
        Some(RequestId::new(id))
    }
}
