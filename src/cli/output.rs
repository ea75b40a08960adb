//! The output of the commands, and their exit codes.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;

use super::terminal;
use crate::client::{Error, ErrorKind, Result};

/// Any other failure.
const FAILURE: u8 = 1;
/// The command line is wrong; also clap's own code for it.
const USAGE: u8 = 2;
/// There is no such image, tag or referrer.
const NOT_FOUND: u8 = 3;
/// The credentials were rejected.
const DENIED: u8 = 4;
/// Nothing refers to the image, and `--exit-code` makes that a failure.
pub(super) const NOTHING: u8 = 5;
/// What a list says of a referrer is not so (`verify-references`).
pub(super) const UNVERIFIED: u8 = 6;
/// Ended by Ctrl-C: 128 and the number of SIGINT, as shells have it.
pub(super) const INTERRUPTED: u8 = 130;

/// What each means, for all commands but `serve`.
pub(super) const EXIT_CODES: [(u8, &str); 8] = [
    (0, "success"),
    (FAILURE, "failure"),
    (USAGE, "usage: the command line is wrong"),
    (NOT_FOUND, "not found: there is no such image, tag or referrer"),
    (DENIED, "denied: the registry rejects the credentials, or there are none"),
    (NOTHING, "nothing refers to the image (references --exit-code)"),
    (UNVERIFIED, "not as listed (verify-references)"),
    (INTERRUPTED, "interrupted by Ctrl-C"),
];

/// The same in the help.
pub(super) fn exit_codes() -> String {
    let lines = EXIT_CODES.map(|(code, meaning)| format!("  {code:>3}  {meaning}"));
    format!("Exit codes of all commands but serve:\n{}", lines.join("\n"))
}

/// Writes lines to standard output.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("writing the output", &error))
        }
        // `| head` stops reading when it has enough: no failure.
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| Error::failed("writing the output", error.to_string()))?;
    // JSON escapes what is below U+0020, but terminals take U+007F to U+009F for commands as well. The line
    // breaks are those of the layout: in a string they are escaped.
    print(&escaped(&text, |character| character.is_control() && character != '\n'))
}

/// Text from a registry, safe for a terminal: control characters, which it would take for commands, are
/// escaped.
pub(super) fn printable(text: &str) -> String {
    escaped(text, char::is_control)
}

/// The same for a text of several lines.
pub(super) fn printable_lines(text: &str) -> String {
    escaped(text, |character| character.is_control() && !matches!(character, '\n' | '\t'))
}

/// The text with these characters escaped as in JSON.
fn escaped(text: &str, escapes: impl Fn(char) -> bool) -> String {
    let shown = |character: char| {
        if escapes(character) { format!("\\u{:04x}", u32::from(character)) } else { character.to_string() }
    };
    text.chars().map(shown).collect()
}

/// Writes lines to standard error, each with the program's name.
pub(super) fn tell(message: &str) {
    let mut stderr = io::stderr();
    // If standard error is closed, there is nowhere to report it.
    let _told = message.lines().try_for_each(|line| writeln!(stderr, "refshim: {}", printable(line)));
}

/// Asks a question; whether the answer is yes. `asked` says in words what it is for.
pub(super) fn agreed(question: &str, asked: impl Fn() -> String) -> Result<bool> {
    // In a script the answer would be read from whatever is piped in.
    if !io::stdin().is_terminal() {
        let answer = "there is no terminal to ask on";
        return Err(Error::new(ErrorKind::Usage, asked(), answer).advise("say --yes if it is meant"));
    }
    let answer = terminal::line(&format!("{question} [y/N] "));
    let answer = answer.map_err(|error| Error::io(asked(), &error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(super) fn fail(code: u8, message: &str) -> ExitCode {
    tell(message);
    ExitCode::from(code)
}

/// How errors are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ErrorFormat {
    /// For people.
    #[default]
    Text,
    /// A line of JSON, where the result would have been JSON.
    Json,
}

#[derive(Serialize)]
struct Failure<'a> {
    error: &'a Error,
    message: String,
    exit_code: u8,
}

/// Tells an error and the advice for it; gives the exit code.
pub(super) fn failed(error: &Error, format: ErrorFormat) -> ExitCode {
    let code = match error.kind() {
        ErrorKind::Failed | ErrorKind::Malformed => FAILURE,
        ErrorKind::Usage => USAGE,
        ErrorKind::NotFound => NOT_FOUND,
        ErrorKind::Denied => DENIED,
    };
    if format == ErrorFormat::Json {
        // On standard error as well: what is read from standard output is the result, or nothing.
        tell_json(&Failure { error, message: error.to_string(), exit_code: code });
        return ExitCode::from(code);
    }
    match error.advice() {
        Some(advice) => fail(code, &format!("{error}\n{advice}")),
        None => fail(code, &error.to_string()),
    }
}

/// Tells that the command line is wrong, and ends the process: as JSON, if it asks for that as far as it can be read.
pub(super) fn misused(error: &clap::Error) -> ! {
    let typed: Vec<_> = std::env::args_os().skip(1).take_while(|word| word != "--").collect();
    let mut pairs = typed.iter().zip(typed.iter().skip(1));
    let has_format = pairs.any(|(flag, value)| flag == "--format" && value == "json");
    let is_json = has_format || typed.iter().any(|word| word == "--json" || word == "--format=json");
    if !error.use_stderr() || !is_json {
        error.exit();
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // What follows is how the command is used, and where help is.
    let (told, advice) = text.split_once("\n\n").unwrap_or((text, ""));
    let error = Error::new(ErrorKind::Usage, "reading the command line", told.trim());
    failed(&error.advise(advice.trim()), ErrorFormat::Json);
    std::process::exit(USAGE.into());
}

#[derive(Serialize)]
struct Warning<'a> {
    warning: &'a str,
}

/// Tells what is not as it should be, and lets the command go on.
pub(super) fn warn(warning: &str, format: ErrorFormat) {
    match format {
        ErrorFormat::Text => tell(&format!("warning: {warning}")),
        ErrorFormat::Json => tell_json(&Warning { warning }),
    }
}

fn tell_json(told: &impl Serialize) {
    // Of strings and numbers: no error. If standard error is closed, there is nowhere to report it.
    let line = serde_json::to_string(told).unwrap_or_default();
    let _told = writeln!(io::stderr(), "{}", printable(&line));
}

pub(super) fn interrupted() -> ExitCode {
    fail(INTERRUPTED, "interrupted; what was sent stays, and the same command again sends only the rest")
}

/// The styles of printed text: plain unless standard output is a terminal.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Styles {
    pub(super) strong: Style,
    pub(super) faint: Style,
    pub(super) kind: Style,
}

impl Styles {
    pub(super) fn of_stdout() -> Self {
        // By no-color.org, an empty NO_COLOR counts as not set.
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
    fn control_characters_from_a_registry_are_escaped() {
        assert_eq!(
            printable("a\u{1b}[31m \u{9b}2J\u{7f}\n\u{e9}"),
            "a\\u001b[31m \\u009b2J\\u007f\\u000a\u{e9}"
        );
    }
}
