//! What the data directory holds, and the renames that replace one of its parts by another.
//!
//! | Name | What it is |
//! |---|---|
//! | `lock` | empty; locked by the process that uses the directory |
//! | `journal/` | the journal: the truth, and all that a backup needs |
//! | `coverage` | how far the index knows what the registries hold; may be lost |
//! | `backfill/` | what `refshim backfill` has read; may be lost |
//! | `sled/` | the index in sled, built from the journal; may be deleted while refshim is stopped |
//! | `sled.anew-N/` | a sled built while the process was running, after the one before failed; becomes `sled/` at the next start |
//! | `sled.damaged-N/` | a sled that could not be opened, kept to be looked at; only the newest |
//! | `journal.damaged-N/` | a journal that `refshim index rebuild` replaced; never removed by refshim |
//! | `journal.mending/`, `sled.mending/` | `refshim index rebuild` at work |
//! | `journal.mended/` | its result, complete, about to become `journal/` |
//! | `journal.loading/` | `refshim index load` at work |
//! | `journal.copying/` | `refshim index copy` at work; the same command goes on with it |
//!
//! Everything is complete and synced before it gets its final name, and the directory is synced after: a crash leaves
//! the old part or the new one, and each next start, or repetition of the command, finishes or removes what is left.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::journal::files::sync_directory;
use crate::index::OpenError;

pub(crate) const JOURNAL: &str = "journal";
/// A complete rebuilt journal that is not yet [`JOURNAL`].
pub(crate) const REBUILT_JOURNAL: &str = "journal.mended";
/// A journal that is being rebuilt.
pub(crate) const UNFINISHED_REBUILD: &str = "journal.mending";
/// The sled that a rebuild collects in.
pub(crate) const SCRATCH_SLED: &str = "sled.mending";
/// A journal that a dump is being loaded into.
pub(crate) const UNFINISHED_LOAD: &str = "journal.loading";
/// A journal that another index is being copied to.
pub(crate) const UNFINISHED_COPY: &str = "journal.copying";
pub(crate) const SLED: &str = "sled";
const LOCK: &str = "lock";
const DAMAGED_JOURNAL: &str = "journal.damaged-";
const DAMAGED_SLED: &str = "sled.damaged-";
const NEW_SLED: &str = "sled.anew-";

/// Creates the data directory if it is missing. Returns its absolute path.
pub(crate) fn create(data_dir: &Path) -> Result<PathBuf, OpenError> {
    let create = || {
        let data_dir = std::path::absolute(data_dir)?;
        if !data_dir.try_exists()? {
            fs::create_dir_all(&data_dir)?;
            data_dir.parent().map_or(Ok(()), sync_directory)?;
        }
        Ok(data_dir)
    };
    create().map_err(|source| OpenError::Io { path: data_dir.to_owned(), source })
}

/// Locks the data directory for as long as the file is open. The system ends the lock with the process, however that
/// ends.
pub(crate) fn lock(data_dir: &Path) -> Result<File, OpenError> {
    let path = data_dir.join(LOCK);
    let file = File::options().create(true).write(true).truncate(false).open(&path);
    let file = file.map_err(|source| OpenError::Io { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: data_dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// Finishes what an interrupted `refshim index rebuild` left: puts the rebuilt journal in place once the damaged
/// one is out of the way, and removes it if that one is still there.
pub(crate) fn finish_rebuild(data_dir: &Path) -> Result<(), OpenError> {
    let (rebuilt, journal) = (data_dir.join(REBUILT_JOURNAL), data_dir.join(JOURNAL));
    let finish = || {
        if !rebuilt.try_exists()? {
            return Ok(());
        }
        // Interrupted before the damaged journal was renamed. A backup may stand in its place by now, so the
        // rebuilt one is not taken; the command can be repeated.
        if journal.try_exists()? {
            return fs::remove_dir_all(&rebuilt);
        }
        fs::rename(&rebuilt, &journal)?;
        sync_directory(data_dir)
    };
    finish().map_err(|source| OpenError::Io { path: rebuilt.clone(), source })
}

/// Where a damaged journal is moved to.
pub(crate) fn free_name_for_damaged_journal(data_dir: &Path) -> PathBuf {
    let mut names = (1u64..).map(|number| data_dir.join(format!("{DAMAGED_JOURNAL}{number}")));
    names.find(|name| !name.exists()).unwrap_or_else(|| data_dir.join(DAMAGED_JOURNAL))
}

/// Renames the newest `sled.anew-N` to `sled`, if there is one. Only at a start: the process that built it may still
/// have threads of the failed sled before it, which write to files below `sled` by their path.
pub(crate) fn adopt_new_sled(data_dir: &Path) -> Result<(), OpenError> {
    let adopt = || {
        let mut numbers = numbers(data_dir, NEW_SLED)?;
        numbers.sort_unstable();
        let Some(newest) = numbers.pop() else { return Ok(()) };
        for number in numbers {
            fs::remove_dir_all(data_dir.join(format!("{NEW_SLED}{number}")))?;
        }
        let directory = data_dir.join(SLED);
        if directory.try_exists()? {
            fs::remove_dir_all(&directory)?;
        }
        fs::rename(data_dir.join(format!("{NEW_SLED}{newest}")), directory)?;
        sync_directory(data_dir)
    };
    adopt().map_err(|source| OpenError::Io { path: data_dir.join(SLED), source })
}

/// Renames `sled` to `sled.damaged-N`, to be looked at, and removes the older ones: a disk must not fill up with
/// them.
pub(crate) fn set_sled_aside(data_dir: &Path) -> io::Result<()> {
    let directory = data_dir.join(SLED);
    if !directory.try_exists()? {
        return Ok(());
    }
    let older = numbers(data_dir, DAMAGED_SLED)?;
    let number = older.iter().max().map_or(1, |newest| newest + 1);
    fs::rename(directory, data_dir.join(format!("{DAMAGED_SLED}{number}")))?;
    older.iter().try_for_each(|number| fs::remove_dir_all(data_dir.join(format!("{DAMAGED_SLED}{number}"))))
}

/// Removes every sled of this process that failed, and returns the path for the next one.
pub(crate) fn replace_failed_sled(data_dir: &Path) -> io::Result<PathBuf> {
    let number = numbers(data_dir, NEW_SLED)?.into_iter().max().unwrap_or(0);
    remove_failed_sled(&data_dir.join(SLED))?;
    for number in numbers(data_dir, NEW_SLED)? {
        remove_failed_sled(&data_dir.join(format!("{NEW_SLED}{number}")))?;
    }
    Ok(data_dir.join(format!("{NEW_SLED}{}", number + 1)))
}

fn remove_failed_sled(directory: &Path) -> io::Result<()> {
    if !directory.try_exists()? {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            // Emptied before it is removed: the failed sled still has its files open, and on a full disk their space
            // is what the new one needs.
            File::options().write(true).open(entry.path())?.set_len(0)?;
        }
    }
    fs::remove_dir_all(directory)
}

/// The numbers N of all names `<prefix>N` in the data directory.
fn numbers(data_dir: &Path, prefix: &str) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(data_dir)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u64>().ok()));
    }
    Ok(numbers)
}
