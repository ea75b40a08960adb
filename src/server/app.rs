//! The way of a request: the layers that every request passes, in their order, and behind them one `match` on
//! its route.
//!
//! The layers are lines of `App::serve` and `App::answer` and not `tower::Layer`s: each hands the next one
//! something of its own (a place, a share, an upstream), which a stack would carry in the request's
//! extensions or in a type and a pinned future for each.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use super::access_log::{AccessLine, AccessLog};
use super::asked::Asked;
use super::handlers::{Handlers, Kin};
use super::logs::Logs;
use super::request_log::{RequestIds, RequestLog};
use crate::config::{Config, Mode};
use crate::http::body::Body;
use crate::http::framing;
use crate::http::header::X_REQUEST_ID;
use crate::http::limits::{Answers, Limit, Load, Place, RequestGuard, Requests};
use crate::http::route::{Route, RouteClass};
use crate::index::Index;
use crate::proxy::error::Error;
use crate::proxy::forward::{self, Origin};
use crate::proxy::selection::Selection;
use crate::proxy::upstream::{Upstream, Upstreams};
use crate::referrers_tags::ReferrersTags;
use crate::telemetry::{Metrics, Queried, Span, Traces, within_request};
use crate::web::{VisitorLogin, Web, WebRegistry};

/// Answers the clients' requests.
#[derive(Debug)]
pub struct App {
    selection: Selection,
    default: Handlers,
    /// In the order of the configuration.
    further: Vec<Handlers>,
    metrics: Arc<Metrics>,
    traces: Traces,
    tasks: TaskTracker,
    requests: Arc<Requests>,
    answers: Arc<Answers>,
    request_ids: Arc<RequestIds>,
    access_log: Option<Arc<AccessLog>>,
}

/// What every configuration of one process has in common.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) index: Index,
    pub(super) tags: Arc<ReferrersTags>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) traces: Traces,
    pub(super) logs: Logs,
    pub(super) load: Load,
    /// Work that outlives its client.
    pub(super) tasks: TaskTracker,
}

impl App {
    /// Sets up the handlers of each upstream; they go on from those of `before`, if there is one.
    pub(super) fn new(config: &Config, upstreams: &Upstreams, parts: &Parts, before: Option<&Self>) -> Self {
        let at = |place: usize| before.and_then(|before| before.handlers().nth(place));
        let new = |upstream: &Arc<Upstream>, kin: Kin<'_>| Handlers::new(config, upstream, kin, parts);
        let default = new(&upstreams.default, Kin { same: None, before: at(0) });
        let mut further: Vec<Handlers> = Vec::with_capacity(upstreams.further.len());
        for upstream in &upstreams.further {
            let is_same = |other: &&Handlers| other.upstream.number() == upstream.number();
            let same = std::iter::once(&default).chain(&further).find(is_same);
            let kin = Kin { same, before: at(further.len() + 1) };
            further.push(new(upstream, kin));
        }
        let limits = &config.limits;
        let new_requests = || Requests::new(limits.requests_per_client, parts.load.clone());
        let requests = before.map_or_else(new_requests, |before| Arc::clone(&before.requests));
        requests.resize(limits.requests_per_client);
        let new_answers = || Answers::new(limits.answer_bytes);
        let answers = before.map_or_else(new_answers, |before| Arc::clone(&before.answers));
        answers.resize(limits.answer_bytes);
        Self {
            selection: Selection::new(config),
            default,
            further,
            metrics: Arc::clone(&parts.metrics),
            traces: parts.traces.clone(),
            tasks: parts.tasks.clone(),
            requests,
            answers,
            request_ids: before.map_or_else(Arc::default, |before| Arc::clone(&before.request_ids)),
            access_log: parts.logs.access.clone(),
        }
    }

    /// Those of the default upstream first.
    fn handlers(&self) -> impl Iterator<Item = &Handlers> {
        std::iter::once(&self.default).chain(&self.further)
    }

    /// The web page of the same registries, asked and limited together with the clients' requests.
    pub(super) fn web(&self, config: &Config, index: &Index, logins: Vec<VisitorLogin>) -> Web {
        let registries = self.handlers().zip(logins).map(|(handlers, login)| {
            let Handlers { upstream, registry, pages, .. } = handlers;
            WebRegistry::new(login, Arc::clone(upstream), Arc::clone(registry), Arc::clone(pages))
        });
        let limits = (Arc::clone(&self.requests), Arc::clone(&self.answers));
        Web::new(config, registries.collect(), index.clone(), limits)
    }

    /// The layers that every request passes, whether it is accepted or not.
    pub(super) async fn serve(
        &self,
        origin: &mut Origin,
        place: &Arc<Place>,
        mut request: Box<Request<Incoming>>,
    ) -> Response<Body> {
        // Request id. First: everything behind it logs the id, and the upstream gets it too.
        let id = self.request_ids.identify(&mut request);
        // Trace. Before anything is asked of an upstream, whose part of it stands below this span.
        let mut span = self.traces.receive(&mut request);
        // Access log. Before anything can end the request; the path is still the client's own.
        let mut line = self.access_log.as_ref().map(|log| log.begin(origin.client(), &request, id.as_ref()));
        // HEAD, outside of what counts bodies: theirs is given up before it counts.
        let is_head = *request.method() == Method::HEAD;
        let (mut response, mode) = match self.admit(origin, place, &mut request) {
            Ok(in_progress) => {
                let told = (line.as_deref_mut(), span.as_mut());
                let (mut response, mode) = self.answer(origin, request, &in_progress, told).await;
                if let Some(mut span) = span {
                    span.answered(response.status());
                    in_progress.carry(span);
                }
                // To the last byte: until then the client's share counts it, and its connection is not idle.
                response.body_mut().keep(in_progress);
                (response, mode)
            }
            Err(error) => {
                let response = self.reject(&request, &error);
                if let Some(span) = &mut span {
                    span.answered(response.status());
                }
                (response, Mode::Full)
            }
        };
        if is_head {
            leave_body_out(&mut response);
        }
        // The client can quote the id, whoever answered; unless it is not to see that refshim is there.
        if let (Some(id), Mode::Full) = (id, mode) {
            response.headers_mut().entry(X_REQUEST_ID).or_insert(id);
        }
        if let Some(line) = line {
            line.answered(&mut response);
        }
        response
    }

    /// Checks a request before anything is done for it. The guard counts it until the last byte of its
    /// answer.
    fn admit(
        &self,
        origin: &Origin,
        place: &Arc<Place>,
        request: &mut Request<Incoming>,
    ) -> Result<RequestGuard, Error> {
        // Connection limit: over it, every request is answered with 503 and not with a reset.
        let busy = place.begin().ok_or(Limit::Connections)?;
        // Request smuggling: the upstream may read an ambiguous head the other way.
        framing::check_request(request)?;
        // CONNECT. Here and not where it would be sent: a tunnel through an upgrade must not be one either.
        if *request.method() == Method::CONNECT {
            return Err(Error::Method(Method::CONNECT));
        }
        // The client's share, so that no client takes what is for all.
        Ok(self.requests.begin(origin.client(), busy)?)
    }

    /// Selects the upstream of an accepted request and parses its route, as far as its mode has one, and says both in
    /// each of its log lines.
    async fn answer(
        &self,
        origin: &mut Origin,
        mut request: Box<Request<Incoming>>,
        in_progress: &RequestGuard,
        (line, span): (Option<&mut AccessLine>, Option<&mut Span>),
    ) -> (Response<Body>, Mode) {
        let log = RequestLog::of(&request);
        let handlers = self.select(origin, &mut request);
        let mode = handlers.upstream.mode();
        let route = Route::parse(request.method(), request.uri().path()).within(mode);
        if let Some(span) = span {
            span.routed(route.class(), handlers.upstream.name());
        }
        if let Some(line) = line {
            line.selected(&handlers.upstream, route.class());
        }
        let log = Arc::new(log.selected(&handlers.upstream, request.uri()));
        // Boxed, as each future below that is not small: those around it would have its size, and are moved as a whole.
        let answer = Box::pin(self.finish(handlers, route, origin, request, in_progress, Arc::clone(&log)));
        (within_request(log, answer).await, mode)
    }

    /// The layers that every answer passes: errors become answers, which are counted and logged, and
    /// addresses in the head are made to lead back here.
    async fn finish(
        &self,
        handlers: &Handlers,
        route: Route,
        origin: &Origin,
        request: Box<Request<Incoming>>,
        in_progress: &RequestGuard,
        log: Arc<RequestLog>,
    ) -> Response<Body> {
        let class = route.class();
        let is_query = route.is_query();
        let mut asked = Asked::default();
        let result = self.dispatch(handlers, route, origin, request, in_progress, &mut asked).await;
        // Before it is counted: an answer for which there is no room is an error.
        let result = result.and_then(|response| self.hold(origin.client(), response));
        if is_query {
            handlers.count_query(log.began, &result);
        }
        let mut response = result.unwrap_or_else(|error| {
            log.failure(&error, None);
            self.count_rejected(&error);
            error.to_response()
        });
        asked.answered(response.status());
        // Only refshim's own answers need it: the upstream's say themselves which pages may read them.
        if let Some(caller) = &asked.caller {
            handlers.let_origins_read(&mut response, caller);
        }
        // Also refshim's own: the `Link` of a page needs the mark of its upstream.
        forward::lead_back(&mut response, &handlers.upstream, origin);
        handlers.metrics.request(class, response.status());
        log.answered(&response);
        response
    }

    /// The match on the route. Each future is boxed, so that no request pays for the size of the largest. What else
    /// there is of a query is left in `asked`, also if the answer is an error.
    async fn dispatch(
        &self,
        handlers: &Handlers,
        route: Route,
        origin: &Origin,
        request: Box<Request<Incoming>>,
        in_progress: &RequestGuard,
        asked: &mut Asked,
    ) -> Result<Response<Body>, Error> {
        let at = |name| handlers.repository(name);
        match route {
            Route::Pass(_) => {
                Box::pin(forward::pass(&handlers.upstream, origin, &self.tasks, request, in_progress)).await
            }
            Route::GetManifest { repository, manifest } => {
                let pull = handlers.pulls.get(at(repository), manifest, origin.clone(), request, in_progress);
                Box::pin(pull).await
            }
            Route::HeadManifest { repository, digest } => {
                let look = handlers.pulls.head(at(repository), digest, origin.clone(), request, in_progress);
                Box::pin(look).await
            }
            Route::PutManifest { repository, manifest } => {
                // A push goes on without its client, and counts for it as long.
                let in_progress = in_progress.clone();
                let push =
                    handlers.pushes.put(at(repository), manifest, origin.clone(), request, in_progress);
                Box::pin(push).await
            }
            Route::DeleteManifest { repository, manifest } => {
                let in_progress = in_progress.clone();
                let deletion =
                    handlers.pushes.delete(at(repository), manifest, origin.clone(), request, in_progress);
                Box::pin(deletion).await
            }
            Route::WatchPut { repository, manifest } => {
                let in_progress = in_progress.clone();
                let push =
                    handlers.watched.put(at(repository), manifest, origin.clone(), request, in_progress);
                Box::pin(push).await
            }
            Route::PassWrite { repository } => {
                Box::pin(handlers.pushes.pass(at(repository), origin, request, in_progress)).await
            }
            Route::Attach { repository, manifest } => {
                let visit = asked.caller_of(handlers.visit(repository, origin, &request));
                let (origin, in_progress) = (origin.clone(), in_progress.clone());
                Box::pin(handlers.attacher.attach(visit, manifest, origin, *request, in_progress)).await
            }
            Route::Reference { repository, manifest, referrer } => {
                let visit = asked.caller_of(handlers.visit(repository, origin, &request));
                Box::pin(handlers.attacher.lead(visit, (manifest, referrer), &request)).await
            }
            Route::Detach { repository, manifest, referrer } => {
                let visit = asked.caller_of(handlers.visit(repository, origin, &request));
                let (one, in_progress) = ((manifest, referrer), in_progress.clone());
                Box::pin(handlers.attacher.detach(visit, one, origin, request, in_progress)).await
            }
            Route::Extensions => Box::pin(handlers.extensions.answer(origin, request)).await,
            Route::References { repository, manifest, path } => {
                let visit =
                    asked.visit(handlers, repository, origin, &request, (Queried::References, &manifest));
                asked.found(Box::pin(handlers.references.answer(visit, (manifest, path), &request)).await)
            }
            Route::Referrers { repository, subject } => {
                let visit =
                    asked.visit(handlers, repository, origin, &request, (Queried::Referrers, &subject));
                asked.found(Box::pin(handlers.referrers.answer(visit, subject, &request)).await)
            }
            Route::QueryMethod(_, allowed) => Err(Error::QueryMethod(allowed)),
            Route::QueryPath(_, malformed) => Err(Error::Path(malformed)),
        }
    }

    /// Counts the bytes of refshim's own answers until the client has read them, so that clients that do not
    /// read cannot fill the memory.
    fn hold(&self, client: IpAddr, mut response: Response<Body>) -> Result<Response<Body>, Error> {
        if let Some(length) = response.body().whole_length() {
            let answer = self.answers.take(client, length)?;
            response.body_mut().hold(answer);
        }
        Ok(response)
    }

    fn reject(&self, request: &Request<Incoming>, error: &Error) -> Response<Body> {
        let log = RequestLog::of(request);
        // The id by hand: the request's context, which names it in each line, begins behind this.
        log.failure(error, Some(log.request_id()));
        self.count_rejected(error);
        let response = error.to_response();
        self.metrics.request(RouteClass::Other, response.status());
        response
    }

    fn count_rejected(&self, error: &Error) {
        if let Error::Limit(limit) = error.root() {
            self.metrics.refused(*limit);
        }
    }

    /// Selects the upstream, and rewrites the request's path if it is another one there.
    fn select(&self, origin: &mut Origin, request: &mut Request<Incoming>) -> &Handlers {
        // Only the target of CONNECT has no path, and that was rejected.
        let Some(target) = request.uri().path_and_query() else { return &self.default };
        let mut selected = self.selection.select(origin.requested_host(), target);
        if let Some(target) = selected.target.take() {
            *request.uri_mut() = Uri::from(target);
        }
        let further = selected.place.checked_sub(1).and_then(|place| self.further.get(place));
        origin.came_through(selected);
        further.unwrap_or(&self.default)
    }
}

/// Removes the body of an answer to HEAD and leaves the length that a GET would have (RFC 9110, section
/// 9.3.2). In HTTP/1.1 hyper does so; in HTTP/2 it sends the body, which clients treat as a stream error.
pub(super) fn leave_body_out(response: &mut Response<Body>) {
    if response.body().is_end_stream() {
        return;
    }
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    *response.body_mut() = Body::empty();
}
