//! Sends one request and waits for its answer: retries, response time-out, `100 Continue`.

use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{EXPECT, HOST};
use http::{Request, Response};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::pool::Pool;
use super::resending::{Again, RESENDS, pause_before};
use super::{Upstream, UpstreamError, resending};
use crate::http::body::{Body, Progress, Received};
use crate::http::framing;
use crate::http::header::{DOCKER_CONTENT_DIGEST, DOCKER_DISTRIBUTION_API_VERSION};
use crate::tls::MixedUp;

/// How long the body of a client that expects `100 Continue` is held back. Then it is read anyway, since the upstream
/// may not know the expectation (RFC 9110, section 10.1.1: a client SHOULD NOT wait for ever).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

impl Upstream {
    /// Sends a request whose URI is absolute, with retries.
    pub(super) async fn send_to_target(
        &self,
        pool: &Pool,
        mut request: Box<Request<Body>>,
    ) -> Result<Response<Received>, UpstreamError> {
        match &self.host {
            Some(host) => request.headers_mut().insert(HOST, host.clone()),
            None => request.headers_mut().remove(HOST),
        };
        let mut sent = 0;
        loop {
            let again = Again::of(&mut request);
            if request.headers().contains_key(EXPECT) {
                hold_body_until_continue(&mut request);
            }
            let error = match self.attempt(pool, request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            sent += 1;
            let is_unprocessed = matches!(error, UpstreamError::Unprocessed(_)) && sent <= RESENDS;
            let is_broken = matches!(error, UpstreamError::Broken(_)) && sent == 1;
            if !(is_unprocessed || (is_broken && again.is_without_consequences())) {
                if error.is_the_upstreams() {
                    self.answered.failed.notify_one();
                }
                return Err(error);
            }
            // The HTTP client may still hold the body: it drops it when its connection's task ends.
            let again = Box::pin(timeout(self.silence_limit, again.request())).await;
            let Some(again) = again.ok().flatten() else { return Err(error) };
            tracing::debug!(upstream = %self.name, sent, %error, "retrying a request");
            Box::pin(sleep(pause_before(sent))).await;
            request = Box::new(again);
        }
    }

    /// Sends a request once. The response time-out counts from when the upstream has all it needs to answer, or last
    /// took a part of the body; it stands still while the client owes the next part.
    async fn attempt(
        &self,
        pool: &Pool,
        mut request: Box<Request<Body>>,
    ) -> Result<Response<Received>, UpstreamError> {
        let began = Instant::now();
        let progress = request.body_mut().watch();
        let is_done_by_its_head = resending::is_done_by_its_head(&request);
        let mut response = pin!(pool.send(request));
        let mut limit = began + self.silence_limit;
        let answer = loop {
            let fired = tokio::select! {
                // The answer first: if both are ready, it came in time.
                biased;
                answer = &mut response => break answer,
                () = sleep_until(limit) => limit,
            };
            limit = self.silent_until(progress.as_deref(), began, fired);
            if limit <= fired {
                return Err(UpstreamError::Silent(self.silence_limit));
            }
        };
        match answer {
            Ok(mut response) => {
                framing::check_answer(response.headers_mut())?;
                let now = Instant::now();
                self.metrics.upstream_answered(now - began);
                if is_of_registry(&response) {
                    let millis = u64::try_from((now - self.answered.started).as_millis()).unwrap_or(0);
                    self.answered.last.store(millis + 1, Ordering::Relaxed);
                }
                Ok(response)
            }
            Err(failure) => Err(self.explained(resending::classify(failure, is_done_by_its_head))),
        }
    }

    /// Replaces the cause of an error if it comes from plain HTTP to a port that speaks TLS, or the reverse.
    fn explained(&self, error: UpstreamError) -> UpstreamError {
        let UpstreamError::Broken(source) = error else { return error };
        match MixedUp::of(&self.origin(), &*source) {
            Some(mixed_up) => UpstreamError::Broken(mixed_up.into()),
            None => UpstreamError::Broken(source),
        }
    }

    /// When the response time-out expires, as of `now`.
    fn silent_until(&self, progress: Option<&Progress>, began: Instant, now: Instant) -> Instant {
        match progress {
            None => began + self.silence_limit,
            Some(progress) => progress.receiver_since().unwrap_or(now) + self.silence_limit,
        }
    }
}

/// Whether a registry gave this answer, not a web server or proxy in its place. Load balancers that add the API's
/// header add it to their own errors too, which are 400 and 5xx.
fn is_of_registry(response: &Response<Received>) -> bool {
    let (status, headers) = (response.status(), response.headers());
    let may_be_a_balancers = status.is_server_error() || status == http::StatusCode::BAD_REQUEST;
    (!may_be_a_balancers && headers.contains_key(DOCKER_DISTRIBUTION_API_VERSION))
        || (status.is_success() && headers.contains_key(DOCKER_CONTENT_DIGEST))
}

/// Holds the body back until the upstream sends `100 Continue`. hyper sends the client its own 100 when the body is
/// first read, so the client sends nothing that the upstream refuses by the head alone (RFC 9110, section 10.1.1).
fn hold_body_until_continue(request: &mut Request<Body>) {
    let (open, gate) = oneshot::channel();
    let open = Mutex::new(Some(open));
    request.body_mut().wait_for(gate, CONTINUE_WAIT);
    hyper::ext::on_informational(request, move |informational| {
        if informational.status() == http::StatusCode::CONTINUE
            && let Ok(mut open) = open.lock()
        {
            drop(open.take());
        }
    });
}
