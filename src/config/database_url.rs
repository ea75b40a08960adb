//! The URL of the index's database, in libpq's form. It may have a password, so no mistake repeats it and nothing shows
//! it with the password. libpq's parameters that would do the same as a setting, or weaken TLS, are not accepted.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::value::server_name;

/// What libpq has as a parameter and refshim as a setting.
const SETTINGS: [(&str, &str); 6] = [
    ("connect_timeout", "timeouts.connect"),
    ("sslrootcert", "index.tls.ca"),
    ("sslcert", "index.tls.certificate"),
    ("sslkey", "index.tls.key"),
    ("password", "index.password_file"),
    ("passfile", "index.password_file"),
];

/// Stores the value of a parameter, if it is one.
type Put = for<'a> fn(&'a mut Config, &str) -> Option<&'a mut Config>;

/// The parameters that are accepted: their names, their values in words, and how these are stored.
const PARAMETERS: [(&str, &str, Put); 11] = [
    ("application_name", "a name", |to, text| Some(to.application_name(text))),
    ("host", "hosts, or directories of Unix sockets", |to, text| {
        // A text that begins with "/" is a directory, here as in libpq.
        Some(text.split(',').fold(to, |to, host| to.host(host)))
    }),
    ("keepalives", "0 or 1", |to, text| Some(to.keepalives(matches!(number(text, 0..=1)?, 1)))),
    ("keepalives_count", "1 to 127", |to, text| Some(to.keepalives_retries(number(text, 1..=127)?))),
    ("keepalives_idle", SECONDS, |to, text| Some(to.keepalives_idle(seconds(text)?))),
    ("keepalives_interval", SECONDS, |to, text| Some(to.keepalives_interval(seconds(text)?))),
    ("port", "a port for all hosts, or one for each", |to, text| {
        text.split(',').try_fold(to, |to, port| Some(to.port(port.parse().ok()?)))
    }),
    ("sslmode", "disable or require; require also verifies the certificate", |to, text| match text {
        "disable" => Some(to.ssl_mode(SslMode::Disable)),
        "require" => Some(to.ssl_mode(SslMode::Require)),
        _ => None,
    }),
    ("target_session_attrs", "read-write, which is the default here", |to, text| {
        (text == "read-write").then_some(to)
    }),
    // In milliseconds, as libpq has it; the parser of tokio-postgres takes seconds.
    ("tcp_user_timeout", "a number of milliseconds", |to, text| {
        Some(to.tcp_user_timeout(Duration::from_millis(number(text, 0..=u32::MAX)?.into())))
    }),
    ("user", "a name", |to, text| Some(to.user(text))),
];

const SECONDS: &str = "a number of seconds, 1 to 32767";

/// Where the database is: `postgres://refshim@db1.example,db2.example:5433/refshim?sslmode=disable`,
/// `postgres://refshim@/refshim?host=/run/postgresql`.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    /// The URL as it is written, but for its password.
    shown: String,
    config: Config,
}

/// The text is not the URL of a database. It is not repeated, to keep its password out of logs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDatabaseUrl {
    /// It is not made of `postgres`, a user, hosts and a database.
    #[error("not the URL of a database (write postgres://refshim@db.example:5432/refshim)")]
    Form,
    /// A character that separates its parts stands within one of them, probably in the password.
    #[error("has @, /, ? or # within a part (write %40, %2F, %3F or %23)")]
    Separator,
    /// A part is missing.
    #[error("has no {0} (write postgres://refshim@db.example:5432/refshim)")]
    Missing(&'static str),
    /// It has Unix sockets besides other hosts: the ones never have TLS, the others may.
    #[error("has Unix sockets besides other hosts (write one or the other)")]
    Mixed,
    /// A parameter is not accepted.
    #[error("has the parameter {0}, which is not accepted")]
    Unknown(String),
    /// A parameter does what a setting does.
    #[error("has the parameter {0} (set {1} instead)")]
    Setting(&'static str, &'static str),
    /// A part is given twice, as two parameters or as a parameter and before it.
    #[error("has {0} twice")]
    Twice(&'static str),
    /// The value of a parameter is not accepted.
    #[error("the parameter {0} has another value than is accepted (write {1})")]
    Value(&'static str, &'static str),
}

use InvalidDatabaseUrl::{Form, Missing, Mixed, Separator, Setting, Twice, Unknown, Value};

impl DatabaseUrl {
    /// What the client connects by. It has the password that the URL has, and asks for a session that may write.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether connections have TLS: not with `sslmode=disable`, and not to Unix sockets.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.config.get_ssl_mode() == SslMode::Require
    }

    /// The URL with its password.
    #[must_use]
    pub(super) fn with_password(&self) -> String {
        let password = self.config.get_password().map(String::from_utf8_lossy);
        self.with(password.map(|password| utf8_percent_encode(&password, NON_ALPHANUMERIC).to_string()))
    }

    /// The URL with asterisks for its password, if it has one.
    #[must_use]
    pub(super) fn masked(&self) -> String {
        self.with(self.has_password().then(|| "********".to_owned()))
    }

    fn with(&self, password: Option<String>) -> String {
        match (self.shown.split_once("://"), password) {
            (Some((scheme, rest)), Some(password)) => {
                let (user, hosts) = rest.split_once('@').unwrap_or(("", rest));
                format!("{scheme}://{user}:{password}@{hosts}")
            }
            (Some(_) | None, Some(_) | None) => self.shown.clone(),
        }
    }

    /// Whether it has a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.config.get_password().is_some()
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatabaseUrl").field(&self.shown).finish()
    }
}

impl FromStr for DatabaseUrl {
    type Err = InvalidDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, InvalidDatabaseUrl> {
        let parts = Parts::of(text)?;
        // The parser takes the first "@" anywhere for the end of the credentials, and any word for a parameter: it gets
        // only the hosts and the database, which are known to have neither.
        let Parts { hosts, database, .. } = parts;
        let plain = format!("postgres://{hosts}/{database}");
        let mut config: Config = plain.parse().map_err(|_| Form)?;
        // PostgreSQL's activity view names it; a parameter may name it otherwise.
        config.application_name("refshim");
        config.ssl_mode(SslMode::Require);
        // Of several hosts, the one that is not a standby.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if !parts.user.is_empty() {
            config.user(decoded(parts.user)?);
        }
        // As libpq has it, an empty password is none.
        if let Some(password) = parts.password.filter(|password| !password.is_empty()) {
            config.password(&*decoded(password)?);
        }
        parts.put_parameters(&mut config)?;
        check_hosts(&mut config)?;
        // What is missing would be the user of the operating system, or the database of the user's name.
        let is_name = |name: Option<&str>| name.is_some_and(|name| is_text(name) && !name.is_empty());
        if !is_name(config.get_user()) {
            return Err(Missing("user"));
        }
        if !is_name(config.get_dbname()) {
            return Err(Missing("database"));
        }
        Ok(Self { shown: parts.without_password(), config })
    }
}

/// The parts of a URL, as they are written.
struct Parts<'a> {
    scheme: &'a str,
    user: &'a str,
    password: Option<&'a str>,
    hosts: &'a str,
    database: &'a str,
    parameters: &'a str,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Self, InvalidDatabaseUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(Form)?;
        if !matches!(scheme, "postgres" | "postgresql") || !is_text(rest) || rest.contains(' ') {
            return Err(Form);
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        if rest.contains(['@', '#']) || credentials.contains('@') {
            return Err(Separator);
        }
        let (path, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let database = path.strip_prefix('/').unwrap_or(path);
        if database.contains('/') {
            return Err(Separator);
        }
        let (user, password) = match credentials.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (credentials, None),
        };
        Ok(Self { scheme, user, password, hosts, database, parameters })
    }

    fn without_password(&self) -> String {
        let Self { scheme, user, hosts, database, parameters, .. } = self;
        let at = if user.is_empty() { "" } else { "@" };
        let mark = if parameters.is_empty() { "" } else { "?" };
        format!("{scheme}://{user}{at}{hosts}/{database}{mark}{parameters}")
    }

    fn put_parameters(&self, config: &mut Config) -> Result<(), InvalidDatabaseUrl> {
        let mut seen = Vec::new();
        if !self.user.is_empty() {
            seen.push("user");
        }
        if !self.hosts.is_empty() {
            seen.extend(["host", "port"]);
        }
        for parameter in self.parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if let Some((name, setting)) = SETTINGS.iter().find(|(known, _)| *known == name) {
                return Err(Setting(name, setting));
            }
            let (name, expected, put) =
                PARAMETERS.iter().find(|(known, ..)| *known == name).ok_or_else(|| unknown(name))?;
            if seen.contains(name) {
                return Err(Twice(name));
            }
            seen.push(name);
            put(config, &decoded(value)?).ok_or(Value(name, expected))?;
        }
        Ok(())
    }
}

/// A parameter that is not accepted. What is not a word may be a piece of a password.
fn unknown(name: &str) -> InvalidDatabaseUrl {
    let is_word = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if is_word { Unknown(name.to_owned()) } else { Form }
}

/// Checks the hosts with their ports, and turns TLS off for Unix sockets, where PostgreSQL has none.
fn check_hosts(config: &mut Config) -> Result<(), InvalidDatabaseUrl> {
    let (hosts, ports) = (config.get_hosts(), config.get_ports());
    let sockets = hosts.iter().filter(|host| matches!(host, Host::Unix(_))).count();
    let is_named = |host: &Host| match host {
        Host::Tcp(name) => server_name(name).is_ok(),
        Host::Unix(_) => true,
    };
    if hosts.is_empty() || hosts.contains(&Host::Tcp(String::new())) {
        return Err(Missing("host"));
    }
    if ports.contains(&0) || !hosts.iter().all(is_named) {
        return Err(Form);
    }
    if ports.len() > 1 && ports.len() != hosts.len() {
        return Err(Value("port", "a port for all hosts, or one for each"));
    }
    if sockets == hosts.len() {
        config.ssl_mode(SslMode::Disable);
    } else if sockets > 0 {
        return Err(Mixed);
    }
    Ok(())
}

/// What a part says, which must not have control characters: a NUL would end it on the wire.
fn decoded(part: &str) -> Result<Cow<'_, str>, InvalidDatabaseUrl> {
    percent_decode_str(part).decode_utf8().ok().filter(|text| is_text(text)).ok_or(Form)
}

fn is_text(text: &str) -> bool {
    !text.contains(char::is_control)
}

fn number(text: &str, bounds: RangeInclusive<u32>) -> Option<u32> {
    text.parse().ok().filter(|number| bounds.contains(number))
}

fn seconds(text: &str) -> Option<Duration> {
    Some(Duration::from_secs(number(text, 1..=32_767)?.into()))
}
