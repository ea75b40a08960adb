//! What is read is what was written, or an error, whatever becomes of the file.
#![allow(clippy::cast_possible_truncation, reason = "small numbers, and places of bytes")]

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use super::*;

const OFFSET: u64 = 5;

fn key(n: u64) -> Vec<u8> {
    // Some long beginnings in common, of different lengths.
    [b"the repository ".repeat(1 + n as usize % 2), (n * 2).to_be_bytes().to_vec()].concat()
}

fn value(n: u64) -> Vec<u8> {
    let length = if n == 7 { 50_000 } else { 300 + n as usize % 200 };
    (0..length as u64).map(|at| (n.wrapping_mul(at * at + 1) >> 3) as u8).collect()
}

/// Keys and values in their order.
fn entries(count: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut entries: Vec<_> = (0..count).map(|n| (key(n), value(n))).collect();
    entries.sort();
    entries
}

fn written(entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut writer = SortedWriter::new(vec![b'h'; OFFSET as usize], OFFSET);
    for (key, value) in entries {
        writer.append(key, value).unwrap();
    }
    let (bytes, end) = writer.finish([1, 2, 3]).unwrap();
    assert_eq!(bytes.len() as u64, end);
    bytes
}

fn opened(bytes: &[u8]) -> Arc<SortedFile> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    of(file, bytes.len() as u64)
}

fn of(file: File, length: u64) -> Arc<SortedFile> {
    Arc::new(SortedFile::open(file, Path::new("x"), OFFSET, length).unwrap())
}

/// Looks everything up; how many look-ups failed.
#[track_caller]
fn check(file: &Arc<SortedFile>, expected: &[(Vec<u8>, Vec<u8>)]) -> usize {
    let mut failed = 0;
    for (key, value) in expected {
        match file.get(key) {
            Ok(found) => assert_eq!(found.as_deref(), Some(&**value), "{key:?}"),
            Err(_) => failed += 1,
        }
        let behind = [key.as_slice(), &[0]].concat();
        for absent in [&key[..key.len() - 1], &behind] {
            assert!(file.get(absent).map_or(true, |found| found.is_none()), "{absent:?}");
        }
    }
    // Scans from and to anywhere: exact up to the first error.
    for from in (0..expected.len()).step_by(29) {
        let to = (from + 40).min(expected.len() - 1);
        for bound in [Bound::Included(&*expected[from].0), Bound::Excluded(&*expected[from].0)] {
            let first = from + usize::from(matches!(bound, Bound::Excluded(_)));
            let mut rest = expected[first..to].iter();
            let mut is_broken = false;
            for entry in file.range(bound, Some(&expected[to].0)) {
                let Ok((key, value)) = entry else {
                    is_broken = true;
                    break;
                };
                assert_eq!(rest.next().map(|(key, value)| (&**key, &**value)), Some((&*key, &*value)));
            }
            assert!(is_broken || rest.next().is_none(), "a scan is short");
        }
    }
    failed
}

#[test]
fn everything_comes_back() {
    for count in [0, 1, 2, 500, 2000] {
        let entries = entries(count);
        let file = opened(&written(&entries));
        assert!(file.is_table_intact());
        assert_eq!(file.contents(), Some(Contents { entries: count, numbers: [1, 2, 3] }));
        let all: Vec<_> = file.range(Bound::Unbounded, None).map(Result::unwrap).collect();
        assert_eq!(all.len(), entries.len());
        assert!(all.iter().zip(&entries).all(|((k, v), (key, value))| k == key && v == value));
        if count > 1 {
            assert_eq!(check(&file, &entries), 0);
        }
        assert_eq!((0..file.blocks()).filter(|block| file.check(*block).is_err()).count(), 0);
        assert_eq!(file.damaged(), 0);
    }
}

#[test]
fn a_writer_takes_keys_in_their_order_only() {
    let mut writer = SortedWriter::new(Vec::new(), 0);
    writer.append(b"b", b"").unwrap();
    assert!(writer.append(b"b", b"").is_err());
    assert!(writer.append(b"a", b"").is_err());
    writer.append(b"c", b"").unwrap();
}

#[test]
fn a_flipped_byte_costs_its_block_and_no_more() {
    let entries = entries(300);
    let bytes = written(&entries);
    let blocks = opened(&bytes).blocks();
    assert!(blocks > 10);
    let (mut most, mut broken) = (0, 0);
    // All of the end, where the table and the trailer are, and much of the rest.
    let places =
        (OFFSET as usize..bytes.len()).filter(|place| place % 2511 == 0 || place + 400 > bytes.len());
    for place in places {
        let mut bytes = bytes.clone();
        bytes[place] ^= 0x10;
        let file = opened(&bytes);
        let failed = check(&file, &entries);
        most = most.max(failed);
        broken += usize::from(failed > 0);
        // In the table or the trailer it costs nothing: all is in the blocks themselves.
        assert!(failed > 0 || !file.is_table_intact(), "{place}");
        let checked = (0..file.blocks()).filter(|block| file.check(*block).is_err()).count();
        assert_eq!(checked, usize::from(failed > 0), "{place}");
        assert_eq!(file.damaged(), checked);
        let bad = (0..file.blocks()).find(|block| file.check(*block).is_err());
        for (key, _) in &entries {
            assert!(file.get(key).is_ok() || file.hole(bad.unwrap()).unwrap().may_hold(key));
        }
    }
    assert!(broken > 20 && most < 60, "{broken} {most}");
}

#[test]
fn a_file_cut_anywhere_is_never_a_shorter_one() {
    let entries = entries(300);
    let bytes = written(&entries);
    for length in (OFFSET as usize..bytes.len()).step_by(419).chain([bytes.len() - 1]) {
        let file = opened(&bytes[..length]);
        assert!(!file.is_table_intact());
        check(&file, &entries);
        let all = file.range(Bound::Unbounded, None).collect::<Result<Vec<_>, _>>();
        assert!(all.is_err() || all.unwrap().len() == entries.len(), "{length}");
    }
}

#[test]
fn noise_and_lost_blocks_are_never_taken_for_less() {
    let entries = entries(500);
    let bytes = written(&entries);
    for seed in 1..40u64 {
        let mut bytes = bytes.clone();
        let at = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize % (bytes.len() - 5000);
        let length = 1 + (seed as usize * 977) % 20_000;
        let end = (at + length).min(bytes.len());
        let noise =
            |byte: &mut u8| *byte = if seed % 2 == 0 { 0 } else { byte.wrapping_mul(31).wrapping_add(7) };
        bytes[at.max(OFFSET as usize)..end].iter_mut().for_each(noise);
        if seed % 3 == 0 {
            // The table has to be made anew around the hole.
            let trailer = bytes.len() - 3;
            bytes[trailer] ^= 1;
        }
        check(&opened(&bytes), &entries);
    }
}

#[test]
fn an_older_block_in_the_place_of_another_is_noticed() {
    // Values that are not compressed: blocks of equal lengths.
    let entries: Vec<_> = (0..64u64).map(|n| (n.to_be_bytes().to_vec(), noise(n))).collect();
    let bytes = written(&entries);
    let with = |seed| {
        let mut entries = entries.clone();
        entries[30].1 = noise(seed);
        written(&entries)
    };
    let older = (100..200).map(with).find(|older| older.len() == bytes.len()).unwrap();
    let differs = bytes.iter().zip(&older).position(|(one, other)| one != other).unwrap();
    // As a disk that lost a write leaves it: intact, but not what was written last.
    let mut mixed = bytes.clone();
    mixed[..differs + 3000].copy_from_slice(&older[..differs + 3000]);
    let file = opened(&mixed);
    assert!(file.is_table_intact());
    let failed = check(&file, &entries);
    assert!((1..20).contains(&failed), "{failed}");
}

/// Bytes in which there is nothing to compress.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[4]
    };
    std::iter::repeat_with(next).take(2000).collect()
}
