//! The descriptions of the settings: the comments of the example file, which stand nowhere else.

use std::collections::BTreeMap;

const EXAMPLE: &str = include_str!("../../config/refshim.toml");

/// The description of each setting by its key in the tables of settings, with `upstreams.` or `notifications.` in
/// front of those of an upstream or a source.
pub(super) fn descriptions() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let (mut table, mut prose): (String, Vec<&str>) = (String::new(), Vec::new());
    for line in EXAMPLE.lines() {
        match Line::of(line) {
            Line::Blank => prose.clear(),
            Line::Prose(text) => prose.push(text),
            Line::Table(name) => table = without_name(name),
            Line::Setting(key) => {
                let key = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
                found.entry(key).or_insert_with(|| sentence(&prose.join(" ")));
            }
        }
    }
    found
}

/// A line of the example file. A setting or a table may be behind `#`, or behind `# ` if it is an example.
enum Line<'a> {
    Blank,
    Prose(&'a str),
    Table(&'a str),
    Setting(&'a str),
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let text = line.strip_prefix('#').unwrap_or(line).trim();
        let is_word = |c: char| c.is_ascii_lowercase() || matches!(c, '_' | '0'..='9');
        let table = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        match (text.split_once(" = "), table) {
            (Some((key, _)), _) if key.chars().all(is_word) => Self::Setting(key),
            (_, Some(table)) => Self::Table(table),
            _ if text.is_empty() => Self::Blank,
            _ => Self::Prose(text),
        }
    }
}

/// `upstreams` for `upstreams.hub`, `upstreams.service` for `upstreams.hub.service`.
fn without_name(table: &str) -> String {
    match table.split_once('.') {
        Some((named @ ("upstreams" | "notifications"), rest)) => match rest.split_once('.') {
            Some((_, within)) => format!("{named}.{within}"),
            None => named.to_owned(),
        },
        _ => table.to_owned(),
    }
}

/// With a capital letter and a full stop, also where the comment goes on behind the setting.
fn sentence(text: &str) -> String {
    let text = text.trim_end_matches([',', ':', '.']);
    let mut rest = text.chars();
    let first = rest.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", rest.as_str())
}
