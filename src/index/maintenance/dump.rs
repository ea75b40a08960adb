//! The format of dumps, which both engines write and read: JSON Lines.
//!
//! Format 2: a first line `{"refshim":{"format":2,"last_order":...}}`, records as in the journal, one a line, and a
//! last line `{"end":{"records":...}}`, by whose count a dump that was cut off is detected. Applying the records in this
//! order makes the same index. Versions are left out: they mean nothing in another index.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use super::{Dumped, MaintenanceError, failed};
use crate::index::record::Record;

/// The format that this build writes. It also reads format 1, which lacks some kinds of record.
const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DumpFrame {
    Refshim { format: u32, last_order: u64 },
    End { records: u64 },
}

/// Writes a dump.
#[derive(Debug)]
pub(crate) struct DumpWriter<W> {
    output: W,
    records: u64,
}

impl<W: Write> DumpWriter<W> {
    /// Begins a dump.
    pub(crate) fn begin(output: W, last_order: u64) -> Result<Self, MaintenanceError> {
        let mut writer = Self { output, records: 0 };
        writer.line(&DumpFrame::Refshim { format: FORMAT, last_order })?;
        Ok(writer)
    }

    pub(crate) fn record(&mut self, record: &Record) -> Result<(), MaintenanceError> {
        self.records += 1;
        self.line(record)
    }

    /// Ends the dump; without that it is not loaded.
    pub(crate) fn end(mut self) -> Result<Dumped, MaintenanceError> {
        let records = self.records;
        self.line(&DumpFrame::End { records })?;
        self.output.flush().map_err(failed("writing the dump"))?;
        Ok(Dumped { records })
    }

    fn line(&mut self, line: &impl Serialize) -> Result<(), MaintenanceError> {
        let mut write = || {
            serde_json::to_writer(&mut self.output, line)?;
            self.output.write_all(b"\n")
        };
        write().map_err(failed("writing the dump"))
    }
}

/// Reads a dump.
#[derive(Debug)]
pub(crate) struct DumpReader<R> {
    lines: std::io::Lines<R>,
    line: u64,
    records: u64,
    last_order: u64,
}

impl<R: BufRead> DumpReader<R> {
    /// Reads the first line.
    pub(crate) fn begin(input: R) -> Result<Self, MaintenanceError> {
        let mut reader = Self { lines: input.lines(), line: 0, records: 0, last_order: 0 };
        let head = reader.needed_line()?;
        match serde_json::from_str(&head) {
            Ok(DumpFrame::Refshim { format: 1..=FORMAT, last_order }) => reader.last_order = last_order,
            Ok(DumpFrame::Refshim { format, .. }) => {
                return Err(reader.mistake(format!(
                    "the dump has format {format}; this build reads up to {FORMAT}: use a newer build"
                )));
            }
            Ok(DumpFrame::End { .. }) | Err(_) => {
                return Err(reader.mistake("not the first line of a dump".to_owned()));
            }
        }
        Ok(reader)
    }

    /// The highest order so far.
    pub(crate) fn last_order(&self) -> u64 {
        self.last_order
    }

    /// How many records were read so far.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// The next record; none once the dump has ended as it should.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, MaintenanceError> {
        let text = self.needed_line()?;
        if let Ok(DumpFrame::End { records: expected }) = serde_json::from_str(&text) {
            let records = self.records;
            if expected != records {
                return Err(self.mistake(format!(
                    "the dump has {records} records, but its last line counts {expected}"
                )));
            }
            if self.next_line()?.is_some_and(|text| !text.is_empty()) {
                return Err(self.mistake("the dump continues after its last line".to_owned()));
            }
            return Ok(None);
        }
        let record: Record =
            serde_json::from_str(&text).map_err(|error| self.mistake(format!("not a record: {error}")))?;
        self.last_order = record.order().map_or(self.last_order, |order| self.last_order.max(order.0));
        self.records += 1;
        Ok(Some(record))
    }

    fn next_line(&mut self) -> Result<Option<String>, MaintenanceError> {
        self.line += 1;
        self.lines.next().transpose().map_err(failed("reading the dump"))
    }

    fn needed_line(&mut self) -> Result<String, MaintenanceError> {
        let cut_off = "the dump is cut off: its last line is missing";
        self.next_line()?.ok_or_else(|| MaintenanceError::Dump { line: 0, what: cut_off.to_owned() })
    }

    fn mistake(&self, what: String) -> MaintenanceError {
        MaintenanceError::Dump { line: self.line, what }
    }
}
