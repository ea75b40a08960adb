//! Progress of what takes long, on standard error: a bar on a terminal, else a line now and then.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use super::output::tell;
use crate::jobs::Progress;

/// How often progress is told where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
const BAR_EVERY: Duration = Duration::from_millis(200);

/// What is shown while a command works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Shown {
    /// Bars on a terminal, else a line now and then.
    Auto,
    /// A line now and then.
    Plain,
    /// Nothing.
    None,
}

impl Shown {
    pub(super) fn is_bars(self) -> bool {
        self == Self::Auto && io::stderr().is_terminal()
    }

    pub(super) fn is_lines(self) -> bool {
        self == Self::Plain || (self == Self::Auto && !io::stderr().is_terminal())
    }
}

/// A run that tells a line now and then.
pub(super) async fn with_lines<R>(run: impl Future<Output = R>, line: impl Fn()) -> R {
    with_ticks(LINE_EVERY, run, line).await
}

/// A run, with its progress.
pub(super) async fn watched<R>(
    is_shown: bool,
    run: impl Future<Output = R>,
    shown: impl Fn() -> Progress,
) -> R {
    let is_bar = is_shown && io::stderr().is_terminal();
    let bar = if is_bar { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) =
        ProgressStyle::with_template("{bar:12} {pos} of {len} repositories {eta:>4}, {wide_msg}")
    {
        bar.set_style(style);
    }
    let show = || {
        let Progress { done, all, text } = shown();
        bar.set_length(all);
        bar.set_position(done);
        bar.set_message(text.clone());
        if is_shown && !is_bar {
            tell(&format!("{done} of {all} repositories, {text}"));
        }
    };
    let ended = with_ticks(if is_bar { BAR_EVERY } else { LINE_EVERY }, run, show).await;
    bar.finish_and_clear();
    ended
}

/// A run that does something so often meanwhile.
async fn with_ticks<R>(period: Duration, run: impl Future<Output = R>, tick: impl Fn()) -> R {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // The first comes at once.
    ticks.tick().await;
    tokio::pin!(run);
    loop {
        tokio::select! {
            biased;
            ended = &mut run => return ended,
            _ = ticks.tick() => tick(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_is_told_now_and_then() {
        let told = AtomicUsize::new(0);
        let line = || {
            told.fetch_add(1, Ordering::Relaxed);
        };
        with_lines(sleep(LINE_EVERY * 3 + LINE_EVERY / 2), line).await;
        assert_eq!(told.load(Ordering::Relaxed), 3);
        with_lines(async {}, line).await;
        assert_eq!(told.load(Ordering::Relaxed), 3);
    }
}
