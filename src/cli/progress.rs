//! Progress of what takes long, on standard error: a bar on a terminal, else a line now and then.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use super::output::tell;
use crate::jobs::Progress;

/// How often progress is told where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
const BAR_EVERY: Duration = Duration::from_millis(200);

/// A run, with its progress.
pub(super) async fn watched<R>(
    is_shown: bool,
    run: impl Future<Output = R>,
    shown: impl Fn() -> Progress,
) -> R {
    let is_bar = is_shown && io::stderr().is_terminal();
    let bar = if is_bar { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len} repositories, {msg} {eta:>4}") {
        bar.set_style(style);
    }
    let mut ticks = interval(if is_bar { BAR_EVERY } else { LINE_EVERY });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // The first comes at once.
    ticks.tick().await;
    tokio::pin!(run);
    loop {
        tokio::select! {
            biased;
            ended = &mut run => {
                bar.finish_and_clear();
                return ended;
            }
            _ = ticks.tick() => {}
        }
        let Progress { done, all, text } = shown();
        bar.set_length(all);
        bar.set_position(done);
        bar.set_message(text.clone());
        if is_shown && !is_bar {
            tell(&format!("{done} of {all} repositories, {text}"));
        }
    }
}
