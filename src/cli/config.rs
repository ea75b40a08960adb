//! `refshim config`: checks, shows and describes the configuration, without serving.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::output::{ErrorFormat, print, print_json};
use super::{CONFIGURATION_ERROR, SettingFlags, ended, fail};
use crate::config::{Loaded, schema};

/// Check the configuration, show what is in force, or describe the file for an editor.
#[derive(Debug, Args)]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Load the configuration as `serve` does, and report all mistakes.
    ///
    /// Also those of the files that it names. The exit code is 64 if there are any.
    Check(Sources),
    /// Print every setting in force and where it comes from.
    ///
    /// That is a line of the file, a variable, a flag or the default. Passwords in URLs are masked; files with secrets are
    /// named, not read out.
    Show {
        #[command(flatten)]
        sources: Sources,
        /// As a TOML file, or as a JSON object of all keys.
        #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Toml)]
        format: Format,
    },
    /// Print the JSON Schema of the configuration file, for editors.
    ///
    /// It is of draft 2020-12, as taplo and Even Better TOML read it.
    Schema,
}

/// The file, the flags of `serve`, and the variables.
#[derive(Debug, Args)]
struct Sources {
    /// The TOML file; - is standard input [default: the file that `REFSHIM_CONFIG` names, if any].
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    flags: SettingFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Toml,
    Json,
}

impl ConfigCommand {
    pub(super) fn run(self) -> ExitCode {
        match self.action {
            Action::Check(sources) => {
                let told = match &sources.file {
                    Some(file) if file.as_os_str() == "-" => "standard input".to_owned(),
                    Some(file) => file.display().to_string(),
                    None => "the configuration".to_owned(),
                };
                sources
                    .load()
                    .map_or_else(|code| code, |_| ended(ErrorFormat::Text, &print(&format!("{told}: ok"))))
            }
            Action::Show { sources, format } => match (sources.load(), format) {
                (Ok(Loaded { settings, .. }), Format::Toml) => {
                    ended(ErrorFormat::Text, &print(settings.to_string().trim_end()))
                }
                (Ok(Loaded { settings, .. }), Format::Json) => {
                    ended(ErrorFormat::Text, &print_json(&settings.to_json()))
                }
                (Err(code), _) => code,
            },
            Action::Schema => ended(ErrorFormat::Text, &print_json(&schema())),
        }
    }
}

impl Sources {
    fn load(self) -> Result<Loaded, ExitCode> {
        let loaded = self.flags.sources(self.file).load();
        loaded.map_err(|mistakes| fail(CONFIGURATION_ERROR, &mistakes.to_string()))
    }
}
