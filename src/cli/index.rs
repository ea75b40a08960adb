//! `refshim index`: checks, repairs, moves and backs up the index.

mod copying;
mod files;
mod report;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use tokio::runtime::Runtime;

use super::{CONFIGURATION_ERROR, fail};
use crate::config::{CommandLine, Config, IndexPlace};
use crate::index::maintenance::{self, IndexDatabase, MaintenanceError, Migrated};
use crate::tls;
use files::{dump_to, input_of};
use report::{print_database_report, print_rebuilt, print_report};

/// Look after the index: check it, mend it, back it up.
#[derive(Debug, Args)]
pub(super) struct IndexCommand {
    /// Where the index is kept, if it is not in a database [default: ./refshim-data].
    #[arg(long, global = true, value_name = "DIRECTORY", conflicts_with = "url")]
    data_dir: Option<String>,
    /// The database that it is in [default: index.url of the configuration].
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// The TOML file that refshim is served with.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring the schema in the database to the version of this build.
    ///
    /// Any number may do so at once, and builds of the version before go on working.
    Migrate,
    /// Read the index from end to end; exit code 1 if anything is damaged.
    ///
    /// In a data directory, not while it is served.
    Check,
    /// Keep what is intact of the damaged journal in a data directory.
    ///
    /// Says what is not, and has sled rebuilt at the next start. Not while it is served. The damaged journal is set aside,
    /// not removed.
    Rebuild,
    /// Write the whole index as JSON Lines, also while it is served.
    Dump {
        /// The file to write, which must not exist; - is standard output [default: -].
        #[arg(value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make an index of what was dumped, in a directory or a database that has none.
    Load {
        /// The file to read; - is standard input [default: -].
        #[arg(value_name = "FILE")]
        input: Option<PathBuf>,
    },
    Copy(copying::Copy),
}

/// A command about a data directory was given a database, or the other way round.
const NEEDS_DATABASE: &str =
    "refshim index migrate is for an index in a database: set index.url, REFSHIM_INDEX_URL or --url";
const NEEDS_DIRECTORY: &str = "refshim index rebuild is for an index in a data directory, and a database is named: \
                               say --data-dir";

impl IndexCommand {
    pub(super) fn run(self) -> ExitCode {
        let Self { data_dir, url, config, action } = self;
        if let Action::Copy(copy) = action {
            return if data_dir.is_some() || url.is_some() {
                fail(
                    CONFIGURATION_ERROR,
                    "refshim index copy takes --from and --to in place of --data-dir and --url",
                )
            } else {
                copy.run(config)
            };
        }
        let given = CommandLine { data_dir, index_url: url, config, ..CommandLine::default() };
        let place = match Config::index_place(&given, std::env::vars_os(), &tls::checks()) {
            Ok(place) => place,
            Err(mistakes) => return fail(CONFIGURATION_ERROR, &mistakes.to_string()),
        };
        let done = match (action, place) {
            (Action::Migrate, IndexPlace::Directory(_)) => return fail(CONFIGURATION_ERROR, NEEDS_DATABASE),
            (Action::Rebuild, IndexPlace::Database(_)) => return fail(CONFIGURATION_ERROR, NEEDS_DIRECTORY),
            (action, IndexPlace::Directory(data_dir)) => action.run_in_directory(&data_dir),
            (action, IndexPlace::Database(database)) => {
                IndexDatabase::new(&database).and_then(|database| action.run_in_database(&database))
            }
        };
        done.unwrap_or_else(|error| fail(1, &error.to_string()))
    }
}

impl Action {
    fn run_in_directory(self, data_dir: &Path) -> Result<ExitCode, MaintenanceError> {
        match self {
            Self::Check => {
                let report = maintenance::check(data_dir)?;
                print_report(&report, &mut io::stdout()).map_err(printed)?;
                Ok(if report.gaps.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Self::Rebuild => {
                let rebuilt = maintenance::rebuild(data_dir)?;
                print_rebuilt(&rebuilt, &mut io::stdout()).map_err(printed)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Dump { output } => {
                let dumped = dump_to(output, |output| maintenance::dump_directory(data_dir, output))?;
                dumped.map_or(Ok(ExitCode::SUCCESS), |dumped| counted(dumped.records))
            }
            Self::Load { input } => counted(maintenance::load_directory(data_dir, input_of(input)?)?.records),
            // Refused before.
            Self::Migrate | Self::Copy(_) => Err(MaintenanceError::Database(NEEDS_DATABASE.to_owned())),
        }
    }

    fn run_in_database(self, database: &IndexDatabase) -> Result<ExitCode, MaintenanceError> {
        let what = "starting";
        let runtime = Runtime::new().map_err(|source| MaintenanceError::Io { what, source })?;
        match self {
            Self::Migrate => {
                let Migrated { from, to } = runtime.block_on(database.migrate())?;
                let told = match from {
                    Some(from) if from == to => format!("the schema is of version {to} already"),
                    Some(from) => format!("the schema was of version {from} and is of version {to} now"),
                    None => format!("the schema was made, of version {to}"),
                };
                writeln!(io::stdout(), "{told}").map_err(printed)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Check => {
                let report = runtime.block_on(database.check())?;
                print_database_report(&report, &mut io::stdout()).map_err(printed)?;
                Ok(if report.odd == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Self::Dump { output } => {
                let dumped = dump_to(output, |output| runtime.block_on(database.dump(output)))?;
                dumped.map_or(Ok(ExitCode::SUCCESS), |dumped| counted(dumped.records))
            }
            Self::Load { input } => counted(runtime.block_on(database.load(input_of(input)?))?.records),
            // Refused before.
            Self::Rebuild | Self::Copy(_) => Err(MaintenanceError::Database(NEEDS_DIRECTORY.to_owned())),
        }
    }
}

fn printed(source: io::Error) -> MaintenanceError {
    MaintenanceError::Io { what: "writing to standard output", source }
}

fn counted(records: u64) -> Result<ExitCode, MaintenanceError> {
    writeln!(io::stdout(), "{records} records").map_err(printed)?;
    Ok(ExitCode::SUCCESS)
}
