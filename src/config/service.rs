//! refshim's own credentials for an upstream (`upstreams.<name>.service`), with which it asks for what no client asks.
//! They stand in files, so that whoever may see the settings does not see them, and so that they can be rotated.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::UpstreamName;
use super::mistake::Mistake;

/// Where refshim's own credentials for an upstream are. The files are read at each log-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceConfig {
    /// A name, and the file with its password.
    Password {
        /// The name.
        user: String,
        /// The file.
        password_file: PathBuf,
    },
    /// A file with a token that the registry takes as it is (`Authorization: Bearer`).
    Token(PathBuf),
    /// A configuration file of docker or podman, with its credential helpers.
    DockerConfig(PathBuf),
}

/// The settings of `service` while they are parsed.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceDraft {
    pub(super) user: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) docker_config: Option<PathBuf>,
}

impl ServiceDraft {
    /// The credentials, if there are any, or why the settings do not fit together.
    pub(super) fn finish(self) -> Result<Option<ServiceConfig>, &'static str> {
        match (self.user, self.password_file, self.token_file, self.docker_config) {
            (None, None, None, None) => Ok(None),
            (Some(user), Some(password_file), None, None) => {
                Ok(Some(ServiceConfig::Password { user, password_file }))
            }
            (None, None, Some(file), None) => Ok(Some(ServiceConfig::Token(file))),
            (None, None, None, Some(file)) => Ok(Some(ServiceConfig::DockerConfig(file))),
            (Some(_), None, None, None) | (None, Some(_), None, None) => {
                Err("set both service.user and service.password_file, or neither")
            }
            _ => Err("several kinds of service credentials: set service.user and service.password_file, or \
                 service.token_file, or service.docker_config"),
        }
    }

    /// The mistakes in its files, at the places of their settings.
    pub(super) fn mistakes(&self, name: &UpstreamName, places: &BTreeMap<String, String>) -> Vec<Mistake> {
        let problem = |file: &Option<PathBuf>, check: fn(&Path) -> Result<String, String>| {
            file.as_deref().and_then(|file| check(file).err())
        };
        let problems = [
            ("password_file", problem(&self.password_file, secret)),
            ("token_file", problem(&self.token_file, secret)),
            ("docker_config", problem(&self.docker_config, docker_config)),
        ];
        let mistake = |(key, problem): (&str, Option<String>)| {
            let key = format!("upstreams.{name}.service.{key}");
            Some(Mistake::new(places.get(&key).cloned().unwrap_or(key), problem?))
        };
        problems.into_iter().filter_map(mistake).collect()
    }
}

/// A secret in a file: one line, without the line break that editors and `echo` add.
///
/// # Errors
/// The file cannot be read, or has something else in it. What it has is not told.
pub fn secret(file: &Path) -> Result<String, String> {
    let text = read(file)?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(format!("{}: is empty", file.display()));
    }
    if secret.contains(char::is_control) {
        return Err(format!("{}: is not one line of text", file.display()));
    }
    Ok(secret.to_owned())
}

fn docker_config(file: &Path) -> Result<String, String> {
    let text = read(file)?;
    match serde_json::from_str(&text) {
        Ok(serde_json::Value::Object(_)) => Ok(text),
        // The error would quote what is in the file.
        Ok(_) | Err(_) => Err(format!("{}: is not the JSON of a config.json of docker's", file.display())),
    }
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}
