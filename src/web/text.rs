//! Sizes, ages and addresses as the pages write them.

use form_urlencoded::Serializer;
use indicatif::DecimalBytes;
use jiff::Timestamp;

use crate::oci::{Digest, visible};

/// Characters of a digest's encoded part that tell it from others.
const DISTINCT: usize = 12;
/// The longest text of somebody else's that is shown whole.
const LONGEST: usize = 2_000;

/// `1.2 MB`
pub(super) fn size(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

/// `sha256:0123456789ab`
pub(super) fn short(digest: &Digest) -> String {
    let digest = digest.to_string();
    match digest.split_once(':') {
        Some((algorithm, encoded)) => {
            format!("{algorithm}:{}", encoded.chars().take(DISTINCT).collect::<String>())
        }
        None => digest,
    }
}

/// Text that others wrote, in one line, and not endless.
pub(super) fn hostile(text: &str) -> String {
    cut(text, LONGEST)
}

/// The same, for a narrow place.
pub(super) fn cut(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => {
            let left = text.chars().count() - longest;
            format!("{}… ({left} more characters)", visible(text.get(..end).unwrap_or_default()))
        }
        None => visible(text),
    }
}

/// The same, for a label that has room for so many characters.
pub(super) fn label(text: &str, longest: usize) -> String {
    let text = visible(text);
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// When something was created by its own word, and how long ago that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Age {
    /// `2026-11-27T10:00:00Z`
    pub(super) time: String,
    /// `3 days`
    pub(super) words: String,
}

impl Age {
    /// The age of what was created at this time (RFC 3339), if that is one.
    pub(super) fn of(created: &str, now: Timestamp) -> Option<Self> {
        let created: Timestamp = created.parse().ok()?;
        let time = created.strftime("%FT%TZ").to_string();
        // Not below zero: the clock of whoever created something may be ahead.
        let seconds = now.duration_since(created).as_secs().max(0);
        let units = [(365 * 86_400, "year"), (86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
        let unit = units.into_iter().find(|(length, _)| seconds >= *length);
        let (length, name) = unit.unwrap_or((1, "second"));
        Some(Self { time, words: count(u64::try_from(seconds / length).unwrap_or(0), name) })
    }
}

/// `1 day`, `2 days`, `2 indexes`
pub(super) fn count(count: u64, name: &str) -> String {
    let ending = if name.ends_with('x') { "es" } else { "s" };
    if count == 1 { format!("1 {name}") } else { format!("{count} {name}{ending}") }
}

/// The address of a page with these parameters.
pub(super) fn address(page: &str, parameters: &[(&str, &str)]) -> String {
    let query = parameters
        .iter()
        .fold(Serializer::new(String::new()), |mut query, (name, value)| {
            query.append_pair(name, value);
            query
        })
        .finish();
    [page, "?", &query].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_the_largest_unit_that_fits() {
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().unwrap();
        let words = |created: &str| Age::of(created, now).map(|age| age.words);
        assert_eq!(words("2026-11-27T11:59:59Z").as_deref(), Some("1 second"));
        assert_eq!(words("2026-11-27T13:00:00+02:00").as_deref(), Some("1 hour"));
        assert_eq!(words("2026-11-20T12:00:00Z").as_deref(), Some("7 days"));
        assert_eq!(words("2020-01-01T00:00:00Z").as_deref(), Some("6 years"));
        assert_eq!(words("2030-01-01T00:00:00Z").as_deref(), Some("0 seconds"));
        assert_eq!(words("yesterday"), None);
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(cut("\u{e9}\u{e9}\u{e9}", 3), "\u{e9}\u{e9}\u{e9}");
        assert_eq!(cut("\u{e9}\u{e9}\u{e9}", 1), "\u{e9}\u{2026} (2 more characters)");
        assert_eq!(label("a\nb", 2), "a\\\u{2026}");
        assert_eq!(hostile(&"x".repeat(3_000)).len(), 2_000 + "\u{2026} (1000 more characters)".len());
    }

    #[test]
    fn what_stands_in_an_address_is_encoded() {
        assert_eq!(
            address("/image", &[("image", "a/b@sha256:0&x=<")]),
            "/image?image=a%2Fb%40sha256%3A0%26x%3D%3C"
        );
    }
}
