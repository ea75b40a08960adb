//! The bytes of the journal's files: a header, then frames.
//!
//! # Header
//! 48 bytes, numbers in big endian: `refshim\n`, format version (u32), identity of the journal (16 random bytes),
//! position (u64), highest order before (u64), CRC32C of all that (u32). This layout is the same in every format
//! version, so that a journal of a newer build is told from a damaged one. Format 2 added kinds of record that builds
//! of format 1 do not know. In format 3 snapshots are sorted ([`crate::index::local::store::snapshot`]); before, they
//! were frames of records like the segments.
//!
//! # Frame
//! One group commit: a marker, the payload's length (u32), CRC32C of length and payload (u32), the payload. The
//! payload is records as JSON Lines (see [`super::super::record`]). A write that a crash interrupted is thus one
//! bad frame at the very end, and everything before it is known to be intact.
//!
//! The length is part of the checksum because a damaged one would make the reader take other bytes for the payload.
//! The marker cannot occur in UTF-8 text, so the next frame behind a damaged one can be found; where payloads are no text,
//! the checksum tells a frame from what only looks like one.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use bytes::{Buf, BufMut};

/// The format version that this build writes and reads.
pub(crate) const FORMAT: u32 = 3;
/// The first one whose snapshots are sorted.
pub(crate) const FIRST_SORTED: u32 = 3;
/// How long a header is.
pub(crate) const HEADER_BYTES: u64 = 48;
const MAGIC: [u8; 8] = *b"refshim\n";
const CHECKSUM_BYTES: usize = 4;

/// Which journal a file, or the sled index made from it, belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity(pub(crate) [u8; 16]);

impl Identity {
    /// As it stands in the files beside the journal.
    pub(crate) fn name(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

/// The header of a segment or snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The format version of the build that wrote it.
    pub(crate) format: u32,
    pub(crate) identity: Identity,
    /// The position of the segment's first byte; of a snapshot, the position from which on segments
    /// have to be read after it.
    pub(crate) position: u64,
    /// The highest order given before.
    pub(crate) last_order: u64,
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    Damaged,
    Newer(u32),
}

impl Header {
    /// Of a file that this build writes.
    pub(crate) fn new(identity: Identity, position: u64, last_order: u64) -> Self {
        Self { format: FORMAT, identity, position, last_order }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_slice(&MAGIC);
        bytes.put_u32(self.format);
        bytes.put_slice(&self.identity.0);
        bytes.put_u64(self.position);
        bytes.put_u64(self.last_order);
        bytes.put_u32(crc32c::crc32c(&bytes));
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Unusable> {
        let content = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(Unusable::Damaged)?;
        let (mut content, mut checksum) = bytes.split_at_checked(content).ok_or(Unusable::Damaged)?;
        let intact = content.starts_with(&MAGIC) && crc32c::crc32c(content) == checksum.get_u32();
        if !intact || bytes.len() as u64 != HEADER_BYTES {
            return Err(Unusable::Damaged);
        }
        content.advance(MAGIC.len());
        let format = content.get_u32();
        if format > FORMAT {
            return Err(Unusable::Newer(format));
        }
        let mut identity = Identity([0; 16]);
        content.copy_to_slice(&mut identity.0);
        Ok(Self { format, identity, position: content.get_u64(), last_order: content.get_u64() })
    }
}

/// Cannot stand in UTF-8 text, thus in no record: what comes after a bad frame can be found by it.
const MARKER: [u8; 4] = [0xff, 0xfe, 0xfd, 0xfc];
const PREAMBLE_BYTES: usize = 12;

/// The frame around `payload`.
pub(crate) fn seal(payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut frame = Vec::with_capacity(PREAMBLE_BYTES + payload.len());
    frame.put_slice(&MARKER);
    frame.put_u32(length);
    frame.put_u32(checksum(length, payload));
    frame.put_slice(payload);
    Ok(frame)
}

/// The checksum in the frame around `payload`.
pub(crate) fn checksum_of(payload: &[u8]) -> io::Result<u32> {
    let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    Ok(checksum(length, payload))
}

/// The payload of one whole frame, if it is intact and has this checksum.
pub(crate) fn unseal(mut frame: &[u8], expected: u32) -> Option<&[u8]> {
    let marker = frame.try_get_u32().ok()?;
    let length = frame.try_get_u32().ok()?;
    let checksum = frame.try_get_u32().ok()?;
    let is_intact = marker == u32::from_be_bytes(MARKER)
        && length as usize == frame.len()
        && checksum == expected
        && self::checksum(length, frame) == expected;
    is_intact.then_some(frame)
}

fn checksum(length: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length.to_be_bytes()), payload)
}

/// What is found where a frame is expected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NextFrame {
    /// An intact frame with this payload.
    Intact(Vec<u8>),
    /// Something else.
    Bad,
    /// The end.
    End,
}

/// Reads frame after frame.
#[derive(Debug)]
pub(crate) struct Frames<R> {
    input: R,
    offset: u64,
    end: u64,
}

impl<R: Read> Frames<R> {
    /// The frames from `offset`, where `input` stands, to `end`, both counted from the file's start.
    pub(crate) fn new(input: R, offset: u64, end: u64) -> Self {
        Self { input, offset, end }
    }

    /// Where the next frame begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next frame. After a bad one there is no going on.
    pub(crate) fn next(&mut self) -> io::Result<NextFrame> {
        let left = self.end.saturating_sub(self.offset);
        if left == 0 {
            return Ok(NextFrame::End);
        }
        let Some(left) = left.checked_sub(PREAMBLE_BYTES as u64) else { return Ok(NextFrame::Bad) };
        let mut preamble = [0; PREAMBLE_BYTES];
        self.input.read_exact(&mut preamble)?;
        let mut preamble = preamble.as_slice();
        let marker = preamble.get_u32();
        let length = preamble.get_u32();
        let expected = preamble.get_u32();
        if marker != u32::from_be_bytes(MARKER) || u64::from(length) > left {
            return Ok(NextFrame::Bad);
        }
        let mut payload = vec![0; length as usize];
        self.input.read_exact(&mut payload)?;
        if checksum(length, &payload) != expected {
            return Ok(NextFrame::Bad);
        }
        self.offset += PREAMBLE_BYTES as u64 + u64::from(length);
        Ok(NextFrame::Intact(payload))
    }
}

/// Where the first intact frame between `from` and `end` begins.
pub(crate) fn next_intact(input: &mut (impl Read + Seek), from: u64, end: u64) -> io::Result<Option<u64>> {
    let mut at = from;
    while let Some(marker) = find_marker(input, at, end)? {
        input.seek(SeekFrom::Start(marker))?;
        if let NextFrame::Intact(_) = Frames::new(BufReader::new(&mut *input), marker, end).next()? {
            return Ok(Some(marker));
        }
        at = marker + 1;
    }
    Ok(None)
}

fn find_marker(input: &mut (impl Read + Seek), from: u64, end: u64) -> io::Result<Option<u64>> {
    input.seek(SeekFrom::Start(from))?;
    let mut bytes = BufReader::new(input.take(end.saturating_sub(from))).bytes();
    let mut last = 0;
    for next in from + 1.. {
        let Some(byte) = bytes.next().transpose()? else { break };
        last = (last << u8::BITS) | u32::from(byte);
        if last == u32::from_be_bytes(MARKER) {
            return Ok(Some(next - MARKER.len() as u64));
        }
    }
    Ok(None)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A header that a later build might write.
    pub(crate) fn newer(header: &Header) -> Vec<u8> {
        Header { format: FORMAT + 1, ..*header }.encode()
    }

    #[test]
    fn comes_back_or_is_refused() {
        let header = Header::new(Identity([7; 16]), 1 << 40, 3);
        let bytes = header.encode();
        assert_eq!(bytes.len() as u64, HEADER_BYTES);
        assert_eq!(Header::decode(&bytes), Ok(header));
        assert_eq!(Header::decode(&newer(&header)), Err(Unusable::Newer(FORMAT + 1)));
        for place in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            assert_eq!(Header::decode(&flipped), Err(Unusable::Damaged), "{place}");
            assert_eq!(Header::decode(&bytes[..place]), Err(Unusable::Damaged), "{place}");
        }
    }

    fn read_all(bytes: &[u8]) -> (Vec<Vec<u8>>, bool) {
        let mut frames = Frames::new(bytes, 0, bytes.len() as u64);
        let mut payloads = Vec::new();
        loop {
            match frames.next().unwrap() {
                NextFrame::Intact(payload) => payloads.push(payload),
                NextFrame::Bad => return (payloads, false),
                NextFrame::End => return (payloads, true),
            }
        }
    }

    #[test]
    fn come_back_as_they_were_sealed() {
        let bytes = [seal(b"one\n").unwrap(), seal(b"").unwrap(), seal(b"two\n").unwrap()].concat();
        let payloads = vec![b"one\n".to_vec(), Vec::new(), b"two\n".to_vec()];
        assert_eq!(read_all(&bytes), (payloads, true));
    }

    #[test]
    fn a_cut_or_a_flipped_bit_makes_a_bad_frame() {
        let frame = seal(b"payload\n").unwrap();
        for length in 1..frame.len() {
            assert_eq!(read_all(&frame[..length]), (vec![], false), "cut to {length}");
        }
        for place in 0..frame.len() {
            let mut flipped = frame.clone();
            flipped[place] ^= 0x10;
            assert_eq!(read_all(&flipped), (vec![], false), "flipped at {place}");
        }
    }

    #[track_caller]
    fn check_next(bytes: &[u8], from: u64, expected: Option<u64>) {
        let found = next_intact(&mut io::Cursor::new(bytes), from, bytes.len() as u64).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_intact_frame_is_found_wherever_it_begins() {
        let frame = seal(b"payload\n").unwrap();
        check_next(&frame, 0, Some(0));
        check_next(&[&frame[..], &frame].concat(), 1, Some(frame.len() as u64));
        check_next(&[&b"noise"[..], &MARKER, &frame].concat(), 0, Some(9));
        check_next(&frame[..frame.len() - 1], 0, None);
        check_next(&frame, 1, None);
        check_next(b"", 0, None);
        check_next(b"", 5, None);
    }
}
