//! `refshim index copy`: an index as it is in another one, from a data directory or a database to the other kind or the
//! same, while the source is served.
//!
//! Both are walked in one order, repository by repository and referrer by referrer, and where they differ the target is
//! changed. So a copy that was interrupted goes on where it was, and a second one changes only what changed since. The
//! source is read as it was at one moment; passes follow each other until one finds nothing to change.
//!
//! # A target that was served
//! It may know more than the source: of what was pushed through it. So only what is as an earlier copy left it is
//! replaced or removed. Anything else stays, gets the links that it lacks, and what the source does not have at all
//! becomes pending: the registry is asked before it is listed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

mod merge;
mod side;
mod sums;

pub use side::CopyPlace;
use side::{Source, Target};
pub use sums::Sums;

use super::MaintenanceError;

/// After so many passes, a source that is written to all the time is left as it is.
const PASSES: u64 = 5;
/// Between two passes that follow the source.
const PAUSE: Duration = Duration::from_secs(1);

/// How far a copy is.
#[derive(Debug, Default)]
pub struct CopyProgress {
    /// Which pass it is, from one; none while the source is opened.
    pub pass: AtomicU64,
    /// Repositories that this pass is through with.
    pub repositories_done: AtomicU64,
    /// Repositories in all.
    pub repositories: AtomicU64,
    /// Referrers that were compared in this pass.
    pub referrers: AtomicU64,
    /// Changes of the target so far, in all passes.
    pub changes: AtomicU64,
}

impl CopyProgress {
    fn add(&self, counter: fn(&Self) -> &AtomicU64, number: u64) {
        counter(self).fetch_add(number, Ordering::Relaxed);
    }

    fn begin_pass(&self, pass: u64, repositories: u64) {
        self.repositories.store(repositories, Ordering::Relaxed);
        self.repositories_done.store(0, Ordering::Relaxed);
        self.referrers.store(0, Ordering::Relaxed);
        self.pass.store(pass, Ordering::Relaxed);
    }
}

/// What was changed in the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Referrers that were added.
    pub added: u64,
    /// Referrers that were changed.
    pub changed: u64,
    /// Referrers that were removed.
    pub removed: u64,
    /// Referrers that the source does not have, and that the registry will be asked for.
    pub doubted: u64,
    /// Referrers that somebody else changed at the same moment: the next pass looks again.
    pub missed: u64,
}

impl Changes {
    /// All together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.added + self.changed + self.removed + self.doubted + self.missed
    }

    fn and(self, more: Self) -> Self {
        Self {
            added: self.added + more.added,
            changed: self.changed + more.changed,
            removed: self.removed + more.removed,
            doubted: self.doubted + more.doubted,
            missed: self.missed + more.missed,
        }
    }
}

/// The result of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// How many passes there were.
    pub passes: u64,
    /// The changes of all passes.
    pub changes: Changes,
    /// Those of the last one.
    pub last: Changes,
    /// Referrers that differ because the target changed them itself.
    pub kept: u64,
    /// The source as the last pass read it.
    pub source: Sums,
    /// The target, read anew after it.
    pub target: Sums,
}

/// Copies the index `from` one place `to` another. With `follow`, goes on until that is true, and makes a last pass
/// then.
///
/// # Errors
/// A place cannot be read or written. What was copied stays, and the same copy again goes on from there.
pub async fn copy(
    from: &CopyPlace,
    to: &CopyPlace,
    mut follow: Option<watch::Receiver<bool>>,
    progress: &CopyProgress,
) -> Result<Copied, MaintenanceError> {
    let mut target = Target::open(to).await?;
    let mut copied = Copied::default();
    let mut is_last = false;
    loop {
        copied.passes += 1;
        let source = Source::open(from).await?;
        let pass = merge::pass(&source, &mut target, copied.passes, progress).await?;
        copied.changes = copied.changes.and(pass.changes);
        (copied.last, copied.kept, copied.source) = (pass.changes, pass.kept, pass.source);
        match &mut follow {
            None if pass.changes.sum() == 0 || copied.passes >= PASSES => break,
            None => {}
            Some(_) if is_last => break,
            Some(stop) => {
                // The other side of the channel is gone as well if nobody follows any more.
                is_last = timeout(PAUSE, stop.wait_for(|stop| *stop)).await.is_ok();
            }
        }
    }
    target.complete()?;
    copied.target = merge::sums(&target.view().await?).await?;
    Ok(copied)
}
