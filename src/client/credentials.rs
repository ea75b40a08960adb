//! Credentials as every client finds them: `REGISTRY_AUTH_FILE`, the containers tools' `auth.json`, docker's
//! `config.json`, with their helpers; and nobody's where there are none.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};

use super::{Error, Result};

/// The name under which docker keeps what is for Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// What proves who is asking.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A name and a password.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// A token that a token service exchanges for others.
    Identity(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => {
                f.debug_struct("Password").field("username", username).finish_non_exhaustive()
            }
            Self::Identity(_) => f.debug_struct("Identity").finish_non_exhaustive(),
        }
    }
}

/// What the files say for a host; helpers are run. Blocks.
pub(super) fn stored(host: &str) -> Result<Option<Credential>> {
    let server = if host == "docker.io" { DOCKER_HUB_KEY } else { host };
    for file in files() {
        let opened = match File::open(&file) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io(format!("reading {}", file.display()), &error)),
        };
        match get_credential_from_reader(BufReader::new(opened), server) {
            Ok(DockerCredential::UsernamePassword(username, password)) => {
                return Ok(Some(Credential::Password { username, password }));
            }
            Ok(DockerCredential::IdentityToken(token)) => return Ok(Some(Credential::Identity(token))),
            Err(CredentialRetrievalError::NoCredentialConfigured) => {}
            Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("not found") => {}
            Err(error) => {
                let asked = format!("looking for credentials for {host} in {}", file.display());
                return Err(Error::failed(asked, error.to_string().trim_end()));
            }
        }
    }
    Ok(None)
}

fn files() -> Vec<PathBuf> {
    if let Some(file) = env::var_os("REGISTRY_AUTH_FILE") {
        return vec![file.into()];
    }
    let home = env::var_os("HOME").map(PathBuf::from);
    let containers = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let docker =
        env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".docker")));
    let auth = [containers, home.map(|home| home.join(".config"))];
    let auth = auth.into_iter().flatten().map(|directory| directory.join("containers/auth.json"));
    auth.chain(docker.map(|directory| directory.join("config.json"))).collect()
}
