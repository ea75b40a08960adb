//! Stored credentials, looked up where docker and podman do: `REGISTRY_AUTH_FILE`, `containers/auth.json`,
//! docker's `config.json`, and the credential helpers that these name. Without any, access is anonymous.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use tokio::sync::OnceCell;

use super::{Error, Options, Result};
use crate::config::{ServiceConfig, secret};

/// The key of Docker Hub's credentials, which docker has kept from its first API.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
const DOCKER_HUB_HOSTS: [&str; 3] = ["docker.io", "registry-1.docker.io", "index.docker.io"];

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
    /// A token that the registry itself takes.
    Bearer(String),
}

/// Where the credentials for one registry come from.
#[derive(Debug)]
pub(super) enum Source {
    /// From nowhere.
    Nobody,
    Given(Credential),
    /// Looked up once: credential helpers are programs to run.
    Stored(OnceCell<Option<Credential>>),
    /// Looked up at each log-in, since they are rotated while refshim serves.
    Service(ServiceConfig),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => {
                f.debug_struct("Password").field("username", username).finish_non_exhaustive()
            }
            Self::Identity(_) => f.debug_struct("Identity").finish_non_exhaustive(),
            Self::Bearer(_) => f.debug_struct("Bearer").finish_non_exhaustive(),
        }
    }
}

impl Source {
    /// Given by hand, else those of the service, else those of a login.
    pub(super) fn of(host: &str, options: &Options) -> Self {
        let given = options.credential.as_ref().filter(|(of, _)| of == host);
        let upstream = options.upstream.as_ref().filter(|upstream| upstream.host == host);
        match (given, upstream.and_then(|upstream| upstream.service.clone())) {
            (Some((_, given)), _) => Self::Given(given.clone()),
            (None, Some(service)) => Self::Service(service),
            (None, None) if options.is_anonymous => Self::Nobody,
            (None, None) => Self::Stored(OnceCell::new()),
        }
    }

    /// The credentials, if there are any.
    pub(super) async fn credential(&self, host: &str) -> Result<Option<Credential>> {
        let host = host.to_owned();
        match self {
            Self::Nobody => Ok(None),
            Self::Given(given) => Ok(Some(given.clone())),
            Self::Stored(found) => {
                let find = || blocking(move || stored(&host));
                found.get_or_try_init(find).await.cloned()
            }
            Self::Service(service) => {
                let service = service.clone();
                blocking(move || of_service(&service, &host)).await
            }
        }
    }
}

async fn blocking<T: Send + 'static>(find: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let found = tokio::task::spawn_blocking(find).await;
    found.unwrap_or_else(|error| Err(Error::failed("looking for credentials", error.to_string())))
}

fn of_service(service: &ServiceConfig, host: &str) -> Result<Option<Credential>> {
    let read = |file: &Path| {
        secret(file).map_err(|problem| Error::failed("reading the service credentials", problem))
    };
    match service {
        ServiceConfig::Password { user, password_file } => {
            Ok(Some(Credential::Password { username: user.clone(), password: read(password_file)? }))
        }
        ServiceConfig::Token(file) => Ok(Some(Credential::Bearer(read(file)?))),
        ServiceConfig::DockerConfig(file) => match in_files(host, [file.clone()])? {
            Some(found) => Ok(Some(found)),
            // Whoever names the file does not mean to be anonymous.
            None => Err(Error::failed(
                format!("looking for credentials for {host} in {}", file.display()),
                "there are none",
            )),
        },
    }
}

/// The credentials that the files or their helpers have for a host. Blocks.
fn stored(host: &str) -> Result<Option<Credential>> {
    in_files(host, auth_files())
}

/// What a registry is called in the files and by the helpers.
pub(super) fn server_of(host: &str) -> &str {
    if DOCKER_HUB_HOSTS.contains(&host) { DOCKER_HUB_KEY } else { host }
}

fn in_files(host: &str, files: impl IntoIterator<Item = PathBuf>) -> Result<Option<Credential>> {
    let server = server_of(host);
    for file in files {
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

/// The files of logins, in the order in which they are looked into.
pub(super) fn auth_files() -> Vec<PathBuf> {
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
