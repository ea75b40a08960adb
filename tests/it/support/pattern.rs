//! Bytes without end that are told from each other by where they stand, made and checked as they pass.

use std::io::{self, Write};
use std::sync::LazyLock;

use bytes::Bytes;
use futures_util::Stream;

/// A prime, so that no part of the pattern can take another's place unseen.
const PERIOD: usize = 1_048_573;

static BYTES: LazyLock<Bytes> = LazyLock::new(|| {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(PERIOD).collect()
});

/// A place in the pattern.
#[derive(Debug, Default)]
pub(crate) struct Pattern {
    passed: u64,
}

impl Pattern {
    /// How much of it was made or checked.
    pub(crate) fn passed(&self) -> u64 {
        self.passed
    }

    /// Checks what follows.
    #[track_caller]
    pub(crate) fn expect(&mut self, mut found: &[u8]) {
        while !found.is_empty() {
            let expected = self.following(found.len() as u64);
            let (now, later) = found.split_at(expected.len());
            assert!(now == expected, "other bytes after {}", self.passed);
            self.passed += now.len() as u64;
            found = later;
        }
    }

    /// What follows, at least a byte and at most so many.
    fn following(&self, at_most: u64) -> Bytes {
        let start = usize::try_from(self.passed % PERIOD as u64).unwrap();
        let end = usize::try_from(at_most).map_or(PERIOD, |at_most| PERIOD.min(start + at_most));
        BYTES.slice(start..end)
    }

    fn next(&mut self, at_most: u64) -> Bytes {
        let bytes = self.following(at_most);
        self.passed += bytes.len() as u64;
        bytes
    }

    /// So many bytes of it, as a body with a length of its own or in chunks.
    pub(crate) fn write_to(&mut self, to: &mut impl Write, length: u64, chunked: bool) -> io::Result<()> {
        while self.passed < length {
            let bytes = self.next(length - self.passed);
            if chunked {
                write!(to, "{:x}\r\n", bytes.len())?;
                to.write_all(&bytes)?;
                to.write_all(b"\r\n")?;
            } else {
                to.write_all(&bytes)?;
            }
        }
        to.write_all(if chunked { b"0\r\n\r\n" } else { b"" })
    }

    /// So many bytes of it.
    pub(crate) fn stream(length: u64) -> impl Stream<Item = io::Result<Bytes>> {
        futures_util::stream::unfold(Self::default(), move |mut pattern| async move {
            let left = length - pattern.passed;
            (left > 0).then(|| (Ok(pattern.next(left.min(128 << 10))), pattern))
        })
    }
}

/// Checks what is written.
impl Write for Pattern {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.expect(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
