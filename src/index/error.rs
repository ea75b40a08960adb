//! Why the index does not do what it was asked for.

use std::io;
use std::path::PathBuf;

/// Why the index cannot be opened at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// A newer build wrote it.
    #[error("{0}")]
    Newer(String),
    /// A file or directory cannot be read or made.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system gives no thread.
    #[error("a thread for the index cannot be started: {0}")]
    Thread(#[source] io::Error),
}

/// Why a look-up has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It will have one soon.
    #[error("the index is being opened")]
    Opening,
    /// The index is damaged; says how, and what to do.
    #[error("{0}")]
    Damaged(String),
    /// The look-up itself failed.
    #[error("the index cannot be read: {0}")]
    Failed(String),
    /// The index was closed.
    #[error("the index is closed")]
    Closed,
}

/// Why something was not recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Nothing can be recorded any more until a restart.
    #[error("the index cannot be written: {0}")]
    Failed(String),
    /// The index was closed.
    #[error("the index is closed")]
    Closed,
}

/// Why the index does not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}
