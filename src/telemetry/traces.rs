//! Traces by OpenTelemetry: a span for each request of a client, and below it one for each request to an upstream that is
//! made for it. A client's `traceparent` (W3C Trace Context) is continued, and each upstream gets one that names the span
//! of the request to it, so that a registry's own spans stand below.
//!
//! The header is all the context there is: [`Traces::receive`] replaces the client's by that of its own span, every request
//! made for it carries the client's header fields on, and [`Traces::send`] finds it there. Without `traces.endpoint` no
//! header is touched.
//!
//! Spans are sent by a thread of the library, in batches, by OTLP over HTTP. When the collector does not keep up, or is
//! gone, they are dropped; a request never waits for it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::USER_AGENT;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span as SdkSpan};
use tokio::runtime::Handle;

use crate::config::{TracesConfig, UpstreamName};
use crate::http::route::RouteClass;
use crate::tls::{ClientConnector, ClientTls, TlsError};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// Where a collector takes traces (OTLP, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";
const AGENT: HeaderValue = HeaderValue::from_static(concat!("refshim/", env!("CARGO_PKG_VERSION")));
/// The longest wait for the collector's answer.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest wait for the last spans to be taken: the process is to end.
const LAST: Duration = Duration::from_secs(2);
/// Bytes of a path and of a `User-Agent` that a span has.
const PATH_BYTES: usize = 2048;
const AGENT_BYTES: usize = 512;
/// The longest answer of a collector that is read, in bytes.
const ANSWER_BYTES: usize = 64 << 10;

/// Why no traces can be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// TLS towards the collector cannot be set up.
    #[error("cannot set up TLS towards the collector of traces: {0}")]
    Tls(#[from] TlsError),
    /// The exporter cannot be set up.
    #[error("cannot send traces (traces.endpoint, or a variable OTEL_…): {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// Makes spans; none, if no collector is configured. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Tracing>>);

struct Tracing {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    propagator: TraceContextPropagator,
}

impl fmt::Debug for Tracing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracing").finish_non_exhaustive()
    }
}

/// A span, which ends when it is dropped.
#[derive(Debug)]
pub struct Span(Box<SdkSpan>);

impl Traces {
    /// Sends spans to the collector of the configuration. To be called within the runtime that is to send them.
    ///
    /// # Errors
    /// The collector's address or a variable `OTEL_…` is not usable.
    pub fn new(config: &TracesConfig) -> Result<Self, TracesError> {
        let Some(endpoint) = &config.endpoint else { return Ok(Self::default()) };
        let endpoint = format!("{}://{}{}{PATH}", endpoint.scheme(), endpoint.authority(), endpoint.path());
        let exporter = SpanExporter::builder().with_http().with_http_client(Collector::new(&endpoint)?);
        let exporter = exporter.with_endpoint(endpoint).with_timeout(LIMIT).build()?;
        let provider = SdkTracerProvider::builder()
            // What a caller samples is to be seen whole.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample.ratio()))))
            .with_resource(resource())
            .with_batch_exporter(exporter)
            .build();
        let tracer = provider.tracer("refshim");
        let propagator = TraceContextPropagator::new();
        Ok(Self(Some(Arc::new(Tracing { tracer, provider, propagator }))))
    }

    /// Begins the span of a client's request, and names it in the request's header.
    pub fn receive<B>(&self, request: &mut Request<B>) -> Option<Span> {
        let tracing = self.0.as_ref()?;
        let parent =
            tracing.propagator.extract_with_context(&Context::new(), &HeaderExtractor(request.headers()));
        let name = method(request.method());
        let mut span = tracing.begin(SpanKind::Server, name, &parent, request.headers_mut());
        if span.is_recording() {
            span.set_attribute(KeyValue::new("http.request.method", name));
            // Without the query, which may hold tokens.
            span.set_attribute(KeyValue::new("url.path", cut(request.uri().path(), PATH_BYTES)));
            let agent = request.headers().get(USER_AGENT).and_then(|agent| agent.to_str().ok());
            span.set_attributes(
                agent.map(|agent| KeyValue::new("user_agent.original", cut(agent, AGENT_BYTES))),
            );
        }
        Some(Span(Box::new(span)))
    }

    /// Begins the span of a request to an upstream, if it is made for a request that has one, and names it in the header.
    pub fn send<B>(&self, request: &mut Request<B>, upstream: &UpstreamName) -> Option<Span> {
        let tracing = self.0.as_ref()?;
        if !request.headers().contains_key(TRACEPARENT) {
            return None;
        }
        let parent =
            tracing.propagator.extract_with_context(&Context::new(), &HeaderExtractor(request.headers()));
        let name = method(request.method());
        let mut span = tracing.begin(SpanKind::Client, name, &parent, request.headers_mut());
        if span.is_recording() {
            span.set_attribute(KeyValue::new("http.request.method", name));
            span.set_attribute(KeyValue::new("url.path", cut(request.uri().path(), PATH_BYTES)));
            let host = request.uri().host().map(str::to_owned);
            span.set_attributes(host.map(|host| KeyValue::new("server.address", host)));
            span.set_attribute(KeyValue::new("refshim.upstream", upstream.to_string()));
        }
        Some(Span(Box::new(span)))
    }

    /// Sends what is left. Later spans are dropped.
    pub async fn close(&self) {
        let Some(tracing) = self.0.clone() else { return };
        // It blocks until the library's thread has sent them.
        let closed = tokio::task::spawn_blocking(move || tracing.provider.shutdown_with_timeout(LAST)).await;
        if !matches!(closed, Ok(Ok(()))) {
            tracing::warn!("the last traces could not be sent");
        }
    }
}

impl Tracing {
    fn begin(&self, kind: SpanKind, name: &'static str, parent: &Context, header: &mut HeaderMap) -> SdkSpan {
        let span = SpanBuilder::from_name(name).with_kind(kind).start_with_context(&self.tracer, parent);
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        self.propagator.inject_context(&context, &mut HeaderInjector(header));
        if header.get(TRACESTATE).is_some_and(HeaderValue::is_empty) {
            header.remove(TRACESTATE);
        }
        span
    }
}

impl Span {
    /// What a client's request turned out to be.
    pub fn routed(&mut self, class: RouteClass, upstream: &UpstreamName) {
        if self.0.is_recording() {
            self.0.set_attribute(KeyValue::new("refshim.route", class.as_str()));
            self.0.set_attribute(KeyValue::new("refshim.upstream", upstream.to_string()));
        }
    }

    /// The status of the answer.
    pub fn answered(&mut self, status: StatusCode) {
        if self.0.is_recording() {
            self.0.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
            if status.is_server_error() {
                self.0.set_attribute(KeyValue::new("error.type", status.as_u16().to_string()));
                self.0.set_status(Status::error(""));
            }
        }
    }

    /// There is no answer.
    pub fn failed(&mut self, error: &dyn std::error::Error) {
        if self.0.is_recording() {
            self.0.set_status(Status::error(error.to_string()));
        }
    }
}

/// The beginning of a text, which a client chooses: thousands of spans wait for the collector.
fn cut(text: &str, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default().to_owned()
}

/// The method, of those that there are: a name that a client made up would be one more for whoever searches the traces.
fn method(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    known.into_iter().find(|known| method.as_str() == *known).unwrap_or("_OTHER")
}

/// What the spans are of. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` come before it.
fn resource() -> Resource {
    let ours = Resource::builder_empty()
        .with_service_name("refshim")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let ours = ours.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    let is_named = std::env::var_os("OTEL_SERVICE_NAME").is_some();
    Resource::builder()
        .with_attributes(ours.filter(|it| !is_named || it.key.as_str() != "service.name"))
        .build()
}

/// The client of the collector. Its requests run on the server's runtime, for the library's thread has none.
struct Collector {
    client: legacy::Client<ClientConnector, Full<Bytes>>,
    runtime: Handle,
    endpoint: String,
    /// Each change is told once, not each batch.
    fails: Arc<AtomicBool>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Collector {
    fn new(endpoint: &str) -> Result<Self, TlsError> {
        let connector = ClientConnector::new(&ClientTls::platform()?, AGENT, LIMIT);
        let client =
            legacy::Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        let fails = Arc::new(AtomicBool::new(false));
        Ok(Self { client, runtime: Handle::current(), endpoint: endpoint.to_owned(), fails })
    }
}

impl HttpClient for Collector {
    fn send_bytes<'c, 'f>(
        &'c self,
        mut request: Request<Bytes>,
    ) -> BoxFuture<'f, Result<Response<Bytes>, HttpError>>
    where
        'c: 'f,
        Self: 'f,
    {
        request.headers_mut().insert(USER_AGENT, AGENT);
        let (client, endpoint, fails) = (self.client.clone(), self.endpoint.clone(), Arc::clone(&self.fails));
        let sent = self.runtime.spawn(async move {
            let answered = tokio::time::timeout(LIMIT, exchange(client, request)).await;
            let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}").into()));
            let failure = match &answered {
                Ok(answer) if answer.status().is_success() => None,
                Ok(answer) => Some(format!("it answered {}", answer.status())),
                Err(error) => Some(error.to_string()),
            };
            match (failure, &fails) {
                (Some(reason), fails) if !fails.swap(true, Ordering::Relaxed) => {
                    tracing::warn!(
                        endpoint,
                        reason,
                        "the collector does not take traces, they are dropped: {reason}"
                    );
                }
                (None, fails) if fails.swap(false, Ordering::Relaxed) => {
                    tracing::info!(endpoint, "the collector takes traces again");
                }
                _ => {}
            }
            answered
        });
        Box::pin(async move { sent.await? })
    }
}

async fn exchange(
    client: legacy::Client<ClientConnector, Full<Bytes>>,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES).collect().await?.to_bytes();
    Ok(Response::from_parts(head, body))
}
