//! Parses the TOML file into settings with their lines. A setting after a syntax error is not reported as missing.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::kind::SettingForm;
use super::load::StatedValue;
use super::mistake::Mistake;
use super::notifications::{InvalidSourceName, SOURCE_SETTINGS, SourceName};
use super::settings::{KnownSetting, SETTINGS, Setting};
use super::upstream::{InvalidUpstreamName, UPSTREAM_SETTINGS, UpstreamName};

/// The contents of the file.
#[derive(Debug)]
pub(super) struct Contents {
    /// Settings and mistakes, line by line.
    pub(super) said: Vec<Result<StatedValue, Mistake>>,
    /// Whether all of it could be parsed. If not, a setting that seems missing may be in the rest.
    pub(super) is_whole: bool,
}

/// Parses the text of the file. After the first syntax error, only further syntax errors are reported: what the
/// parser recovers there is guesswork.
pub(super) fn read(path: &Path, text: &str) -> Contents {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { path, text, said: Vec::new() };
    reader.read_table(None, document.get_ref());
    let mut said = reader.said;
    let broken = broken_lines(path, text, &errors);
    if let Some((first, _)) = broken.first_key_value() {
        said.retain(|(line, _)| line < first);
    }
    said.sort_by_key(|(line, _)| *line);
    let is_whole = broken.is_empty();
    let said = said.into_iter().map(|(_, said)| said).chain(broken.into_values().map(Err)).collect();
    Contents { said, is_whole }
}

/// One mistake per line that is not TOML; further errors of the parser in that line follow from the first.
fn broken_lines(path: &Path, text: &str, errors: &[toml::de::Error]) -> BTreeMap<usize, Mistake> {
    let mut broken = BTreeMap::new();
    for error in errors {
        let line = line_at(text, error.span().map_or(0, |span| span.start));
        let mistake =
            || Mistake::new(place(path, line, key_in(text, line)), format!("not TOML: {}", error.message()));
        broken.entry(line).or_insert_with(mistake);
    }
    broken
}

/// The text before the `=` of a line.
fn key_in(text: &str, line: usize) -> Option<&str> {
    let (key, _) = text.lines().nth(line - 1)?.split_once('=')?;
    Some(key.trim())
}

/// The line of an offset in bytes, from 1.
fn line_at(text: &str, offset: usize) -> usize {
    text.get(..offset).unwrap_or(text).matches('\n').count() + 1
}

/// `refshim.toml:12: timeouts.connect`
fn place(path: &Path, line: usize, key: Option<&str>) -> String {
    let path = path.display();
    match key {
        Some(key) => format!("{path}:{line}: {key}"),
        None => format!("{path}:{line}"),
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    /// With their lines, in no order.
    said: Vec<(usize, Result<StatedValue, Mistake>)>,
}

impl Reader<'_> {
    fn read_table(&mut self, table: Option<&str>, entries: &DeTable<'_>) {
        for (name, value) in entries {
            let key = match table {
                Some(table) => format!("{table}.{}", name.get_ref()),
                None => name.get_ref().to_string(),
            };
            self.read_entry(&key, name, value.get_ref());
        }
    }

    fn read_entry(&mut self, key: &str, name: &Spanned<DeString<'_>>, value: &DeValue<'_>) {
        let line = line_at(self.text, name.span().start);
        let place = place(self.path, line, Some(key));
        let said = if let Some(setting) = KnownSetting::with_key(key) {
            match text_of(value, setting.form()) {
                Ok(text) => Ok(StatedValue { place, setting, text }),
                Err(problem) => Err(Mistake::new(place, problem)),
            }
        } else if let Some(Err(invalid)) = upstream_named(key) {
            Err(Mistake::new(place, invalid))
        } else if let (Some(Err(invalid)), DeValue::Table(_)) = (source_named(key), value) {
            Err(Mistake::new(place, invalid))
        } else if !is_table(key) || (source_named(key).is_some() && !matches!(value, DeValue::Table(_))) {
            Err(Mistake::unknown(place, "key", key, known_beside(key)))
        } else if let DeValue::Table(entries) = value {
            return self.read_table(Some(key), entries);
        } else {
            let problem = format!("not a table but {} (write [{key}] and its settings below)", kind(value));
            Err(Mistake::new(place, problem))
        };
        self.said.push((line, said));
    }
}

/// `timeouts`, `upstreams`, `upstreams.hub`
fn is_table(key: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.table() == Some(key))
        || key == UPSTREAMS
        || upstream_named(key).is_some_and(|name| name.is_ok())
        || source_named(key).is_some_and(|name| name.is_ok())
        || within_upstream(key).is_some()
}

/// The upstream's table that this table stands in: `upstreams.hub` of `upstreams.hub.service`.
fn within_upstream(key: &str) -> Option<&str> {
    let (upstream, table) = key.rsplit_once('.')?;
    let is_known = |setting: &Setting<_>| setting.key.split_once('.').is_some_and(|(of, _)| of == table);
    let is_upstream = upstream_named(upstream).is_some_and(|name| name.is_ok());
    (is_upstream && UPSTREAM_SETTINGS.iter().any(is_known)).then_some(upstream)
}

const UPSTREAMS: &str = "upstreams";
const NOTIFICATIONS: &str = "notifications";

/// The upstream whose table has this key.
fn upstream_named(key: &str) -> Option<Result<UpstreamName, InvalidUpstreamName>> {
    Some(name_in(key, UPSTREAMS)?.parse())
}

/// The source of notifications whose table has this key.
fn source_named(key: &str) -> Option<Result<SourceName, InvalidSourceName>> {
    Some(name_in(key, NOTIFICATIONS)?.parse())
}

fn name_in<'a>(key: &'a str, table: &str) -> Option<&'a str> {
    let name = key.strip_prefix(table)?.strip_prefix('.')?;
    (!name.contains('.')).then_some(name)
}

/// The keys and tables that an unknown key may be a misspelling of.
fn known_beside(key: &str) -> Vec<String> {
    let table = key.rsplit_once('.').map(|(table, _)| table).filter(|table| table.contains('.'));
    let is_common = |table: &str| SETTINGS.iter().any(|setting| setting.table() == Some(table));
    if let Some(table) = table.filter(|table| is_table(table) && !is_common(table)) {
        let of_upstream = UPSTREAM_SETTINGS.iter().map(|setting| setting.key);
        let of_source = SOURCE_SETTINGS.iter().map(|setting| setting.key);
        let (table, keys): (_, Vec<&str>) = if source_named(table).is_some() {
            (table, of_source.collect())
        } else {
            (within_upstream(table).unwrap_or(table), of_upstream.collect())
        };
        return keys.into_iter().map(|key| format!("{table}.{key}")).collect();
    }
    let tables = SETTINGS.iter().filter_map(Setting::table).chain([UPSTREAMS]);
    SETTINGS.iter().map(|setting| setting.key).chain(tables).map(str::to_owned).collect()
}

/// The value as the text of a variable, or what is wrong with it.
fn text_of(value: &DeValue<'_>, form: SettingForm) -> Result<String, String> {
    match (form, value) {
        (SettingForm::YesOrNo, DeValue::Boolean(yes)) => Ok(yes.to_string()),
        (SettingForm::YesOrNo, DeValue::String(text)) => Ok(text.to_string()),
        (SettingForm::YesOrNo, _) => Err(format!("not true or false but {}", kind(value))),
        (SettingForm::Many, DeValue::Array(elements)) => {
            let texts: Vec<String> =
                elements.iter().map(|element| element_of(element.get_ref())).collect::<Result<_, _>>()?;
            Ok(texts.join(","))
        }
        (SettingForm::Many, _) => {
            scalar(value).ok_or_else(|| format!("not a string or a list but {}", kind(value)))
        }
        (SettingForm::One, _) => {
            scalar(value).ok_or_else(|| format!("not a string or a number but {}", kind(value)))
        }
    }
}

/// An element of a list. It must not have a comma, which separates elements in a variable.
fn element_of(element: &DeValue<'_>) -> Result<String, String> {
    match element {
        DeValue::String(text) if text.contains(',') => Err(format!("an element has a comma: {text:?}")),
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => Err(format!("an element is not a string but {}", kind(element))),
    }
}

/// The text of a string or a number.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(decimal) => decimal.to_string(),
            Err(_) => number.to_string(),
        }),
        DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
