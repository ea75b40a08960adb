//! The command line: what can be said on it, and what a command's end means as an exit code.

mod annotations;
mod attach;
mod backfill;
mod check;
mod compare;
mod config;
mod connection;
mod copy;
mod coverage;
mod detach;
mod entry;
mod examples;
mod export;
mod fetch;
mod format;
mod gc;
mod health;
mod image;
mod index;
mod login;
mod names;
mod output;
mod pages;
mod progress;
mod reach;
mod reference;
mod references;
mod resolve;
mod selection;
mod table;
mod tagging;
mod tags;
mod terminal;
mod tree;
mod verify_references;
mod version;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::client::Result;
use crate::config::{CommandLine, Config, ConfigSources};
use crate::server::service_manager::{Inherited, keep_alive};
use crate::server::{Reloading, Server};
use crate::{telemetry, tls};
use check::check;
use connection::run;
use format::Format;
use output::{ErrorFormat, exit_codes, fail, failed, misused, print};

/// The configuration is wrong (`EX_USAGE` of sysexits.h).
const CONFIGURATION_ERROR: u8 = 64;

/// References and referrers for container registries that have none.
#[derive(Debug, Parser)]
#[command(version, about, after_help = exit_codes())]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[arg(skip)]
    errors: ErrorFormat,
    #[arg(skip)]
    is_verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stand in front of a registry: pass every request on, record links, answer queries.
    Serve(Serve),
    Config(config::ConfigCommand),
    Health(health::Health),
    Index(index::IndexCommand),
    Backfill(backfill::BackfillCommand),
    Export(export::ExportCommand),
    Gc(gc::Gc),
    Coverage(coverage::Coverage),
    Compare(compare::CompareCommand),
    Ref(reference::Ref),
    Attach(attach::Attach),
    References(references::References),
    Tree(tree::Tree),
    Fetch(fetch::Fetch),
    VerifyReferences(verify_references::VerifyReferences),
    #[command(visible_alias = "cp")]
    Copy(copy::CopyImage),
    Detach(detach::Detach),
    #[command(visible_alias = "ls")]
    Tags(tags::Tags),
    Resolve(resolve::Resolve),
    Login(login::Login),
    Logout(login::Logout),
    Version(version::Version),
    Completions(pages::Completions),
    Man(pages::Man),
}

/// Every setting is also a key of the TOML file and a variable `REFSHIM_…`; config/refshim.toml in the
/// sources lists them. A flag comes before a variable, a variable before the file.
#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    flags: SettingFlags,
    /// A TOML file with settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Do everything but serve: load the configuration, bind the listeners, open the index, ask the upstreams. Says
    /// of each how it is, and ends with the exit code that serving would have failed with.
    #[arg(long)]
    check: bool,
}

// The settings that have flags. No documentation: clap would take it for that of the commands that have them.
#[derive(Debug, Args)]
struct SettingFlags {
    /// The registry, `http://host:port` or `https://host`.
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Where clients reach refshim [default: 127.0.0.1:5000].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Where the index is kept [default: ./refshim-data].
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// Health, readiness and metrics [default: 127.0.0.1:5001].
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<String>,
}

impl SettingFlags {
    /// The configuration's sources: this file, the variables and these flags.
    fn sources(self, file: Option<PathBuf>) -> ConfigSources {
        let given = CommandLine {
            upstream: self.upstream,
            listen: self.listen,
            admin_listen: self.admin_listen,
            data_dir: self.data_dir,
            config: file,
            index_url: None,
        };
        ConfigSources { given, tls: tls::checks() }
    }
}

impl Cli {
    /// What was typed. Ends the process if that makes no sense, or asks for help.
    #[must_use]
    pub fn typed() -> Self {
        let parsed = Self::described().try_get_matches().and_then(|matches| {
            let typed = of_command(&matches);
            let (errors, is_verbose) = (error_format(typed), says(typed, "verbose"));
            Self::from_arg_matches(&matches).map(|typed| Self { errors, is_verbose, ..typed })
        });
        parsed.unwrap_or_else(|error| misused(&error))
    }

    /// The command line, as help, manual pages and completions describe it.
    fn described() -> clap::Command {
        examples::given_to(Self::command())
    }

    /// Carries the command out. The result goes to standard output, all else to standard error.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let errors = self.errors;
        if self.is_verbose {
            telemetry::tell_requests();
        }
        match self.command {
            Command::Serve(serve) => serve.run(),
            Command::Config(config) => config.run(),
            Command::Health(command) => run(errors, command.run()),
            Command::Index(index) => index.run(),
            Command::Backfill(command) => run(errors, command.run()),
            Command::Export(command) => run(errors, command.run()),
            Command::Gc(command) => run(errors, command.run()),
            Command::Coverage(command) => run(errors, command.run()),
            Command::Compare(command) => run(errors, command.run()),
            Command::Ref(command) => run(errors, command.run()),
            Command::Attach(command) => run(errors, command.run()),
            Command::References(command) => run(errors, command.run()),
            Command::Tree(command) => run(errors, command.run()),
            Command::Fetch(command) => run(errors, command.run()),
            Command::Copy(command) => run(errors, command.run()),
            Command::Detach(command) => run(errors, command.run()),
            Command::VerifyReferences(command) => run(errors, command.run()),
            Command::Tags(command) => run(errors, command.run()),
            Command::Resolve(command) => run(errors, command.run()),
            Command::Login(command) => run(errors, command.run()),
            Command::Logout(command) => ended(errors, &command.run()),
            Command::Version(command) => ended(errors, &command.run()),
            Command::Completions(command) => ended(errors, &command.run()),
            Command::Man(command) => ended(errors, &command.run()),
        }
    }
}

impl Serve {
    fn run(self) -> ExitCode {
        let sources = self.flags.sources(self.config);
        let loaded = match sources.load() {
            Ok(loaded) => loaded,
            Err(mistakes) => return fail(CONFIGURATION_ERROR, &mistakes.to_string()),
        };
        let filter = match telemetry::start_logging(&loaded.config.log) {
            Ok(filter) => filter,
            Err(error) => return fail(CONFIGURATION_ERROR, &format!("log.filter: {error}")),
        };
        let inherited = match Inherited::take() {
            Ok(inherited) => inherited,
            Err(error) => {
                let reason = format!("cannot take the sockets that were handed over (LISTEN_FDS): {error}");
                return fail(1, &reason);
            }
        };
        // Each client's connection, and the one to the upstream for it, is an open file.
        if let Err(error) = rlimit::increase_nofile_limit(rlimit::INFINITY) {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
        let mut builder = match std::thread::available_parallelism() {
            // One core, as a sidecar often has: a scheduler between threads would only cost.
            Ok(cores) if cores.get() == 1 => tokio::runtime::Builder::new_current_thread(),
            Ok(_) | Err(_) => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = match builder.enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(1, &format!("cannot start the runtime: {error}")),
        };
        let code = if self.check {
            runtime.block_on(checked(&loaded.config))
        } else {
            runtime.block_on(serve(Reloading { sources, loaded, filter }, inherited))
        };
        // A look-up of the index on a disk that hangs may never end.
        runtime.shutdown_timeout(Duration::from_secs(1));
        code
    }
}

async fn serve(reloading: Reloading, inherited: Inherited) -> ExitCode {
    let (config, file) = (reloading.loaded.config.clone(), reloading.sources.given.file());
    let started = async {
        // First: a SIGHUP while the server starts would end it.
        let signals = signals().map_err(|error| format!("cannot wait for signals: {error}"))?;
        let server = Server::start(reloading, inherited).await.map_err(|error| error.to_string())?;
        let addresses = server.address().and_then(|listen| Ok((listen, server.admin_address()?)));
        let (listen, admin_listen) = addresses.map_err(|error| error.to_string())?;
        Ok::<_, String>((server, listen, admin_listen, signals))
    };
    match started.await {
        Ok((server, listen, admin_listen, (termination, hangup))) => {
            let (version, tls) = (env!("CARGO_PKG_VERSION"), config.tls.is_some());
            let (config_file, index) = (file.map(|file| file.display().to_string()), index_place(&config));
            let upstream = &config.upstream.url;
            let further = config.further_upstreams.iter().map(|it| format!("{}={}", it.name, it.url));
            let further_upstreams = further.collect::<Vec<_>>().join(" ");
            let web_listen = server.web_address().map(tracing::field::display);
            tracing::info!(version, config_file, index, %listen, %admin_listen, web_listen, tls, %upstream,
                further_upstreams, "serving");
            tokio::select! {
                () = server.serve(termination, hangup) => {}
                () = keep_alive() => {}
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(1, &error),
    }
}

/// Says of each part how it is, a line each.
async fn checked(config: &Config) -> ExitCode {
    let (mut is_well, mut printed) = (true, print("configuration: ok"));
    for found in check(config).await {
        is_well &= !found.is_failure();
        printed = printed.and_then(|()| print(&found.to_string()));
    }
    match printed {
        Ok(()) if is_well => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => failed(&error, ErrorFormat::Text),
    }
}

/// Where the index is: its directory, or its database without the password.
fn index_place(config: &Config) -> String {
    match &config.index.database {
        Some(database) => database.url.to_string(),
        None => {
            std::path::absolute(&config.data_dir).unwrap_or(config.data_dir.clone()).display().to_string()
        }
    }
}

/// The first SIGTERM or SIGINT, and every SIGHUP.
fn signals() -> std::io::Result<(impl Future<Output = ()>, Signal)> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let termination = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    survive_user_signals()?;
    Ok((termination, signal(SignalKind::hangup())?))
}

/// Has SIGUSR1 and SIGUSR2 log a line. They would end the process, and many programs take one of them for "open the
/// logs anew".
fn survive_user_signals() -> std::io::Result<()> {
    for (name, kind) in [("SIGUSR1", SignalKind::user_defined1()), ("SIGUSR2", SignalKind::user_defined2())] {
        let mut received = signal(kind)?;
        tokio::spawn(async move {
            while received.recv().await.is_some() {
                tracing::info!("{name} does nothing; SIGHUP loads the configuration and the TLS files again");
            }
        });
    }
    Ok(())
}

fn ended(errors: ErrorFormat, result: &Result<()>) -> ExitCode {
    result.as_ref().map_or_else(|error| failed(error, errors), |()| ExitCode::SUCCESS)
}

/// How the errors of the command are told: as JSON, if its result is.
fn error_format(typed: &ArgMatches) -> ErrorFormat {
    let has_format = typed.try_get_one("format").is_ok_and(|format| format == Some(&Format::Json));
    if says(typed, "json") || has_format { ErrorFormat::Json } else { ErrorFormat::Text }
}

/// Whether the command has this flag and it is given.
fn says(typed: &ArgMatches, flag: &str) -> bool {
    typed.try_get_one(flag).is_ok_and(|given| given == Some(&true))
}

/// What was typed for the command itself, below all that it stands under.
fn of_command(typed: &ArgMatches) -> &ArgMatches {
    typed.subcommand().map_or(typed, |(_, below)| of_command(below))
}
