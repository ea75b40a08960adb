//! The command line: what can be said on it, and what a command's end means as an exit code.

mod attach;
mod backfill;
mod compare;
mod connection;
mod copy;
mod coverage;
mod detach;
mod export;
mod fetch;
mod gc;
mod index;
mod names;
mod output;
mod pages;
mod progress;
mod reach;
mod reference;
mod references;
mod table;
mod tagging;
mod tree;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::client::Result;
use crate::config::{CommandLine, Config};
use crate::server::Server;
use crate::{telemetry, tls};
use connection::run;
use output::{EXIT_CODES, fail, failed};

/// The configuration is wrong (`EX_USAGE` of sysexits.h).
const CONFIGURATION_ERROR: u8 = 64;

/// References and referrers for container registries that have none.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stand in front of a registry: pass every request on, record links, answer queries.
    Serve(Serve),
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
    Copy(copy::CopyImage),
    Detach(detach::Detach),
    Completions(pages::Completions),
    Man(pages::Man),
}

/// Every setting is also a key of the TOML file and a variable `REFSHIM_…`; config/refshim.toml in the
/// sources lists them. A flag comes before a variable, a variable before the file.
#[derive(Debug, Args)]
struct Serve {
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
    /// A TOML file with settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Cli {
    /// Carries the command out. The result goes to standard output, all else to standard error.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Serve(serve) => serve.run(),
            Command::Index(index) => index.run(),
            Command::Backfill(command) => run(command.run()),
            Command::Export(command) => run(command.run()),
            Command::Gc(command) => run(command.run()),
            Command::Coverage(command) => run(command.run()),
            Command::Compare(command) => run(command.run()),
            Command::Ref(command) => run(command.run()),
            Command::Attach(command) => run(command.run()),
            Command::References(command) => run(command.run()),
            Command::Tree(command) => run(command.run()),
            Command::Fetch(command) => run(command.run()),
            Command::Copy(command) => run(command.run()),
            Command::Detach(command) => run(command.run()),
            Command::Completions(command) => ended(command.run()),
            Command::Man(command) => ended(command.run()),
        }
    }
}

impl Serve {
    fn run(self) -> ExitCode {
        let given = CommandLine {
            upstream: self.upstream,
            listen: self.listen,
            admin_listen: self.admin_listen,
            data_dir: self.data_dir,
            config: self.config,
            index_url: None,
        };
        let config = match Config::load_and_check(&given, std::env::vars_os(), &tls::checks()) {
            Ok(config) => config,
            Err(mistakes) => return fail(CONFIGURATION_ERROR, &mistakes.to_string()),
        };
        if let Err(error) = telemetry::start_logging(&config.log) {
            return fail(CONFIGURATION_ERROR, &format!("log.filter: {error}"));
        }
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
        let code = runtime.block_on(serve(&config));
        // A look-up of the index on a disk that hangs may never end.
        runtime.shutdown_timeout(Duration::from_secs(1));
        code
    }
}

async fn serve(config: &Config) -> ExitCode {
    let started = async {
        let server = Server::start(config).await.map_err(|error| error.to_string())?;
        let addresses = server.address().and_then(|listen| Ok((listen, server.admin_address()?)));
        let signals = signals().map_err(|error| format!("cannot wait for signals: {error}"))?;
        let (listen, admin_listen) = addresses.map_err(|error| error.to_string())?;
        Ok::<_, String>((server, listen, admin_listen, signals))
    };
    match started.await {
        Ok((server, listen, admin_listen, (termination, hangup))) => {
            let upstream = &config.upstream.url;
            let (further_upstreams, tls) = (config.further_upstreams.len(), config.tls.is_some());
            let web_listen = server.web_address().map(tracing::field::display);
            tracing::info!(%listen, %admin_listen, web_listen, %upstream, further_upstreams, tls, "serving");
            server.serve(termination, hangup).await;
            ExitCode::SUCCESS
        }
        Err(error) => fail(1, &error),
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
    Ok((termination, signal(SignalKind::hangup())?))
}

fn ended(result: Result<()>) -> ExitCode {
    result.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}
