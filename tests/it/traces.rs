//! Traces: what a collector gets, what the upstream is told, and that neither can delay a request.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use reqwest::{Method, StatusCode};

use crate::support::{Client, Refshim, Registry, Scripted, Start, about};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
const TAKEN: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
/// Long enough for a busy machine; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(60);

/// Takes spans as a collector does.
struct Collector(Scripted);

impl Collector {
    fn start() -> Self {
        Self(Scripted::answering(TAKEN))
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// All spans that came so far.
    fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for request in self.0.requests() {
            assert_eq!(request.line, "POST /v1/traces HTTP/1.1");
            assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
            // One whose body has not come yet is empty.
            let export = ExportTraceServiceRequest::decode(&*request.body).unwrap();
            for resource in export.resource_spans {
                let of = resource.resource.unwrap();
                assert!(
                    of.attributes
                        .iter()
                        .any(|of| of.key == "service.name" && said(of.value.as_ref()) == "refshim")
                );
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        spans
    }

    async fn has(&self, count: usize) -> Vec<Span> {
        let began = Instant::now();
        loop {
            let spans = self.spans();
            if spans.len() >= count {
                assert_eq!(spans.len(), count, "{spans:#?}");
                return spans;
            }
            assert!(began.elapsed() < LIMIT, "{count} spans did not come: {spans:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn said(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn attribute(span: &Span, key: &str) -> String {
    span.attributes.iter().find(|of| of.key == key).map_or_else(String::new, |of| said(of.value.as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

fn traced<'a>(start: Start<'a>, collector: &Collector) -> Start<'a> {
    start.with("TRACES_ENDPOINT", &collector.endpoint()).in_environment("OTEL_BSP_SCHEDULE_DELAY", "20")
}

/// A request that is a part of a trace.
async fn ask(client: &Client, path: &str, flags: &str) -> StatusCode {
    let request =
        client.request(Method::GET, path).header("traceparent", format!("00-{TRACE}-{PARENT}-{flags}"));
    client.send(request.header("tracestate", "a=1,b=2")).await.status
}

#[tokio::test]
async fn a_clients_trace_goes_on_through_refshim_to_the_registry() {
    let (collector, upstream) = (Collector::start(), Scripted::answering(TAKEN));
    let directory = tempfile::tempdir().unwrap();
    let start = traced(Refshim::prepare(upstream.address, directory.path()), &collector);
    let refshim = start.launch().await;
    assert_eq!(ask(&refshim.client(), "/v2/a/tags/list?last=secret", "01").await, StatusCode::OK);
    let spans = collector.has(2).await;
    let of = |kind: SpanKind| spans.iter().find(|span| span.kind == kind as i32).unwrap();
    let (server, client) = (of(SpanKind::Server), of(SpanKind::Client));
    assert_eq!([&server.trace_id, &client.trace_id].map(|id| hex(id)), [TRACE, TRACE]);
    assert_eq!(hex(&server.parent_span_id), PARENT);
    assert_eq!(client.parent_span_id, server.span_id);
    assert!(server.start_time_unix_nano <= client.start_time_unix_nano);
    assert!(server.end_time_unix_nano >= client.end_time_unix_nano);
    for (span, key, expected) in [
        (server, "http.request.method", "GET"),
        (server, "url.path", "/v2/a/tags/list"),
        (server, "http.response.status_code", "200"),
        (server, "refshim.route", "tags"),
        (server, "refshim.upstream", "default"),
        (client, "http.request.method", "GET"),
        (client, "url.path", "/v2/a/tags/list"),
        (client, "http.response.status_code", "200"),
        (client, "server.address", "127.0.0.1"),
        (client, "refshim.upstream", "default"),
    ] {
        assert_eq!(attribute(span, key), expected, "{key}");
    }
    assert!(!format!("{spans:?}").contains("secret"));
    let request = upstream.requests().pop().unwrap();
    assert_eq!(request.header("traceparent"), Some(&*format!("00-{TRACE}-{}-01", hex(&client.span_id))));
    assert_eq!(request.header("tracestate"), Some("a=1,b=2"));
}

/// The client's word counts where it begins a trace, the setting where none is begun yet.
#[tokio::test]
async fn what_is_not_sampled_is_passed_on_as_such() {
    let (collector, upstream) = (Collector::start(), Scripted::answering(TAKEN));
    let directory = tempfile::tempdir().unwrap();
    let start = traced(Refshim::prepare(upstream.address, directory.path()), &collector);
    let refshim = start.with("TRACES_SAMPLE", "0%").launch().await;
    let client = refshim.client();
    assert_eq!(ask(&client, "/v2/a/tags/list", "00").await, StatusCode::OK);
    assert_eq!(client.get("/v2/b/tags/list").await.status, StatusCode::OK);
    assert_eq!(ask(&client, "/v2/c/tags/list", "01").await, StatusCode::OK);
    let spans = collector.has(2).await;
    assert!(spans.iter().all(|span| attribute(span, "url.path") == "/v2/c/tags/list"), "{spans:#?}");
    let told: Vec<_> = upstream
        .requests()
        .iter()
        .map(|request| {
            request.header("traceparent").unwrap().split('-').map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!((&*told[0][1], &*told[0][3]), (TRACE, "00"));
    assert_ne!(told[1][1], TRACE);
    assert_eq!(told[1][3], "00");
    assert_eq!((&*told[2][1], &*told[2][3]), (TRACE, "01"));
}

/// refshim's own questions are a part of the request that they are asked for.
#[tokio::test]
async fn a_query_shows_what_the_registry_was_asked() {
    let (collector, registry) = (Collector::start(), Registry::start());
    let directory = tempfile::tempdir().unwrap();
    let refshim = traced(Refshim::before(&registry, directory.path()), &collector).launch().await;
    let client = refshim.client();
    let image = client.image("app", "an image").await;
    let sbom = about(&image, &image, "sbom");
    client.push("app", &sbom).await;
    assert_eq!(
        ask(&client, &format!("/v2/app/manifests/{}/references", image.digest), "01").await,
        StatusCode::OK
    );
    drop(client);
    let began = Instant::now();
    loop {
        let spans = collector.spans();
        let mine: Vec<_> = spans.iter().filter(|span| hex(&span.trace_id) == TRACE).collect();
        let query = mine.iter().find(|span| attribute(span, "refshim.route") == "references");
        if let Some(query) = query {
            let asked = mine.iter().filter(|span| span.parent_span_id == query.span_id);
            assert!(asked.count() > 0, "{mine:#?}");
            return;
        }
        assert!(began.elapsed() < LIMIT, "the span of the query did not come: {spans:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn without_a_collector_the_header_passes_as_it_came() {
    let upstream = Scripted::answering(TAKEN);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    assert_eq!(ask(&refshim.client(), "/v2/a/tags/list", "01").await, StatusCode::OK);
    let request = upstream.requests().pop().unwrap();
    assert_eq!(request.header("traceparent"), Some(&*format!("00-{TRACE}-{PARENT}-01")));
    assert_eq!(request.header("tracestate"), Some("a=1,b=2"));
    refshim.client().get("/v2/").await;
    assert_eq!(upstream.requests().pop().unwrap().header("traceparent"), None);
}

/// Also what is no trace context begins one, and is not passed on.
#[tokio::test]
async fn a_malformed_context_begins_a_trace() {
    let (collector, upstream) = (Collector::start(), Scripted::answering(TAKEN));
    let directory = tempfile::tempdir().unwrap();
    let refshim = traced(Refshim::prepare(upstream.address, directory.path()), &collector).launch().await;
    let client = refshim.client();
    let zero = format!("00-{}-{PARENT}-01", "0".repeat(32));
    for (n, context) in
        ["", "x", "00-x-2-01", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", &zero]
            .into_iter()
            .enumerate()
    {
        let request = client.request(Method::GET, "/v2/a/tags/list").header("traceparent", context);
        assert_eq!(client.send(request).await.status, StatusCode::OK);
        let told = upstream.requests().pop().unwrap().header("traceparent").unwrap().to_owned();
        assert!(told.len() == 55 && told.starts_with("00-") && told != context, "{told}");
        collector.has(2 * (n + 1)).await;
    }
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.kind == SpanKind::Client as i32 || span.parent_span_id.is_empty()));
}

#[tokio::test]
async fn a_collector_that_fails_is_told_of_once_and_delays_nothing() {
    let registry = Registry::start();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing =
        Scripted::answering("HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    for (collector, is_told) in
        [(closed, true), (refusing.address, true), (silent.local_addr().unwrap(), false)]
    {
        let directory = tempfile::tempdir().unwrap();
        let refshim = Refshim::before(&registry, directory.path())
            .with("TRACES_ENDPOINT", &format!("http://{collector}"))
            .in_environment("OTEL_BSP_SCHEDULE_DELAY", "5")
            .launch()
            .await;
        let client = refshim.client();
        for _ in 0..50 {
            assert_eq!(client.get("/v2/").await.status, StatusCode::OK);
        }
        if is_told {
            refshim.logs("the collector does not take traces", 1).await;
            for _ in 0..50 {
                assert_eq!(client.get("/v2/").await.status, StatusCode::OK);
            }
            assert_eq!(refshim.count("the collector does not take traces"), 1);
        }
        drop(client);
    }
}

#[tokio::test]
async fn the_last_spans_are_sent_at_the_end() {
    let (collector, registry) = (Collector::start(), Registry::start());
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path())
        .with("TRACES_ENDPOINT", &collector.endpoint())
        .in_environment("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        .launch()
        .await;
    assert_eq!(ask(&refshim.client(), "/v2/", "01").await, StatusCode::OK);
    assert!(refshim.stop().success());
    assert_eq!(collector.spans().len(), 2);
}
