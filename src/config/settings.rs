//! The table of settings. To add one: a line here (or in the table of an upstream), a field in the parent module, and
//! a line in the example file `config/refshim.toml`. The file's parser, the variables and the tests follow this table.

use std::ops::RangeInclusive;
use std::str::FromStr;

use super::RegistryUrl;
use super::draft::Draft;
use super::notifications::{SOURCE_SETTINGS, SourceDraft, SourceName};
use super::upstream::{UPSTREAM_SETTINGS, UpstreamDraft, UpstreamName};
use super::value::{
    GIB, HOUR, Invalid, KIB, MIB, MINUTE, address, client_auth, count, directory, duration, file, link_kind,
    list, log_filter, log_format, network, server_name, size, statements, write_tags, yes_or_no,
};
use crate::oci::LinkKinds;

/// A setting: its key, and how its text is parsed into its field.
#[derive(Debug)]
pub(super) struct Setting<D: 'static> {
    /// Its key in the file, `timeouts.connect`; for an upstream, the part after `upstreams.<name>.`.
    pub(super) key: &'static str,
    /// The TOML values that it accepts.
    pub(super) form: SettingForm,
    /// Parses a text and stores the value.
    put: fn(&mut D, &str) -> Result<(), Invalid>,
}

/// The TOML values that a setting accepts. A variable is always text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SettingForm {
    /// A string or a number.
    One,
    /// A string, a number or a list of strings; in a variable, separated by commas.
    Many,
    /// `true` or `false`.
    YesOrNo,
}

/// The setting of a key or a variable.
#[derive(Clone, Debug)]
pub(super) enum KnownSetting {
    Common(&'static Setting<Draft>),
    OfUpstream(UpstreamName, &'static Setting<UpstreamDraft>),
    OfSource(SourceName, &'static Setting<SourceDraft>),
}

const MILLION: u64 = 1_000_000;

/// The bounds of a time-out, in milliseconds.
pub(super) const LIMIT: RangeInclusive<u64> = 1..=24 * HOUR;

use SettingForm::{Many, One, YesOrNo};

/// Every setting but those of an upstream, in the order of the example file.
pub(super) static SETTINGS: &[Setting<Draft>] = &[
    setting("upstream", One, |to, text| put(&mut to.default_upstream().url, text.parse().map(Some))),
    setting("external_url", One, |to, text| put(&mut to.external_url, origin(text).map(Some))),
    setting("trusted_proxies", Many, |to, text| put(&mut to.trusted_proxies, list(text, network))),
    setting("listen", One, |to, text| put(&mut to.listen, address(text))),
    setting("admin_listen", One, |to, text| put(&mut to.admin_listen, address(text))),
    setting("data_dir", One, |to, text| put(&mut to.data_dir, directory(text))),
    setting("tls.certificate", Many, |to, text| put(&mut to.tls.certificates, list(text, file))),
    setting("tls.key", Many, |to, text| put(&mut to.tls.keys, list(text, file))),
    setting("tls.client_ca", One, |to, text| put(&mut to.tls.client_ca, file(text).map(Some))),
    setting("tls.client_auth", One, |to, text| put(&mut to.tls.client_auth, client_auth(text))),
    setting("tls.reload", One, |to, text| put(&mut to.tls_reload, duration(text, 100..=24 * HOUR))),
    setting("web.listen", One, |to, text| put(&mut to.web.listen, address(text).map(Some))),
    setting("timeouts.connect", One, |to, text| put(&mut to.timeouts.connect, duration(text, LIMIT))),
    setting("timeouts.response", One, |to, text| put(&mut to.timeouts.response, duration(text, LIMIT))),
    setting("timeouts.body_idle", One, |to, text| put(&mut to.timeouts.body_idle, duration(text, LIMIT))),
    setting("timeouts.client_headers", One, |to, text| {
        put(&mut to.timeouts.client_headers, duration(text, LIMIT))
    }),
    setting("timeouts.pool_idle", One, |to, text| put(&mut to.timeouts.pool_idle, duration(text, LIMIT))),
    setting("timeouts.shutdown", One, |to, text| put(&mut to.timeouts.shutdown, duration(text, 0..=HOUR))),
    setting("timeouts.manifest", One, |to, text| put(&mut to.timeouts.manifest, duration(text, LIMIT))),
    setting("timeouts.index", One, |to, text| put(&mut to.timeouts.index, duration(text, LIMIT))),
    setting("manifests.max_bytes", One, |to, text| {
        put(&mut to.manifests.max_bytes, size(text, 1..=64 * MIB))
    }),
    setting("manifests.max_links_bytes", One, |to, text| {
        put(&mut to.manifests.max_links_bytes, size(text, 1..=256 * MIB))
    }),
    setting("manifests.learn_bytes", One, |to, text| put(&mut to.manifests.learn_bytes, size(text, 0..=GIB))),
    setting("references.page_bytes", One, |to, text| {
        put(&mut to.references.page_bytes, size(text, 64 * KIB..=64 * MIB))
    }),
    setting("references.access_ttl", One, |to, text| {
        put(&mut to.references.access_ttl, duration(text, 0..=5 * MINUTE))
    }),
    setting("references.concurrency", One, |to, text| {
        put(&mut to.references.concurrency, count(text, 1..=256))
    }),
    setting("references.scope_repositories", One, |to, text| {
        put(&mut to.references.scope_repositories, count(text, 1..=10_000))
    }),
    setting("referrers.include", Many, |to, text| {
        put(&mut to.referrers.include, list(text, link_kind).map(LinkKinds::from_iter))
    }),
    setting("referrers.upstream_ttl", One, |to, text| {
        put(&mut to.referrers.upstream_ttl, duration(text, 0..=5 * MINUTE))
    }),
    setting("referrers.stale_for", One, |to, text| {
        put(&mut to.referrers.stale_for, duration(text, 0..=HOUR))
    }),
    setting("referrers.write_tags", One, |to, text| put(&mut to.referrers.write_tags, write_tags(text))),
    setting("limits.connections", One, |to, text| put(&mut to.limits.connections, count(text, 1..=MILLION))),
    setting("limits.requests_per_client", One, |to, text| {
        put(&mut to.limits.requests_per_client, count(text, 1..=MILLION))
    }),
    setting("limits.manifest_bytes", One, |to, text| {
        put(&mut to.limits.manifest_bytes, size(text, MIB..=64 * GIB))
    }),
    setting("limits.answer_bytes", One, |to, text| {
        put(&mut to.limits.answer_bytes, size(text, MIB..=64 * GIB))
    }),
    setting("limits.questions", One, |to, text| put(&mut to.limits.questions, count(text, 8..=MILLION))),
    setting("limits.repository_referrers", One, |to, text| {
        put(&mut to.limits.repository_referrers, count(text, 1..=1_000 * MILLION))
    }),
    setting("notifications.queue", One, |to, text| {
        put(&mut to.notifications.queue, count(text, 1..=10 * MILLION))
    }),
    setting("notifications.rate", One, |to, text| put(&mut to.notifications.rate, count(text, 1..=100_000))),
    setting("notifications.give_up_after", One, |to, text| {
        put(&mut to.notifications.give_up_after, duration(text, 1_000..=30 * 24 * HOUR))
    }),
    setting("sweep.interval", One, |to, text| {
        put(&mut to.sweep.interval, duration(text, 0..=366 * 24 * HOUR))
    }),
    setting("sweep.rate", One, |to, text| put(&mut to.sweep.rate, count(text, 1..=100_000))),
    setting("index.url", One, |to, text| put(&mut to.database.url, text.parse().map(Some))),
    setting("index.password_file", One, |to, text| put(&mut to.database.password_file, file(text).map(Some))),
    setting("index.statements", One, |to, text| put(&mut to.database.statements, statements(text))),
    setting("index.connections", One, |to, text| put(&mut to.database.connections, count(text, 1..=1_000))),
    setting("index.migrate", YesOrNo, |to, text| put(&mut to.database.migrate, yes_or_no(text))),
    setting("index.readiness", YesOrNo, |to, text| put(&mut to.database.readiness, yes_or_no(text))),
    setting("index.cache_bytes", One, |to, text| put(&mut to.index.cache_bytes, size(text, MIB..=256 * GIB))),
    setting("index.compact_bytes", One, |to, text| {
        put(&mut to.index.compact_bytes, size(text, 64 * KIB..=256 * GIB))
    }),
    setting("index.forget_after", One, |to, text| {
        put(&mut to.index.forget_after, duration(text, 100..=30 * 24 * HOUR))
    }),
    setting("index.tls.ca", One, |to, text| put(&mut to.database.tls.ca, file(text).map(Some))),
    setting("index.tls.certificate", One, |to, text| {
        put(&mut to.database.tls.certificate, file(text).map(Some))
    }),
    setting("index.tls.key", One, |to, text| put(&mut to.database.tls.key, file(text).map(Some))),
    setting("index.tls.server_name", One, |to, text| {
        put(&mut to.database.tls.server_name, server_name(text).map(Some))
    }),
    setting("log.format", One, |to, text| put(&mut to.log.format, log_format(text))),
    setting("log.filter", One, |to, text| put(&mut to.log.filter, log_filter(text))),
];

pub(super) const fn setting<D>(
    key: &'static str,
    form: SettingForm,
    put: fn(&mut D, &str) -> Result<(), Invalid>,
) -> Setting<D> {
    Setting { key, form, put }
}

pub(super) fn put<T, E: Into<Invalid>>(field: &mut T, value: Result<T, E>) -> Result<(), Invalid> {
    *field = value.map_err(Into::into)?;
    Ok(())
}

fn origin(text: &str) -> Result<RegistryUrl, Invalid> {
    Ok(text.parse::<RegistryUrl>().and_then(RegistryUrl::without_path)?)
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
            Self::Common(setting) => setting.form,
            Self::OfUpstream(_, setting) => setting.form,
            Self::OfSource(_, setting) => setting.form,
        }
    }

    /// Parses a text and stores the value.
    pub(super) fn put(&self, draft: &mut Draft, text: &str) -> Result<(), Invalid> {
        match self {
            Self::Common(setting) => (setting.put)(draft, text),
            Self::OfUpstream(name, setting) => {
                (setting.put)(draft.upstreams.entry(name.clone()).or_default(), text)
            }
            Self::OfSource(name, setting) => {
                (setting.put)(draft.sources.entry(name.clone()).or_default(), text)
            }
        }
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
