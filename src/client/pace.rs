//! How a command that asks a registry for very much holds back: so many requests a second, and none while the registry
//! asks for patience.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use tokio::time::{Instant, sleep_until};

/// How often a request is tried again. With the pauses below, a registry may be away for two minutes.
const TRIES: u32 = 8;
/// The first pause, doubled with each try.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The longest `Retry-After` that is obeyed. Docker Hub counts pulls by six hours; whoever is told that is told so, and
/// goes on later.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// The pace of all requests of a command.
#[derive(Debug)]
pub struct Pace {
    interval: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    /// At most so many requests a second.
    #[must_use]
    pub fn new(rate: Option<NonZeroU32>) -> Self {
        let interval = rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.get());
        Self { interval, next: Mutex::new(Instant::now()) }
    }

    /// Waits until the next request may be sent.
    pub(super) async fn turn(&self) {
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + self.interval;
            turn
        };
        // The turn of whoever waits already may have been put off meanwhile; then it comes a little early, once.
        sleep_until(turn).await;
    }

    /// Lets nobody ask for so long: what one request is told is meant for all.
    pub(super) fn hold(&self, pause: Duration) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now() + pause);
    }

    /// How long to wait before the request is sent again; `None` if this is its answer. Throttling and failures pass;
    /// all other answers stay what they are.
    pub(super) fn pause_after(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        tried: u32,
    ) -> Option<Duration> {
        let passes = status == StatusCode::TOO_MANY_REQUESTS
            || matches!(
                status,
                StatusCode::INTERNAL_SERVER_ERROR
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            );
        if !passes {
            return None;
        }
        let told = headers.get(RETRY_AFTER).and_then(|told| told.to_str().ok()).and_then(retry_after);
        match told {
            Some(told) if told > LONGEST_RETRY_AFTER => None,
            Some(told) if tried < TRIES => Some(told.max(FIRST_PAUSE)),
            Some(_) | None => self.pause_after_silence(tried),
        }
    }

    /// The same for a request that had no answer.
    #[expect(clippy::unused_self, reason = "is a part of the pace")]
    pub(super) fn pause_after_silence(&self, tried: u32) -> Option<Duration> {
        (tried < TRIES).then(|| (FIRST_PAUSE * 2_u32.pow(tried)).min(LONGEST_PAUSE))
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.
fn retry_after(told: &str) -> Option<Duration> {
    if let Ok(seconds) = told.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = rfc2822::parse(told.trim()).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(status: u16, told: Option<&str>, tried: u32) -> Option<Duration> {
        let told = told.map(|told| (RETRY_AFTER, told.parse().unwrap()));
        let headers = told.into_iter().collect();
        Pace::new(None).pause_after(StatusCode::from_u16(status).unwrap(), &headers, tried)
    }

    #[test]
    fn a_registry_that_throttles_or_fails_is_asked_again_after_a_while() {
        for status in [429, 500, 502, 503, 504] {
            assert_eq!(pause(status, None, 0), Some(FIRST_PAUSE), "{status}");
            assert_eq!(pause(status, None, 3), Some(FIRST_PAUSE * 8), "{status}");
            assert_eq!(pause(status, None, 7), Some(LONGEST_PAUSE), "{status}");
            assert_eq!(pause(status, None, 8), None, "{status}");
        }
        for status in [200, 301, 400, 401, 403, 404, 405, 501] {
            assert_eq!(pause(status, Some("1"), 0), None, "{status}");
        }
    }

    #[test]
    fn what_the_registry_says_about_when_is_obeyed() {
        assert_eq!(pause(429, Some("7"), 0), Some(Duration::from_secs(7)));
        assert_eq!(pause(429, Some("0"), 0), Some(FIRST_PAUSE));
        assert_eq!(pause(429, Some("7"), 8), None);
        assert_eq!(pause(429, Some("21600"), 0), None, "longer than anybody waits for");
        assert_eq!(pause(429, Some("soon"), 0), Some(FIRST_PAUSE));
        assert_eq!(pause(429, Some("Wed, 21 Oct 2015 07:28:00 GMT"), 0), Some(FIRST_PAUSE), "is over");
        let later = Timestamp::now().checked_add(jiff::SignedDuration::from_secs(100)).unwrap();
        let later = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&later).unwrap();
        let told = pause(503, Some(&later), 0).unwrap().as_secs();
        assert!((90..=100).contains(&told), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_take_turns() {
        let pace = Pace::new(NonZeroU32::new(10));
        let began = Instant::now();
        for _ in 0..21 {
            pace.turn().await;
        }
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        pace.hold(Duration::from_secs(5));
        pace.turn().await;
        assert_eq!(began.elapsed(), Duration::from_secs(7), "a pause is for all");
    }
}
