//! The one table of settings. A setting is a line here, a field in the parent module and a line in
//! the example file; the file's reader, the variables and the tests all go by this table.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::value::{
    GIB, HOUR, Invalid, KIB, MIB, MINUTE, address, count, directory, duration, link_kinds, log_filter,
    log_format, size,
};
use super::{Config, Index, Log, Manifests, References, Referrers, Timeouts, UpstreamUrl};

/// A setting: how it is called, and how its text gets into its field.
#[derive(Debug)]
pub(super) struct Setting {
    /// Its key in the file, `timeouts.connect`.
    pub(super) key: &'static str,
    /// Checks a text and keeps its value.
    pub(super) put: fn(&mut Draft, &str) -> Result<(), Invalid>,
}

/// The configuration while it is read: the upstream may still be missing.
#[derive(Debug)]
pub(super) struct Draft {
    upstream: Option<UpstreamUrl>,
    listen: SocketAddr,
    admin_listen: SocketAddr,
    data_dir: PathBuf,
    timeouts: Timeouts,
    manifests: Manifests,
    references: References,
    referrers: Referrers,
    index: Index,
    log: Log,
}

/// A wait that must end, but need not end soon.
const LIMIT: RangeInclusive<u64> = 1..=24 * HOUR;

/// Every setting, in the order of the example file.
pub(super) static SETTINGS: &[Setting] = &[
    setting("upstream", |to, text| put(&mut to.upstream, text.parse().map(Some))),
    setting("listen", |to, text| put(&mut to.listen, address(text))),
    setting("admin_listen", |to, text| put(&mut to.admin_listen, address(text))),
    setting("data_dir", |to, text| put(&mut to.data_dir, directory(text))),
    setting("timeouts.connect", |to, text| put(&mut to.timeouts.connect, duration(text, LIMIT))),
    setting("timeouts.response", |to, text| put(&mut to.timeouts.response, duration(text, LIMIT))),
    setting("timeouts.body_idle", |to, text| put(&mut to.timeouts.body_idle, duration(text, LIMIT))),
    setting("timeouts.client_headers", |to, text| {
        put(&mut to.timeouts.client_headers, duration(text, LIMIT))
    }),
    setting("timeouts.pool_idle", |to, text| put(&mut to.timeouts.pool_idle, duration(text, LIMIT))),
    setting("timeouts.shutdown", |to, text| put(&mut to.timeouts.shutdown, duration(text, 0..=HOUR))),
    setting("manifests.max_bytes", |to, text| put(&mut to.manifests.max_bytes, size(text, 1..=64 * MIB))),
    setting("manifests.max_links_bytes", |to, text| {
        put(&mut to.manifests.max_links_bytes, size(text, 1..=256 * MIB))
    }),
    setting("manifests.learn_bytes", |to, text| put(&mut to.manifests.learn_bytes, size(text, 0..=GIB))),
    setting("references.page_bytes", |to, text| {
        put(&mut to.references.page_bytes, size(text, 64 * KIB..=64 * MIB))
    }),
    setting("references.access_ttl", |to, text| {
        put(&mut to.references.access_ttl, duration(text, 0..=5 * MINUTE))
    }),
    setting("references.concurrency", |to, text| put(&mut to.references.concurrency, count(text, 1..=256))),
    setting("references.scope_repositories", |to, text| {
        put(&mut to.references.scope_repositories, count(text, 1..=10_000))
    }),
    setting("referrers.include", |to, text| put(&mut to.referrers.include, link_kinds(text))),
    setting("referrers.upstream_ttl", |to, text| {
        put(&mut to.referrers.upstream_ttl, duration(text, 0..=5 * MINUTE))
    }),
    setting("index.cache_bytes", |to, text| put(&mut to.index.cache_bytes, size(text, MIB..=256 * GIB))),
    setting("index.flush_interval", |to, text| put(&mut to.index.flush_interval, duration(text, 1..=MINUTE))),
    setting("index.segment_bytes", |to, text| {
        put(&mut to.index.segment_bytes, size(text, 64 * KIB..=4 * GIB))
    }),
    setting("index.compact_bytes", |to, text| {
        put(&mut to.index.compact_bytes, size(text, 64 * KIB..=256 * GIB))
    }),
    setting("log.format", |to, text| put(&mut to.log.format, log_format(text))),
    setting("log.filter", |to, text| put(&mut to.log.filter, log_filter(text))),
];

const fn setting(key: &'static str, put: fn(&mut Draft, &str) -> Result<(), Invalid>) -> Setting {
    Setting { key, put }
}

fn put<T, E: Into<Invalid>>(field: &mut T, value: Result<T, E>) -> Result<(), Invalid> {
    *field = value.map_err(Into::into)?;
    Ok(())
}

impl Setting {
    /// The setting of this key.
    pub(super) fn with_key(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// Its environment variable, `REFSHIM_TIMEOUTS_CONNECT`.
    pub(super) fn variable(&self) -> String {
        format!("REFSHIM_{}", self.key.replace('.', "_").to_ascii_uppercase())
    }

    /// The table of the file that it stands in, `timeouts`; none for the settings at the top.
    pub(super) fn table(&self) -> Option<&'static str> {
        self.key.split_once('.').map(|(table, _)| table)
    }
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            upstream: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 5000)),
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 5001)),
            data_dir: PathBuf::from("./refshim-data"),
            timeouts: Timeouts::default(),
            manifests: Manifests::default(),
            references: References::default(),
            referrers: Referrers::default(),
            index: Index::default(),
            log: Log::default(),
        }
    }
}

impl Draft {
    /// The configuration, if it has an upstream.
    pub(super) fn finish(self) -> Option<Config> {
        Some(Config {
            upstream: self.upstream?,
            listen: self.listen,
            admin_listen: self.admin_listen,
            data_dir: self.data_dir,
            timeouts: self.timeouts,
            manifests: self.manifests,
            references: self.references,
            referrers: self.referrers,
            index: self.index,
            log: self.log,
        })
    }
}
