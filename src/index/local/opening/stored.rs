//! What is in the data directory: the snapshot, the deltas over it, and what nobody needs any more.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::OpeningError;
use crate::index::local::data_dir::{self, DeltaName, JOURNAL};
use crate::index::local::journal::format::Identity;
use crate::index::local::journal::{Damage, JournalError, files};
use crate::index::local::sled::{DeltaSettings, Meta, applied_in, guarded};
use crate::index::local::store::{SortedSnapshot, Store};

/// Gives numbers to deltas, in this process none twice.
#[derive(Debug, Default)]
pub(crate) struct DeltaNumbers(AtomicU64);

impl DeltaNumbers {
    /// A number that no delta of this process or in the data directory has or had.
    pub(super) fn next(&self, data_dir: &Path) -> io::Result<u64> {
        let highest = data_dir::deltas(data_dir)?.iter().map(|delta| delta.number).max().unwrap_or(0);
        self.0.fetch_max(highest, Ordering::Relaxed);
        Ok(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// What is stored of the index of this journal, without what the journal has more; nothing if a delta is missing.
pub(crate) fn stored(
    data_dir: &Path,
    settings: DeltaSettings,
    identity: Identity,
) -> Result<Option<Store>, OpeningError> {
    let directory = data_dir.join(JOURNAL);
    let position = files::list(&directory)?.snapshots.last().map(|snapshot| snapshot.position);
    let (snapshot, below) = open_snapshot(&directory, position, identity)?;
    let deltas = usable_deltas(data_dir, below.base, || Ok(1)).map_err(OpeningError::SetAside)?;
    let mut paths = deltas.iter().map(|delta| (delta.base, delta.path(data_dir)));
    let Some((_, first)) = paths.next().filter(|(_, first)| first.exists()) else { return Ok(None) };
    let open = || {
        let store = Store::open(&first, settings, below, snapshot)?;
        for (base, path) in paths {
            if store.meta().applied == base {
                store.begin_delta(&path, settings, base)?;
            }
        }
        Ok(store)
    };
    Ok(Some(guarded(open)?))
}

/// The snapshot at this position, if there is one, and what is said of it, of a journal of this identity.
pub(super) fn open_snapshot(
    directory: &Path,
    position: Option<u64>,
    identity: Identity,
) -> Result<(Option<Arc<SortedSnapshot>>, Meta), OpeningError> {
    let snapshot = match position {
        None => None,
        Some(position) => SortedSnapshot::open(directory, position)?,
    };
    let Some(snapshot) = snapshot else { return Ok((None, Meta::empty(identity))) };
    if snapshot.identity() != identity {
        let damage = Damage::new(&snapshot.path, 0, "the file belongs to another journal");
        return Err(JournalError::from(damage).into());
    }
    let below = snapshot.meta();
    Ok((Some(Arc::new(snapshot)), below))
}

/// Removes the journal's files before a position that nobody needs any more. If that fails, the next compaction does it.
pub(crate) fn remove_before(directory: &Path, position: u64) {
    if let Err(error) = files::remove_before(directory, position) {
        tracing::warn!(%error, "old files of the journal could not be removed");
    }
}

/// Up to which position of this journal sled was brought; nothing if there is no sled that tells.
pub(crate) fn applied(data_dir: &Path, identity: Identity) -> io::Result<Option<u64>> {
    let deltas = data_dir::deltas(data_dir)?.into_iter().map(|delta| delta.path(data_dir));
    let all = data_dir::old_sleds(data_dir)?.into_iter().chain(deltas);
    let applied = all.filter_map(|path| applied_in(&path));
    Ok(applied.filter(|(of, _)| *of == identity).map(|(_, applied)| applied).max())
}

/// The deltas over the snapshot at this position: of each the newest, and at least the one to create. All others are
/// removed.
pub(super) fn usable_deltas(
    data_dir: &Path,
    position: u64,
    number: impl FnOnce() -> io::Result<u64>,
) -> io::Result<Vec<DeltaName>> {
    let mut usable: Vec<DeltaName> = Vec::new();
    for delta in data_dir::deltas(data_dir)? {
        let older = usable.pop_if(|before| before.base == delta.base);
        if delta.base < position {
            data_dir::remove_directory(&delta.path(data_dir))?;
        } else {
            usable.push(delta);
        }
        if let Some(older) = older {
            data_dir::remove_directory(&older.path(data_dir))?;
        }
    }
    if usable.first().is_none_or(|first| first.base != position) {
        usable.insert(0, DeltaName { base: position, number: number()? });
    }
    Ok(usable)
}
