//! Properties of the journal's formats that must hold of any bytes, for the fuzz targets.
#![allow(
    clippy::missing_panics_doc,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is what these are for"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Write as _};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use super::journal::format::Header;
use super::journal::format::{Frames, NextFrame, next_intact, seal};
use super::sled::read_any;
use super::sorted::{SortedFile, SortedWriter};
use super::store::layout;
use crate::index::Version;
use crate::index::record::{Record, Recorded};
use crate::index::referrer_state::ReferrerState;

/// A journal's file, or the payload of a frame.
pub fn records(bytes: &[u8]) {
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(header.encode(), bytes);
    }
    let end = bytes.len() as u64;
    let mut frames = Frames::new(bytes, 0, end);
    while let NextFrame::Intact(payload) = frames.next().expect("reading from memory") {
        payload_of(&payload);
    }
    payload_of(bytes);
    // Whatever stands before it, an intact frame is found.
    let frame = seal(bytes).expect("less than 4 GiB");
    let file = [bytes, &frame].concat();
    let end = file.len() as u64;
    let mut from = 0;
    while let Some(found) = next_intact(&mut Cursor::new(&file), from, end).expect("reading from memory") {
        assert!(found >= from);
        if found >= bytes.len() as u64 {
            assert_eq!(found, bytes.len() as u64);
            return;
        }
        from = found + 1;
    }
    panic!("the frame at the end is not found");
}

fn payload_of(bytes: &[u8]) {
    let Ok(records) = Record::read_all(bytes) else { return };
    let mut written = Vec::new();
    for record in &records {
        record.write_to(&mut written).expect("a record is JSON");
    }
    assert_eq!(written.split(|byte| *byte == b'\n').count(), records.len() + 1, "a line each");
    assert_eq!(Record::read_all(&written).expect("its own form"), records);
    let mut state = None;
    for (version, record) in (1..).map(Version).zip(records) {
        state = ReferrerState::after(state, record.clone(), version);
        let again = ReferrerState::after(state.clone(), record.clone(), version);
        assert_eq!(again, state, "once more changes nothing");
        if let (Some(recorded), Some(state)) = (record.recorded(), &state) {
            // Claims are not added to what is confirmed.
            let begun_late = matches!(record, Record::Begun(_)) && !state.pending;
            assert!(begun_late || state.has(&recorded.links));
            let whole = Record::Recorded(Recorded::of(recorded.referrer.clone(), state.clone()));
            let alone = ReferrerState::after(None, whole.clone(), Version::in_snapshot(0, &whole));
            assert_eq!(alone.as_ref(), Some(state), "what a snapshot says");
        }
    }
}

/// Any bytes as a sorted file; and such a file of entries that the bytes say, damaged where they say.
pub fn sorted(bytes: &[u8]) {
    let any = sorted_file(bytes);
    read_all(&any);
    let Some((place, rest)) = bytes.split_first_chunk::<4>() else { return };
    let Some((&flip, rest)) = rest.split_first() else { return };
    // Each key a few bytes, and its value what is at its place, some of it larger than a block.
    let keys = rest.chunks(3).map(<[u8]>::to_vec);
    let value = |key: &Vec<u8>| key.repeat(if key.first() == Some(&7) { 5_000 } else { 200 });
    let entries: BTreeMap<Vec<u8>, Vec<u8>> = keys.map(|key| (key.clone(), value(&key))).collect();
    let mut writer = SortedWriter::new(Vec::new(), 0);
    for (key, value) in &entries {
        writer.append(key, value).expect("in order");
    }
    let (mut file, _) = writer.finish([1, 2, 3]).expect("writing to memory");
    let place = u32::from_be_bytes(*place) as usize % file.len();
    if let Some(byte) = file.get_mut(place) {
        *byte ^= flip;
    }
    let damaged = sorted_file(&file);
    assert!(flip != 0 || damaged.is_table_intact());
    let mut errors = 0;
    for (key, value) in &entries {
        match damaged.get(key) {
            Ok(found) => assert_eq!(found.as_deref(), Some(value.as_slice())),
            Err(_) => errors += 1,
        }
    }
    assert!(flip != 0 || errors == 0);
    let scanned: Result<Vec<_>, _> = damaged.range(Bound::Unbounded, None).collect();
    assert!(scanned.is_err() || errors == 0);
    assert!(scanned.is_ok() || flip != 0);
    if let Ok(scanned) = scanned {
        assert_eq!(scanned.len(), entries.len());
    }
}

fn sorted_file(bytes: &[u8]) -> Arc<SortedFile> {
    let mut file: File = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("writing it");
    let file = SortedFile::open(file, Path::new(""), 0, bytes.len() as u64);
    Arc::new(file.expect("the disk reads"))
}

fn read_all(file: &Arc<SortedFile>) {
    for (key, value) in file.range(Bound::Unbounded, None).flatten() {
        if let Ok(found) = file.get(&key) {
            assert!(found.is_none_or(|found| found == value) || !file.is_table_intact());
        }
    }
}

/// Any bytes as what stands in a delta: the value of a key, what the delta says of itself, and a link or a reverse entry
/// under any key.
pub fn delta(bytes: &[u8]) {
    let Some((&length, rest)) = bytes.split_first() else { return };
    let Some((key, value)) = rest.split_at_checked(usize::from(length)) else { return };
    read_any(key, value);
    layout::read_any(key, value);
}
