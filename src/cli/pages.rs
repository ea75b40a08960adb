//! Completions and manual pages, generated from the description of the command line.

use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use super::output::print;
use crate::client::{Error, Result};

/// Prints the completions of a shell, to be sourced or put where it looks for them.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Which shell.
    shell: Shell,
}

/// Writes manual pages, one for each command; without a directory, prints the first.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Where they go.
    directory: Option<PathBuf>,
}

impl Completions {
    pub(super) fn run(&self) -> Result<()> {
        // Into memory first: clap_complete panics if a write fails, as when `| head` stops reading.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "refshim", &mut script);
        print(String::from_utf8_lossy(&script).trim_end())
    }
}

impl Man {
    pub(super) fn run(&self) -> Result<()> {
        let failed = |error: io::Error| Error::io("writing the manual pages", &error);
        let Some(directory) = &self.directory else {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(failed)?;
            return print(String::from_utf8_lossy(&page).trim_end());
        };
        std::fs::create_dir_all(directory).map_err(failed)?;
        clap_mangen::generate_to(Cli::command(), directory).map_err(failed)
    }
}
