//! Reloads something that is made of files when they change. If they cannot be loaded, the previous one stays in use.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sha2::{Digest as _, Sha256};

use super::TlsError;

/// Can be reloaded from its files.
pub trait Reload: Send + Sync {
    /// Reloads if one of the files changed. Blocks on the disk.
    fn reload(&self);
}

/// A `T` that is made of files.
pub(super) struct Reloading<T> {
    what: String,
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    current: RwLock<Arc<T>>,
    seen: Mutex<FileFingerprint>,
}

type FileFingerprint = [u8; 32];

impl<T> Reloading<T> {
    /// Loads the files. `what` is the name in the log.
    ///
    /// # Errors
    /// They cannot be loaded; at the start that is an error, later it is logged.
    pub(super) fn new(
        what: String,
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // Before the files are loaded: a change in between is then loaded once too often, never missed.
        let seen = Mutex::new(fingerprint(&files));
        let current = RwLock::new(Arc::new(make()?));
        Ok(Self { what, files, make: Box::new(make), current, seen })
    }

    /// The current one.
    pub(super) fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T: Send + Sync> Reload for Reloading<T> {
    fn reload(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = fingerprint(&self.files);
        if now == *seen {
            return;
        }
        // Also if loading fails, so that the same error is not logged at every interval.
        *seen = now;
        match (self.make)() {
            Ok(made) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
                tracing::info!(tls = self.what, "TLS files changed, new connections use them");
            }
            Err(error) => {
                tracing::error!(tls = self.what, %error, "TLS files changed but cannot be loaded; keeping the previous ones");
            }
        }
    }
}

/// A hash of the contents. Time stamps are not reliable: Kubernetes replaces a mounted secret by moving symbolic
/// links. A file that cannot be read counts as empty.
fn fingerprint(files: &[PathBuf]) -> FileFingerprint {
    let mut hash = Sha256::new();
    for file in files {
        let content = std::fs::read(file).unwrap_or_default();
        hash.update((content.len() as u64).to_be_bytes());
        hash.update(&content);
    }
    hash.finalize().into()
}

impl<T> fmt::Debug for Reloading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading")
            .field("what", &self.what)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_made_again_when_a_file_changes_and_kept_when_the_new_one_does_not_fit() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("number");
        std::fs::write(&file, "1").unwrap();
        let read = file.clone();
        let reloading = Reloading::new("a number".to_owned(), vec![file.clone()], move || {
            let text = std::fs::read_to_string(&read).unwrap();
            text.parse::<u32>().map_err(|_| TlsError::ServerName(text))
        })
        .unwrap();
        let check = |content: &str, expected: u32| {
            std::fs::write(&file, content).unwrap();
            reloading.reload();
            assert_eq!(*reloading.current(), expected, "{content}");
        };
        check("1", 1);
        check("2", 2);
        check("two", 2);
        check("3", 3);
    }
}
