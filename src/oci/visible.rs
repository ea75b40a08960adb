//! Text that others wrote, as one line that shows all that is in it.

/// The text with every character as an escape that would not be seen, breaks the line, or makes its surroundings read
/// in another order (Trojan Source, CVE-2021-42574).
#[must_use]
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_hidden(character) {
            shown.extend(["\\u{", &format!("{:x}", u32::from(character)), "}"]);
        } else {
            shown.push(character);
        }
    }
    shown
}

fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            // Soft hyphen, Arabic letter mark, Mongolian vowel separator.
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            // Zero width, marks, line and paragraph separators, embeddings, overrides.
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            // Word joiner, invisible operators, isolates, deprecated controls.
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            // Tags, which name nothing that is shown.
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_not_be_seen_is_escaped() {
        assert_eq!(visible("Zo\u{eb} <b>\u{202e}gpj.\u{2066}x"), "Zo\u{eb} <b>\\u{202e}gpj.\\u{2066}x");
        assert_eq!(visible("a\nb\tc\u{1b}[31m\u{0}"), "a\\u{a}b\\u{9}c\\u{1b}[31m\\u{0}");
        assert_eq!(visible("a\u{200b}b\u{feff}\u{2028}"), "a\\u{200b}b\\u{feff}\\u{2028}");
        assert_eq!(
            visible("\u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{1f600}"),
            "\u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{1f600}"
        );
    }
}
