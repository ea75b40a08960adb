//! How a scenario ended, and the table of both ways.

use super::side::{Side, Way};

/// How a scenario ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// For the table.
    pub(super) summary: String,
    /// All that is compared.
    pub(super) details: Vec<String>,
}

impl Outcome {
    pub(super) fn of(summary: impl Into<String>, details: Vec<String>) -> Self {
        Self { summary: summary.into(), details }
    }

    /// A program's end; its lines in an order of their own where it does several things at once.
    pub(super) fn ended(code: Option<i32>, stdout: String, stderr: String) -> Self {
        let code = code.map_or("killed".to_owned(), |code| format!("exit {code}"));
        let mut errors: Vec<&str> = stderr.lines().map(without_time).collect();
        errors.sort_unstable();
        errors.dedup();
        Self { summary: code, details: vec![stdout, errors.join("\n")] }
    }

    /// Another program's end on top of this one's.
    pub(super) fn then(mut self, next: Self) -> Self {
        self.summary = format!("{}, {}", self.summary, next.summary);
        self.details.extend(next.details);
        self
    }

    /// With a word more in the table.
    pub(super) fn told(mut self, word: &str) -> Self {
        self.summary = format!("{}, {word}", self.summary);
        self
    }
}

/// A line of a log without the time at its beginning.
fn without_time(line: &str) -> &str {
    match line.strip_prefix("time=\"") {
        Some(rest) => rest.split_once("\" ").map_or(line, |(_, rest)| rest),
        None => line,
    }
}

/// Text with `UUID` for each upload's id, and `STATE` for each upload's state.
pub(super) fn without_ids(text: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if let Some(behind) = rest.strip_prefix("_state=") {
            let end = behind.find(['&', ' ', '"', '\n']).unwrap_or(behind.len());
            normal.push_str("_state=STATE");
            rest = &behind[end..];
        } else if rest.get(..36).is_some_and(is_uuid) {
            normal.push_str("UUID");
            rest = &rest[36..];
        } else {
            normal.push(character);
            rest = &rest[character.len_utf8()..];
        }
    }
    normal
}

fn is_uuid(text: &str) -> bool {
    text.char_indices().all(|(at, character)| match at {
        8 | 13 | 18 | 23 => character == '-',
        _ => character.is_ascii_hexdigit(),
    })
}

/// Both sides of one setting and what came of each scenario.
pub(super) struct Comparison {
    pub(super) name: &'static str,
    pub(super) alone: Side,
    pub(super) through: Side,
    pub(super) rows: Vec<[String; 3]>,
    pub(super) differences: Vec<String>,
}

impl Comparison {
    /// Runs a scenario on both sides.
    pub(super) fn run(&mut self, scenario: &str, run: impl Fn(&Side) -> Outcome) {
        let (alone, through) = (run(&self.alone), run(&self.through));
        self.compare(scenario, &alone, &through);
    }

    /// Notes what came of a scenario, once both registries have written down what they were asked.
    pub(super) fn compare(&mut self, scenario: &str, alone: &Outcome, through: &Outcome) {
        self.rows.push([scenario.to_owned(), alone.summary.clone(), through.summary.clone()]);
        self.note(scenario, alone, through);
    }

    fn note<T: std::fmt::Debug + PartialEq>(&mut self, what: &str, alone: &T, through: &T) {
        if alone != through {
            self.differences.push(format!("{what}\n  alone:   {alone:?}\n  through: {through:?}"));
        }
    }

    /// Compares what the registries, and their storages, were asked and what they hold; prints the table;
    /// fails if anything differed.
    pub(super) fn finish(mut self) {
        let both = |ask: fn(&Side) -> Vec<String>| (ask(&self.alone), ask(&self.through));
        // A request is written down after its answer went out, so the last may still be on the way.
        let began = std::time::Instant::now();
        let mut seen = both(Side::seen);
        while seen.0 != seen.1 && began.elapsed() < std::time::Duration::from_secs(5) {
            std::thread::sleep(std::time::Duration::from_millis(50));
            seen = both(Side::seen);
        }
        let held = both(Side::content);
        let fetched = both(Side::fetched);
        for (what, (alone, through)) in [
            ("requests to the registry", seen),
            ("what the registry holds", held),
            ("requests to the storage", fetched),
        ] {
            let count = |lines: &[String]| format!("{}", lines.len());
            self.rows.push([what.to_owned(), count(&alone), count(&through)]);
            let only = |these: &[String], those: &[String]| {
                let mut those = those.to_vec();
                let mut only = these.to_vec();
                only.retain(|line| match those.iter().position(|other| other == line) {
                    Some(at) => {
                        those.swap_remove(at);
                        false
                    }
                    None => true,
                });
                only
            };
            self.note(what, &only(&alone, &through), &only(&through, &alone));
        }
        let table: String = self.rows.iter().map(|row| format!("| {} |\n", row.join(" | "))).collect();
        println!("{}\n\n| scenario | alone | through refshim |\n|---|---|---|\n{table}", self.name);
        let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("comparison");
        std::fs::create_dir_all(&directory).unwrap();
        let text =
            format!("### {}\n\n| scenario | alone | through refshim |\n|---|---|---|\n{table}", self.name);
        std::fs::write(directory.join(format!("{}.md", self.name.replace([' ', ','], "-"))), text).unwrap();
        assert!(self.alone.way == Way::Alone && self.through.way == Way::Through);
        assert!(self.differences.is_empty(), "{}:\n{}", self.name, self.differences.join("\n"));
    }
}
