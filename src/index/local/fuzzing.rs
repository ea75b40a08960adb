//! Properties of the journal's formats that must hold of any bytes, for the fuzz targets.
#![allow(
    clippy::missing_panics_doc,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is what these are for"
)]

use std::io::Cursor;

use super::journal::format::Header;
use super::journal::format::{Frames, NextFrame, next_intact, seal};
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
