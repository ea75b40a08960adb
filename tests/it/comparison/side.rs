//! One of the two ways that are compared: a registry alone, or the same kind of registry behind refshim.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::outcome::{Outcome, without_ids};
use crate::support::{Authority, Client, Http, Identity, Refshim, Registry, Storage, TokenService, Variant};

/// Which way this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Alone,
    Through,
}

/// How clients get in.
#[derive(Clone, Debug)]
pub(super) struct Door {
    /// What is in front of `/v2/`.
    pub(super) base: String,
    pub(super) host: String,
    /// The authority's certificate, alone in its directory, if this door speaks TLS.
    pub(super) trusted: Option<PathBuf>,
}

pub(super) struct Side {
    pub(super) way: Way,
    pub(super) registry: Registry,
    _refshim: Option<Refshim>,
    pub(super) door: Door,
    pub(super) user: Option<(&'static str, &'static str)>,
    pub(super) tokens: Option<Arc<TokenService>>,
    pub(super) storage: Option<Storage>,
    /// Scratch space with the image to push in `layout`.
    pub(super) directory: tempfile::TempDir,
}

/// What both sides have in common, and how the one with refshim is set up.
#[derive(Default)]
pub(super) struct Setting {
    pub(super) user: Option<(&'static str, &'static str)>,
    pub(super) tokens: Option<Arc<TokenService>>,
    /// Blobs come from a storage of their own.
    pub(super) redirects: bool,
    /// refshim shows clients this certificate; without it refshim speaks plain HTTP.
    pub(super) identity: Option<Identity>,
    pub(super) settings: Vec<(&'static str, &'static str)>,
}

impl Side {
    pub(super) async fn start(
        way: Way,
        variant: Variant,
        setting: &Setting,
        authority: &Authority,
        layout: &Path,
    ) -> Self {
        let storage = setting.redirects.then(Storage::start);
        let variant = match &storage {
            Some(storage) => variant.redirecting_to(&storage.url()),
            None => variant,
        };
        let registry = variant.with_access_log().start();
        if let Some(storage) = &storage {
            storage.serve(registry.root());
        }
        let directory = tempfile::tempdir().unwrap();
        let copied = Command::new("cp").arg("-r").arg(layout).arg(directory.path().join("layout")).status();
        assert!(copied.unwrap().success());
        let trusted = authority.directory();
        let (refshim, door) = match way {
            Way::Alone => {
                let trusted = registry.trusted_by().is_some().then_some(trusted);
                (None, Door { base: registry.url(), host: registry.address.to_string(), trusted })
            }
            Way::Through => {
                let data = directory.path().join("data");
                let mut start = Refshim::before(&registry, &data);
                for (variable, value) in &setting.settings {
                    start = start.with(variable, value);
                }
                if let Some(identity) = &setting.identity {
                    start = start.with_tls(identity);
                }
                let refshim = start.launch().await;
                let scheme = if setting.identity.is_some() { "https" } else { "http" };
                let (base, host) = (format!("{scheme}://{}", refshim.address), refshim.address.to_string());
                let trusted = setting.identity.is_some().then_some(trusted);
                (Some(refshim), Door { base, host, trusted })
            }
        };
        let tokens = setting.tokens.clone();
        Self { way, registry, _refshim: refshim, door, user: setting.user, tokens, storage, directory }
    }

    /// A path in the scratch space.
    pub(super) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// A client without credentials.
    pub(super) fn stranger(&self, version: Http) -> Client {
        let trusted = self.door.trusted.as_ref().map(|directory| directory.join("ca.crt"));
        Client::to(&self.door.base, version, trusted.as_deref())
    }

    /// A client with the rights to do everything.
    pub(super) async fn client(&self, version: Http) -> Client {
        let client = self.stranger(version);
        match (&self.tokens, self.user) {
            (Some(service), Some((name, password))) => {
                let scopes = [
                    "registry:catalog:*",
                    "repository:a/b:pull,push,delete",
                    "repository:c:pull,push,delete",
                ];
                let scopes = scopes.map(|scope| format!("&scope={scope}")).concat();
                let service = service.client().as_user(name, password);
                let answer = service.get(&format!("/token?service=x{scopes}")).await;
                client.with_token(answer.json()["token"].as_str().unwrap())
            }
            (None, Some((name, password))) => client.as_user(name, password),
            (_, None) => client,
        }
    }

    /// Text without what differs between two sides: addresses, directories, ids of uploads.
    pub(super) fn normal(&self, text: &str) -> String {
        let base =
            if self.registry.url() == self.door.base { self.registry.url() } else { self.door.base.clone() };
        let mut text = text.replace(&base, "http://HOST").replace(&self.door.host, "HOST");
        if let Some(storage) = &self.storage {
            text = text.replace(&storage.url(), "STORAGE");
        }
        without_ids(&text.replace(self.directory.path().to_str().unwrap(), "DIRECTORY"))
    }

    /// Runs a program and keeps how it ended and what it said.
    pub(super) fn run(&self, command: &mut Command) -> Outcome {
        let program = command.get_program().to_str().unwrap().to_owned();
        let output = command
            .current_dir(self.directory.path())
            .env("HOME", self.directory.path())
            .env("XDG_RUNTIME_DIR", self.directory.path())
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}; tests/run installs it"));
        let text = |bytes: &[u8]| self.normal(&String::from_utf8_lossy(bytes));
        Outcome::ended(output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Every request that the registry answered so far, in an order of its own, since tools ask several at
    /// once.
    pub(super) fn seen(&self) -> Vec<String> {
        let log = self.registry.access_log();
        let mut seen: Vec<String> = log.lines().map(request_of).collect();
        seen.sort();
        seen
    }

    /// Every request that the storage got, with what may not be sent there.
    pub(super) fn fetched(&self) -> Vec<String> {
        let requests = self.storage.iter().flat_map(Storage::requests);
        let mut fetched: Vec<String> = requests
            .map(|request| format!("{} authorization: {:?}", request.line, request.header("authorization")))
            .collect();
        fetched.sort();
        fetched
    }

    /// Every manifest, tag and blob that the registry holds.
    pub(super) fn content(&self) -> Vec<String> {
        let root = self.registry.root();
        let found =
            Command::new("find").arg(&root).args(["-type", "f", "-printf", "%P %s\n"]).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        let mut content: Vec<String> =
            found.lines().filter(|line| !line.contains("/_uploads/")).map(str::to_owned).collect();
        content.sort();
        content
    }
}

/// Method, path, status, length and user agent of a line in the combined log format.
fn request_of(line: &str) -> String {
    let mut parts = line.split('"');
    let request = parts.nth(1).unwrap_or(line);
    let said = parts.next().unwrap_or_default();
    let agent = parts.nth(2).unwrap_or_default();
    let request = request.rsplit_once(' ').map_or(request, |(request, _version)| request);
    without_ids(&format!("{request}{said}{agent}"))
}
