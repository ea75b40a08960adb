//! Progress bars on a terminal.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{BlobStream, Part};

// 48 columns and the bar: all of it fits 60.
const BLOB: &str = "{prefix:19} {wide_bar} {decimal_bytes:>9} of {decimal_total_bytes:<9} {eta:>4}";
const STEPS: &str = "{prefix:19} {wide_bar:.green} {pos:>9} of {len:<9}     ";
const ALL: &str = "{prefix:19} {wide_bar:.green} {decimal_bytes:>9} of {decimal_total_bytes:<9} {eta:>4}";

/// The bars of one command: one for each blob in transfer, and one for all. Dropping it removes them.
#[derive(Debug)]
pub struct Progress {
    bars: MultiProgress,
    all: ProgressBar,
    sent: Arc<AtomicU64>,
}

/// The bar of one blob. Dropping it removes the bar.
#[derive(Debug)]
pub(super) struct Bar {
    blob: ProgressBar,
    all: ProgressBar,
    sent: Arc<AtomicU64>,
}

/// The bar of what is done one after the other. Dropping it removes the bar.
#[derive(Debug)]
pub struct Steps {
    bar: ProgressBar,
}

impl Progress {
    /// Bars on standard error, or none at all.
    #[must_use]
    pub fn new(shown: bool) -> Self {
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bars = MultiProgress::with_draw_target(target);
        let all = bars.add(bar(0, ALL, "all"));
        Self { bars, all, sent: Arc::default() }
    }

    /// A bar for so many steps.
    #[must_use]
    pub fn steps(&self, count: usize, name: &'static str) -> Steps {
        Steps { bar: self.bars.add(bar(count as u64, STEPS, name)) }
    }

    /// Adds bytes to the expected total.
    pub fn expect(&self, bytes: u64) {
        self.all.inc_length(bytes);
    }

    /// Removes bytes from the expected total, since they are there already.
    pub(super) fn spare(&self, bytes: u64) {
        self.all.set_length(self.all.length().unwrap_or_default().saturating_sub(bytes));
    }

    /// The bytes that are to be transferred, as far as it is known.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.all.length().unwrap_or_default()
    }

    /// The bytes of blobs transferred so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Removes the bars for good, so that what is written after this stays the last line.
    pub fn finish(&self) {
        self.all.finish_and_clear();
        // Nobody is left to tell if this fails.
        let _cleared = self.bars.clear();
        // hyper's task may still hold the body of an upload, and with it a bar, which would draw again.
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// The same content, with a bar that advances as it is read.
    #[must_use]
    pub fn watch(&self, part: &Part, content: BlobStream) -> BlobStream {
        self.blob(part).watching(content)
    }

    pub(super) fn blob(&self, part: &Part) -> Bar {
        let name: String = part.descriptor.digest.to_string().chars().take(19).collect();
        let blob = self.bars.insert_before(&self.all, bar(part.descriptor.size, BLOB, name));
        Bar { blob, all: self.all.clone(), sent: Arc::clone(&self.sent) }
    }
}

impl Steps {
    /// One is done.
    pub fn step(&self) {
        self.bar.inc(1);
    }
}

impl Bar {
    pub(super) fn advance(&self, bytes: u64) {
        self.blob.inc(bytes);
        self.all.inc(bytes);
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The same content, counted as it is read.
    pub(super) fn watching(self, content: BlobStream) -> BlobStream {
        Box::pin(content.inspect(move |bytes| {
            if let Ok(bytes) = bytes {
                self.advance(bytes.len() as u64);
            }
        }))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.blob.finish_and_clear();
    }
}

fn bar(length: u64, template: &str, name: impl Into<Cow<'static, str>>) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_prefix(name)
}
