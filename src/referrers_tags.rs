//! Brings the referrers tags in the registry level with what is pushed (`referrers.write_tags = "push"`), so that
//! clients that do not come through refshim find it, too.
//!
//! - A push leaves word of its subject on disk before it is answered ([`crate::recording::unlisted`]); so does a
//!   client's own write of a referrers tag, which may have taken an entry away.
//! - Each subject is worked off in the background, by one writer at a time, as an export does it: what is on the list
//!   stays there. What comes meanwhile is looked at once more.
//! - It is done with refshim's own credentials for the upstream, and tried again, with pauses, while that fails.
//! - In a registry with the referrers API nothing is written.

mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, UpstreamName, WriteTags};
use crate::index::Index;
use crate::queue::Queue;
use crate::recording::unlisted::Unlisted;
use crate::telemetry::Metrics;
use crate::tls::Reload;
use worker::Worker;

/// Writes the referrers tags of all upstreams; of none, if they are not to be written.
#[derive(Debug)]
pub struct ReferrersTags {
    workers: Vec<Arc<Worker>>,
}

/// Why referrers tags cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ReferrersTagsError {
    /// The queue cannot be opened.
    #[error("the queue in {}: {source}", .directory.display())]
    Queue {
        /// Where it is.
        directory: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The client of an upstream cannot be set up.
    #[error("the upstream {0}: {1}")]
    Client(UpstreamName, crate::client::Error),
}

impl ReferrersTags {
    /// Opens the queues.
    ///
    /// # Errors
    /// A queue, or a client, cannot be set up.
    pub fn open(config: &Config, index: &Index, metrics: &Metrics) -> Result<Self, ReferrersTagsError> {
        let upstreams = match config.referrers.write_tags {
            WriteTags::Never => Vec::new(),
            WriteTags::Push => config.upstreams().collect(),
        };
        let worker = |upstream| Worker::new(config, upstream, index, metrics).map(Arc::new);
        Ok(Self { workers: upstreams.into_iter().map(worker).collect::<Result<_, _>>()? })
    }

    /// Where pushes to an upstream leave word; nowhere, if its tags are not written.
    #[must_use]
    pub fn queue(&self, upstream: &UpstreamName) -> Option<Arc<Queue<Unlisted>>> {
        self.workers.iter().find(|worker| worker.upstream() == upstream).map(|worker| worker.queue())
    }

    /// Works off the queues until `ending`; what is left is worked off after the next start.
    pub fn work(&self, tasks: &TaskTracker, ending: &CancellationToken) {
        for worker in &self.workers {
            tasks.spawn(Arc::clone(worker).run(ending.clone()));
        }
    }

    /// Measures the queues, for the metrics.
    pub fn measure(&self) {
        self.workers.iter().for_each(|worker| worker.measure());
    }
}

impl Reload for ReferrersTags {
    fn reload(&self) {
        self.workers.iter().for_each(|worker| worker.reload());
    }
}
