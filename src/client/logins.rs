//! Logins that are kept for later commands: written where docker and podman look for them too.

use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use indexmap::IndexMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;

use super::credentials::{auth_files, server_of};
use super::{Credential, Error, Result};

/// A file of logins as docker has it, and podman with it. What is not understood is written back as it was.
#[derive(Debug, Default)]
struct AuthFile {
    path: PathBuf,
    members: Members,
}

type Members = IndexMap<String, Box<RawValue>>;

/// Where a login is.
#[derive(Debug, PartialEq, Eq)]
pub enum KeptLogin {
    /// In this file, not encrypted.
    File(PathBuf),
    /// With the credential helper of this name.
    Helper(String),
}

/// Keeps a name and password for a registry: where a login for it already is, so that no older one is found before it,
/// else where docker would keep it. Blocks.
///
/// # Errors
/// The file is none of docker's, or cannot be written; the helper fails.
pub fn keep_login(host: &str, credential: &Credential) -> Result<KeptLogin> {
    let Credential::Password { username, password } = credential else {
        return Err(Error::failed("keeping the login", "it is no name and password"));
    };
    let files = read_all()?;
    let has_it = |file: &AuthFile| Ok(!file.keys(host)?.is_empty() || file.helper(host)?.is_some());
    let mut place = None;
    for file in files {
        let is_it = has_it(&file)?;
        place = Some(file);
        if is_it {
            break;
        }
    }
    let none = || {
        Error::failed("keeping the login", "there is no home directory")
            .advise("name a file: REGISTRY_AUTH_FILE")
    };
    let mut file = place.ok_or_else(none)?;
    if let Some(helper) = file.helper(host)? {
        let secret = json!({"ServerURL": server_of(host), "Username": username, "Secret": password});
        ask(&helper, "store", &secret.to_string())?;
        // As docker does: the entry tells that there is a login.
        file.forget(host)?;
        file.keep(host, &json!({}))?;
        file.write()?;
        return Ok(KeptLogin::Helper(helper));
    }
    file.forget(host)?;
    file.keep(host, &json!({"auth": STANDARD.encode(format!("{username}:{password}"))}))?;
    file.write()?;
    Ok(KeptLogin::File(file.path))
}

/// Forgets the logins for a registry, wherever they are; where they were. Blocks.
///
/// # Errors
/// As of [`keep_login`].
pub fn forget_login(host: &str) -> Result<Vec<KeptLogin>> {
    let mut forgotten = Vec::new();
    for mut file in read_all()? {
        let had = file.forget(host)?;
        if let Some(helper) = file.helper(host)? {
            // It may have one of which the file says nothing. Asked first, since helpers differ in what they say when a login
            // that is not there is to be erased.
            if had || ask(&helper, "get", server_of(host)).is_ok() {
                ask(&helper, "erase", server_of(host))?;
                forgotten.push(KeptLogin::Helper(helper));
            }
        } else if had {
            forgotten.push(KeptLogin::File(file.path.clone()));
        }
        if had {
            file.write()?;
        }
    }
    Ok(forgotten)
}

fn read_all() -> Result<Vec<AuthFile>> {
    auth_files().into_iter().map(AuthFile::read).collect()
}

impl AuthFile {
    /// A file that is not there has nothing.
    fn read(path: PathBuf) -> Result<Self> {
        let reading = || format!("reading {}", path.display());
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, ..Self::default() });
            }
            read => read.map_err(|error| Error::io(reading(), &error))?,
        };
        // The error would quote what is in the file.
        let members = serde_json::from_slice(&text)
            .map_err(|_| Error::failed(reading(), "it is not the JSON of a config.json of docker's"))?;
        Ok(Self { path, members })
    }

    fn member<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T> {
        let Some(value) = self.members.get(name) else { return Ok(T::default()) };
        let asked = || format!("reading {}", self.path.display());
        serde_json::from_str(value.get())
            .map_err(|_| Error::failed(asked(), format!("its {name} is not as docker writes it")))
    }

    fn set(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let raw = serde_json::value::to_raw_value(value);
        let raw = raw
            .map_err(|error| Error::failed(format!("writing {}", self.path.display()), error.to_string()))?;
        self.members.insert(name.to_owned(), raw);
        Ok(())
    }

    /// The helper that keeps the logins for a registry.
    fn helper(&self, host: &str) -> Result<Option<String>> {
        let of_each: IndexMap<String, String> = self.member("credHelpers")?;
        let of_all: Option<String> = self.member("credsStore")?;
        Ok(of_each.get(server_of(host)).cloned().or(of_all).filter(|name| !name.is_empty()))
    }

    /// The keys under which it has a login for a registry.
    fn keys(&self, host: &str) -> Result<Vec<String>> {
        let all: Members = self.member("auths")?;
        Ok(all.into_keys().filter(|key| key == server_of(host) || is_of(key, host)).collect())
    }

    fn keep(&mut self, host: &str, login: &impl Serialize) -> Result<()> {
        let mut all: Members = self.member("auths")?;
        let raw = serde_json::value::to_raw_value(login);
        all.insert(
            server_of(host).to_owned(),
            raw.map_err(|error| Error::failed("keeping the login", error.to_string()))?,
        );
        self.set("auths", &all)
    }

    /// Whether there was one.
    fn forget(&mut self, host: &str) -> Result<bool> {
        let keys = self.keys(host)?;
        if keys.is_empty() {
            return Ok(false);
        }
        let mut all: Members = self.member("auths")?;
        all.retain(|key, _| !keys.contains(key));
        self.set("auths", &all)?;
        Ok(true)
    }

    /// Replaces the file by a whole new one that only its owner can read: another command may read it meanwhile.
    fn write(&self) -> Result<()> {
        let failed = |error: &io::Error| Error::io(format!("writing {}", self.path.display()), error);
        // Whoever keeps it elsewhere has a link here, which stays.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| failed(&error))?;
        let text = serde_json::to_vec_pretty(&self.members)
            .map_err(|error| Error::failed(format!("writing {}", self.path.display()), error.to_string()))?;
        let mut new = tempfile::NamedTempFile::new_in(directory).map_err(|error| failed(&error))?;
        new.write_all(&text).and_then(|()| new.as_file().sync_all()).map_err(|error| failed(&error))?;
        new.persist(&path).map_err(|error| failed(&error.error))?;
        Ok(())
    }
}

/// Whether a key is one of those that clients have written for a registry.
fn is_of(key: &str, host: &str) -> bool {
    let bare = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
    let bare = bare.trim_end_matches('/');
    bare.strip_suffix("/v1").or(bare.strip_suffix("/v2")).unwrap_or(bare) == host
}

/// Has a credential helper do something (docker-credential-helpers, "Development").
fn ask(helper: &str, action: &str, input: &str) -> Result<()> {
    let program = format!("docker-credential-{helper}");
    let asked = format!("having {program} {action} the login");
    let failed = |error: &io::Error| {
        Error::io(&asked, error)
            .advise(format!("is {program} installed? PATH is {}", env::var("PATH").unwrap_or_default()))
    };
    let mut running = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    // Dropped when it is written: the helper reads to the end.
    if let Some(mut stdin) = running.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It ended without reading; how, its status says.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(&error)),
            Ok(()) | Err(_) => {}
        }
    }
    let ended = running.wait_with_output().map_err(|error| failed(&error))?;
    if ended.status.success() {
        return Ok(());
    }
    // They tell what went wrong on either.
    let told = [ended.stdout, ended.stderr].concat();
    Err(Error::failed(asked, format!("{}: {}", ended.status, String::from_utf8_lossy(&told).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(key: &str, host: &str, expected: bool) {
        assert_eq!(is_of(key, host), expected, "{key} {host}");
    }

    #[test]
    fn a_registry_is_known_by_each_key_that_clients_write() {
        for key in ["a:5000", "https://a:5000", "http://a:5000/", "https://a:5000/v2/", "a:5000/v1/"] {
            check(key, "a:5000", true);
        }
        // A login of podman's for a part of the registry stays.
        for key in ["a:5000/team", "a", "a:50001", "b.a:5000", "https://a:5000/v2/x"] {
            check(key, "a:5000", false);
        }
    }

    #[test]
    fn what_is_not_a_login_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let before = r#"{"HttpHeaders":{"n":  1.50},"auths":{"b":{"auth":"x","more":[1]},"https://a/v2/":{}},"z":null}"#;
        fs::write(&path, before).unwrap();
        let mut file = AuthFile::read(path.clone()).unwrap();
        assert!(file.forget("a").unwrap() && !file.forget("c").unwrap());
        file.keep("a", &json!({"auth": "y"})).unwrap();
        file.write().unwrap();
        let written = fs::read_to_string(&path).unwrap();
        let expected = "{\n  \"HttpHeaders\": {\"n\":  1.50},\n  \"auths\": {\"b\":{\"auth\":\"x\",\"more\":[1]},\"a\":{\"auth\":\"y\"}},\n  \"z\": null\n}";
        assert_eq!(written, expected);
    }
}
