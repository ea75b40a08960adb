//! Abbreviated digests, as trees print them.

use std::fmt;
use std::str::FromStr;

use super::{Digest, InvalidDigest};

/// Hex digits that are needed at least. Trees print 12.
const LEAST: usize = 7;

/// The beginning of a digest, or all of it: `sha256:` and at least seven hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestPrefix(String);

impl DigestPrefix {
    /// Whether the digest begins like this.
    #[must_use]
    pub fn matches(&self, digest: &Digest) -> bool {
        digest.to_string().starts_with(&self.0)
    }
}

impl FromStr for DigestPrefix {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, digits) = text.split_once(':').ok_or(InvalidDigest::Form)?;
        let longest = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(InvalidDigest::Algorithm),
        };
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if !(LEAST..=longest).contains(&digits.len()) || !digits.bytes().all(is_digit) {
            return Err(InvalidDigest::Encoded);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DigestPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<bool>) {
        let digest = Digest::Sha256([0xab; 32]);
        assert_eq!(
            text.parse::<DigestPrefix>().ok().map(|prefix| prefix.matches(&digest)),
            expected,
            "{text}"
        );
    }

    #[test]
    fn a_prefix_is_long_enough_to_be_meant() {
        check("sha256:abababa", Some(true));
        check(&format!("sha256:{}", "ab".repeat(32)), Some(true));
        check("sha256:abababb", Some(false));
        check("sha512:abababa", Some(false));
        check("sha256:ababab", None);
        check(&format!("sha256:{}", "ab".repeat(33)), None);
        check("sha256:ABABABAB", None);
        check("md5:abababab", None);
        check("abababab", None);
    }
}
