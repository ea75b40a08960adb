//! The index as JSON Lines: a head, the records of the journal in their order, an end. Reading them again in
//! that order makes the same index. Cut-off lines are noticed by the end, which counts them.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{MaintenanceError, failed};
use crate::index::journal::files::{self, segment_path, snapshot_path};
use crate::index::journal::frame::{Found, Frames};
use crate::index::journal::header::{HEADER_BYTES, Header};
use crate::index::journal::{Damage, Journal, JournalError};
use crate::index::local::{JOURNAL, create_data_dir, lock};
use crate::index::record::Record;

/// The format of a dump.
const FORMAT: u32 = 1;
const LOADING: &str = "journal.loading";
/// How often the files are looked for again because a compaction took one away meanwhile.
const ATTEMPTS: usize = 100;
/// How many bytes of records are made durable at once.
const BATCH_BYTES: usize = 1 << 20;
const SEGMENT_BYTES: u64 = 64 << 20;

/// What was written out, or taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dumped {
    /// How many records.
    pub records: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Frame {
    Refshim { format: u32, last_order: u64 },
    End { records: u64 },
}

/// Writes the index of `data_dir` to `output`, as it is at this moment: also while it is being served, of which
/// everything is in it that was acknowledged before.
///
/// # Errors
/// There is no index, its journal is damaged, or the output takes no more.
pub fn dump(data_dir: &Path, mut output: impl Write) -> Result<Dumped, MaintenanceError> {
    let directory = data_dir.join(JOURNAL);
    if !directory.exists() {
        return Err(MaintenanceError::NoIndex(data_dir.to_owned()));
    }
    let opened = open_all(&directory)?;
    let last_order = opened.iter().map(|file| file.header.last_order).max().unwrap_or(0);
    let mut lines = Lines { output: &mut output, records: 0 };
    lines.write(&Frame::Refshim { format: FORMAT, last_order })?;
    for file in opened {
        file.read(|record| lines.record(&record))?;
    }
    let records = lines.records;
    lines.write(&Frame::End { records })?;
    output.flush().map_err(failed("writing the dump"))?;
    Ok(Dumped { records })
}

struct Lines<W> {
    output: W,
    records: u64,
}

impl<W: Write> Lines<W> {
    fn write(&mut self, line: &impl Serialize) -> Result<(), MaintenanceError> {
        let mut write = || {
            serde_json::to_writer(&mut self.output, line)?;
            self.output.write_all(b"\n")
        };
        write().map_err(failed("writing the dump"))
    }

    fn record(&mut self, record: &Record) -> Result<(), MaintenanceError> {
        self.records += 1;
        self.write(record)
    }
}

/// A file of the journal that can be read to the end that it had, even after it was removed.
struct Opened {
    path: PathBuf,
    file: File,
    header: Header,
    length: u64,
    /// Whether it is being appended to.
    is_last: bool,
}

impl Opened {
    fn new(path: PathBuf, position: u64, is_last: bool) -> Result<Self, JournalError> {
        let (file, header) = files::open(&path, position)?;
        let length = file.metadata().map_err(|source| JournalError::io(&path, source))?.len();
        Ok(Self { path, file, header, length, is_last })
    }

    fn read(
        mut self,
        mut take: impl FnMut(Record) -> Result<(), MaintenanceError>,
    ) -> Result<(), MaintenanceError> {
        let io_error = |source| MaintenanceError::from(JournalError::io(&self.path, source));
        self.file.seek(SeekFrom::Start(HEADER_BYTES)).map_err(io_error)?;
        let mut frames = Frames::new(BufReader::new(&self.file), HEADER_BYTES, self.length);
        loop {
            let offset = frames.offset();
            let damage =
                |what| MaintenanceError::from(JournalError::from(Damage::new(&self.path, offset, what)));
            match frames.next().map_err(io_error)? {
                Found::Frame(payload) => {
                    let records = Record::read_all(&payload);
                    let records = records.map_err(|_| damage("the frame holds no records"))?;
                    let records = records.into_iter().filter(|record| !matches!(record, Record::End { .. }));
                    records.into_iter().try_for_each(&mut take)?;
                }
                Found::Bad if self.is_last => return Ok(()),
                Found::Bad => return Err(damage("there is no intact frame")),
                Found::End => return Ok(()),
            }
        }
    }
}

/// The newest snapshot and the segments behind it.
fn open_all(directory: &Path) -> Result<Vec<Opened>, JournalError> {
    for _ in 1..ATTEMPTS {
        match try_open_all(directory) {
            Err(error) if may_have_been_compacted(&error) => {}
            opened => return opened,
        }
    }
    try_open_all(directory)
}

fn may_have_been_compacted(error: &JournalError) -> bool {
    match error {
        JournalError::Damaged(_) => true,
        JournalError::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
        JournalError::Newer { .. } => false,
    }
}

fn try_open_all(directory: &Path) -> Result<Vec<Opened>, JournalError> {
    let listing = files::list(directory)?;
    let snapshot = listing.snapshots.last();
    let mut at = snapshot.map_or(0, |snapshot| snapshot.position);
    let mut opened = Vec::new();
    if let Some(snapshot) = snapshot {
        let path = snapshot_path(directory, snapshot.position);
        opened.push(Opened::new(path, snapshot.position, false)?);
    }
    let needed: Vec<_> = listing.segments.iter().filter(|segment| segment.base >= at).collect();
    for (index, segment) in needed.iter().enumerate() {
        let path = segment_path(directory, segment.base);
        if segment.base != at {
            return Err(Damage::new(&path, 0, "the files before it are missing").into());
        }
        let segment = Opened::new(path, segment.base, index + 1 == needed.len())?;
        at += segment.length;
        opened.push(segment);
    }
    Ok(opened)
}

/// Makes an index in `data_dir`, which must have none, of what [`dump`] wrote.
///
/// # Errors
/// There is one already, the input is not a whole dump, or the disk fails. Then no index is made.
pub fn load(data_dir: &Path, input: impl BufRead) -> Result<Dumped, MaintenanceError> {
    let data_dir = create_data_dir(data_dir)?;
    let _lock = lock(&data_dir)?;
    let journal = data_dir.join(JOURNAL);
    if journal.exists() {
        return Err(MaintenanceError::Occupied(data_dir));
    }
    let loading = data_dir.join(LOADING);
    if loading.exists() {
        fs::remove_dir_all(&loading).map_err(failed("removing what an earlier attempt left"))?;
    }
    let records = fill(&loading, input)?;
    fs::rename(&loading, &journal).map_err(failed("putting the journal in its place"))?;
    files::sync_directory(&data_dir).map_err(failed("putting the journal in its place"))?;
    Ok(Dumped { records })
}

fn fill(directory: &Path, input: impl BufRead) -> Result<u64, MaintenanceError> {
    let mut lines = (1..).zip(input.lines());
    let mut next = || -> Result<(u64, String), MaintenanceError> {
        let (line, text) = lines.next().ok_or(MaintenanceError::Dump {
            line: 0,
            what: "the dump is cut off: it does not end with its end".to_owned(),
        })?;
        Ok((line, text.map_err(failed("reading the dump"))?))
    };
    let (line, head) = next()?;
    let mut last_order = match serde_json::from_str(&head) {
        Ok(Frame::Refshim { format: FORMAT, last_order }) => last_order,
        Ok(Frame::Refshim { format, .. }) => {
            let what = format!("the dump has format {format}; this build reads {FORMAT}: use a newer build");
            return Err(MaintenanceError::Dump { line, what });
        }
        Ok(Frame::End { .. }) | Err(_) => {
            return Err(MaintenanceError::Dump { line, what: "not the head of a dump".to_owned() });
        }
    };
    let mut journal = Journal::create(directory, SEGMENT_BYTES)?;
    let mut append = |payload: &mut Vec<u8>, last_order| -> Result<(), MaintenanceError> {
        let write = |journal: &mut Journal| -> io::Result<()> {
            if journal.is_full() {
                journal.roll()?;
            }
            journal.append(payload, last_order)
        };
        write(&mut journal).map_err(failed("writing the journal"))?;
        payload.clear();
        Ok(())
    };
    let (mut payload, mut records) = (Vec::new(), 0);
    loop {
        let (line, text) = next()?;
        if let Ok(Frame::End { records: expected }) = serde_json::from_str(&text) {
            if expected != records {
                let what = format!("the dump has {records} records where its end counts {expected}");
                return Err(MaintenanceError::Dump { line, what });
            }
            append(&mut payload, last_order)?;
            return Ok(records);
        }
        let record: Record = serde_json::from_str(&text)
            .map_err(|error| MaintenanceError::Dump { line, what: format!("not a record: {error}") })?;
        last_order = record.order().map_or(last_order, |order| last_order.max(order.0));
        record.write_to(&mut payload).map_err(|error| failed("writing the journal")(error.into()))?;
        records += 1;
        if payload.len() >= BATCH_BYTES {
            append(&mut payload, last_order)?;
        }
    }
}
