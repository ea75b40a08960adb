//! The table of faults: what was tried, how often, and what came of it.

use std::fs::File;
use std::io::Write as _;

/// One fault.
#[derive(Debug)]
pub(crate) struct Row {
    fault: &'static str,
    pub(crate) tried: u64,
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) wrong: u64,
    /// What was lost or wrong, to be told.
    findings: Vec<String>,
    /// How often the process was gone although nobody killed it.
    pub(crate) ended: u64,
}

impl Row {
    pub(crate) fn new(fault: &'static str) -> Self {
        Self { fault, tried: 0, acknowledged: 0, lost: 0, wrong: 0, findings: Vec::new(), ended: 0 }
    }

    pub(crate) fn lose(&mut self, finding: String) {
        self.lost += 1;
        self.findings.push(finding);
    }

    pub(crate) fn mistake(&mut self, finding: String) {
        self.wrong += 1;
        self.findings.push(finding);
    }

    /// Adds it to the file that `FAULT_TABLE` names, if it names one, and expects that all is well.
    pub(crate) fn close(self) {
        let Self { fault, tried, acknowledged, lost, wrong, findings, ended } = self;
        if let Some(path) = std::env::var_os("FAULT_TABLE") {
            let up = if ended == 0 { "yes" } else { "no" };
            let line = format!("{fault}\t{tried}\t{acknowledged}\t{lost}\t{wrong}\t{up}\n");
            let mut file = File::options().create(true).append(true).open(path).unwrap();
            file.write_all(line.as_bytes()).unwrap();
        }
        assert!(tried > 0, "{fault}: never tried");
        assert_eq!((lost, wrong, ended), (0, 0, 0), "{fault}: {findings:#?}");
    }
}
