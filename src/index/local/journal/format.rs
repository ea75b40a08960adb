//! One frame is one group commit: marker, length, checksum, payload, so that a write that a crash tore
//! is one bad frame at the very end.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use bytes::{Buf, BufMut};

/// Cannot stand in UTF-8 text, thus in no payload: what comes after a bad frame can be found by it.
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

fn checksum(length: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length.to_be_bytes()), payload)
}

/// What stands at the place where a frame is expected.
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
mod tests {
    use super::*;

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
