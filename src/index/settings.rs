//! Where the index is kept, and its limits.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Config, DatabaseConfig};

/// How often sled is flushed. No link depends on it: what it loses is read from the journal.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// So many segments of the journal are compacted at once. The last one is read whole at each start.
const SEGMENTS: u64 = 4;

/// Where the index is kept, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexSettings {
    /// The database, for the engine of several replicas. Without it, the index is in the data directory.
    pub database: Option<DatabaseConfig>,
    /// The data directory, with the journal and sled.
    pub data_dir: PathBuf,
    /// Capacity of sled's cache, while a compaction runs twice that.
    pub cache_bytes: u64,
    /// How often sled writes its changes to disk. After a crash, the journal is read from there on.
    pub flush_interval: Duration,
    /// Length at which a segment of the journal is full.
    pub segment_bytes: u64,
    /// Bytes by which the journal grows before it is compacted, or an eighth of the last snapshot if that is more.
    pub compact_bytes: u64,
    /// Maximum number of referrers in a repository; exceeded slightly by writes at the same time.
    pub repository_referrers: u64,
    /// Timeout of a read or write, waiting included.
    pub timeout: Duration,
    /// How long the upstream must have answered nothing but 404 for a referrer before it is forgotten.
    pub forget_after: Duration,
}

impl IndexSettings {
    /// The settings of a configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            database: config.index.database.clone(),
            data_dir: config.data_dir.clone(),
            cache_bytes: config.index.cache_bytes,
            flush_interval: FLUSH_INTERVAL,
            segment_bytes: config.index.compact_bytes / SEGMENTS,
            compact_bytes: config.index.compact_bytes,
            repository_referrers: config.limits.repository_referrers as u64,
            timeout: config.timeouts.index,
            forget_after: config.index.forget_after,
        }
    }
}
