//! Reads a sorted snapshot that may be damaged: all referrers of which enough is left.
//!
//! Of each link the snapshot says twice that it is there: under its subject and under its referrer. So a referrer whose
//! own entry is lost is known by those of its links that are left. Of one whose descriptor is lost only that it was there
//! is known.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::salvage::{Gap, Piece};
use crate::index::local::journal::JournalError;
use crate::index::local::journal::format::Header;
use crate::index::local::journal::reader::Commit;
use crate::index::local::sorted::Hole;
use crate::index::local::store::snapshot::OpenSnapshotError;
use crate::index::local::store::{SortedSnapshot, StoreError};
use crate::index::record::{Record, Recorded};

/// Records in one piece.
const PIECE: usize = 1_000;

/// Whether every block is as it was written.
pub(super) fn is_intact(path: &Path, header: Header) -> bool {
    let opened = File::open(path).map(|file| SortedSnapshot::of(file, path.to_owned(), header));
    let Ok(Ok(snapshot)) = opened else { return false };
    (0..snapshot.file.blocks()).all(|block| snapshot.file.check(block).is_ok())
}

/// Passes what is lost to `take`, and then what is left.
pub(super) fn read<E: From<JournalError>>(
    path: &Path,
    header: Header,
    take: &mut impl FnMut(Piece) -> Result<(), E>,
) -> Result<(), E> {
    let io_error = |source| E::from(JournalError::io(path, source));
    let file = File::open(path).map_err(io_error)?;
    let length = file.metadata().map_err(io_error)?.len();
    let position = header.position;
    let gap = |offset, bytes, what| Piece::Gap(Gap { path: path.to_owned(), offset, bytes, what });
    let snapshot = match SortedSnapshot::of(file, path.to_owned(), header) {
        Ok(snapshot) => Arc::new(snapshot),
        Err(OpenSnapshotError::Journal(error)) => return Err(error.into()),
        Err(OpenSnapshotError::Store(_)) => return take(gap(0, length, "the snapshot cannot be read")),
    };
    // Also what the disk does not read: it is as lost as what is wrong.
    let is_bad = |block: &usize| snapshot.file.check(*block).is_err();
    let bad = (0..snapshot.file.blocks()).filter(is_bad);
    let holes: Vec<_> = bad.filter_map(|block| snapshot.file.hole(block)).collect();
    for Hole { offset, bytes, what, .. } in &holes {
        take(gap(*offset, *bytes, what))?;
    }
    let mut records = Vec::new();
    let mut add = |record: Option<Record>, at_least: usize| {
        records.extend(record);
        if records.len() < at_least {
            return Ok(());
        }
        let records = std::mem::take(&mut records);
        take(Piece::Commit(Commit { position, end: position, records, snapshot: Some(position) }))
    };
    let view = snapshot.view();
    for state in view.states_left() {
        let record = match state {
            (key, Ok(state)) => Record::Recorded(Recorded::of(key, state)),
            (key, Err(StoreError::Snapshot(_) | StoreError::Damaged(_))) => Record::Doubted(key),
            (_, Err(_)) => continue,
        };
        add(Some(record), PIECE)?;
    }
    // One record for all links of a referrer: a second one of the same version would count as applied.
    let mut by_links = HashMap::new();
    if !holes.is_empty() {
        for recorded in view.links_without_referrer(&holes) {
            match by_links.entry(recorded.referrer.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(recorded);
                }
                Entry::Occupied(mut entry) => entry.get_mut().links.extend(recorded.links),
            }
        }
    }
    for (_, recorded) in by_links {
        add(Some(Record::Recorded(recorded)), PIECE)?;
    }
    add(None, 1)
}
