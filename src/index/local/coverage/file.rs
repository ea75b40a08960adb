//! The file of JSON lines that the coverage is read from at a start, the last of a key counting.
//!
//! It may be lost at any time: then more is read again, and lists say that they may miss something. It must never say
//! too much. So its first line names the journal that it speaks of, a line that takes something back is synced, and
//! where that fails the file goes.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Upstream, Upstreams};
use crate::index::Covered;
use crate::oci::RepositoryName;

/// Its name in the data directory.
pub(super) const FILE: &str = "coverage";
/// It is written anew when it has this many lines more than it needs, and more than twice as many.
const MOST_STALE: usize = 1_000;

/// The file, open for the next line.
#[derive(Debug, Default)]
pub(super) struct CoverageFile {
    path: PathBuf,
    journal: String,
    /// `None` while nothing can be written: what is learnt then is lost with the process.
    file: Option<File>,
    lines: usize,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    /// The first: of which journal the rest speaks.
    Journal(String),
    /// Since when what is pushed to this upstream is recorded. Whatever was known of it before is void.
    Began { upstream: u32, at: String },
    /// Nothing is known of this upstream any more.
    Void { upstream: u32 },
    Covered {
        upstream: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backfilled: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        swept: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        notified: Option<String>,
    },
}

impl CoverageFile {
    /// What the file says, if it speaks of this journal; it is written anew with what still counts.
    pub(super) fn open(data_dir: &Path, journal: String) -> (Self, Upstreams) {
        let path = data_dir.join(FILE);
        let upstreams = read(&path, &journal);
        let mut file = Self { path, journal, file: None, lines: 0 };
        file.rewrite(lines_of(&upstreams));
        (file, upstreams)
    }

    /// Adds lines; whether there are so many by now that the file should be written anew.
    pub(super) fn append(&mut self, lines: &[Line], needed: usize) -> bool {
        let takes_back = lines.iter().any(|line| matches!(line, Line::Void { .. }));
        let mut bytes = Vec::new();
        let added = lines.iter().try_for_each(|line| add(&mut bytes, line));
        let written = added.and_then(|()| {
            let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
            file.write_all(&bytes)?;
            // Or a power cut could take it back.
            if takes_back { file.sync_data() } else { Ok(()) }
        });
        self.lines += lines.len();
        if let Err(error) = written {
            self.give_up(&error, takes_back);
        }
        self.file.is_some() && self.lines > 2 * needed + MOST_STALE
    }

    /// Writes it anew. Under another name first: a crash leaves the old file or the new one.
    pub(super) fn rewrite(&mut self, lines: Vec<Line>) {
        self.lines = lines.len();
        let unfinished = self.path.with_extension("unfinished");
        let mut bytes = Vec::new();
        let title = Line::Journal(self.journal.clone());
        let added = std::iter::once(title).chain(lines).try_for_each(|line| add(&mut bytes, &line));
        let written = added.and_then(|()| {
            std::fs::write(&unfinished, bytes)?;
            std::fs::rename(&unfinished, &self.path)?;
            OpenOptions::new().append(true).open(&self.path)
        });
        match written {
            Ok(file) => self.file = Some(file),
            // The old one is as right as before.
            Err(error) => complain(&self.path, &error),
        }
    }

    /// Half a line may stand there now; what came before it is still read, unless it was to be taken back.
    fn give_up(&mut self, error: &io::Error, takes_back: bool) {
        if self.file.take().is_some() {
            complain(&self.path, error);
        }
        if takes_back
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            complain(&self.path, &error);
        }
    }

    /// As if the disk took nothing any more.
    #[cfg(test)]
    pub(super) fn fail(&mut self) {
        self.file = None;
    }
}

/// All lines that say the same as these.
pub(super) fn lines_of(upstreams: &Upstreams) -> Vec<Line> {
    let mut lines = Vec::new();
    for (upstream, known) in upstreams {
        lines.push(Line::Began { upstream: *upstream, at: known.began.to_string() });
        lines.push(line(*upstream, None, &known.whole));
        let repositories = known.repositories.iter();
        lines.extend(repositories.map(|(name, covered)| line(*upstream, Some(name), covered)));
    }
    lines
}

fn add(bytes: &mut Vec<u8>, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *bytes, line)?;
    bytes.push(b'\n');
    Ok(())
}

fn complain(path: &Path, error: &io::Error) {
    tracing::warn!(file = %path.display(), %error, "what is known of the repositories' coverage cannot be written; \
        after a restart, lists say that links may be missing until the next backfill or sweep");
}

fn read(path: &Path, journal: &str) -> Upstreams {
    let mut upstreams = Upstreams::new();
    let Ok(file) = File::open(path) else { return upstreams };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    let mut lines = lines.map(|line| serde_json::from_str(&line).ok());
    if !matches!(lines.next(), Some(Some(Line::Journal(of))) if of == journal) {
        return upstreams;
    }
    while let Some(line) = lines.next() {
        let line: Option<Line> = line;
        if line.and_then(|line| take(&mut upstreams, line)).is_some() {
            continue;
        }
        // Half a line at the end is what a crash left. Anywhere else, it may be the one that took back all before it.
        if lines.next().is_some() {
            upstreams.clear();
        }
        break;
    }
    upstreams
}

fn take(upstreams: &mut Upstreams, line: Line) -> Option<()> {
    match line {
        Line::Journal(_) => return None,
        Line::Began { upstream, at } => {
            let began = at.parse().ok()?;
            upstreams.insert(upstream, Upstream::new(began));
        }
        Line::Void { upstream } => {
            upstreams.remove(&upstream);
        }
        Line::Covered { upstream, name, backfilled, swept, notified } => {
            let name = name.map(|name| name.parse()).transpose().ok()?;
            let time = |text: Option<String>| text.map(|text| text.parse()).transpose().ok();
            let (backfilled, swept, notified) = (time(backfilled)?, time(swept)?, time(notified)?);
            let known = upstreams.get_mut(&upstream)?;
            *known.covered(name) = Covered { backfilled, swept, notified };
        }
    }
    Some(())
}

pub(super) fn line(upstream: u32, name: Option<&RepositoryName>, covered: &Covered) -> Line {
    let text = |time: Option<Timestamp>| time.map(|time| time.to_string());
    Line::Covered {
        upstream,
        name: name.map(ToString::to_string),
        backfilled: text(covered.backfilled),
        swept: text(covered.swept),
        notified: text(covered.notified),
    }
}
