//! Who sends notifications of what was pushed past refshim: the table of the keys of one source
//! (`notifications.<name>.<key>`), and what a source must prove.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::UpstreamName;
use super::kind::{At, Kind, Optional, YesOrNo};
use super::mistake::Mistake;
use super::service::secret;
use super::settings::{Setting, setting};
use super::tls_files::Places;
use super::value::{ANYTHING, FILE, SOURCE_KIND, UPSTREAM};

/// How notifications are worked off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotificationsConfig {
    /// Their sources, by name. Default none.
    pub sources: Vec<NotificationSource>,
    /// Events that wait, per upstream; more are answered with 503. Default 100,000.
    pub queue: usize,
    /// Requests to one upstream a second at most. Default 100.
    pub rate: usize,
    /// How long an event is tried again while the registry fails. Default 24 hours.
    pub give_up_after: Duration,
}

/// A sender of notifications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotificationSource {
    /// Its name, the end of the path that it sends to.
    pub name: SourceName,
    /// What its bodies look like.
    pub kind: SourceKind,
    /// The upstream that it tells of.
    pub upstream: UpstreamName,
    /// What it must prove.
    pub credentials: SourceCredentials,
}

/// The registry that sends notifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// distribution (registry:2, registry:3).
    Distribution,
    /// Harbor, in its default format or as `CloudEvents`.
    Harbor,
    /// zot.
    Zot,
    /// Quay.
    Quay,
    /// GitLab, whose registry is a distribution.
    Gitlab,
}

/// What a sender of notifications must prove. The files are read with each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceCredentials {
    /// That it knows the secret in this file: it stands in `Authorization`, alone or behind `Bearer`.
    Secret(PathBuf),
    /// That it knows the password in this file (`Authorization: Basic`).
    Password {
        /// The name that comes with it.
        user: String,
        /// The file.
        password_file: PathBuf,
    },
    /// Nothing.
    Anybody,
}

/// The name of a source, with the grammar of upstreams' names. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceName(Arc<str>);

/// The text does not follow the grammar of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a name for a source: lower-case letters and digits, beginning with a letter")]
pub struct InvalidSourceName;

/// A source while its settings are parsed.
#[derive(Debug, Default)]
pub(super) struct SourceDraft {
    kind: Option<SourceKind>,
    upstream: UpstreamName,
    secret_file: Option<PathBuf>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    allow_anonymous: bool,
}

/// Every setting of a source, in the order of the example file.
pub(super) static SOURCE_SETTINGS: &[Setting<SourceDraft>] = &[
    setting("kind", &at(Optional(SOURCE_KIND), |to| &mut to.kind)),
    setting("upstream", &at(UPSTREAM, |to| &mut to.upstream)),
    setting("secret_file", &at(Optional(FILE), |to| &mut to.secret_file)),
    setting("user", &at(Optional(ANYTHING), |to| &mut to.user)),
    setting("password_file", &at(Optional(FILE), |to| &mut to.password_file)),
    setting("allow_anonymous", &at(YesOrNo, |to| &mut to.allow_anonymous)),
];

const fn at<K: Kind>(kind: K, field: fn(&mut SourceDraft) -> &mut K::Value) -> At<SourceDraft, K> {
    At::new(kind, field)
}

impl SourceDraft {
    /// The source. Inconsistent settings are reported to `problem`.
    pub(super) fn finish(
        self,
        name: &SourceName,
        upstreams: &[UpstreamName],
        mut problem: impl FnMut(String),
    ) -> Option<NotificationSource> {
        let upstream = self.upstream;
        if !upstreams.contains(&upstream) {
            problem(format!("upstream: there is no [upstreams.{upstream}]"));
        }
        if self.kind.is_none() {
            problem("has no kind (write kind = \"distribution\", harbor, zot, quay or gitlab)".to_owned());
        }
        let credentials = match (self.secret_file, self.user, self.password_file, self.allow_anonymous) {
            (Some(file), None, None, false) => SourceCredentials::Secret(file),
            (None, Some(user), Some(password_file), false) => {
                SourceCredentials::Password { user, password_file }
            }
            (None, None, None, true) => SourceCredentials::Anybody,
            (None, None, None, false) => {
                problem(
                    "anybody could send notifications: set secret_file, or user and password_file, or \
                     allow_anonymous = true"
                        .to_owned(),
                );
                return None;
            }
            _ => {
                problem(
                    "set one of secret_file, user with password_file, and allow_anonymous = true".to_owned(),
                );
                return None;
            }
        };
        Some(NotificationSource { name: name.clone(), kind: self.kind?, upstream, credentials })
    }

    /// The mistakes in its files, at the places of their settings.
    pub(super) fn mistakes(&self, name: &SourceName, places: &Places) -> Vec<Mistake> {
        let files = [("secret_file", &self.secret_file), ("password_file", &self.password_file)];
        let mistake = |(key, file): (&str, &Option<PathBuf>)| {
            let problem = secret(file.as_deref()?).err()?;
            let key = format!("notifications.{name}.{key}");
            Some(Mistake::new(places.get(&key).cloned().unwrap_or(key), problem))
        };
        files.into_iter().filter_map(mistake).collect()
    }
}

impl Default for NotificationsConfig {
    fn default() -> Self {
        let give_up_after = Duration::from_secs(24 * 60 * 60);
        Self { sources: Vec::new(), queue: 100_000, rate: 100, give_up_after }
    }
}

impl SourceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SourceName {
    type Err = InvalidSourceName;

    fn from_str(text: &str) -> Result<Self, InvalidSourceName> {
        let name: UpstreamName = text.parse().map_err(|_| InvalidSourceName)?;
        Ok(Self(name.as_str().into()))
    }
}
