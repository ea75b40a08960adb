//! What each file of the journal begins with. Its layout is the same in every format version, so that a
//! newer version is told from damage. Format 2 has records that builds of format 1 do not know.

use bytes::{Buf, BufMut};

/// The format version that this build writes and reads.
pub(crate) const FORMAT: u32 = 2;
/// How long a header is.
pub(crate) const HEADER_BYTES: u64 = 48;
const MAGIC: [u8; 8] = *b"refshim\n";
const CHECKSUM_BYTES: usize = 4;

/// Which journal a file, or the sled index made from it, belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity(pub(crate) [u8; 16]);

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
}
