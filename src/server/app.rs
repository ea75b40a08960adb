//! The way of a request: every layer in the order in which it is met, the upstream it is for, and one
//! `match` on the route.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;
use tower::Service;
use tracing::Instrument as _;

use crate::config::Config;
use crate::http::body::{Body, PushLimits};
use crate::http::framing;
use crate::http::header::X_REQUEST_ID;
use crate::http::limits::{Answers, Busy, Limit, Load, Place, Pushes, RequestGuard, Requests};
use crate::http::route::{Route, RouteClass};
use crate::index::{Index, Repository};
use crate::oci::RepositoryName;
use crate::proxy::error::Error;
use crate::proxy::forward::{self, Origin, Peer};
use crate::proxy::selection::Selection;
use crate::proxy::upstream::{Upstream, Upstreams};
use crate::queries::pages::ReferrerPages;
use crate::queries::references::ReferencesHandler;
use crate::queries::referrers::ReferrersHandler;
use crate::recording::pulls::PullRecorder;
use crate::recording::pushes::PushRecorder;
use crate::registry::reader::ManifestReader;
use crate::registry::{Caller, Merger, Registry, Visit};
use crate::telemetry::Metrics;

/// How much of a request's id is logged.
const LOGGED_ID_BYTES: usize = 128;

/// What answers the clients' requests.
#[derive(Debug)]
pub struct App {
    selection: Selection,
    default: Handlers,
    /// In the order of the configuration.
    further: Vec<Handlers>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    requests: Arc<Requests>,
    answers: Arc<Answers>,
    request_ids: RequestIds,
}

/// One upstream and what handles the requests for it.
#[derive(Debug)]
struct Handlers {
    upstream: Arc<Upstream>,
    registry: Arc<Registry>,
    manifests: PushRecorder,
    pulls: Arc<PullRecorder>,
    references: ReferencesHandler,
    referrers: ReferrersHandler,
    metrics: Arc<Metrics>,
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
        let handlers = |upstream: &Arc<Upstream>| Handlers::new(config, upstream, index, &metrics, &tasks);
        Self {
            selection: Selection::new(config),
            default: handlers(&upstreams.default),
            further: upstreams.further.iter().map(handlers).collect(),
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
        place: Arc<Place>,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<>,
    > + Clone
    + Send
    + use<> {
        tower::service_fn(move |mut request| {
            // First: everything behind it logs the id, and the upstream gets it too.
            let id = self.request_ids.identify(&mut request);
            let (app, origin) = (Arc::clone(&self), client.origin(&request));
            let admitted = admit(&place, &mut request);
            let is_head = *request.method() == Method::HEAD;
            async move {
                let mut response = match admitted {
                    Ok(busy) => app.counted(origin, request, busy).await,
                    Err(error) => app.refuse(&request, &error),
                };
                if is_head {
                    leave_body_out(&mut response);
                }
                // The client can quote the id, whoever answered.
                if let Some(id) = id {
                    response.headers_mut().entry(X_REQUEST_ID).or_insert(id);
                }
                Ok(response)
            }
        })
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
        let (handlers, origin) = self.select(origin, &mut request);
        let route = Route::parse(request.method(), request.uri().path());
        // Of the highest level, so that whatever is logged says which request it is about. Made when all is known
        // that it says: what is added later is formatted anew.
        let span = tracing::error_span!(
            "request",
            request_id = %log.request_id(),
            upstream = %handlers.upstream.name(),
            repository = route.repository().map(tracing::field::display),
        );
        Box::pin(self.dispatch(handlers, route, origin, request, in_progress, log)).instrument(span).await
    }

    async fn dispatch(
        &self,
        handlers: &Handlers,
        route: Route,
        origin: Origin,
        request: Request<Incoming>,
        in_progress: &RequestGuard,
        log: RequestLog,
    ) -> Response<Body> {
        let class = route.class();
        // Who sent a query.
        let mut caller = None;
        // All boxed: what the layers hand on stays small, and no request pays for the largest of these.
        let result = match route {
            Route::Pass(_) => {
                Box::pin(forward::pass(&handlers.upstream, &origin, &self.tasks, request, in_progress)).await
            }
            Route::GetManifest { repository, manifest } => {
                let repository = handlers.repository(repository);
                Box::pin(handlers.pulls.get(repository, manifest, origin.clone(), request, in_progress)).await
            }
            Route::HeadManifest { repository, digest } => {
                let repository = handlers.repository(repository);
                Box::pin(handlers.pulls.head(repository, digest, origin.clone(), request, in_progress)).await
            }
            Route::PutManifest { repository, manifest } => {
                let repository = handlers.repository(repository);
                Box::pin(handlers.manifests.put(
                    repository,
                    manifest,
                    origin.clone(),
                    request,
                    in_progress.clone(),
                ))
                .await
            }
            Route::DeleteManifest { repository, manifest } => {
                let repository = handlers.repository(repository);
                Box::pin(handlers.manifests.delete(
                    repository,
                    manifest,
                    origin.clone(),
                    request,
                    in_progress.clone(),
                ))
                .await
            }
            Route::References { repository, manifest } => {
                let visit = handlers.visit(repository, &origin, &request);
                caller = Some(Arc::clone(&visit.caller));
                Box::pin(handlers.references.answer(visit, manifest, &request)).await
            }
            Route::Referrers { repository, subject } => {
                let visit = handlers.visit(repository, &origin, &request);
                caller = Some(Arc::clone(&visit.caller));
                Box::pin(handlers.referrers.answer(visit, subject, &request)).await
            }
            Route::QueryMethod(_) => Err(Error::QueryMethod),
            Route::QueryPath(_, malformed) => Err(Error::Path(malformed)),
        };
        let result = result.and_then(|response| self.held(origin.client(), response));
        if matches!(class, RouteClass::References | RouteClass::Referrers) {
            handlers.count_query(log.began, &result);
        }
        let mut response = result.unwrap_or_else(|error| {
            log.failure(&error, None);
            self.count_refused(&error);
            error.to_response()
        });
        if let Some(caller) = &caller {
            handlers.let_origins_read(&mut response, caller);
        }
        forward::lead_back(&mut response, &handlers.upstream, &origin);
        handlers.metrics.request(class, response.status());
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
        let log = RequestLog::of(request);
        log.failure(error, Some(log.request_id()));
        self.count_refused(error);
        let response = error.to_response();
        self.metrics.request(RouteClass::Other, response.status());
        response
    }

    fn count_refused(&self, error: &Error) {
        if let Error::Limit(limit) = error.root() {
            self.metrics.refused(*limit);
        }
    }

    /// The registry that a request is for; the request then says what that registry is to be asked.
    fn select<'a>(&'a self, origin: Origin, request: &mut Request<Incoming>) -> (&'a Handlers, Origin) {
        let Some(target) = request.uri().path_and_query() else { return (&self.default, origin) };
        let mut selected = self.selection.select(origin.requested_host(), target);
        if let Some(target) = selected.target.take() {
            *request.uri_mut() = Uri::from(target);
        }
        let further = selected.place.checked_sub(1).and_then(|place| self.further.get(place));
        (further.unwrap_or(&self.default), origin.through(selected))
    }
}

impl Handlers {
    fn new(
        config: &Config,
        upstream: &Arc<Upstream>,
        index: &Index,
        metrics: &Metrics,
        tasks: &TaskTracker,
    ) -> Self {
        let metrics = Arc::new(metrics.of_upstream(upstream.name()));
        let registry = Arc::new(Registry::new(Arc::clone(upstream), config, (*metrics).clone()));
        let pushed = PushLimits {
            bytes: config.manifests.max_bytes,
            idle: upstream.body_idle(),
            whole: config.timeouts.manifest,
            pushes: Pushes::new(config.limits.manifest_bytes),
        };
        let reader = ManifestReader::new(Arc::clone(&metrics), config.manifests.max_links_bytes, pushed);
        let pulls = Arc::new(PullRecorder::new(
            Arc::clone(&registry),
            index.clone(),
            reader.clone(),
            Arc::clone(&metrics),
            tasks.clone(),
            config.manifests.learn_bytes,
        ));
        let merger = Merger::new(Arc::clone(&registry), index.clone(), reader.clone(), config);
        let merger = Arc::new(merger);
        let pages = Arc::new(ReferrerPages::new(
            Arc::clone(&registry),
            merger,
            reader.clone(),
            index.clone(),
            &config.references,
        ));
        Self {
            manifests: PushRecorder::new(
                Arc::clone(&registry),
                Arc::clone(&pulls),
                index.clone(),
                reader,
                Arc::clone(&metrics),
                tasks.clone(),
            ),
            pulls,
            references: ReferencesHandler::new(Arc::clone(&pages)),
            referrers: ReferrersHandler::new(pages, &config.referrers),
            upstream: Arc::clone(upstream),
            registry,
            metrics,
        }
    }

    /// A query's caller at its repository.
    fn visit(&self, name: RepositoryName, origin: &Origin, request: &Request<Incoming>) -> Visit {
        let caller = self.registry.caller(request.headers(), request.uri(), origin);
        self.registry.visit(&caller, self.repository(name))
    }

    fn count_query(&self, began: Instant, result: &Result<Response<Body>, Error>) {
        match result {
            Ok(_) => self.metrics.query(began.elapsed()),
            Err(error) => self.metrics.query_refused(self.upstream.name(), error.query_refused()),
        }
    }

    /// Pages of other origins may read refshim's own answers as far as they may read the registry's (Fetch,
    /// section 3.2).
    fn let_origins_read(&self, response: &mut Response<Body>, caller: &Caller) {
        let Some(fields) = self.registry.access_control(caller) else { return };
        let headers = response.headers_mut();
        // A refusal of the registry has its own already.
        let missing = |name: &http::HeaderName| !headers.contains_key(name);
        let missing: Vec<_> = fields.iter().filter(|(name, _)| missing(name)).collect();
        for (name, value) in missing {
            headers.append(name, value.clone());
        }
    }

    fn repository(&self, name: RepositoryName) -> Repository {
        Repository { upstream: self.upstream.number(), name }
    }
}

/// Leaves the length that a GET would get. In HTTP/1.1 hyper does it, in HTTP/2 it sends the body, which clients
/// take for a broken stream (RFC 9110, section 9.3.2).
fn leave_body_out(response: &mut Response<Body>) {
    if response.body().is_end_stream() {
        return;
    }
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    *response.body_mut() = Body::empty();
}

/// Before anything is passed on: whether it can be, and that the connection is then busy with it.
fn admit(place: &Arc<Place>, request: &mut Request<Incoming>) -> Result<Busy, Error> {
    let busy = place.begin().ok_or(Limit::Connections)?;
    // The upstream may read it the other way.
    framing::check_request(request)?;
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
    began: Instant,
}

impl RequestLog {
    fn of(request: &Request<Incoming>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            request_id: request.headers().get(X_REQUEST_ID).cloned(),
            began: Instant::now(),
        }
    }

    /// The id is told where no span tells it.
    fn failure(&self, error: &Error, request_id: Option<&str>) {
        let (method, path) = (&self.method, self.uri.path());
        let causes = causes(error);
        if error.is_the_clients() {
            tracing::info!(%method, path, request_id, causes, "refused a request: {error}");
        } else {
            tracing::warn!(%method, path, request_id, causes, "a request failed: {error}");
        }
    }

    fn answered(&self, response: &Response<Body>) {
        tracing::debug!(method = %self.method, path = self.uri.path(), status = response.status().as_u16(),
            duration_ms = self.began.elapsed().as_secs_f64() * 1e3,
            "answered");
    }

    /// As far as it is one: a client may send anything of any length, and what could be read as further fields of
    /// the line.
    fn request_id(&self) -> &str {
        let id = self.request_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default();
        let is_of_id = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:+/=@".contains(&byte);
        let end = id.bytes().take(LOGGED_ID_BYTES).take_while(|byte| is_of_id(*byte)).count();
        id.get(..end).unwrap_or_default()
    }
}

/// The chain of sources behind an error, outermost first.
fn causes(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |cause| cause.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Ids that differ between processes and between requests of one.
#[derive(Debug)]
struct RequestIds {
    process: u64,
    count: AtomicU64,
}

impl RequestIds {
    fn new() -> Self {
        use std::hash::BuildHasher as _;
        let process = std::hash::RandomState::new().hash_one(std::process::id());
        Self { process, count: AtomicU64::new(0) }
    }
}

impl RequestIds {
    /// The id that a request came with, or a new one that it gets.
    fn identify<B>(&self, request: &mut Request<B>) -> Option<HeaderValue> {
        if let Some(id) = request.headers().get(X_REQUEST_ID) {
            return Some(id.clone());
        }
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let id = Bytes::from(format!("{:016x}-{count:x}", self.process));
        let id = HeaderValue::from_maybe_shared(id).ok()?;
        request.headers_mut().insert(X_REQUEST_ID, id.clone());
        Some(id)
    }
}
