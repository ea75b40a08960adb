//! Errors of the index.
//!
//! Clients read those of reading and writing, so they say what to do and nothing of files or sled; the reason is in
//! the log. Operators read [`OpenError`].

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
    /// A newer build wrote it, and this one cannot read it.
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
    /// The connection to the database cannot be set up.
    #[error("the index in the database cannot be opened: {0}")]
    Database(String),
    /// The system gives no thread.
    #[error("a thread for the index cannot be started: {0}")]
    Thread(#[source] io::Error),
}

/// Why the index cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It is being opened; retry soon.
    #[error("the index is being opened")]
    Opening,
    /// It failed and is being rebuilt from the journal; retry later.
    #[error("the index is being rebuilt")]
    Rebuilding,
    /// The database cannot be used; that is looked at again all the time.
    #[error("the database of the index cannot be used at the moment")]
    Unreachable,
    /// The journal is damaged.
    #[error(
        "the index is damaged: the operator of refshim has to restore a backup (refshim index load) or to keep what is \
         intact (refshim index rebuild)"
    )]
    Damaged,
    /// The read itself failed.
    #[error("the index cannot be read")]
    Failed,
    /// The read took too long; on a disk that hangs it may never end.
    #[error("the index did not answer in time")]
    Slow,
    /// The index was closed.
    #[error("the index is closed")]
    Closed,
}

/// Why something was not recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The disk does not take writes at the moment. That is retried in the background.
    #[error("the index cannot be written at the moment")]
    Failed,
    /// The database cannot be used; that is looked at again all the time.
    #[error("the database of the index cannot be used at the moment")]
    Unreachable,
    /// The journal is damaged.
    #[error(
        "the index is damaged: the operator of refshim has to restore a backup (refshim index load) or to keep what is \
         intact (refshim index rebuild)"
    )]
    Damaged,
    /// The thread that writes the index has ended, which it never should.
    #[error("the index cannot be written until refshim is restarted")]
    Ended,
    /// It took too long. It may still be recorded, or not.
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
            ReadError::Unreachable => Self::Unreachable,
            ReadError::Damaged => Self::Damaged,
            ReadError::Slow => Self::Slow,
            ReadError::Closed => Self::Closed,
        }
    }
}

/// Why a probe failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}
