//! Stored credentials, looked up where docker and podman do: `REGISTRY_AUTH_FILE`, `containers/auth.json`,
//! docker's `config.json`, and the credential helpers that these name. Without any, access is anonymous.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};

use super::{Error, Result};

/// The key of Docker Hub's credentials, which docker has kept from its first API.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Credentials of a user.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A name and a password.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// An identity token (a refresh token of OAuth 2.0), which the token service exchanges for access tokens.
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

/// The credentials that the files or their helpers have for a host. Blocks.
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
            // The helpers' protocol has no status for it: they print "credentials not found in native
            // keychain".
            Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("not found") => {}
            // Not skipped as if there were none: anonymous access would fail later, as 401 without the cause.
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
        // Alone, as in podman: whoever names a file does not want another one's credentials.
        return vec![file.into()];
    }
    // In podman's order (containers-auth.json(5)): docker's file is the last.
    let home = env::var_os("HOME").map(PathBuf::from);
    let containers = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let docker =
        env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".docker")));
    let auth = [containers, home.map(|home| home.join(".config"))];
    let auth = auth.into_iter().flatten().map(|directory| directory.join("containers/auth.json"));
    auth.chain(docker.map(|directory| directory.join("config.json"))).collect()
}
