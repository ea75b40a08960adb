//! Repository names and tags, by the grammar of the distribution specification ("Pulling
//! manifests").

use std::fmt;
use std::str::FromStr;

use super::{Algorithm, Digest, InvalidDigest};

mod tag_scheme;

pub use tag_scheme::TagScheme;

/// Registries reject longer names (distribution, `reference.NameTotalLengthMax`).
const NAME_LENGTH_LIMIT: usize = 255;
const TAG_LENGTH_LIMIT: usize = 128;

/// A repository name, `library/ubuntu`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Box<str>);

/// A tag, `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(Box<str>);

/// The last part of `/v2/<name>/manifests/<ref>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TagOrDigest {
    /// A tag, which may move to another manifest.
    Tag(Tag),
    /// A digest, which cannot.
    Digest(Digest),
}

/// The text is not a repository name by the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a repository name")]
pub struct InvalidName;

/// The text is neither a tag nor a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTag {
    /// It has no colon and is not a tag.
    #[error("not a tag: up to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'")]
    Tag,
    /// It has a colon and is not a digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

impl RepositoryName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.len() <= NAME_LENGTH_LIMIT && text.split('/').all(is_name_component) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName)
        }
    }
}

impl serde::Serialize for RepositoryName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for RepositoryName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_name_component(component: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut rest = component;
    loop {
        let after_word = rest.trim_start_matches(is_alphanumeric);
        if after_word.len() == rest.len() {
            return false;
        }
        if after_word.is_empty() {
            return true;
        }
        rest = after_word.trim_start_matches(['.', '_', '-']);
        let separator = after_word.strip_suffix(rest).unwrap_or(after_word);
        if !matches!(separator, "." | "_" | "__") && !separator.bytes().all(|byte| byte == b'-') {
            return false;
        }
    }
}

impl Tag {
    /// The tag of an image name without one.
    #[must_use]
    pub fn latest() -> Self {
        Self("latest".into())
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let mut bytes = text.bytes();
        let valid = text.len() <= TAG_LENGTH_LIMIT
            && bytes.next().is_some_and(is_word)
            && bytes.all(|byte| is_word(byte) || byte == b'.' || byte == b'-');
        if valid { Ok(Self(text.into())) } else { Err(InvalidTag::Tag) }
    }
}

impl TagOrDigest {
    /// The algorithm to compute the manifest's digest with: the digest's own; sha256, as every registry does, for a
    /// tag.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Tag(_) => Algorithm::Sha256,
            Self::Digest(digest) => digest.algorithm(),
        }
    }
}

impl fmt::Display for TagOrDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl FromStr for TagOrDigest {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { text.parse().map(Self::Tag) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_name(text: &str, valid: bool) {
        assert_eq!(text.parse::<RepositoryName>().is_ok(), valid, "{text}");
    }

    #[test]
    fn names_follow_the_grammar() {
        check_name("a", true);
        check_name("library/ubuntu", true);
        check_name("a.b_c__d-e---f/0", true);
        check_name("a/manifests", true);
        check_name(&"a".repeat(255), true);
        check_name(&"a".repeat(256), false);
        check_name("", false);
        check_name("/a", false);
        check_name("a/", false);
        check_name("a//b", false);
        check_name("A", false);
        check_name("a..b", false);
        check_name("a___b", false);
        check_name("a-.b", false);
        check_name("-a", false);
        check_name("a_", false);
        check_name("a b", false);
    }

    #[track_caller]
    fn check_tag(text: &str, valid: bool) {
        assert_eq!(text.parse::<Tag>().is_ok(), valid, "{text}");
    }

    #[test]
    fn tags_follow_the_grammar() {
        check_tag("latest", true);
        check_tag("_v1.2-rc", true);
        check_tag(&"a".repeat(128), true);
        check_tag(&"a".repeat(129), false);
        check_tag("", false);
        check_tag(".a", false);
        check_tag("-a", false);
        check_tag("a/b", false);
    }
}
