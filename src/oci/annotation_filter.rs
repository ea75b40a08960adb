//! A filter on the annotations of a descriptor, as the references query and the commands take it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// `key`, which accepts any value of this annotation, or `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotationFilter {
    key: String,
    value: Option<String>,
}

/// The text has no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an annotation is key or key=value")]
pub struct InvalidAnnotationFilter;

impl AnnotationFilter {
    /// Whether a manifest with these annotations is accepted.
    #[must_use]
    pub fn matches(&self, annotations: &BTreeMap<String, String>) -> bool {
        let found = annotations.get(&self.key);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|wanted| wanted == found))
    }
}

impl FromStr for AnnotationFilter {
    type Err = InvalidAnnotationFilter;

    fn from_str(text: &str) -> Result<Self, InvalidAnnotationFilter> {
        // At the first `=`: keys have none (they are reverse domain names), values may.
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, None),
        };
        if key.is_empty() { Err(InvalidAnnotationFilter) } else { Ok(Self { key: key.to_owned(), value }) }
    }
}

impl fmt::Display for AnnotationFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => f.write_str(&self.key),
        }
    }
}
