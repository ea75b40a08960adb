//! Kinds of values: how the text of a setting is parsed, how its value is shown back, and which JSON Schema describes
//! it. A table of settings says the kind of each setting and its field, and no more; parsing, `config show` and
//! `config schema` follow from that.

use serde_json::{Value as Json, json};
use toml::Value;

use super::value::{Invalid, form};
use crate::oci::{LinkKind, LinkKinds};

/// A kind of values.
pub(super) trait Kind: Sync {
    /// The values.
    type Value;
    /// The TOML values that are accepted.
    const FORM: SettingForm = SettingForm::One;

    /// Parses a text from the file, a variable or a flag.
    fn parse(&self, text: &str) -> Result<Self::Value, Invalid>;

    /// The value as TOML, which is parsed to the same again; nothing if none is set.
    fn show(&self, value: &Self::Value) -> Option<Value>;

    /// The same without its secrets.
    fn masked(&self, value: &Self::Value) -> Option<Value> {
        self.show(value)
    }

    /// The JSON Schema of the values, as TOML has them.
    fn schema(&self) -> Json;

    /// The least and the largest value, in words, if they are not all.
    fn bounds(&self) -> Option<String> {
        None
    }
}

/// The TOML values that a setting accepts. A variable is always text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SettingForm {
    /// A string or a number.
    One,
    /// A string, a number or a list of strings; in a variable, separated by commas.
    Many,
    /// `true` or `false`.
    YesOrNo,
}

/// A kind of values, and the field that holds one.
pub(super) struct At<D: 'static, K: Kind> {
    kind: K,
    field: fn(&mut D) -> &mut K::Value,
}

impl<D, K: Kind> At<D, K> {
    pub(super) const fn new(kind: K, field: fn(&mut D) -> &mut K::Value) -> Self {
        Self { kind, field }
    }
}

/// A field of `D`, whatever its kind.
pub(super) trait Field<D>: Sync {
    /// See [`Kind::FORM`].
    fn form(&self) -> SettingForm;
    /// Parses a text and stores the value.
    fn put(&self, to: &mut D, text: &str) -> Result<(), Invalid>;
    /// See [`Kind::show`].
    fn show(&self, of: &mut D) -> Option<Value>;
    /// See [`Kind::masked`].
    fn masked(&self, of: &mut D) -> Option<Value>;
    /// See [`Kind::schema`].
    fn schema(&self) -> Json;
    /// See [`Kind::bounds`].
    fn bounds(&self) -> Option<String>;
}

impl<D, K: Kind> Field<D> for At<D, K> {
    fn form(&self) -> SettingForm {
        K::FORM
    }

    fn put(&self, to: &mut D, text: &str) -> Result<(), Invalid> {
        *(self.field)(to) = self.kind.parse(text)?;
        Ok(())
    }

    fn show(&self, of: &mut D) -> Option<Value> {
        self.kind.show((self.field)(of))
    }

    fn masked(&self, of: &mut D) -> Option<Value> {
        self.kind.masked((self.field)(of))
    }

    fn schema(&self) -> Json {
        self.kind.schema()
    }

    fn bounds(&self) -> Option<String> {
        self.kind.bounds()
    }
}

/// Texts with a meaning of their own.
pub(super) struct Text<T> {
    pub(super) parse: fn(&str) -> Result<T, Invalid>,
    pub(super) write: fn(&T) -> String,
    /// What the text without its secrets is, if it may have any.
    pub(super) mask: Option<fn(&T) -> String>,
    /// A regular expression that each such text matches. The parser is the judge, and may reject more.
    pub(super) pattern: &'static str,
}

impl<T> Kind for Text<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Result<T, Invalid> {
        (self.parse)(text)
    }

    fn show(&self, value: &T) -> Option<Value> {
        Some(Value::String((self.write)(value)))
    }

    fn masked(&self, value: &T) -> Option<Value> {
        Some(Value::String(self.mask.unwrap_or(self.write)(value)))
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "pattern": self.pattern })
    }
}

/// One of some words.
pub(super) struct Words<T: 'static> {
    pub(super) what: &'static str,
    pub(super) words: &'static [(&'static str, T)],
}

impl<T: Copy + PartialEq + Sync> Kind for Words<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Result<T, Invalid> {
        let found = self.words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = self.words.iter().map(|(word, _)| *word).collect();
            let example = match words.split_last() {
                Some((last, [])) => (*last).to_owned(),
                Some((last, others)) => format!("{} or {last}", others.join(", ")),
                None => String::new(),
            };
            form(self.what, text, example)
        })
    }

    fn show(&self, value: &T) -> Option<Value> {
        let found = self.words.iter().find(|(_, known)| known == value);
        found.map(|(word, _)| Value::String((*word).to_owned()))
    }

    fn schema(&self) -> Json {
        let words: Vec<&str> = self.words.iter().map(|(word, _)| *word).collect();
        json!({ "type": "string", "enum": words })
    }
}

/// `true` or `false`.
pub(super) struct YesOrNo;

impl Kind for YesOrNo {
    type Value = bool;
    const FORM: SettingForm = SettingForm::YesOrNo;

    fn parse(&self, text: &str) -> Result<bool, Invalid> {
        text.parse().map_err(|_| form("true or false", text, "true or false"))
    }

    fn show(&self, value: &bool) -> Option<Value> {
        Some(Value::Boolean(*value))
    }

    fn schema(&self) -> Json {
        json!({ "type": ["boolean", "string"], "enum": [true, false, "true", "false"] })
    }
}

/// A value that need not be set.
pub(super) struct Optional<K>(pub(super) K);

impl<K: Kind> Kind for Optional<K> {
    type Value = Option<K::Value>;
    const FORM: SettingForm = K::FORM;

    fn parse(&self, text: &str) -> Result<Self::Value, Invalid> {
        self.0.parse(text).map(Some)
    }

    fn show(&self, value: &Self::Value) -> Option<Value> {
        self.0.show(value.as_ref()?)
    }

    fn masked(&self, value: &Self::Value) -> Option<Value> {
        self.0.masked(value.as_ref()?)
    }

    fn schema(&self) -> Json {
        self.0.schema()
    }

    fn bounds(&self) -> Option<String> {
        self.0.bounds()
    }
}

/// Any number of values.
pub(super) struct List<K>(pub(super) K);

impl<K: Kind> Kind for List<K> {
    type Value = Vec<K::Value>;
    const FORM: SettingForm = SettingForm::Many;

    fn parse(&self, text: &str) -> Result<Self::Value, Invalid> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        text.split(',').map(|part| self.0.parse(part.trim())).collect()
    }

    fn show(&self, value: &Self::Value) -> Option<Value> {
        Some(Value::Array(value.iter().filter_map(|element| self.0.show(element)).collect()))
    }

    fn schema(&self) -> Json {
        json!({ "type": ["array", "string"], "items": self.0.schema() })
    }
}

/// A set of kinds of link.
pub(super) struct SetOfKinds<K>(pub(super) List<K>);

impl<K: Kind<Value = LinkKind>> Kind for SetOfKinds<K> {
    type Value = LinkKinds;
    const FORM: SettingForm = SettingForm::Many;

    fn parse(&self, text: &str) -> Result<LinkKinds, Invalid> {
        Ok(self.0.parse(text)?.into_iter().collect())
    }

    fn show(&self, value: &LinkKinds) -> Option<Value> {
        self.0.show(&value.iter().collect())
    }

    fn schema(&self) -> Json {
        self.0.schema()
    }
}
