//! Both sides of one setting, and the table of what came of each scenario.

use std::path::Path;
use std::time::{Duration, Instant};

use super::outcome::Outcome;
use super::side::Side;
use crate::support::Http;

/// How long a registry may take to write down what it has already answered; reaching it is a failure.
const LOG_LIMIT: Duration = Duration::from_secs(10);

/// What came of each scenario.
struct Table {
    setting: &'static str,
    rows: Vec<[String; 4]>,
    differences: Vec<String>,
}

/// Both sides of one setting.
pub(super) struct Comparison {
    pub(super) alone: Side,
    pub(super) through: Side,
    table: Table,
}

impl Comparison {
    pub(super) fn new(setting: &'static str, alone: Side, through: Side) -> Self {
        Self { alone, through, table: Table::new(setting) }
    }

    /// Runs a scenario on both sides, the ends of which are known.
    pub(super) fn run(&mut self, scenario: &str, ends: &str, run: impl Fn(&Side) -> Outcome) {
        let (alone, through) = (run(&self.alone), run(&self.through));
        self.compare(scenario, &alone, &through);
        if alone.to_string() != ends {
            self.table.differences.push(format!("{scenario}: not {ends}, but {alone}: {alone:?}"));
        }
    }

    /// Runs a scenario of the API, the client speaking one version of HTTP to each side.
    pub(super) async fn ask(
        &mut self,
        scenario: &str,
        version_alone: Http,
        version_through: Http,
        ask: impl AsyncFn(&Side, Http) -> Outcome,
    ) {
        let alone = ask(&self.alone, version_alone).await;
        let through = ask(&self.through, version_through).await;
        self.compare(scenario, &alone, &through);
    }

    fn compare(&mut self, scenario: &str, alone: &Outcome, through: &Outcome) {
        let difference = only_one(alone.said(), through.said());
        self.table.add(scenario, [&alone.to_string(), &through.to_string()], alone == through, &difference);
    }

    /// Compares what the registries and their storages were asked and what they hold, and then fails if
    /// anything differed.
    pub(super) fn finish(mut self) {
        let began = Instant::now();
        while self.alone.asked() != self.through.asked() && began.elapsed() < LOG_LIMIT {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.compare_lines("requests that reached the registry", Side::asked);
        self.compare_lines("files that the registry holds", Side::files);
        if self.alone.storage.is_some() {
            self.compare_lines("requests that reached the storage", Side::fetched);
        }
        self.table.finish();
    }

    /// Shows what differs and may.
    pub(super) fn document(mut self, rows: &[[String; 3]]) {
        for [scenario, alone, through] in rows {
            self.table.row(scenario, [alone, through], "documented");
        }
        self.table.finish();
    }

    fn compare_lines(&mut self, what: &str, lines: fn(&Side) -> Vec<String>) {
        let (alone, through) = (lines(&self.alone), lines(&self.through));
        assert!(!alone.is_empty(), "{what}: none");
        let counts = [&alone.len().to_string()[..], &through.len().to_string()];
        self.table.add(what, counts, alone == through, &only_one(&alone, &through));
    }
}

impl Table {
    fn new(setting: &'static str) -> Self {
        Self { setting, rows: Vec::new(), differences: Vec::new() }
    }

    fn add(&mut self, scenario: &str, ends: [&str; 2], same: bool, difference: &str) {
        self.row(scenario, ends, if same { "yes" } else { "NO" });
        if !same {
            self.differences.push(format!("{scenario}: {} | {}\n{difference}", ends[0], ends[1]));
        }
    }

    fn row(&mut self, scenario: &str, ends: [&str; 2], same: &str) {
        self.rows.push([scenario, ends[0], ends[1], same].map(str::to_owned));
    }

    /// Prints the table, leaves it in a file, and fails if anything differed.
    fn finish(self) {
        let head = ["scenario", "alone", "through refshim", "same"].map(str::to_owned);
        let rows = [head, ["---"; 4].map(str::to_owned)].into_iter().chain(self.rows);
        let rows: Vec<String> = rows.map(|row| format!("| {} |", row.join(" | "))).collect();
        let text = format!("### {}\n\n{}\n\n", self.setting, rows.join("\n"));
        println!("{text}");
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("comparison");
        std::fs::create_dir_all(&directory).unwrap();
        let name = self.setting.replace(|character: char| !character.is_alphanumeric(), "-");
        std::fs::write(directory.join(format!("{name}.md")), text).unwrap();
        assert!(self.differences.is_empty(), "{}:\n{}", self.setting, self.differences.join("\n"));
    }
}

/// The lines that only one side has, or has more often.
fn only_one(alone: &[String], through: &[String]) -> String {
    let mut through = through.to_vec();
    let unmatched = alone.iter().filter(|line| {
        let place = through.iter().position(|other| other == *line);
        place.map(|place| through.swap_remove(place)).is_none()
    });
    let mut lines: Vec<String> = unmatched.map(|line| format!("  alone:   {line}")).collect();
    lines.extend(through.iter().map(|line| format!("  through: {line}")));
    lines.join("\n")
}
