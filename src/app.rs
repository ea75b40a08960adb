//! The way of a request: every layer in the order in which it is met, the upstream it is for, and one
//! `match` on the route.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderValue, Method, Request, Response, Uri};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceBuilder};
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};

use crate::access::Access;
use crate::body::{Body, PushLimits};
use crate::config::{self, Config};
use crate::error::Error;
use crate::forward::{self, Origin, Peer};
use crate::framing::LastHead;
use crate::gathering::Gathering;
use crate::index::{Index, Repository};
use crate::learning::Learning;
use crate::limits::{Answers, Budget, Busy, Limit, Load, Place, Pushes, RequestGuard, Requests};
use crate::listing::Listing;
use crate::manifests::Manifests;
use crate::oci::RepositoryName;
use crate::reading::Reading;
use crate::references::References;
use crate::referrers::Referrers;
use crate::route::{Route, RouteClass};
use crate::selection::Selection;
use crate::telemetry::Metrics;
use crate::upstream::{Upstream, Upstreams};

/// What answers the clients' requests.
#[derive(Debug)]
pub struct App {
    selection: Selection,
    default: Registry,
    /// In the order of the configuration.
    further: Vec<Registry>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    requests: Arc<Requests>,
    answers: Arc<Answers>,
    request_ids: RequestIds,
}

/// One upstream and what handles the requests for it.
#[derive(Debug)]
struct Registry {
    upstream: Arc<Upstream>,
    manifests: Manifests,
    learning: Arc<Learning>,
    references: References,
    referrers: Referrers,
}

impl App {
    /// Wires the handlers of each upstream up; work that outlives its client runs on `tasks`.
    #[must_use]
    pub fn new(
        config: &Config,
        upstreams: &Upstreams,
        index: &Index,
        metrics: Arc<Metrics>,
        load: Load,
        tasks: TaskTracker,
    ) -> Self {
        let registry = |upstream: &Arc<Upstream>| Registry::new(config, upstream, index, &metrics, &tasks);
        Self {
            selection: Selection::new(config),
            default: registry(&upstreams.default),
            further: upstreams.further.iter().map(registry).collect(),
            metrics,
            tasks,
            requests: Requests::new(config.limits.requests_per_client, load),
            answers: Answers::new(config.limits.answer_bytes),
            request_ids: RequestIds::new(),
        }
    }

    /// The service for one client's connection, which refuses everything if there is no place for it.
    #[must_use]
    pub fn service(
        self: Arc<Self>,
        client: Peer,
        head: LastHead,
        place: Arc<Place>,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<>,
    > + Clone
    + Send
    + use<> {
        let request_ids = self.request_ids.clone();
        ServiceBuilder::new()
            // Outermost: everything behind it logs the id, and the upstream gets it too.
            .layer(SetRequestIdLayer::x_request_id(request_ids))
            // The client can quote the id, whoever answered.
            .layer(PropagateRequestIdLayer::x_request_id())
            .service(tower::service_fn(move |request| {
                let (app, origin) = (Arc::clone(&self), client.origin(&request));
                let admitted = admit(&place, &head, &request);
                async move {
                    Ok(match admitted {
                        Ok(busy) => app.counted(origin, request, busy).await,
                        Err(error) => app.refuse(&request, &error),
                    })
                }
            }))
    }

    /// As one of the requests that this client may have in progress.
    async fn counted(&self, origin: Origin, request: Request<Incoming>, busy: Busy) -> Response<Body> {
        match self.requests.begin(origin.client(), busy) {
            Ok(in_progress) => {
                let mut response = self.handle(origin, request, &in_progress).await;
                response.body_mut().keep(in_progress);
                response
            }
            Err(limit) => self.refuse(&request, &Error::Limit(limit)),
        }
    }

    async fn handle(
        &self,
        origin: Origin,
        mut request: Request<Incoming>,
        in_progress: &RequestGuard,
    ) -> Response<Body> {
        let log = RequestLog::of(&request);
        let (registry, origin) = self.select(origin, &mut request);
        let route = Route::parse(request.method(), request.uri().path());
        let class = route.class();
        // All boxed: what the layers hand on stays small, and no request pays for the largest of these.
        let result = match route {
            Route::Pass(_) => {
                Box::pin(forward::pass(&registry.upstream, &origin, &self.tasks, request, in_progress)).await
            }
            Route::GetManifest { repository, manifest } => {
                let repository = registry.repository(repository);
                Box::pin(registry.learning.get(repository, manifest, origin.clone(), request, in_progress))
                    .await
            }
            Route::PutManifest { repository, manifest } => {
                let repository = registry.repository(repository);
                let in_progress = in_progress.clone();
                Box::pin(registry.manifests.put(repository, manifest, origin.clone(), request, in_progress))
                    .await
            }
            Route::DeleteManifest { repository, digest } => {
                let repository = registry.repository(repository);
                let in_progress = in_progress.clone();
                Box::pin(registry.manifests.delete(repository, digest, origin.clone(), request, in_progress))
                    .await
            }
            Route::References { repository, manifest } => {
                Box::pin(registry.references.answer(registry.repository(repository), manifest, &request))
                    .await
            }
            Route::Referrers { repository, subject } => {
                Box::pin(registry.referrers.answer(registry.repository(repository), subject, &request)).await
            }
            Route::QueryMethod(_) => Err(Error::QueryMethod),
            Route::QueryPath(_, malformed) => Err(Error::Path(malformed)),
        };
        let result = result.and_then(|response| self.held(origin.client(), response));
        let mut response = result.unwrap_or_else(|error| {
            log.failure(&error);
            self.count_refused(&error);
            error.to_response()
        });
        forward::lead_back(&mut response, &registry.upstream, &origin);
        self.metrics.request(class, response.status());
        log.answered(&response);
        response
    }

    /// Counts an answer of refshim's own until the client has taken it.
    fn held(&self, client: IpAddr, mut response: Response<Body>) -> Result<Response<Body>, Error> {
        if let Some(length) = response.body().whole_length() {
            let answer = self.answers.take(client, length)?;
            response.body_mut().hold(answer);
        }
        Ok(response)
    }

    fn refuse(&self, request: &Request<Incoming>, error: &Error) -> Response<Body> {
        RequestLog::of(request).failure(error);
        self.count_refused(error);
        let response = error.to_response();
        self.metrics.request(RouteClass::Other, response.status());
        response
    }

    fn count_refused(&self, error: &Error) {
        if let Error::Limit(limit) = error {
            self.metrics.refused(*limit);
        }
    }

    /// The registry that a request is for; the request then says what that registry is to be asked.
    fn select<'a>(&'a self, origin: Origin, request: &mut Request<Incoming>) -> (&'a Registry, Origin) {
        let Some(target) = request.uri().path_and_query() else { return (&self.default, origin) };
        let mut selected = self.selection.select(origin.host(), target);
        if let Some(target) = selected.target.take() {
            *request.uri_mut() = Uri::from(target);
        }
        let further = selected.place.checked_sub(1).and_then(|place| self.further.get(place));
        (further.unwrap_or(&self.default), origin.through(selected))
    }
}

impl Registry {
    fn new(
        config: &Config,
        upstream: &Arc<Upstream>,
        index: &Index,
        metrics: &Arc<Metrics>,
        tasks: &TaskTracker,
    ) -> Self {
        let config::References { access_ttl, concurrency, .. } = config.references;
        let questions = Budget::new(Limit::Questions, config.limits.questions);
        let access = Access::new(Arc::clone(upstream), access_ttl, config.manifests.max_bytes, questions);
        let access = Arc::new(access);
        let pushed = PushLimits {
            bytes: config.manifests.max_bytes,
            idle: upstream.body_idle(),
            whole: config.timeouts.manifest,
            pushes: Pushes::new(config.limits.manifest_bytes),
        };
        let reading = Reading::new(Arc::clone(metrics), config.manifests.max_links_bytes, pushed);
        let gathering = Arc::new(Gathering::new(
            Arc::clone(&access),
            index.clone(),
            reading.clone(),
            config.referrers.upstream_ttl,
            concurrency,
        ));
        let learning = Arc::new(Learning::new(
            Arc::clone(upstream),
            index.clone(),
            reading.clone(),
            Arc::clone(metrics),
            tasks.clone(),
            config.manifests.learn_bytes,
        ));
        let listing =
            Listing::new(Arc::clone(&access), Arc::clone(&gathering), index.clone(), &config.references);
        let listing = Arc::new(listing);
        Self {
            manifests: Manifests::new(
                Arc::clone(upstream),
                gathering,
                Arc::clone(&learning),
                index.clone(),
                reading,
                Arc::clone(metrics),
                tasks.clone(),
            ),
            learning,
            references: References::new(Arc::clone(&access), Arc::clone(&listing), Arc::clone(metrics)),
            referrers: Referrers::new(access, listing, Arc::clone(metrics), &config.referrers),
            upstream: Arc::clone(upstream),
        }
    }

    fn repository(&self, name: RepositoryName) -> Repository {
        Repository { upstream: self.upstream.number(), name }
    }
}

/// Before anything is passed on: whether it can be, and that the connection is then busy with it.
fn admit(place: &Arc<Place>, head: &LastHead, request: &Request<Incoming>) -> Result<Busy, Error> {
    let busy = place.begin().ok_or(Limit::Connections)?;
    // The upstream may read it the other way.
    if let Some(ambiguity) = head.ambiguity(request) {
        return Err(ambiguity.into());
    }
    // Here and not where it would be sent: a tunnel through an upgrade must not be one either.
    if *request.method() == Method::CONNECT {
        return Err(Error::Method(Method::CONNECT));
    }
    Ok(busy)
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
