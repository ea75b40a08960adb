//! docker-registry as a child process on a port of the system's choice, in its variants.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::Logged;
use super::{Authority, Client, Identity, TokenService, token};

/// The user that a registry with users knows, and the password.
pub(crate) const USER: (&str, &str) = ("alice", "correct horse");

const ACCESS_LOG: &str = "access.log";

/// A real registry.
pub(crate) struct Registry {
    process: Logged,
    pub(crate) address: SocketAddr,
    scheme: &'static str,
    prefix: String,
    trusted_by: Option<PathBuf>,
    directory: tempfile::TempDir,
}

/// How a registry is started.
pub(crate) struct Variant {
    directory: tempfile::TempDir,
    http: String,
    tls: String,
    settings: String,
    /// Where its content is, if not in a directory of its own.
    root: Option<PathBuf>,
    is_read_only: bool,
    prefix: String,
    trusted_by: Option<PathBuf>,
    keeps_access_log: bool,
}

impl Registry {
    pub(crate) fn start() -> Self {
        Self::variant().start()
    }

    /// Lets nobody in but [`USER`].
    pub(crate) fn with_user() -> Self {
        Self::variant().passwords().start()
    }

    /// A plain one, for the variants' methods to change.
    pub(crate) fn variant() -> Variant {
        Variant {
            directory: tempfile::tempdir().unwrap(),
            http: String::new(),
            tls: String::new(),
            settings: String::new(),
            root: None,
            is_read_only: false,
            prefix: String::new(),
            trusted_by: None,
            keeps_access_log: false,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Where its `/v2/` is, without a slash at the end.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}{}", self.scheme, self.address, self.prefix)
    }

    /// What stands in front of its paths, if anything does.
    pub(crate) fn prefix(&self) -> Option<&str> {
        (!self.prefix.is_empty()).then_some(&self.prefix)
    }

    /// The certificate of the authority that vouches for it, if it speaks TLS.
    pub(crate) fn trusted_by(&self) -> Option<&Path> {
        self.trusted_by.as_deref()
    }

    /// Where it keeps its content.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// The requests that one with an access log answered so far, a line each (combined log format).
    pub(crate) fn access_log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join(ACCESS_LOG)).unwrap()
    }

    /// Has docker-registry's own garbage collection remove what has no tag. The registry goes on serving.
    pub(crate) fn collect_untagged(&self) {
        let mut collect = Command::new("docker-registry");
        collect.args(["garbage-collect", "--delete-untagged"]).arg(self.directory.path().join("config.yml"));
        let collected = collect.output().unwrap();
        assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
    }

    /// No answer from here on.
    pub(crate) fn stop(mut self) {
        self.process.kill();
    }
}

impl Variant {
    /// Lets nobody in but [`USER`], by a password.
    pub(crate) fn passwords(self) -> Self {
        let passwords = Command::new("htpasswd").args(["-nbB", "-C", "4", USER.0, USER.1]).output();
        let passwords = passwords.expect("htpasswd, from apache2-utils").stdout;
        let file = self.directory.path().join("htpasswd");
        std::fs::write(&file, passwords).unwrap();
        self.with(&format!("auth: {{htpasswd: {{realm: refshim test, path: {}}}}}", file.display()))
    }

    /// Lets those in whom this service gave a token.
    pub(crate) fn tokens_of(self, service: &TokenService) -> Self {
        self.with(&format!(
            "auth: {{token: {{realm: '{}', service: '{}', issuer: '{}', rootcertbundle: '{}'}}}}",
            service.realm(),
            token::SERVICE,
            token::ISSUER,
            service.certificate().display()
        ))
    }

    /// Speaks TLS only, with a certificate for the loopback addresses and `localhost`.
    pub(crate) fn tls(self, authority: &Authority) -> Self {
        let identity = authority.server("registry", &["127.0.0.1", "::1", "localhost"]);
        self.showing(&identity, authority.certificate())
    }

    /// Speaks TLS only, with this certificate, which the one in `trusted_by` vouches for.
    pub(crate) fn showing(mut self, identity: &Identity, trusted_by: PathBuf) -> Self {
        write!(
            self.tls,
            "certificate: '{}', key: '{}'",
            identity.certificate.display(),
            identity.key.display()
        )
        .unwrap();
        self.trusted_by = Some(trusted_by);
        self
    }

    /// Lets nobody in over TLS who has no certificate of this authority.
    pub(crate) fn for_clients_of(mut self, authority: &Authority) -> Self {
        write!(self.tls, ", clientcas: ['{}']", authority.certificate().display()).unwrap();
        self
    }

    /// Answers with Locations that name no host.
    pub(crate) fn relative_urls(mut self) -> Self {
        self.http.push_str(", relativeurls: true");
        self
    }

    /// Serves everything below this path, `/some/prefix`.
    pub(crate) fn below(mut self, prefix: &str) -> Self {
        write!(self.http, ", prefix: '{prefix}/'").unwrap();
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// Sends those who want a blob to this URL.
    pub(crate) fn redirecting_to(self, url: &str) -> Self {
        self.with(&format!("middleware: {{storage: [{{name: redirect, options: {{baseurl: '{url}'}}}}]}}"))
    }

    /// Has no content but what it fetches from the registry at this URL.
    pub(crate) fn mirror_of(self, url: &str) -> Self {
        self.with(&format!("proxy: {{remoteurl: '{url}'}}"))
    }

    /// Writes down the requests that it answered.
    pub(crate) fn with_access_log(mut self) -> Self {
        self.keeps_access_log = true;
        self
    }

    /// Has the content of another one, and takes no writes.
    pub(crate) fn read_only(mut self, of: &Registry) -> Self {
        (self.root, self.is_read_only) = (Some(of.root()), true);
        self
    }

    /// Adds settings of the registry's own.
    pub(crate) fn with(mut self, settings: &str) -> Self {
        self.settings.push_str(settings);
        self.settings.push('\n');
        self
    }

    pub(crate) fn start(self) -> Registry {
        let Self { directory, mut http, tls, settings, root, is_read_only, .. } = self;
        let Self { prefix, trusted_by, keeps_access_log, .. } = self;
        if trusted_by.is_some() {
            write!(http, ", tls: {{{tls}}}").unwrap();
        }
        let file = directory.path().join("config.yml");
        let root = root.unwrap_or_else(|| directory.path().join("root"));
        let text = format!(
            "version: 0.1\nlog: {{level: info, formatter: json, accesslog: {{disabled: {}}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}, \
             maintenance: {{readonly: {{enabled: {is_read_only}}}}}}}\n\
             http: {{addr: '127.0.0.1:0'{http}}}\n{settings}",
            !keeps_access_log,
            root.display()
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file);
        let access_log = std::fs::File::create(directory.path().join(ACCESS_LOG)).unwrap();
        let process = Logged::spawn_writing(command, access_log.into());
        let line = process.wait_for("listening on ");
        let message = line["msg"].as_str().unwrap().trim_start_matches("listening on ");
        let address = message.trim_end_matches(", tls").parse().unwrap();
        let scheme = if trusted_by.is_some() { "https" } else { "http" };
        Registry { process, address, scheme, prefix, trusted_by, directory }
    }
}
