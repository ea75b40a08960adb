//! Aligned columns, and sizes, ages and kinds as people read them.

use indicatif::DecimalBytes;
use jiff::{SignedDuration, Timestamp};

use super::output::printable;
use crate::oci::{Digest, LinkKind, LinkKinds};

const SHORT_DIGEST: usize = "sha256:".len() + 12;

/// Lines of cells, each column as wide as its widest cell.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<[String; N]> {
    // Escaped first, or the widths would be those of other text.
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.clone().map(|cell| printable(&cell))).collect();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or_default());
    let pad = |row: &[String; N]| {
        let mut cells = row.clone();
        for (cell, width) in cells.iter_mut().zip(widths) {
            *cell = format!("{cell:width$}");
        }
        cells
    };
    rows.iter().map(pad).collect()
}

pub(super) fn size(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

/// The age of a manifest that says when it was created, in the largest unit that fits.
pub(super) fn age(created: Option<&str>, now: Timestamp) -> String {
    let created = created.and_then(|created| created.parse::<Timestamp>().ok());
    created.map_or_else(|| "-".to_owned(), |created| length(now.duration_since(created)))
}

/// A length of time in the largest unit that fits.
pub(super) fn length(time: SignedDuration) -> String {
    // Not below zero: the clock of whoever created something may be ahead.
    let seconds = time.as_secs().max(0);
    let units = [(365 * 86_400, "y"), (86_400, "d"), (3_600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(length, _)| seconds >= *length).unwrap_or((1, "s"));
    format!("{}{}", seconds / unit.0, unit.1)
}

/// The kinds of link, without `fallback` if there is a `subject`: the list at the tag then says nothing new.
pub(super) fn kinds(kinds: LinkKinds) -> String {
    let says_itself = kinds.intersects(LinkKind::Subject.into());
    let told = kinds.iter().filter(|kind| !(says_itself && *kind == LinkKind::Fallback));
    told.map(LinkKind::as_str).collect::<Vec<_>>().join(",")
}

pub(super) fn short(digest: &Digest) -> String {
    digest.to_string().chars().take(SHORT_DIGEST).collect()
}
