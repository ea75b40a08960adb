//! Where the access log and the audit log are written.

use std::fmt;
use std::path::PathBuf;

use super::mistake::Mistake;
use super::quantity::MIB;
use super::value::{Invalid, form};

/// Where lines are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogOutput {
    /// Nowhere.
    #[default]
    Off,
    /// Standard output.
    Stdout,
    /// Standard error, between the lines of the log.
    Stderr,
    /// This file, which is opened anew on SIGHUP.
    File(PathBuf),
}

impl fmt::Display for LogOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Stdout => f.write_str("stdout"),
            Self::Stderr => f.write_str("stderr"),
            Self::File(file) => file.display().fmt(f),
        }
    }
}

/// The access log: a line for each request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// Where it is written. Default nowhere.
    pub output: LogOutput,
}

/// The audit log: who recorded, deleted or asked for which links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// Where it is written. Default nowhere.
    pub output: LogOutput,
    /// Bytes after which a file is replaced by a new one; 0 never. Default 64 MiB.
    pub max_bytes: u64,
    /// How many replaced files are kept. Default 10.
    pub keep: usize,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { output: LogOutput::Off, max_bytes: 64 * MIB, keep: 10 }
    }
}

/// A place for lines. A file needs a `/`, so that a misspelt word does not become one.
pub(super) fn log_output(text: &str) -> Result<LogOutput, Invalid> {
    match text {
        "off" => Ok(LogOutput::Off),
        "stdout" => Ok(LogOutput::Stdout),
        "stderr" => Ok(LogOutput::Stderr),
        file if file.contains('/') && !file.ends_with('/') => Ok(LogOutput::File(file.into())),
        _ => {
            let example = "off, stdout, stderr, or a file with its directory: /var/log/refshim/access.log";
            Err(form("a place for a log", text, example))
        }
    }
}

/// Two logs in one file: what rotates one would take the other with it.
pub(super) fn mistake(access_log: &AccessLogConfig, audit: &AuditConfig) -> Option<Mistake> {
    let is_shared = matches!(audit.output, LogOutput::File(_)) && audit.output == access_log.output;
    is_shared
        .then(|| Mistake::new("audit.output", "the same file as access_log.output; give it one of its own"))
}
