//! Mistakes in a configuration: one line each, with its place, what is wrong, and what to write instead.

use std::fmt;

/// One mistake: its place, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Mistake {
    place: String,
    problem: String,
}

/// All mistakes of a configuration, at least one; displayed as a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistake {
    pub(super) fn new(place: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self { place: on_one_line(&place.into()), problem: on_one_line(&problem.to_string()) }
    }

    /// An unknown name, with the known name that was probably meant.
    pub(super) fn unknown(
        place: impl Into<String>,
        what: &str,
        name: &str,
        known: impl IntoIterator<Item = String>,
    ) -> Self {
        match known.into_iter().find(|known| resembles(name, known)) {
            Some(meant) => Self::new(place, format!("unknown {what}, did you mean {meant}?")),
            None => Self::new(place, format!("unknown {what}")),
        }
    }
}

impl Mistakes {
    pub(super) fn new(mistakes: Vec<Mistake>) -> Self {
        Self(mistakes)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Mistake::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

/// Escapes control characters: a key in the file may have any, and would forge lines of the log.
fn on_one_line(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Whether two names differ in one place only, by up to two letters: missing, added, wrong or swapped.
fn resembles(name: &str, known: &str) -> bool {
    let same = |(a, b): &(char, char)| a == b;
    let head = name.chars().zip(known.chars()).take_while(same).count();
    let tail = name.chars().rev().zip(known.chars().rev()).take_while(same).count();
    let (shorter, longer) = {
        let (a, b) = (name.chars().count(), known.chars().count());
        (a.min(b), a.max(b))
    };
    longer - (head + tail).min(shorter) <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_line_whatever_a_key_says() {
        let mistake = Mistake::new("refshim.toml:1: a\nb\u{1b}", "unknown\tkey");
        assert_eq!(mistake.to_string(), r"refshim.toml:1: a\nb\u{1b}: unknown\tkey");
    }

    #[track_caller]
    fn check(name: &str, known: &str, expected: bool) {
        assert_eq!(resembles(name, known), expected, "{name} {known}");
    }

    #[test]
    fn a_slip_of_the_finger_resembles_what_was_meant() {
        check("lisen", "listen", true);
        check("listten", "listen", true);
        check("lsiten", "listen", true);
        check("liztem", "listen", false);
        check("data-dir", "data_dir", true);
        check("listen", "admin_listen", false);
        check("manifest.max_bytes", "manifests.max_bytes", true);
        check("aaa", "aaaaa", true);
        check("aaa", "aaaaaa", false);
        check("", "log", false);
    }
}
