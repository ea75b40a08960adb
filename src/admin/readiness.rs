//! Whether an upstream is ready: a registry answers, not just anything. A web server under a wrong URL, a login page or
//! a TLS port reached in plain HTTP answer as well, and no pull would work.

use std::error::Error as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{CONTENT_TYPE, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use tokio::sync::watch;
use tokio::time::sleep;

use super::FRESH;
use crate::http::header::{DOCKER_DISTRIBUTION_API_VERSION, X_FORWARDED_PROTO};
use crate::http::route::API;
use crate::proxy::upstream::{Upstream, UpstreamError, Upstreams, question};
use crate::telemetry::Metrics;
use crate::tls::MixedUp;

/// The time-out of a probe.
pub(super) const PROBE_WAIT: Duration = Duration::from_secs(5);
/// The most of an answer that is read. A registry's answer to `/v2/` has a few bytes.
const BODY_BYTES: usize = 16 << 10;
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("refshim/", env!("CARGO_PKG_VERSION"), " (readiness)"));

/// How often an upstream is looked at: that is ready, that is not, and at most, however much fails.
const WATCHED: Duration = Duration::from_secs(30);
const WATCHED_WHILE_DOWN: Duration = Duration::from_secs(3);
const WATCHED_AT_MOST: Duration = Duration::from_secs(1);

/// An upstream, and the result of its last probe.
#[derive(Debug)]
pub(super) struct Readiness {
    upstreams: watch::Receiver<Upstreams>,
    place: usize,
    metrics: Arc<Metrics>,
    looks: AtomicU64,
    seen: Mutex<Seen>,
}

/// What was seen last.
#[derive(Debug, Default)]
struct Seen {
    /// The number of the look.
    look: u64,
    was_ready: Option<bool>,
}

impl Readiness {
    /// Of the upstream at this place among those in force.
    pub(super) fn of(upstreams: watch::Receiver<Upstreams>, place: usize, metrics: &Arc<Metrics>) -> Self {
        let metrics = Arc::clone(metrics);
        Self { upstreams, place, metrics, looks: AtomicU64::new(0), seen: Mutex::default() }
    }

    pub(super) fn upstream(&self) -> Arc<Upstream> {
        let upstreams = self.upstreams.borrow();
        Arc::clone(upstreams.iter().nth(self.place).unwrap_or(&upstreams.default))
    }

    /// Looks again and again, for ever: now and then, and soon after requests failed.
    pub(super) async fn watch(&self) {
        let mut is_ready = self.look().await.is_ok();
        loop {
            sleep(WATCHED_AT_MOST).await;
            let pause = if is_ready { WATCHED } else { WATCHED_WHILE_DOWN };
            let upstream = self.upstream();
            is_ready = tokio::select! {
                // Although it answered others a moment ago.
                () = upstream.failed(), if is_ready => self.look_by(&upstream, ask_now(&upstream)).await,
                () = sleep(pause) => self.look().await,
            }
            .is_ok();
        }
    }

    /// Ready, or why not. Logs changes, and a first probe that fails.
    pub(super) async fn look(&self) -> Result<(), String> {
        let upstream = self.upstream();
        self.look_by(&upstream, look_at(&upstream)).await
    }

    async fn look_by(
        &self,
        upstream: &Upstream,
        ask: impl Future<Output = Result<(), String>>,
    ) -> Result<(), String> {
        let look = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
        let found = ask.await;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if look < seen.look {
            // A later look came to its end before this one: what this one saw is history.
            return found;
        }
        seen.look = look;
        let before = seen.was_ready.replace(found.is_ok());
        let upstream = upstream.name();
        self.metrics.upstream_ready(upstream, found.is_ok());
        match (&found, before) {
            (Err(reason), None | Some(true)) => {
                tracing::warn!(%upstream, reason, "the upstream {upstream} is not ready: {reason}");
            }
            (Ok(()), Some(false)) => tracing::info!(%upstream, "the upstream {upstream} is ready again"),
            (Err(_), Some(false)) | (Ok(()), None | Some(true)) => {}
        }
        found
    }
}

/// Whether a registry answers, or why not.
///
/// # Errors
/// None does.
pub async fn look_at(upstream: &Upstream) -> Result<(), String> {
    if upstream.answered_ago().is_some_and(|ago| ago < FRESH) {
        return Ok(());
    }
    ask_now(upstream).await
}

async fn ask_now(upstream: &Upstream) -> Result<(), String> {
    let probe = async {
        match probe(upstream, None).await {
            // Some registries redirect to https unless X-Forwarded-Proto says so, as it does for clients.
            Err(Unready::Redirect(_)) => probe(upstream, Some(HeaderValue::from_static("https"))).await,
            found => found,
        }
    };
    let found = tokio::time::timeout(PROBE_WAIT, probe).await;
    let found = found.unwrap_or_else(|_| Err(Unready::Other(format!("no answer within {PROBE_WAIT:?}"))));
    found.map_err(|unready| match unready {
        Unready::Redirect(status) => no_registry(status, "a redirect"),
        Unready::Other(reason) => reason,
    })
}

async fn probe(upstream: &Upstream, forwarded_proto: Option<HeaderValue>) -> Result<(), Unready> {
    let mut probe = question(Method::GET, Uri::from_static(API));
    probe.headers_mut().insert(USER_AGENT, AGENT);
    if let Some(proto) = forwarded_proto {
        probe.headers_mut().insert(X_FORWARDED_PROTO, proto);
    }
    let answer = upstream.send(probe).await.map_err(|error| Unready::Other(told(&error)))?;
    let (head, body) = answer.into_parts();
    if head.status.is_redirection() {
        return Err(Unready::Redirect(head.status));
    }
    // A longer body, or one that breaks off, is not a registry's: `-` is rejected like any other text.
    let body = Limited::new(body, BODY_BYTES).collect().await.map(http_body_util::Collected::to_bytes);
    let body = body.as_deref().unwrap_or(b"-");
    if let Some(mixed_up) = MixedUp::told(&upstream.origin(), head.status, body) {
        return Err(Unready::Other(mixed_up.to_string()));
    }
    judge(head.status, &head.headers, body).map_err(Unready::Other)
}

enum Unready {
    Redirect(StatusCode),
    Other(String),
}

/// Whether this is a registry's answer to `/v2/` (distribution-spec, "Determining Support"): 200, or 401 with a
/// challenge. Most registries send the `Docker-Distribution-API-Version` header, the others no more than `{}`. With
/// that header, 403 and 429 count too: the registry rejects this probe, not necessarily its clients.
fn judge(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let names_api = headers.contains_key(DOCKER_DISTRIBUTION_API_VERSION);
    match status {
        StatusCode::OK | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS
            if names_api =>
        {
            Ok(())
        }
        StatusCode::UNAUTHORIZED if asks_for_login(headers) => Ok(()),
        StatusCode::UNAUTHORIZED => Err(no_registry(status, "no Basic or Bearer challenge")),
        StatusCode::OK if is_nothing(headers, body) => Ok(()),
        StatusCode::OK => {
            let content = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            Err(no_registry(status, content.unwrap_or("something else than {}")))
        }
        _ => Err(no_registry(status, "that")),
    }
}

fn no_registry(status: StatusCode, with: &str) -> String {
    format!(
        "it answered /v2/ with {status} and {with}, which no registry does (200 or 401); check the upstream's url"
    )
}

fn asks_for_login(headers: &HeaderMap) -> bool {
    let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut schemes = challenges.filter_map(|challenge| challenge.split_ascii_whitespace().next());
    schemes.any(|scheme| ["basic", "bearer"].iter().any(|known| scheme.eq_ignore_ascii_case(known)))
}

/// An empty object or an empty body, but not an empty page.
fn is_nothing(headers: &HeaderMap, body: &[u8]) -> bool {
    let is_page = headers.get(CONTENT_TYPE).is_some_and(|value| {
        let value = value.to_str().unwrap_or_default().to_ascii_lowercase();
        value.contains("html") || value.contains("xml")
    });
    let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    !is_page && (text.is_empty() || text == b"{}")
}

/// An error with its causes.
fn told(error: &UpstreamError) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, headers: &[(&'static str, &'static str)], body: &str, ready: bool) {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        let found = judge(StatusCode::from_u16(status).unwrap(), &headers.collect(), body.as_bytes());
        assert_eq!(found.is_ok(), ready, "{status} {body} {found:?}");
    }

    const API: (&str, &str) = ("docker-distribution-api-version", "registry/2.0");
    const JSON: (&str, &str) = ("content-type", "application/json");
    const HTML: (&str, &str) = ("content-type", "text/html; charset=utf-8");
    const BASIC: (&str, &str) = ("www-authenticate", "Basic realm=\"x\"");
    const BEARER: (&str, &str) = ("www-authenticate", "bearer realm=\"https://x/token\",service=\"x\"");

    #[test]
    fn registries_are_ready() {
        check(200, &[API, JSON], "{}", true);
        check(200, &[API, HTML], "true", true);
        check(200, &[JSON], "{ }\n", true);
        check(200, &[], "", true);
        check(401, &[API], "", true);
        check(401, &[BEARER, JSON], r#"{"errors":[]}"#, true);
        check(401, &[("www-authenticate", "Negotiate"), BASIC, HTML], "<html>", true);
        check(429, &[API], "", true);
        check(403, &[API], "", true);
    }

    #[test]
    fn what_is_no_registry_is_not() {
        check(200, &[HTML], "<html>Welcome to nginx!</html>", false);
        check(200, &[HTML], "", false);
        check(200, &[("content-type", "application/xml")], "", false);
        check(200, &[JSON], r#"{"error":"log in"}"#, false);
        check(200, &[], "pong", false);
        check(401, &[HTML], "<html>log in</html>", false);
        check(401, &[("www-authenticate", "Negotiate")], "", false);
        for status in [204, 301, 400, 403, 404, 405, 429, 500, 502, 503] {
            check(status, &[JSON], "{}", false);
        }
        for status in [400, 404, 500, 502, 503] {
            check(status, &[API], "", false);
        }
    }
}
