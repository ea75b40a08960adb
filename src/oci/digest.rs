//! Content digests (OCI image-spec, `descriptor.md`, Digests): the two registered algorithms.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// A registered digest algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// `sha256`, 32 bytes.
    Sha256,
    /// `sha512`, 64 bytes.
    Sha512,
}

/// Bytes of the text of a SHA-512 digest.
const LONGEST_TEXT: usize = "sha512:".len() + 2 * 64;

/// A digest, `sha256:<64 hex digits>` or `sha512:<128 hex digits>`, lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// A SHA-256 digest.
    Sha256([u8; 32]),
    /// A SHA-512 digest.
    Sha512([u8; 64]),
}

/// Why a text is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// There is no `algorithm:encoded`.
    #[error("a digest has the form algorithm:hex")]
    Form,
    /// The algorithm is neither sha256 nor sha512.
    #[error("the digest's algorithm is neither sha256 nor sha512")]
    Algorithm,
    /// The encoded part has the wrong length or other characters than lower-case hex digits.
    #[error("the digest is not the right number of lower-case hex digits")]
    Encoded,
}

impl Digest {
    /// The digest of `content`.
    #[must_use]
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::digest(content).into()),
            Algorithm::Sha512 => Self::Sha512(Sha512::digest(content).into()),
        }
    }

    /// Its algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Its bytes: 32 or 64.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// Its text. Whole, since each part that is written costs more than its characters: a push writes six digests.
    fn text<'t>(&self, text: &'t mut [u8; LONGEST_TEXT]) -> &'t str {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let algorithm: &[u8] = match self.algorithm() {
            Algorithm::Sha256 => b"sha256:",
            Algorithm::Sha512 => b"sha512:",
        };
        let digits = self.as_bytes().iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let digits = digits.filter_map(|digit| DIGITS.get(usize::from(digit)).copied());
        let mut length = 0;
        for (place, character) in text.iter_mut().zip(algorithm.iter().copied().chain(digits)) {
            *place = character;
            length += 1;
        }
        // Never empty: all of it is ASCII.
        text.get(..length).and_then(|text| str::from_utf8(text).ok()).unwrap_or_default()
    }

    /// The digest with these bytes, if their number is right.
    #[must_use]
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        match algorithm {
            Algorithm::Sha256 => bytes.try_into().ok().map(Self::Sha256),
            Algorithm::Sha512 => bytes.try_into().ok().map(Self::Sha512),
        }
    }
}

/// Computes a digest chunk by chunk.
#[derive(Debug)]
pub struct Hasher(State);

#[derive(Debug)]
enum State {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// Of no content yet.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::new(Sha512::new())),
        })
    }

    /// Adds the next chunk.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all of them.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            State::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; LONGEST_TEXT]))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, encoded) = text.split_once(':').ok_or(InvalidDigest::Form)?;
        match algorithm {
            "sha256" => from_hex(encoded).map(Self::Sha256),
            "sha512" => from_hex(encoded).map(Self::Sha512),
            _ => Err(InvalidDigest::Algorithm),
        }
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text(&mut [0; LONGEST_TEXT]))
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn from_hex<const N: usize>(encoded: &str) -> Result<[u8; N], InvalidDigest> {
    if encoded.len() != 2 * N {
        return Err(InvalidDigest::Encoded);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(encoded.as_bytes().chunks_exact(2)) {
        for digit in pair {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return Err(InvalidDigest::Encoded),
            };
            *byte = *byte << 4 | value;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(), InvalidDigest>) {
        let parsed = text.parse::<Digest>();
        assert_eq!(parsed.clone().map(|_| ()), expected);
        if let Ok(digest) = parsed {
            assert_eq!(digest.to_string(), text);
        }
    }

    #[test]
    fn takes_the_registered_algorithms_in_lower_case_only() {
        check(&format!("sha256:{}", "0a".repeat(32)), Ok(()));
        check(&format!("sha512:{}", "f9".repeat(64)), Ok(()));
        check(&format!("sha256:{}", "0A".repeat(32)), Err(InvalidDigest::Encoded));
        check(&format!("sha256:{}", "0a".repeat(31)), Err(InvalidDigest::Encoded));
        check(&format!("sha512:{}", "0a".repeat(32)), Err(InvalidDigest::Encoded));
        check("sha256:XYZ", Err(InvalidDigest::Encoded));
        check(&format!("md5:{}", "0a".repeat(16)), Err(InvalidDigest::Algorithm));
        check("latest", Err(InvalidDigest::Form));
        check("", Err(InvalidDigest::Form));
    }

    #[test]
    fn is_the_hash_of_the_content() {
        assert_eq!(
            Digest::of(Algorithm::Sha256, b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
