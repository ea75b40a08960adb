//! Completions and manual pages, generated from the description of the command line.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};

use super::output::{EXIT_CODES, print};
use super::{Cli, examples};
use crate::client::{Error, Result};

/// Prints the completions of a shell.
///
/// They can be sourced, or put where it looks for them.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Which shell.
    shell: Shell,
}

/// Writes manual pages, one for each command.
///
/// Without a directory, prints the first.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Where they go.
    directory: Option<PathBuf>,
}

impl Completions {
    pub(super) fn run(&self) -> Result<()> {
        // Into memory first: clap_complete panics if a write fails, as when `| head` stops reading.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::described(), "refshim", &mut script);
        print(String::from_utf8_lossy(&script).trim_end())
    }
}

/// The variables that the commands for registries heed.
const ENVIRONMENT: [(&str, &str); 8] = [
    ("REGISTRY_AUTH_FILE", "The file of logins, in place of all others."),
    ("XDG_RUNTIME_DIR", "Below it, containers/auth.json is looked for, podman's file of logins."),
    ("DOCKER_CONFIG", "The directory of config.json, docker's file of logins, in place of ~/.docker."),
    ("HTTP_PROXY, HTTPS_PROXY, ALL_PROXY", "Proxies to connect through; also in small letters."),
    ("NO_PROXY", "Hosts that are connected to without a proxy, with commas between."),
    ("SSL_CERT_FILE, SSL_CERT_DIR", "Certificates of authorities, in place of the system's."),
    ("NO_COLOR", "If it is set, nothing is coloured."),
    (
        "REFSHIM_...",
        "Each setting of the configuration, for serve and the commands that read it (refshim config show).",
    ),
];

impl Man {
    pub(super) fn run(&self) -> Result<()> {
        let failed = |error: io::Error| Error::io("writing the manual pages", &error);
        let mut command = Cli::described().disable_help_subcommand(true);
        command.build();
        let Some(directory) = &self.directory else {
            return print(String::from_utf8_lossy(&page(&command, "").map_err(failed)?).trim_end());
        };
        std::fs::create_dir_all(directory).map_err(failed)?;
        write_all(&command, "", directory).map_err(failed)
    }
}

/// Writes the pages of a command, `name` behind `refshim`, and of all below it.
fn write_all(command: &Command, name: &str, directory: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_all(below, format!("{name} {}", below.get_name()).trim_start(), directory)?;
    }
    let file = clap_mangen::Man::new(command.clone()).get_filename();
    std::fs::write(directory.join(file), page(command, name)?)
}

fn page(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    let (man, mut page) = (clap_mangen::Man::new(command.clone()), Vec::new());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut more = Roff::new();
    let examples = examples::of(name);
    if !examples.is_empty() {
        more.control("SH", ["EXAMPLES"]);
    }
    for (what, line) in examples {
        more.control("PP", []).text([roman(*what)]);
        more.control("PP", []).control("RS", ["4"]).control("nf", []);
        more.text([roman(*line)]).control("fi", []).control("RE", []);
    }
    more.control("SH", ["EXIT STATUS"]);
    if name == "serve" {
        more.text([roman("0 after SIGTERM or SIGINT, 64 if the configuration is wrong, else 1.")]);
    } else {
        listed(&mut more, EXIT_CODES.map(|(code, meaning)| (code.to_string(), meaning)));
    }
    more.control("SH", ["ENVIRONMENT"]);
    listed(&mut more, ENVIRONMENT.map(|(name, meaning)| (name.to_owned(), meaning)));
    more.to_writer(&mut page)?;
    Ok(page)
}

/// A list of names and what each means.
fn listed(roff: &mut Roff, entries: impl IntoIterator<Item = (String, &'static str)>) {
    for (name, meaning) in entries {
        roff.control("TP", []).text([bold(name)]).text([roman(meaning)]);
    }
}
