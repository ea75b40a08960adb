//! Events on disk, or beside an index that several replicas share: each group of them written as a whole before any of
//! its events is answered, and removed when all of them are worked off. On disk, a group is a file.
//!
//! A file has the time in its first line, an event in each further one, and in its last one a checksum of the lines
//! before. It gets its name only when it is synced; so a kill, or a power cut, leaves a whole file or one that does not
//! count. A file that was damaged later is set aside with an error in the log, and the others are read.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Event;
use crate::index::{Parcel, SharedQueue};

const SUFFIX: &str = "events";
const UNFINISHED: &str = "unfinished";
const DAMAGED: &str = "damaged";
/// The first word of a file, with the version of its format.
const HEAD: &str = "events-1 ";

/// Where the events of one queue are.
#[derive(Debug)]
pub(super) enum Store<E> {
    /// In files of this process's own.
    Files(Arc<Files<E>>),
    /// Beside the index, with the name there of each batch that this replica has.
    Shared { queue: SharedQueue, names: Mutex<HashMap<u64, String>> },
}

/// The files of one queue.
#[derive(Debug)]
pub(super) struct Files<E> {
    directory: PathBuf,
    of: PhantomData<fn(E)>,
}

/// What one file has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch<E> {
    pub(super) number: u64,
    pub(super) received: SystemTime,
    pub(super) events: Vec<E>,
}

impl<E: Event> Store<E> {
    /// Writes events, durably.
    ///
    /// # Errors
    /// They are not written.
    pub(super) async fn write(&self, batch: Batch<E>) -> io::Result<Batch<E>> {
        match self {
            Self::Files(files) => {
                let files = Arc::clone(files);
                let written = tokio::task::spawn_blocking(move || files.write(&batch).map(|()| batch)).await;
                written.unwrap_or_else(|error| Err(io::Error::other(error)))
            }
            Self::Shared { queue, names } => {
                let id = queue.add(&lines(&batch.events)?).await.map_err(io::Error::other)?;
                lock(names).insert(batch.number, id);
                Ok(batch)
            }
        }
    }

    /// Removes what is worked off. Not synced: events that come again are worked off again.
    pub(super) async fn remove(&self, numbers: Vec<u64>) {
        match self {
            Self::Files(files) => {
                let files = Arc::clone(files);
                let removed = tokio::task::spawn_blocking(move || {
                    for number in numbers {
                        files.remove(number);
                    }
                });
                // Only cancelled with the runtime; the files are then read once more.
                let _removed = removed.await;
            }
            Self::Shared { queue, names } => {
                for number in numbers {
                    let Some(id) = lock(names).remove(&number) else { continue };
                    if let Err(error) = queue.remove(&id).await {
                        tracing::warn!(%error, "{} that are worked off stay in the database", E::NAMED);
                    }
                }
            }
        }
    }

    /// What other replicas have left, each with the number that `number` gives it. Nothing of files.
    pub(super) async fn take(&self, mut number: impl FnMut() -> u64) -> Vec<Batch<E>> {
        let Self::Shared { queue, names } = self else { return Vec::new() };
        let parcels = queue.take().await.unwrap_or_else(|error| {
            tracing::debug!(%error, "{} of other replicas cannot be looked for", E::NAMED);
            Vec::new()
        });
        let mut batches = Vec::new();
        for Parcel { id, received, events } in parcels {
            let received = UNIX_EPOCH.checked_add(received).unwrap_or(UNIX_EPOCH);
            let parsed = events.lines().map(|line| serde_json::from_str(line).ok()).collect::<Option<_>>();
            let Some(events) = parsed else {
                tracing::error!(
                    id,
                    "queued {} are unreadable and left alone; {} finds out what they told of",
                    E::NAMED,
                    E::REMEDY
                );
                continue;
            };
            let number = number();
            lock(names).insert(number, id);
            batches.push(Batch { number, received, events });
        }
        batches
    }

    /// Whether others may leave something.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Shared { .. })
    }
}

fn lock(names: &Mutex<HashMap<u64, String>>) -> MutexGuard<'_, HashMap<u64, String>> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lines<E: Event>(events: &[E]) -> io::Result<String> {
    let lines: Vec<String> = events.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    Ok(lines.join("\n"))
}

impl<E: Event> Files<E> {
    /// The files in a directory, which is made, and what is in it, oldest first.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub(super) fn open(directory: PathBuf) -> io::Result<(Self, Vec<Batch<E>>)> {
        fs::create_dir_all(&directory)?;
        let mut batches = Vec::new();
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|suffix| suffix == UNFINISHED) {
                // Was never answered.
                fs::remove_file(&path)?;
            }
            let Some(number) = number_of(&path) else { continue };
            if let Some(batch) = parsed(number, &fs::read(&path)?) {
                batches.push(batch);
            } else {
                let aside = path.with_extension(DAMAGED);
                fs::rename(&path, &aside)?;
                tracing::error!(file = %aside.display(),
                    "a file of queued {} is damaged and set aside; {} finds out what they told of",
                    E::NAMED, E::REMEDY);
            }
        }
        batches.sort_by_key(|batch| batch.number);
        Ok((Self { directory, of: PhantomData }, batches))
    }

    /// Writes events, durably. Blocks.
    ///
    /// # Errors
    /// They are not written.
    pub(super) fn write(&self, batch: &Batch<E>) -> io::Result<()> {
        let (path, unfinished) = (self.path(batch.number, SUFFIX), self.path(batch.number, UNFINISHED));
        let written = || {
            let mut file = File::create(&unfinished)?;
            file.write_all(&formatted(batch)?)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            // Its name, too, must survive.
            File::open(&self.directory)?.sync_all()
        };
        let written = written();
        if written.is_err() {
            // Whatever is left: it was not answered. A whole file that stays would only be read once too often.
            for left in [&unfinished, &path] {
                let _missing = fs::remove_file(left);
            }
        }
        written
    }

    /// Removes a file. Not synced: events that come again are worked off again. Blocks.
    pub(super) fn remove(&self, number: u64) {
        let path = self.path(number, SUFFIX);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(file = %path.display(), %error, "{} that are worked off stay on disk",
                E::NAMED);
        }
    }

    fn path(&self, number: u64, suffix: &str) -> PathBuf {
        self.directory.join(format!("{number:016x}.{suffix}"))
    }
}

fn number_of(path: &Path) -> Option<u64> {
    let is_batch = path.extension().is_some_and(|suffix| suffix == SUFFIX);
    u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok().filter(|_| is_batch)
}

fn formatted<E: Event>(batch: &Batch<E>) -> io::Result<Vec<u8>> {
    let received = batch.received.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut lines = format!("{HEAD}{received}\n").into_bytes();
    for event in &batch.events {
        serde_json::to_writer(&mut lines, event)?;
        lines.push(b'\n');
    }
    let sum = crc32c::crc32c(&lines);
    writeln!(lines, "{sum:08x}")?;
    Ok(lines)
}

fn parsed<E: Event>(number: u64, bytes: &[u8]) -> Option<Batch<E>> {
    let end = bytes.strip_suffix(b"\n")?.iter().rposition(|byte| *byte == b'\n')? + 1;
    let (lines, sum) = bytes.split_at_checked(end)?;
    let sum = std::str::from_utf8(sum).ok()?.trim_end();
    if sum != format!("{:08x}", crc32c::crc32c(lines)) {
        return None;
    }
    let mut lines = std::str::from_utf8(lines).ok()?.lines();
    let received = lines.next()?.strip_prefix(HEAD)?.parse().ok()?;
    let received = UNIX_EPOCH.checked_add(Duration::from_millis(received))?;
    let events = lines.map(|line| serde_json::from_str(line).ok()).collect::<Option<_>>()?;
    Some(Batch { number, received, events })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(number: u64, tags: &[&str]) -> Batch<String> {
        let event = |tag: &&str| (*tag).to_owned();
        let received = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        Batch { number, received, events: tags.iter().map(event).collect() }
    }

    #[test]
    fn what_is_written_is_there_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let (store, found) = Files::open(path.clone()).unwrap();
        assert_eq!(found, []);
        store.write(&batch(17, &["v3"])).unwrap();
        store.write(&batch(2, &["v1", "v2"])).unwrap();
        let (store, found) = Files::open(path.clone()).unwrap();
        assert_eq!(found, [batch(2, &["v1", "v2"]), batch(17, &["v3"])]);
        store.remove(2);
        assert_eq!(Files::<String>::open(path).unwrap().1, [batch(17, &["v3"])]);
    }

    #[test]
    fn a_file_that_is_cut_or_changed_anywhere_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let whole = formatted(&batch(1, &["v1", "v2"])).unwrap();
        assert_eq!(parsed(1, &whole), Some(batch(1, &["v1", "v2"])));
        for end in 0..whole.len() {
            assert_eq!(parsed::<String>(1, &whole[..end]), None, "cut at {end}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert_eq!(parsed::<String>(1, &changed), None, "changed at {at}");
        }
        let path = directory.path().to_owned();
        fs::write(path.join(format!("{:016x}.events", 1)), &whole[..whole.len() - 9]).unwrap();
        fs::write(path.join(format!("{:016x}.events", 2)), &whole).unwrap();
        fs::write(path.join(format!("{:016x}.unfinished", 3)), &whole).unwrap();
        let (_, found) = Files::<String>::open(path.clone()).unwrap();
        assert_eq!(found, [batch(2, &["v1", "v2"])]);
        let left = |suffix: &str| {
            let all = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            all.filter(|path| path.extension().unwrap() == suffix).count()
        };
        assert_eq!((left("damaged"), left("events"), left("unfinished")), (1, 1, 0));
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = Files::open(directory.path().to_owned()).unwrap();
        // In the way of the rename.
        fs::create_dir_all(store.path(1, SUFFIX).join("full")).unwrap();
        store.write(&batch(1, &["v1"])).unwrap_err();
        assert!(!store.path(1, UNFINISHED).exists());
    }
}
