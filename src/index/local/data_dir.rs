//! What the data directory holds, and the renames that replace one of its parts by another.
//!
//! | Name | What it is |
//! |---|---|
//! | `lock` | empty; locked by the process that uses the directory |
//! | `journal/` | the journal: the truth, and all that a backup needs |
//! | `coverage` | how far the index knows what the registries hold; may be lost |
//! | `backfill/` | what `refshim backfill` has read; may be lost |
//! | `sled/` | what changed since the journal's snapshot, in sled, built from the journal; may be deleted while refshim is stopped |
//! | `sled/P-N/` | one delta, from the position P of the journal on; N tells it from those before |
//! | `sled.damaged-N/` | a `sled/` that could not be opened, kept to be looked at; only the newest |
//! | `journal.damaged-N/` | a journal that `refshim index rebuild` replaced; never removed by refshim |
//! | `journal.mending/` | `refshim index rebuild` at work |
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
/// A journal that a dump is being loaded into.
pub(crate) const UNFINISHED_LOAD: &str = "journal.loading";
/// A journal that another index is being copied to.
pub(crate) const UNFINISHED_COPY: &str = "journal.copying";
pub(crate) const SLED: &str = "sled";
const LOCK: &str = "lock";
const DAMAGED_JOURNAL: &str = "journal.damaged-";
const DAMAGED_SLED: &str = "sled.damaged-";
/// What builds before snapshots were sorted made of a sled that failed while they were running.
const OLD_NEW_SLED: &str = "sled.anew-";

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

/// A delta's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeltaName {
    /// The position of the journal at which it begins.
    pub(crate) base: u64,
    /// Of several with the same base the highest counts. A failed sled's threads may go on for a while and write to files by their path,
    /// so in one process no path is used twice.
    pub(crate) number: u64,
}

impl DeltaName {
    pub(crate) fn path(self, data_dir: &Path) -> PathBuf {
        data_dir.join(SLED).join(format!("{:016x}-{}", self.base, self.number))
    }

    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (base, number) = name.split_once('-')?;
        let delta = Self { base: u64::from_str_radix(base, 16).ok()?, number: number.parse().ok()? };
        (name == format!("{:016x}-{}", delta.base, delta.number)).then_some(delta)
    }
}

/// The deltas, by position and number.
pub(crate) fn deltas(data_dir: &Path) -> io::Result<Vec<DeltaName>> {
    let mut deltas: Vec<_> =
        entries(&data_dir.join(SLED))?.iter().filter_map(|path| DeltaName::of(path)).collect();
    deltas.sort_unstable();
    Ok(deltas)
}

/// The sleds that builds before snapshots were sorted left, the whole index in each.
pub(crate) fn old_sleds(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut old = Vec::new();
    let sled = data_dir.join(SLED);
    if sled.join("db").try_exists()? {
        old.push(sled);
    }
    let numbers = numbers(data_dir, OLD_NEW_SLED)?.into_iter();
    old.extend(numbers.map(|number| data_dir.join(format!("{OLD_NEW_SLED}{number}"))));
    Ok(old)
}

/// The paths in a directory; none if there is no directory.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
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

/// Removes every delta of this process, one of which failed.
pub(crate) fn remove_failed_deltas(data_dir: &Path) -> io::Result<()> {
    deltas(data_dir)?.iter().try_for_each(|delta| remove_open_sled(&delta.path(data_dir)))
}

fn remove_open_sled(directory: &Path) -> io::Result<()> {
    for path in entries(directory)? {
        if path.is_file() {
            // Emptied before it is removed: the failed sled still has its files open, and on a full disk their space
            // is what the new one needs.
            File::options().write(true).open(path)?.set_len(0)?;
        }
    }
    remove_directory(directory)
}

/// Removes a directory, if it is there.
pub(crate) fn remove_directory(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
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
