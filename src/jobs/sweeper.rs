//! Sweeps each upstream again and again: finds what was pushed past refshim, and doubts what vanished. One at a time
//! for an upstream, also where several replicas share an index, and after everything that an operator wants of it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Desk, JobSpec, Refused, State, Task};
use crate::backfill::{Mode, Report};
use crate::client::Result;
use crate::config::{SweepConfig, UpstreamConfig};
use crate::index::{Index, Lease};
use crate::telemetry::{Metrics, Swept};

/// How often it is looked whether one has ended, or may begin.
const LOOK: Duration = Duration::from_secs(1);
/// How long a replica that was killed keeps the others from sweeping.
const TURN: Duration = Duration::from_secs(30);
/// After the start: whoever starts refshim has something else to look at first.
const FIRST: Duration = Duration::from_secs(2);

/// Sweeps one upstream until `ending`.
pub async fn sweep(
    desk: Arc<Desk>,
    index: Index,
    upstream: UpstreamConfig,
    settings: SweepConfig,
    metrics: Metrics,
    ending: CancellationToken,
) {
    let Ok(interval) = SignedDuration::try_from(settings.interval) else { return };
    if interval.is_zero() {
        return;
    }
    let sweeping = async {
        sleep(FIRST).await;
        let turn = index.lease(format!("sweep of the upstream {}", upstream.number()));
        let mut last = None;
        loop {
            // By the clock on the wall: a machine that slept has missed what was pushed meanwhile.
            let is_due = |last: Option<Timestamp>| {
                last.is_none_or(|last| Timestamp::now().duration_since(last) >= interval)
            };
            // Only then is asked what other replicas, or this one before it was started, have done.
            if is_due(last) && turn.take(TURN).await.unwrap_or(false) {
                last = last_sweep(&index, &upstream).await.max(last);
                if is_due(last) {
                    let began = Timestamp::now();
                    let swept = tokio::select! {
                        swept = one(&desk, &upstream, &settings) => swept,
                        () = keep(&turn) => {
                            desk.end_sweep(&upstream);
                            None
                        }
                    };
                    if let Some(outcome) = swept {
                        tell(&upstream, &outcome, &metrics);
                        last = Some(began);
                        // The others' turn comes with the next one, also if this one could not read everything.
                        let rest =
                            began.saturating_add(interval).unwrap_or(began).duration_since(Timestamp::now());
                        let rest = Duration::try_from(rest).unwrap_or_default();
                        turn.take(rest).await.ok();
                    } else {
                        turn.give_back().await.ok();
                    }
                }
            }
            sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = sweeping => {}
        () = ending.cancelled() => {}
    }
}

/// When the last sweep that read all of the registry began.
async fn last_sweep(index: &Index, upstream: &UpstreamConfig) -> Option<Timestamp> {
    let (_, covered) = index.covered(upstream.number()).await.ok()??;
    covered.get(&None).and_then(|whole| whole.swept)
}

/// Renews the lease; ends when it is lost.
async fn keep(turn: &Lease) {
    let mut until = Instant::now() + TURN;
    loop {
        sleep(TURN / 3).await;
        let asked = Instant::now();
        match turn.take(TURN).await {
            Ok(true) => until = asked + TURN,
            Ok(false) => return,
            // Another replica may have it by now.
            Err(_) if Instant::now() >= until => return,
            Err(_) => {}
        }
    }
}

/// One sweep; nothing if something else is being done, or took its place.
async fn one(desk: &Desk, upstream: &UpstreamConfig, settings: &SweepConfig) -> Option<Result<Report>> {
    let spec = JobSpec {
        upstream: Some(upstream.name.to_string()),
        repositories: Vec::new(),
        // A repository and a request at a time: nobody waits for it.
        jobs: 1,
        rate: u32::try_from(settings.rate).ok().and_then(NonZeroU32::new),
        task: Task::Backfill { listed: None, since: None, mode: Mode::Sweep },
    };
    let begun = match desk.begin(spec) {
        Ok(begun) => begun,
        Err(Refused::Failed(error)) => return Some(Err(error)),
        Err(Refused::Busy(_) | Refused::Upstream(_)) => return None,
    };
    loop {
        let State { id, outcome, .. } = desk.sweep(upstream)?;
        if id != begun.id {
            return None;
        }
        if let Some(outcome) = outcome {
            let failed =
                |error: serde_json::Error| crate::client::Error::failed("sweeping", error.to_string());
            return Some(outcome.and_then(|report| serde_json::from_value(report).map_err(failed)));
        }
        sleep(LOOK / 10).await;
    }
}

fn tell(upstream: &UpstreamConfig, outcome: &Result<Report>, metrics: &Metrics) {
    let upstream = &upstream.name;
    match outcome {
        Ok(report) => {
            let Report { repositories, tags, read, links, vanished, gaps, .. } = report;
            let unreadable = gaps.unreadable.len();
            if let Some(first) = gaps.unreadable.first() {
                tracing::warn!(%upstream, unreadable, what = first.what, reason = first.reason,
                    "a sweep could not read all of the registry");
            }
            tracing::info!(%upstream, repositories, tags, read, links, vanished, unreadable, "swept the registry");
            let swept = if unreadable == 0 { Swept::Complete } else { Swept::Incomplete };
            metrics.swept(swept, *read, *vanished);
        }
        Err(error) => {
            let advice = error.advice().unwrap_or_default();
            tracing::warn!(%upstream, %error, advice, "the registry cannot be swept");
            metrics.swept(Swept::Failed, 0, 0);
        }
    }
}
