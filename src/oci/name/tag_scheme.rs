//! Tags whose name states the subject of their manifest: cosign's and the referrers tag. Made and parsed here alone.

use super::Tag;
use crate::oci::Digest;

/// Characters of the digest's encoded part in the referrers tag; a sha512 is cut (distribution-spec, "Referrers Tag
/// Schema").
const REFERRERS_TAG_ENCODED: usize = 64;
/// cosign's suffixes of signatures, attestations and SBOMs.
const COSIGN_SUFFIXES: [&str; 3] = [".sig", ".att", ".sbom"];
/// What `refshim export` adds to the digest of a referrer for a tag of its own.
const KEPT_SUFFIX: &str = ".referrer";

/// The scheme of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagScheme {
    /// cosign's, `<alg>-<hex>.sig`, `.att` or `.sbom`: the manifest is about this digest.
    Cosign(Digest),
    /// The referrers tag of OCI 1.1, `<alg>-<hex>`: the manifest lists referrers. Of a sha512 only half is in the tag,
    /// so the subject cannot be told from it.
    Referrers,
}

impl Tag {
    /// The referrers tag of `subject`: in a registry without the referrers API, clients keep the list of its referrers
    /// there.
    #[must_use]
    pub fn of_referrers(subject: &Digest) -> Self {
        let mut tag = subject.to_string().replace(':', "-");
        if let Some((algorithm, _)) = tag.split_once('-') {
            tag.truncate(algorithm.len() + 1 + REFERRERS_TAG_ENCODED);
        }
        Self(tag.into())
    }

    /// The subject of a referrers tag, if that can be told from the tag.
    #[must_use]
    pub fn subject_of_list(&self) -> Option<Digest> {
        // A sha512 is cut, and then this is no digest.
        self.scheme().filter(|scheme| *scheme == TagScheme::Referrers)?;
        self.0.replacen('-', ":", 1).parse().ok()
    }

    /// The tag of its own that `refshim export` gives a referrer where it is asked to: for collectors of garbage that
    /// do not look into lists.
    #[must_use]
    pub fn of_kept(referrer: &Digest) -> Self {
        Self(format!("{}{KEPT_SUFFIX}", Self::of_referrers(referrer)).into())
    }

    /// The tags at which cosign keeps what is about `subject`: its signature, attestations and SBOM. None for a
    /// sha512, since such a tag would be longer than 128 characters.
    pub fn of_cosign(subject: &Digest) -> impl Iterator<Item = Self> {
        let digest = subject.to_string().replace(':', "-");
        COSIGN_SUFFIXES.into_iter().filter_map(move |suffix| format!("{digest}{suffix}").parse().ok())
    }

    /// The scheme that the tag's name follows, if any.
    #[must_use]
    pub fn scheme(&self) -> Option<TagScheme> {
        let text: &str = &self.0;
        let (algorithm, rest) = text.split_once('-')?;
        if let Some(encoded) = COSIGN_SUFFIXES.iter().find_map(|suffix| rest.strip_suffix(suffix)) {
            return format!("{algorithm}:{encoded}").parse().ok().map(TagScheme::Cosign);
        }
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let lists = matches!(algorithm, "sha256" | "sha512")
            && rest.len() == REFERRERS_TAG_ENCODED
            && rest.bytes().all(is_hex);
        lists.then_some(TagScheme::Referrers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tag: &str, expected: Option<&TagScheme>) {
        assert_eq!(tag.parse::<Tag>().unwrap().scheme().as_ref(), expected, "{tag}");
    }

    #[test]
    fn the_schemes_are_told_by_the_name() {
        let digest = Digest::Sha256([0xab; 32]);
        let hex = "ab".repeat(32);
        for suffix in ["sig", "att", "sbom"] {
            check(&format!("sha256-{hex}.{suffix}"), Some(&TagScheme::Cosign(digest.clone())));
        }
        check(&format!("sha256-{hex}"), Some(&TagScheme::Referrers));
        check(&format!("sha512-{hex}"), Some(&TagScheme::Referrers));
        check(&format!("sha256-{hex}.exe"), None);
        check(&format!("sha256-{}.sig", &hex[1..]), None);
        check(&format!("sha256-{}", &hex[1..]), None);
        check(&format!("sha256-{}", hex.to_uppercase()), None);
        check(&format!("md5-{hex}"), None);
        check(&Tag::of_kept(&digest).to_string(), None);
        check("latest", None);
        check("v1.0-rc.sig", None);
    }

    #[test]
    fn the_referrers_tag_of_a_long_digest_is_cut() {
        let tag = |digest: Digest| Tag::of_referrers(&digest).to_string();
        assert_eq!(tag(Digest::Sha256([0xab; 32])), format!("sha256-{}", "ab".repeat(32)));
        assert_eq!(tag(Digest::Sha512([0xab; 64])), format!("sha512-{}", "ab".repeat(32)));
        for (digest, is_told) in [(Digest::Sha256([0xab; 32]), true), (Digest::Sha512([0xab; 64]), false)] {
            let told = Tag::of_referrers(&digest).subject_of_list();
            assert_eq!(told, Some(digest).filter(|_| is_told));
        }
        assert_eq!(Tag::latest().subject_of_list(), None);
    }
}
