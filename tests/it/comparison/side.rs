//! One of the two sides that are compared: a registry alone, or the same kind of registry behind refshim.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::normal::Normal;
use super::outcome::Outcome;
use crate::support::postgres::Postgres;
use crate::support::{Authority, Client, Http, Identity, Refshim, Registry, Storage, Variant};

/// Which side this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Alone,
    Through,
}

/// Where clients get in.
pub(super) struct Door {
    /// What is in front of `/v2/`.
    pub(super) base: String,
    pub(super) host: String,
    /// The directory with nothing but the authority's certificate, if this door speaks TLS.
    pub(super) trusted: Option<PathBuf>,
}

/// What both sides have in common, and how the one with refshim is set up.
#[derive(Default)]
pub(super) struct Setting {
    pub(super) user: Option<(&'static str, &'static str)>,
    /// For clients that cannot get one by themselves.
    pub(super) token: Option<String>,
    /// Blobs come from a storage of their own.
    pub(super) redirects: bool,
    /// refshim shows clients this certificate; without it refshim speaks plain HTTP.
    pub(super) identity: Option<Identity>,
    /// Where refshim has its index, if not in its data directory.
    pub(super) index: Option<Postgres>,
    /// Further settings of refshim.
    pub(super) variables: Vec<(&'static str, &'static str)>,
}

pub(super) struct Side {
    pub(super) way: Way,
    pub(super) door: Door,
    pub(super) user: Option<(&'static str, &'static str)>,
    pub(super) token: Option<String>,
    pub(super) storage: Option<Storage>,
    registry: Registry,
    _refshim: Option<Refshim>,
    normal: Normal,
    /// Scratch space, with the image to push in `layout`.
    directory: tempfile::TempDir,
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
        let refshim = match way {
            Way::Alone => None,
            Way::Through => Some(setting.refshim(&registry, &directory.path().join("data")).await),
        };
        let door = Door::of(&registry, refshim.as_ref(), setting, authority);
        let mut names = vec![(door.base.clone(), "http://HOST"), (door.host.clone(), "HOST")];
        names.extend(storage.iter().map(|storage| (storage.url(), "STORAGE")));
        names.extend(registry.prefix().map(|prefix| (prefix.to_owned(), "")));
        names.push((directory.path().to_str().unwrap().to_owned(), "DIRECTORY"));
        Self {
            way,
            door,
            user: setting.user,
            token: setting.token.clone(),
            storage,
            registry,
            _refshim: refshim,
            normal: Normal::new(names),
            directory,
        }
    }

    /// A path in the scratch space.
    pub(super) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    pub(super) fn normal(&self) -> &Normal {
        &self.normal
    }

    /// A client without credentials.
    pub(super) fn stranger(&self, version: Http) -> Client {
        let trusted = self.door.trusted.as_ref().map(|directory| directory.join("ca.crt"));
        Client::to(&self.door.base, version, trusted.as_deref())
    }

    /// A client with the rights to do everything.
    pub(super) fn client(&self, version: Http) -> Client {
        let client = self.stranger(version);
        match (&self.token, self.user) {
            (Some(token), _) => client.with_token(token),
            (None, Some((name, password))) => client.as_user(name, password),
            (None, None) => client,
        }
    }

    /// Runs a program to its end.
    pub(super) fn run(&self, command: &mut Command) -> Outcome {
        let program = command.get_program().to_str().unwrap().to_owned();
        let home = self.directory.path();
        let output = command.current_dir(home).env("HOME", home).env("XDG_RUNTIME_DIR", home).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}; tests/run installs it"));
        let text = |bytes: &[u8]| self.normal.text(&String::from_utf8_lossy(bytes));
        let errors = text(&output.stderr);
        // Some do several things at once.
        let mut errors: Vec<&str> = errors.lines().collect();
        errors.sort_unstable();
        let end = output.status.code().map_or("killed".to_owned(), |code| format!("exit {code}"));
        Outcome::new(end, text(&output.stdout)).saying(errors.join("\n"))
    }

    /// Every request that the registry answered so far, sorted, since some clients ask several at once.
    /// How many containerd asks before the first of them brought it a token depends on time. That refshim asks
    /// at its start whether there is a registry is no client's request.
    pub(super) fn asked(&self) -> Vec<String> {
        let too_early = |line: &String| line.contains(" 401 ") && line.contains(" containerd/");
        let is_probe = |line: &String| line.contains("(readiness)");
        let log = self.registry.access_log();
        sorted(
            log.lines()
                .map(|line| self.normal.logged(line))
                .filter(|line| !too_early(line) && !is_probe(line)),
        )
    }

    /// Every request that the storage got, with what may not be sent there.
    pub(super) fn fetched(&self) -> Vec<String> {
        let requests = self.storage.iter().flat_map(Storage::requests);
        sorted(requests.map(|request| {
            let credentials = [request.header("authorization"), request.header("cookie")];
            format!("{} credentials: {credentials:?}", request.line)
        }))
    }

    /// Every file that the registry holds, but for what an upload or a mirror remembers of times.
    pub(super) fn files(&self) -> Vec<String> {
        let mut find = Command::new("find");
        let found = find.arg(self.registry.root()).args(["-type", "f", "-printf", "%P %s\n"]).output();
        let found = String::from_utf8(found.unwrap().stdout).unwrap();
        let of_times = |line: &&str| line.contains("/_uploads/") || line.starts_with("scheduler-state.json");
        sorted(found.lines().filter(|line| !of_times(line)).map(str::to_owned))
    }
}

impl Setting {
    async fn refshim(&self, registry: &Registry, data: &Path) -> Refshim {
        let start = Refshim::before(registry, data).with_index(self.index.as_ref());
        let start = self.variables.iter().fold(start, |start, (name, value)| start.with(name, value));
        match &self.identity {
            Some(identity) => start.with_tls(identity).launch().await,
            None => start.launch().await,
        }
    }
}

impl Door {
    fn of(registry: &Registry, refshim: Option<&Refshim>, setting: &Setting, authority: &Authority) -> Self {
        let (is_tls, address, base) = match refshim {
            None => (registry.trusted_by().is_some(), registry.address, registry.url()),
            Some(refshim) => {
                let scheme = if setting.identity.is_some() { "https" } else { "http" };
                (setting.identity.is_some(), refshim.address, format!("{scheme}://{}", refshim.address))
            }
        };
        Self { base, host: address.to_string(), trusted: is_tls.then(|| authority.directory()) }
    }
}

fn sorted(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}
