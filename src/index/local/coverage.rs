//! What is known of the coverage, in a file of JSON lines beside the journal, the last of a key counting.
//!
//! It may be lost at any time: then more is read again, and lists say that they may miss something. It must never say
//! too much. So its first line names the journal that it speaks of; another one (a dump that was loaded, a journal that
//! was rebuilt without what was damaged) begins anew.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::journal::format::Identity;
use crate::index::{Coverage, Covered, Repository};
use crate::oci::RepositoryName;

/// Its name in the data directory.
const FILE: &str = "coverage";
/// Notifications of one repository that come closer together are not told apart.
const NOTIFIED_EVERY: SignedDuration = SignedDuration::from_secs(60);

/// The coverage of all upstreams.
#[derive(Debug)]
pub(crate) struct CoverageFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` while nothing can be written: what is learnt then is lost with the process.
    file: Option<File>,
    upstreams: BTreeMap<u32, Upstream>,
}

/// One upstream.
#[derive(Clone, Debug)]
struct Upstream {
    began: Timestamp,
    /// All of its repositories together.
    whole: Covered,
    repositories: BTreeMap<RepositoryName, Covered>,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
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
    /// Reads it, if it speaks of this journal, and writes it anew with what still counts. Without a journal, or if it
    /// cannot be written, it is kept in memory.
    pub(crate) fn open(data_dir: &Path, journal: Option<Identity>) -> Self {
        let path = data_dir.join(FILE);
        let Some(journal) = journal.map(Identity::name) else {
            return Self { path, state: Mutex::default() };
        };
        let upstreams = read(&path, &journal);
        let file = write(&path, &journal, &upstreams).inspect_err(|error| complain(&path, error)).ok();
        Self { path, state: Mutex::new(State { file, upstreams }) }
    }

    /// From now on, what is pushed to this upstream is recorded; nothing changes if it was already.
    pub(crate) fn begin(&self, upstream: u32) {
        let mut state = self.lock();
        if state.upstreams.contains_key(&upstream) {
            return;
        }
        let began = Timestamp::now();
        state.upstreams.insert(upstream, Upstream::new(began));
        self.append(&mut state, &Line::Began { upstream, at: began.to_string() });
    }

    /// What is pushed to this upstream is not recorded any more.
    pub(crate) fn void(&self, upstream: u32) {
        let mut state = self.lock();
        if state.upstreams.remove(&upstream).is_some() {
            self.append(&mut state, &Line::Void { upstream });
            // Or a power cut could take it back.
            let synced = state.file.as_ref().map(File::sync_data);
            if !matches!(synced, Some(Ok(()))) {
                // What cannot be taken back in the file must not be read from it again.
                state.file = None;
                match std::fs::remove_file(&self.path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => complain(&self.path, &error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
    }

    /// Something that was pushed until now is not recorded. Without effect before [`CoverageFile::begin`].
    pub(crate) fn restart(&self, upstream: u32) {
        if self.lock().upstreams.contains_key(&upstream) {
            self.void(upstream);
            self.begin(upstream);
        }
    }

    /// Adds to what is known of a repository, or of all. Without effect before [`CoverageFile::begin`]: what is pushed
    /// between then and the reading is not recorded, so it is not known either.
    pub(crate) fn add(&self, upstream: u32, name: Option<&RepositoryName>, covered: Covered) {
        let mut state = self.lock();
        let Some(known) = state.upstreams.get_mut(&upstream) else { return };
        // What was begun before something was missed does not know of that.
        let is_valid = |time: &Timestamp| *time >= known.began;
        let covered = Covered {
            backfilled: covered.backfilled.filter(is_valid),
            swept: covered.swept.filter(is_valid),
            ..covered
        };
        let before = known.covered(name.cloned());
        let after = before.and(covered);
        let is_later = |after: Option<Timestamp>, before: Option<Timestamp>| {
            after.zip(before).is_none_or(|(after, before)| after.duration_since(before) >= NOTIFIED_EVERY)
        };
        let is_news = (after.backfilled, after.swept) != (before.backfilled, before.swept)
            || is_later(after.notified, before.notified);
        if after == *before || !is_news {
            return;
        }
        *before = after;
        self.append(&mut state, &line(upstream, name, &after));
    }

    pub(crate) fn of(&self, repository: &Repository) -> Coverage {
        let state = self.lock();
        let Some(known) = state.upstreams.get(&repository.upstream) else {
            return Coverage::Since(Timestamp::now());
        };
        let own = || known.repositories.get(&repository.name).is_some_and(Covered::is_complete);
        known.coverage(known.whole.is_complete() || own())
    }

    pub(crate) fn of_all(&self, upstream: u32) -> Coverage {
        let state = self.lock();
        let known = state.upstreams.get(&upstream);
        known.map_or_else(
            || Coverage::Since(Timestamp::now()),
            |known| known.coverage(known.whole.is_complete()),
        )
    }

    /// Since when an upstream is recorded, and what is known of all of it and of its repositories, by name.
    pub(crate) fn list(
        &self,
        upstream: u32,
    ) -> Option<(Timestamp, BTreeMap<Option<RepositoryName>, Covered>)> {
        let state = self.lock();
        let known = state.upstreams.get(&upstream)?;
        let repositories = known.repositories.iter().map(|(name, covered)| (Some(name.clone()), *covered));
        Some((known.began, std::iter::once((None, known.whole)).chain(repositories).collect()))
    }

    fn append(&self, state: &mut State, line: &Line) {
        let Some(file) = &mut state.file else { return };
        let written = to_bytes(line).and_then(|line| file.write_all(&line));
        if let Err(error) = written {
            complain(&self.path, &error);
            // Half a line may stand there now; what came before it is still read.
            state.file = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upstream {
    fn new(began: Timestamp) -> Self {
        Self { began, whole: Covered::default(), repositories: BTreeMap::new() }
    }

    /// What is known of a repository, or of all.
    fn covered(&mut self, name: Option<RepositoryName>) -> &mut Covered {
        match name {
            None => &mut self.whole,
            Some(name) => self.repositories.entry(name).or_default(),
        }
    }

    fn coverage(&self, is_complete: bool) -> Coverage {
        if is_complete { Coverage::Complete } else { Coverage::Since(self.began) }
    }
}

fn complain(path: &Path, error: &io::Error) {
    tracing::warn!(file = %path.display(), %error, "what is known of the repositories' coverage cannot be written; \
        after a restart, lists say that links may be missing until the next backfill or sweep");
}

fn read(path: &Path, journal: &str) -> BTreeMap<u32, Upstream> {
    let mut upstreams = BTreeMap::new();
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

fn take(upstreams: &mut BTreeMap<u32, Upstream>, line: Line) -> Option<()> {
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

/// Writes all of it under another name first: a crash leaves the old file or the new one.
fn write(path: &Path, journal: &str, upstreams: &BTreeMap<u32, Upstream>) -> io::Result<File> {
    let unfinished = path.with_extension("unfinished");
    let mut bytes = to_bytes(&Line::Journal(journal.to_owned()))?;
    for (upstream, known) in upstreams {
        bytes.extend(to_bytes(&Line::Began { upstream: *upstream, at: known.began.to_string() })?);
        bytes.extend(to_bytes(&line(*upstream, None, &known.whole))?);
        for (name, covered) in &known.repositories {
            bytes.extend(to_bytes(&line(*upstream, Some(name), covered))?);
        }
    }
    std::fs::write(&unfinished, bytes)?;
    std::fs::rename(&unfinished, path)?;
    OpenOptions::new().append(true).open(path)
}

fn line(upstream: u32, name: Option<&RepositoryName>, covered: &Covered) -> Line {
    let text = |time: Option<Timestamp>| time.map(|time| time.to_string());
    Line::Covered {
        upstream,
        name: name.map(ToString::to_string),
        backfilled: text(covered.backfilled),
        swept: text(covered.swept),
        notified: text(covered.notified),
    }
}

fn to_bytes(line: &Line) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOURNAL: Option<Identity> = Some(Identity([7; 16]));

    fn repository(upstream: u32, name: &str) -> Repository {
        Repository { upstream, name: name.parse().unwrap() }
    }

    fn backfilled() -> Covered {
        Covered { backfilled: Some(Timestamp::now()), ..Covered::default() }
    }

    fn is_complete(file: &CoverageFile, upstream: u32, name: &str) -> bool {
        file.of(&repository(upstream, name)) == Coverage::Complete
    }

    #[test]
    fn what_was_read_is_known_after_a_restart_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = CoverageFile::open(directory.path(), JOURNAL);
        file.begin(0);
        file.begin(1);
        file.add(0, Some(&"a".parse().unwrap()), backfilled());
        file.add(
            0,
            Some(&"b".parse().unwrap()),
            Covered { notified: Some(Timestamp::now()), ..Covered::default() },
        );
        file.add(1, None, backfilled());
        let began = file.list(0).unwrap().0;
        for _ in 0..2 {
            let file = CoverageFile::open(directory.path(), JOURNAL);
            assert!(is_complete(&file, 0, "a"));
            assert_eq!(file.of(&repository(0, "b")), Coverage::Since(began));
            assert_eq!(file.of_all(0), Coverage::Since(began));
            assert!(is_complete(&file, 1, "a") && file.of_all(1) == Coverage::Complete);
            assert!(!is_complete(&file, 2, "a"));
            // Already begun.
            file.begin(0);
        }
        CoverageFile::open(directory.path(), JOURNAL).void(0);
        let file = CoverageFile::open(directory.path(), JOURNAL);
        assert!(!is_complete(&file, 0, "a") && is_complete(&file, 1, "a"));
        file.begin(0);
        assert!(!is_complete(&file, 0, "a"));
        assert_ne!(file.of(&repository(0, "a")), Coverage::Since(began));
    }

    #[test]
    fn what_was_missed_voids_only_what_was_begun_and_also_if_it_cannot_be_written() {
        for is_writable in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let file = CoverageFile::open(directory.path(), JOURNAL);
            file.restart(0);
            assert_eq!(file.list(0), None);
            file.begin(0);
            file.add(0, None, backfilled());
            if !is_writable {
                file.lock().file = None;
            }
            file.restart(0);
            assert!(!is_complete(&file, 0, "a") && file.list(0).is_some());
            let after = CoverageFile::open(directory.path(), JOURNAL);
            assert_eq!(after.list(0).is_some(), is_writable);
            assert!(!is_complete(&after, 0, "a"));
        }
    }

    #[test]
    fn another_journal_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let file = CoverageFile::open(directory.path(), JOURNAL);
        file.add(0, None, backfilled());
        assert!(!is_complete(&file, 0, "a"), "nothing was recorded yet");
        file.begin(0);
        file.add(0, None, backfilled());
        assert!(is_complete(&CoverageFile::open(directory.path(), JOURNAL), 0, "a"));
        assert!(!is_complete(&CoverageFile::open(directory.path(), Some(Identity([8; 16]))), 0, "a"));
        assert!(!is_complete(&CoverageFile::open(directory.path(), JOURNAL), 0, "a"));
        assert!(!is_complete(&CoverageFile::open(directory.path(), None), 0, "a"));
    }

    #[test]
    fn a_file_cut_or_damaged_anywhere_says_no_more_than_was_known() {
        let directory = tempfile::tempdir().unwrap();
        let file = CoverageFile::open(directory.path(), JOURNAL);
        file.begin(0);
        file.add(0, Some(&"a".parse().unwrap()), backfilled());
        file.void(0);
        file.begin(0);
        file.add(0, Some(&"b".parse().unwrap()), backfilled());
        let path = directory.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let file = CoverageFile::open(directory.path(), JOURNAL);
            assert!(!is_complete(&file, 0, "c"), "{length}");
            // Never both: `a` was void before `b` was read.
            assert!(!(is_complete(&file, 0, "a") && is_complete(&file, 0, "b")), "{length}");
        }
    }
}
