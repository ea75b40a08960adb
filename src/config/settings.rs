//! The table of settings. To add one: a line here (or in the table of an upstream) with its kind and its field, a field
//! in the parent module, and a line in the example file `config/refshim.toml`, whose comment is its description. The
//! file's parser, the variables, `config show`, `config schema`, reloading and the tests follow this table.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use toml::Value;

use super::draft::Draft;
use super::kind::{At, Field, Kind, List, Optional, SetOfKinds, SettingForm, YesOrNo};
use super::notifications::{SOURCE_SETTINGS, SourceDraft, SourceName};
use super::quantity::{GIB, HOUR, KIB, MIB, MILLION, MINUTE, Quantity, count, duration, size};
use super::upstream::{UPSTREAM_SETTINGS, UpstreamDraft, UpstreamName};
use super::value::{
    ADDRESS, CLIENT_AUTH, DATABASE, DIRECTORY, FILE, Invalid, LINK_KIND, LOG_FILTER, LOG_FORMAT, LOG_OUTPUT,
    NETWORK, ORIGIN, REGISTRY, SERVER_NAME, SHARE, STATEMENTS, WRITE_TAGS,
};

/// A setting: its key, its kind and its field.
pub(super) struct Setting<D: 'static> {
    /// Its key in the file, `timeouts.connect`; for an upstream, the part after `upstreams.<name>.`.
    pub(super) key: &'static str,
    /// Whether a reload changes it; else a restart does.
    pub(super) is_live: bool,
    /// How it is parsed, stored, shown and described.
    pub(super) field: &'static dyn Field<D>,
}

/// The setting of a key or a variable.
#[derive(Clone, Debug)]
pub(super) enum KnownSetting {
    Common(&'static Setting<Draft>),
    OfUpstream(UpstreamName, &'static Setting<UpstreamDraft>),
    OfSource(SourceName, &'static Setting<SourceDraft>),
}

/// A time-out.
pub(super) const LIMIT: Quantity<Duration> = duration(1..=24 * HOUR);

/// Every setting but those of an upstream, in the order of the example file.
pub(super) static SETTINGS: &[Setting<Draft>] = &[
    setting("upstream", &at(Optional(REGISTRY), |to| &mut to.default_upstream().url)),
    live("external_url", &at(Optional(ORIGIN), |to| &mut to.external_url)),
    live("trusted_proxies", &at(List(NETWORK), |to| &mut to.trusted_proxies)),
    setting("listen", &at(ADDRESS, |to| &mut to.listen)),
    setting("admin_listen", &at(ADDRESS, |to| &mut to.admin_listen)),
    setting("data_dir", &at(DIRECTORY, |to| &mut to.data_dir)),
    live("tls.certificate", &at(List(FILE), |to| &mut to.tls.certificates)),
    live("tls.key", &at(List(FILE), |to| &mut to.tls.keys)),
    live("tls.client_ca", &at(Optional(FILE), |to| &mut to.tls.client_ca)),
    live("tls.client_auth", &at(CLIENT_AUTH, |to| &mut to.tls.client_auth)),
    live("tls.reload", &at(duration(100..=24 * HOUR), |to| &mut to.tls_reload)),
    setting("web.listen", &at(Optional(ADDRESS), |to| &mut to.web.listen)),
    live("timeouts.connect", &at(LIMIT, |to| &mut to.timeouts.connect)),
    live("timeouts.response", &at(LIMIT, |to| &mut to.timeouts.response)),
    live("timeouts.body_idle", &at(LIMIT, |to| &mut to.timeouts.body_idle)),
    live("timeouts.client_headers", &at(LIMIT, |to| &mut to.timeouts.client_headers)),
    live("timeouts.pool_idle", &at(LIMIT, |to| &mut to.timeouts.pool_idle)),
    live("timeouts.shutdown", &at(duration(0..=HOUR), |to| &mut to.timeouts.shutdown)),
    live("timeouts.manifest", &at(LIMIT, |to| &mut to.timeouts.manifest)),
    setting("timeouts.index", &at(LIMIT, |to| &mut to.timeouts.index)),
    setting("manifests.max_bytes", &at(size(1..=64 * MIB), |to| &mut to.manifests.max_bytes)),
    setting("manifests.max_links_bytes", &at(size(1..=256 * MIB), |to| &mut to.manifests.max_links_bytes)),
    live("manifests.learn_bytes", &at(size(0..=GIB), |to| &mut to.manifests.learn_bytes)),
    live("references.page_bytes", &at(size(64 * KIB..=64 * MIB), |to| &mut to.references.page_bytes)),
    live("references.access_ttl", &at(duration(0..=5 * MINUTE), |to| &mut to.references.access_ttl)),
    live("references.concurrency", &at(count(1..=256), |to| &mut to.references.concurrency)),
    live("references.scope_repositories", &at(count(1..=10_000), |to| &mut to.references.scope_repositories)),
    live("references.cache_bytes", &at(size(0..=64 * GIB), |to| &mut to.references.cache_bytes)),
    live("referrers.include", &at(SetOfKinds(List(LINK_KIND)), |to| &mut to.referrers.include)),
    live("referrers.upstream_ttl", &at(duration(0..=5 * MINUTE), |to| &mut to.referrers.upstream_ttl)),
    live("referrers.stale_for", &at(duration(0..=HOUR), |to| &mut to.referrers.stale_for)),
    setting("referrers.write_tags", &at(WRITE_TAGS, |to| &mut to.referrers.write_tags)),
    live("limits.connections", &at(count(1..=MILLION), |to| &mut to.limits.connections)),
    live("limits.requests_per_client", &at(count(1..=MILLION), |to| &mut to.limits.requests_per_client)),
    live("limits.manifest_bytes", &at(size(MIB..=64 * GIB), |to| &mut to.limits.manifest_bytes)),
    live("limits.answer_bytes", &at(size(MIB..=64 * GIB), |to| &mut to.limits.answer_bytes)),
    live("limits.questions", &at(count(8..=MILLION), |to| &mut to.limits.questions)),
    setting(
        "limits.repository_referrers",
        &at(count(1..=1_000 * MILLION), |to| &mut to.limits.repository_referrers),
    ),
    setting("notifications.queue", &at(count(1..=10 * MILLION), |to| &mut to.notifications.queue)),
    setting("notifications.rate", &at(count(1..=100_000), |to| &mut to.notifications.rate)),
    setting(
        "notifications.give_up_after",
        &at(duration(1_000..=30 * 24 * HOUR), |to| &mut to.notifications.give_up_after),
    ),
    setting("sweep.interval", &at(duration(0..=366 * 24 * HOUR), |to| &mut to.sweep.interval)),
    setting("sweep.rate", &at(count(1..=100_000), |to| &mut to.sweep.rate)),
    setting("index.url", &at(Optional(DATABASE), |to| &mut to.database.url)),
    setting("index.password_file", &at(Optional(FILE), |to| &mut to.database.password_file)),
    setting("index.statements", &at(STATEMENTS, |to| &mut to.database.statements)),
    setting("index.connections", &at(count(1..=1_000), |to| &mut to.database.connections)),
    setting("index.migrate", &at(YesOrNo, |to| &mut to.database.migrate)),
    setting("index.readiness", &at(YesOrNo, |to| &mut to.database.readiness)),
    setting("index.cache_bytes", &at(size(MIB..=256 * GIB), |to| &mut to.index.cache_bytes)),
    setting("index.compact_bytes", &at(size(64 * KIB..=256 * GIB), |to| &mut to.index.compact_bytes)),
    setting("index.forget_after", &at(duration(100..=30 * 24 * HOUR), |to| &mut to.index.forget_after)),
    setting("index.tls.ca", &at(Optional(FILE), |to| &mut to.database.tls.ca)),
    setting("index.tls.certificate", &at(Optional(FILE), |to| &mut to.database.tls.certificate)),
    setting("index.tls.key", &at(Optional(FILE), |to| &mut to.database.tls.key)),
    setting("index.tls.server_name", &at(Optional(SERVER_NAME), |to| &mut to.database.tls.server_name)),
    setting("traces.endpoint", &at(Optional(REGISTRY), |to| &mut to.traces.endpoint)),
    setting("traces.sample", &at(SHARE, |to| &mut to.traces.sample)),
    setting("log.format", &at(LOG_FORMAT, |to| &mut to.log.format)),
    live("log.filter", &at(LOG_FILTER, |to| &mut to.log.filter)),
    setting("access_log.output", &at(LOG_OUTPUT, |to| &mut to.access_log.output)),
    setting("audit.output", &at(LOG_OUTPUT, |to| &mut to.audit.output)),
    setting("audit.max_bytes", &at(size(0..=256 * GIB), |to| &mut to.audit.max_bytes)),
    setting("audit.keep", &at(count(1..=1_000), |to| &mut to.audit.keep)),
];

/// A setting that a restart changes: something was opened, begun or connected by it.
pub(super) const fn setting<D>(key: &'static str, field: &'static dyn Field<D>) -> Setting<D> {
    Setting { key, is_live: false, field }
}

/// A setting that a reload changes.
pub(super) const fn live<D>(key: &'static str, field: &'static dyn Field<D>) -> Setting<D> {
    Setting { key, is_live: true, field }
}

const fn at<K: Kind>(kind: K, field: fn(&mut Draft) -> &mut K::Value) -> At<Draft, K> {
    At::new(kind, field)
}

impl<D> fmt::Debug for Setting<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Setting").field(&self.key).finish()
    }
}

impl<D> Setting<D> {
    fn variable_part(&self) -> String {
        self.key.replace('.', "_").to_ascii_uppercase()
    }
}

impl Setting<Draft> {
    /// Its environment variable, `REFSHIM_TIMEOUTS_CONNECT`.
    pub(super) fn variable(&self) -> String {
        format!("REFSHIM_{}", self.variable_part())
    }

    /// The table of the file that it stands in, `timeouts` or `index.tls`; none for the settings at the top.
    pub(super) fn table(&self) -> Option<&'static str> {
        self.key.rsplit_once('.').map(|(table, _)| table)
    }
}

impl KnownSetting {
    /// The setting of this key.
    pub(super) fn with_key(key: &str) -> Option<Self> {
        if let Some(common) = SETTINGS.iter().find(|setting| setting.key == key) {
            return Some(Self::Common(common));
        }
        let (table, rest) = key.split_once('.')?;
        let (name, key) = rest.split_once('.')?;
        match table {
            "upstreams" => {
                let setting = UPSTREAM_SETTINGS.iter().find(|setting| setting.key == key)?;
                Some(Self::OfUpstream(name.parse().ok()?, setting))
            }
            "notifications" => {
                let setting = SOURCE_SETTINGS.iter().find(|setting| setting.key == key)?;
                Some(Self::OfSource(name.parse().ok()?, setting))
            }
            _ => None,
        }
    }

    /// The setting of this variable.
    pub(super) fn with_variable(variable: &str) -> Option<Self> {
        if let Some(common) = SETTINGS.iter().find(|setting| setting.variable() == variable) {
            return Some(Self::Common(common));
        }
        if let Some(rest) = variable.strip_prefix("REFSHIM_UPSTREAMS_") {
            let (name, setting) = named_setting(UPSTREAM_SETTINGS, rest)?;
            return Some(Self::OfUpstream(name, setting));
        }
        let (name, setting) =
            named_setting(SOURCE_SETTINGS, variable.strip_prefix("REFSHIM_NOTIFICATIONS_")?)?;
        Some(Self::OfSource(name, setting))
    }

    /// Its full key, `upstreams.hub.ca`.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Common(setting) => setting.key.to_owned(),
            Self::OfUpstream(name, setting) => format!("upstreams.{name}.{}", setting.key),
            Self::OfSource(name, setting) => format!("notifications.{name}.{}", setting.key),
        }
    }

    /// The TOML values that it accepts.
    pub(super) fn form(&self) -> SettingForm {
        match self {
            Self::Common(setting) => setting.field.form(),
            Self::OfUpstream(_, setting) => setting.field.form(),
            Self::OfSource(_, setting) => setting.field.form(),
        }
    }

    /// Parses a text and stores the value.
    pub(super) fn put(&self, draft: &mut Draft, text: &str) -> Result<(), Invalid> {
        match self {
            Self::Common(setting) => setting.field.put(draft, text),
            Self::OfUpstream(name, setting) => setting.field.put(draft.upstream(name), text),
            Self::OfSource(name, setting) => setting.field.put(draft.source(name), text),
        }
    }

    /// Its value, and the same without secrets; nothing if it is not set.
    pub(super) fn value(&self, draft: &mut Draft) -> Option<(Value, Value)> {
        fn both<D>(setting: &Setting<D>, of: &mut D) -> Option<(Value, Value)> {
            Some((setting.field.show(of)?, setting.field.masked(of)?))
        }
        match self {
            Self::Common(setting) => both(setting, draft),
            Self::OfUpstream(name, setting) => both(setting, draft.upstream(name)),
            Self::OfSource(name, setting) => both(setting, draft.source(name)),
        }
    }

    /// Whether a reload changes it.
    pub(super) fn is_live(&self) -> bool {
        match self {
            Self::Common(setting) => setting.is_live,
            Self::OfUpstream(_, setting) => setting.is_live,
            Self::OfSource(_, setting) => setting.is_live,
        }
    }

    /// All that the draft has: the common ones, and those of each upstream and each source.
    pub(super) fn all(draft: &Draft) -> Vec<Self> {
        let of_upstreams = draft.upstreams.keys().flat_map(|name| {
            // The URL of the default one is the setting `upstream`.
            let own = UPSTREAM_SETTINGS.iter().filter(|it| !(name.is_default() && it.key == "url"));
            own.map(|setting| Self::OfUpstream(name.clone(), setting))
        });
        let of_sources = draft
            .sources
            .keys()
            .flat_map(|name| SOURCE_SETTINGS.iter().map(|setting| Self::OfSource(name.clone(), setting)));
        SETTINGS.iter().map(Self::Common).chain(of_upstreams).chain(of_sources).collect()
    }

    /// Whether it is the URL of the default upstream.
    pub(super) fn is_upstream(&self) -> bool {
        match self {
            Self::Common(setting) => setting.key == "upstream",
            Self::OfUpstream(name, setting) => name.is_default() && setting.key == "url",
            Self::OfSource(..) => false,
        }
    }
}

/// The name and the setting in the rest of a variable, `HUB_URL`.
fn named_setting<N: FromStr, D>(
    settings: &'static [Setting<D>],
    rest: &str,
) -> Option<(N, &'static Setting<D>)> {
    settings.iter().find_map(|setting| {
        let name = rest.strip_suffix(&setting.variable_part())?.strip_suffix('_')?;
        let is_upper_case = !name.contains(|c: char| c.is_ascii_lowercase());
        let name = name.to_ascii_lowercase().parse().ok().filter(|_| is_upper_case)?;
        Some((name, setting))
    })
}
