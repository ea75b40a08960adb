//! What all client commands have in common: the options for connection and output, and how a command is run.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Termination};
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::output::{self, ErrorFormat};
use super::terminal;
use crate::client::{Client, Credential, Error, ErrorKind, Location, Node, Options, Progress, Result};
use crate::oci::Digest;
use crate::tls::ClientTls;

/// How registries are reached. Without a user name, credentials are those of `docker login` or `podman login`:
/// the file named by `REGISTRY_AUTH_FILE`, else containers/auth.json, else ~/.docker/config.json, with their
/// helpers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection and output")]
pub(super) struct Connection {
    /// Log in with this name; where a command names several registries, at the one named last.
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password from standard input.
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Speak HTTP without TLS, as is always done to this machine itself.
    #[arg(long, conflicts_with_all = ["ca_file", "insecure"])]
    plain_http: bool,
    /// Trust this authority, or this certificate of a server, as well (PEM).
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Trust any certificate.
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

/// How much is said, and how.
#[derive(Debug, Args)]
pub(super) struct Output {
    /// Say nothing but the result.
    #[arg(long, short)]
    quiet: bool,
    /// Tell each request that is sent, and its answer.
    #[arg(long, short, conflicts_with = "quiet")]
    verbose: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl Connection {
    /// A client. A user name and password given by hand are for this registry alone.
    pub(super) fn client(&self, place: &Location) -> Result<Client> {
        Ok(Client::new(self.options(place.host())?))
    }

    /// How registries are spoken to; a user name and password given by hand are for this host alone.
    pub(super) fn options(&self, host: Option<&str>) -> Result<Options> {
        // Standard input is not read for a layout, which takes no password.
        let Some(host) = host else { return self.options_with(None) };
        self.options_with(self.credential()?.map(|credential| (host.to_owned(), credential)))
    }

    /// The same with these credentials, and the host that they are for.
    pub(super) fn options_with(&self, credential: Option<(String, Credential)>) -> Result<Options> {
        let trusted = self.ca_file.as_deref().map(trusting).transpose()?;
        let tls = if self.insecure { Some(insecure()?) } else { trusted };
        Ok(Options { credential, plain_http: self.plain_http, tls, ..Options::default() })
    }

    /// The user name and password that are given by hand. Reads standard input.
    pub(super) fn credential(&self) -> Result<Option<Credential>> {
        let Some(username) = self.username.clone() else { return Ok(None) };
        Ok(Some(Credential::Password { username, password: password()? }))
    }

    /// Whether anything is said of how registries are reached.
    pub(super) fn is_given(&self) -> bool {
        self.username.is_some() || self.plain_http || self.ca_file.is_some() || self.insecure
    }

    /// Whether anything but the result is printed.
    pub(super) fn tells(&self) -> bool {
        self.output.tells()
    }

    /// Whether standard input is the password.
    pub(super) fn reads_password(&self) -> bool {
        self.password_stdin
    }

    /// Progress bars, if standard error is a terminal.
    pub(super) fn progress(&self) -> Progress {
        Progress::new(self.output.tells() && io::stderr().is_terminal())
    }

    /// Warns of referrers in this graph that are listed but do not exist. They are left out, and the command
    /// goes on.
    pub(super) fn warn_of_vanished(&self, node: &Node, format: ErrorFormat) {
        // Each once: children of an index may share a referrer.
        let vanished: BTreeSet<&Digest> = node.all().flat_map(|node| &node.vanished).collect();
        self.warn_that_vanished(vanished, format);
    }

    /// [`Connection::warn_of_vanished`] for a single list.
    pub(super) fn warn_that_vanished<'d>(
        &self,
        vanished: impl IntoIterator<Item = &'d Digest>,
        format: ErrorFormat,
    ) {
        // Also with --json, unlike other messages: the result lacks something.
        if self.output.quiet {
            return;
        }
        for digest in vanished {
            let warning = format!("{digest} is listed as a referrer, but is not there; it is left out");
            output::warn(&warning, format);
        }
    }

    /// Prints a message that is not the result.
    pub(super) fn tell(&self, message: &str) {
        if self.output.tells() {
            output::tell(message);
        }
    }
}

impl Output {
    pub(super) fn tells(&self) -> bool {
        !self.quiet && !self.json
    }

    /// How errors and warnings are told.
    pub(super) fn errors(&self) -> ErrorFormat {
        if self.json { ErrorFormat::Json } else { ErrorFormat::Text }
    }
}

fn trusting(file: &Path) -> Result<ClientTls> {
    let reading = || format!("reading {}", file.display());
    let pem = std::fs::read(file).map_err(|error| Error::io(reading(), &error))?;
    ClientTls::trusting(&pem).map_err(|error| Error::new(ErrorKind::Usage, reading(), error.to_string()))
}

fn insecure() -> Result<ClientTls> {
    ClientTls::insecure().map_err(|error| Error::failed("setting up TLS", error.to_string()))
}

fn password() -> Result<String> {
    let mut password = String::new();
    let read = terminal::read(|input| input.read_to_string(&mut password));
    read.map_err(|error| Error::io("reading the password from standard input", &error))?;
    // What `echo` adds is not part of it.
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        let answer = "there is none on standard input";
        return Err(Error::new(ErrorKind::Usage, "reading the password", answer));
    }
    Ok(password.to_owned())
}

/// How often it is looked whether an interrupted command waits for what is typed.
const LOOK: Duration = Duration::from_millis(20);

/// Ends the process after Ctrl-C where the command cannot be dropped because it waits for what is typed. The terminal is
/// then as it was, since a password is read without showing it.
async fn end_what_waits(terminal: terminal::Before) {
    let Ok(mut interrupt) = signal(SignalKind::interrupt()) else { return };
    interrupt.recv().await;
    while !terminal::is_waiting() {
        tokio::time::sleep(LOOK).await;
    }
    terminal.restore();
    output::interrupted();
    std::process::exit(i32::from(output::INTERRUPTED));
}

/// Runs a command to its end, or until Ctrl-C.
pub(super) fn run<E: Termination>(errors: ErrorFormat, command: impl Future<Output = Result<E>>) -> ExitCode {
    let failed = |error: &Error| output::failed(error, errors);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&Error::io("starting", &error)),
    };
    let code = runtime.block_on(async {
        // Before the command begins: until then, Ctrl-C ends the process at once, and bars would stay on the
        // screen.
        let mut interrupt = match signal(SignalKind::interrupt()) {
            Ok(interrupt) => interrupt,
            Err(error) => return failed(&Error::io("waiting for Ctrl-C", &error)),
        };
        tokio::spawn(end_what_waits(terminal::Before::now()));
        // Dropping the command removes its bars and its temporary files.
        tokio::select! {
            biased;
            _ = interrupt.recv() => output::interrupted(),
            ended = command => ended.map_or_else(|error| failed(&error), E::report),
        }
    });
    // Dropping the runtime would wait for a thread that reads standard input, which may never end.
    runtime.shutdown_background();
    code
}
