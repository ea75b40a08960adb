//! Sweeps each upstream again and again: finds what was pushed past refshim, and doubts what vanished. One at a time
//! for an upstream, and after everything that an operator wants of it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Desk, JobSpec, Refused, State, Task};
use crate::backfill::{Mode, Report};
use crate::client::Result;
use crate::config::{SweepConfig, UpstreamConfig};
use crate::index::Index;
use crate::telemetry::{Metrics, Swept};

/// How often it is looked whether one has ended, or may begin.
const LOOK: Duration = Duration::from_secs(1);
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
        let covered = index.covered(upstream.number()).map(|(_, covered)| covered).unwrap_or_default();
        let mut last = covered.get(&None).and_then(|whole| whole.swept);
        loop {
            // By the clock on the wall: a machine that slept has missed what was pushed meanwhile.
            if last.is_none_or(|last| Timestamp::now().duration_since(last) >= interval) {
                let began = Timestamp::now();
                if let Some(outcome) = one(&desk, &upstream, &settings).await {
                    tell(&upstream, &outcome, &metrics);
                    last = Some(began);
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
