//! How far the registries are known, for those who ask.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::UpstreamConfig;
use crate::export;
use crate::index::{Covered, Index, ReadError};
use crate::oci::RepositoryName;

/// How far an upstream is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamCoverage {
    /// Its name in the configuration.
    pub upstream: String,
    /// Since when what is pushed through refshim is recorded; nothing if it is not.
    pub recorded_since: Option<Timestamp>,
    /// What is known of all of it.
    #[serde(flatten)]
    pub whole: Known,
    /// Its repositories, as far as anything is known of them.
    pub repositories: BTreeMap<RepositoryName, Known>,
}

/// How far something is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Whether lists of it are complete. If not, they carry a `Warning`.
    pub is_complete: bool,
    /// When the last backfill that read all of it began.
    pub backfilled: Option<Timestamp>,
    /// When the last sweep that read all of it began.
    pub swept: Option<Timestamp>,
    /// When the registry last told of a push or a deletion.
    pub notified: Option<Timestamp>,
}

impl Known {
    fn of(covered: Covered, is_whole_complete: bool) -> Self {
        let Covered { backfilled, swept, notified } = covered;
        Self { is_complete: is_whole_complete || covered.is_complete(), backfilled, swept, notified }
    }
}

/// How far an upstream is known.
///
/// # Errors
/// The index cannot be read.
pub async fn coverage(index: &Index, upstream: &UpstreamConfig) -> Result<UpstreamCoverage, ReadError> {
    let number = upstream.number();
    let covered = index.covered(number).await?;
    let (since, mut covered) =
        covered.map_or((None, BTreeMap::new()), |(since, covered)| (Some(since), covered));
    let whole = Known::of(covered.remove(&None).unwrap_or_default(), false);
    let mut repositories = BTreeMap::new();
    // Also those that hold links and that nobody ever read.
    for name in export::repositories(index, number).await? {
        repositories.insert(name, Known::of(Covered::default(), whole.is_complete));
    }
    for (name, covered) in covered {
        repositories.extend(name.map(|name| (name, Known::of(covered, whole.is_complete))));
    }
    Ok(UpstreamCoverage { upstream: upstream.name.to_string(), recorded_since: since, whole, repositories })
}
