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

/// Why a look-up has no answer. Clients read this: what went wrong inside is told to the log alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It will have one soon.
    #[error("the index is being opened")]
    Opening,
    /// The index failed and is being built anew from the journal.
    #[error("the index is being built anew")]
    Rebuilding,
    /// The journal is damaged.
    #[error(
        "the index is damaged: whoever runs refshim has to restore a backup (refshim index load) or to keep what is \
         intact (refshim index rebuild)"
    )]
    Damaged,
    /// The look-up itself failed.
    #[error("the index cannot be read")]
    Failed,
    /// The look-up took too long; on a disk that hangs it may never end.
    #[error("the index did not answer in time")]
    Slow,
    /// The index was closed.
    #[error("the index is closed")]
    Closed,
}

/// Why something was not recorded. Clients read this: what went wrong inside is told to the log alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The disk does not take it. It is tried again from time to time.
    #[error("the index cannot be written at the moment")]
    Failed,
    /// The journal is damaged.
    #[error(
        "the index is damaged: whoever runs refshim has to restore a backup (refshim index load) or to keep what is \
         intact (refshim index rebuild)"
    )]
    Damaged,
    /// What writes the index has ended, though it should not.
    #[error("the index cannot be written until refshim is restarted")]
    Ended,
    /// It took too long; it may be recorded later, or never.
    #[error("the index did not answer in time")]
    Slow,
    /// The index was closed.
    #[error("the index is closed")]
    Closed,
}

impl From<ReadError> for WriteError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Opening | ReadError::Rebuilding | ReadError::Failed => Self::Failed,
            ReadError::Damaged => Self::Damaged,
            ReadError::Slow => Self::Slow,
            ReadError::Closed => Self::Closed,
        }
    }
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
