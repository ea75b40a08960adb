//! What came of a scenario on one side.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

/// What came of a scenario on one side, all of which is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Exits and statuses, which the table counts.
    ends: Vec<String>,
    /// What was said, in full.
    said: Vec<String>,
}

impl Outcome {
    /// One request, or one command.
    pub(super) fn new(end: impl Into<String>, said: impl Into<String>) -> Self {
        Self { ends: vec![end.into()], said: vec![said.into()] }
    }

    /// With another one after it.
    pub(super) fn then(mut self, next: Self) -> Self {
        self.ends.extend(next.ends);
        self.said.extend(next.said);
        self
    }

    /// With something more to compare.
    pub(super) fn saying(mut self, more: impl Into<String>) -> Self {
        self.said.push(more.into());
        self
    }

    /// With its end alone to compare.
    pub(super) fn silent(mut self) -> Self {
        self.said.clear();
        self
    }

    pub(super) fn said(&self) -> &[String] {
        &self.said
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut counts = BTreeMap::new();
        for end in &self.ends {
            *counts.entry(end).or_insert(0) += 1;
        }
        let counts = counts.into_iter().map(|(end, count)| match count {
            1 => end.clone(),
            _ => format!("{end} ×{count}"),
        });
        f.write_str(&counts.collect::<Vec<_>>().join(", "))
    }
}
