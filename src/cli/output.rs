//! What a command says, where, and what its end means as an exit code.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;

use crate::client::{Error, ErrorKind, Result};

/// Something did not work.
const FAILURE: u8 = 1;
/// The command line cannot be meant; clap's own code for that too.
const USAGE: u8 = 2;
/// There is no such image, tag or referrer.
const NOT_FOUND: u8 = 3;
/// The credentials were rejected.
const DENIED: u8 = 4;
/// Ended by Ctrl-C: 128 and the number of SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

pub(super) const EXIT_CODES: &str = "Exit codes of all commands but serve: 0 success, 1 failure, 2 usage, 3 not \
     found, 4 denied, 130 interrupted.";

/// Writes lines to standard output. Whoever reads it may stop reading.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("writing the output", &error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| Error::failed("writing the output", error.to_string()))?;
    print(&escaped(&text, |character| character.is_control() && character != '\n'))
}

/// What others wrote, as it may be shown to a terminal, which takes control characters for commands.
pub(super) fn printable(text: &str) -> String {
    escaped(text, char::is_control)
}

/// The text with these characters as JSON escapes them.
fn escaped(text: &str, escapes: impl Fn(char) -> bool) -> String {
    let shown = |character: char| {
        if escapes(character) { format!("\\u{:04x}", u32::from(character)) } else { character.to_string() }
    };
    text.chars().map(shown).collect()
}

/// Writes lines to standard error, each with the program's name.
pub(super) fn tell(message: &str) {
    let mut stderr = io::stderr();
    // Nobody is left to tell if this fails.
    let _told = message.lines().try_for_each(|line| writeln!(stderr, "refshim: {}", printable(line)));
}

pub(super) fn fail(code: u8, message: &str) -> ExitCode {
    tell(message);
    ExitCode::from(code)
}

/// Tells an error, and what to do about it.
pub(super) fn failed(error: &Error) -> ExitCode {
    let code = match error.kind() {
        ErrorKind::Failed => FAILURE,
        ErrorKind::Usage => USAGE,
        ErrorKind::NotFound => NOT_FOUND,
        ErrorKind::Denied => DENIED,
    };
    match error.advice() {
        Some(advice) => fail(code, &format!("{error}\n{advice}")),
        None => fail(code, &error.to_string()),
    }
}

pub(super) fn interrupted() -> ExitCode {
    fail(INTERRUPTED, "interrupted; what was sent stays, and the same command again sends only the rest")
}

/// The styles of what is printed: plain unless a terminal shows it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Styles {
    pub(super) strong: Style,
    pub(super) faint: Style,
    pub(super) kind: Style,
}

impl Styles {
    pub(super) fn of_stdout() -> Self {
        if !io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        {
            return Self::default();
        }
        let color = |color: AnsiColor| Style::new().fg_color(Some(color.into()));
        Self { strong: Style::new().bold(), faint: Style::new().dimmed(), kind: color(AnsiColor::Cyan) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_others_wrote_commands_a_terminal() {
        assert_eq!(
            printable("a\u{1b}[31m \u{9b}2J\u{7f}\n\u{e9}"),
            "a\\u001b[31m \\u009b2J\\u007f\\u000a\u{e9}"
        );
    }
}
