//! How a list is printed: as a table, as JSON, as digests, or by a template.

use std::str::FromStr;

use clap::Args;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use super::connection::Output;
use super::output::{ErrorFormat, print, print_json, printable_lines};
use crate::client::{Error, ErrorKind, Result};

/// The form of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Format {
    #[default]
    Table,
    Json,
    Digest,
    /// A template of Jinja's, rendered for each entry of what would be the JSON.
    Template(String),
}

#[derive(Debug, Args)]
pub(super) struct FormatArgs {
    /// table, json, digest, or template=TEXT: a Jinja template for each entry of the JSON, such as
    /// '{{ reference }} {{ type }}'.
    #[arg(long, value_name = "FORMAT", default_value = "table", conflicts_with = "json")]
    format: Format,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text, text.strip_prefix("template=")) {
            ("table", _) => Ok(Self::Table),
            ("json", _) => Ok(Self::Json),
            ("digest", _) => Ok(Self::Digest),
            (_, Some(template)) => {
                // Before anything is asked of a registry.
                Environment::new().template_from_str(template).map_err(|error| error.to_string())?;
                Ok(Self::Template(template.to_owned()))
            }
            (_, None) => Err("table, json, digest or template=TEXT".to_owned()),
        }
    }
}

impl FormatArgs {
    /// The form that was asked for, in either way.
    pub(super) fn of(&self, output: &Output) -> Format {
        if output.json { Format::Json } else { self.format.clone() }
    }

    /// How errors and warnings are told: as JSON, if the list is.
    pub(super) fn errors(&self, output: &Output) -> ErrorFormat {
        if self.format == Format::Json { ErrorFormat::Json } else { output.errors() }
    }
}

impl Format {
    /// Prints a list; `digest` and `table` are its other forms.
    pub(super) fn print<E: Serialize>(
        &self,
        entries: &[E],
        digest: impl Fn(&E) -> String,
        table: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Table => table(),
            Self::Json => print_json(&entries),
            Self::Digest => entries.iter().try_for_each(|entry| print(&digest(entry))),
            Self::Template(template) => entries.iter().try_for_each(|entry| rendered(template, entry)),
        }
    }
}

fn rendered(template: &str, entry: &impl Serialize) -> Result<()> {
    let failed = |error: minijinja::Error| {
        Error::new(ErrorKind::Usage, "rendering the template", error.to_string())
            .advise("--format json shows what an entry has")
    };
    let mut environment = Environment::new();
    // A name that is mistyped would print nothing. It may be asked for with `if`, since not every entry has everything.
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    let text = environment.render_str(template, Serde(entry)).map_err(failed)?;
    print(&printable_lines(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&Format>) {
        assert_eq!(text.parse().ok().as_ref(), expected, "{text}");
    }

    #[test]
    fn a_format_is_a_word_or_a_template() {
        check("table", Some(&Format::Table));
        check("json", Some(&Format::Json));
        check("digest", Some(&Format::Digest));
        check("template={{ a }}=b", Some(&Format::Template("{{ a }}=b".to_owned())));
        check("template={{ a", None);
        check("yaml", None);
        check("", None);
    }
}
