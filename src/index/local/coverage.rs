//! What is known of the coverage: in memory, where every query looks, and in a file for the next start.

mod file;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};

use super::journal::format::Identity;
use crate::index::{Coverage, Covered, Repository};
use crate::oci::RepositoryName;
use file::{CoverageFile, Line, line, lines_of};

/// Notifications of one repository that come closer together are not told apart.
const NOTIFIED_EVERY: SignedDuration = SignedDuration::from_secs(60);

/// The coverage of all upstreams.
#[derive(Debug)]
pub(crate) struct Coverages {
    known: Mutex<Upstreams>,
    /// Locked before `known` and for longer: no query waits for the disk.
    file: Mutex<CoverageFile>,
}

/// By their numbers in the index.
type Upstreams = BTreeMap<u32, Upstream>;

/// One upstream.
#[derive(Clone, Debug)]
struct Upstream {
    began: Timestamp,
    /// All of its repositories together.
    whole: Covered,
    repositories: BTreeMap<RepositoryName, Covered>,
}

impl Coverages {
    /// Reads what was known with this journal. Without one, or if the file cannot be written, it is kept in memory.
    pub(crate) fn open(data_dir: &Path, journal: Option<Identity>) -> Self {
        let opened = journal.map(|journal| CoverageFile::open(data_dir, journal.name()));
        let (file, known) = opened.unwrap_or_default();
        Self { known: Mutex::new(known), file: Mutex::new(file) }
    }

    /// From now on, what is pushed to this upstream is recorded; nothing changes if it was already.
    pub(crate) fn begin(&self, upstream: u32) {
        self.change(
            |known| {
                if known.contains_key(&upstream) { Vec::new() } else { vec![begin(known, upstream)] }
            },
        );
    }

    /// What is pushed to this upstream is not recorded any more.
    pub(crate) fn void(&self, upstream: u32) {
        self.change(|known| known.remove(&upstream).map(|_| Line::Void { upstream }).into_iter().collect());
    }

    /// Something that was pushed until now is not recorded. Without effect before [`Coverages::begin`].
    pub(crate) fn restart(&self, upstream: u32) {
        self.change(|known| match known.remove(&upstream) {
            Some(_) => vec![Line::Void { upstream }, begin(known, upstream)],
            None => Vec::new(),
        });
    }

    /// Adds to what is known of a repository, or of all. Without effect before [`Coverages::begin`]: what is pushed
    /// between then and the reading is not recorded, so it is not known either.
    pub(crate) fn add(&self, upstream: u32, name: Option<&RepositoryName>, covered: Covered) {
        self.change(|known| {
            let after = known.get_mut(&upstream).and_then(|known| known.add(name, covered));
            after.map(|after| line(upstream, name, &after)).into_iter().collect()
        });
    }

    pub(crate) fn of(&self, repository: &Repository) -> Coverage {
        let known = self.known();
        let Some(known) = known.get(&repository.upstream) else {
            return Coverage::Since(Timestamp::now());
        };
        let own = || known.repositories.get(&repository.name).is_some_and(Covered::is_complete);
        known.coverage(known.whole.is_complete() || own())
    }

    pub(crate) fn of_all(&self, upstream: u32) -> Coverage {
        let known = self.known();
        let coverage = known.get(&upstream).map(|known| known.coverage(known.whole.is_complete()));
        coverage.unwrap_or_else(|| Coverage::Since(Timestamp::now()))
    }

    /// Since when an upstream is recorded, and what is known of all of it and of its repositories, by name.
    pub(crate) fn list(
        &self,
        upstream: u32,
    ) -> Option<(Timestamp, BTreeMap<Option<RepositoryName>, Covered>)> {
        let known = self.known();
        let known = known.get(&upstream)?;
        let repositories = known.repositories.iter().map(|(name, covered)| (Some(name.clone()), *covered));
        Some((known.began, std::iter::once((None, known.whole)).chain(repositories).collect()))
    }

    /// Changes what is known, and writes the lines that say so.
    fn change(&self, change: impl FnOnce(&mut Upstreams) -> Vec<Line>) {
        // Before the change: lines stand in the file in the order of the changes.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (lines, needed) = {
            let mut known = self.known();
            let lines = change(&mut known);
            (lines, known.values().map(|known| known.repositories.len() + 2).sum())
        };
        if !lines.is_empty() && file.append(&lines, needed) {
            let all = lines_of(&self.known());
            file.rewrite(all);
        }
    }

    fn known(&self) -> MutexGuard<'_, Upstreams> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn begin(known: &mut Upstreams, upstream: u32) -> Line {
    let began = Timestamp::now();
    known.insert(upstream, Upstream::new(began));
    Line::Began { upstream, at: began.to_string() }
}

impl Upstream {
    fn new(began: Timestamp) -> Self {
        Self { began, whole: Covered::default(), repositories: BTreeMap::new() }
    }

    /// Adds to what is known of a repository, or of all; what is known then, if that is news.
    fn add(&mut self, name: Option<&RepositoryName>, covered: Covered) -> Option<Covered> {
        // What was begun before something was missed does not know of that.
        let is_valid = |time: &Timestamp| *time >= self.began;
        let covered = Covered {
            backfilled: covered.backfilled.filter(is_valid),
            swept: covered.swept.filter(is_valid),
            ..covered
        };
        let before = self.covered(name.cloned());
        let after = before.and(covered);
        let is_later = |after: Option<Timestamp>, before: Option<Timestamp>| {
            after.zip(before).is_none_or(|(after, before)| after.duration_since(before) >= NOTIFIED_EVERY)
        };
        let is_news = (after.backfilled, after.swept) != (before.backfilled, before.swept)
            || is_later(after.notified, before.notified);
        if after == *before || !is_news {
            return None;
        }
        *before = after;
        Some(after)
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

#[cfg(test)]
mod tests {
    use super::file::FILE;
    use super::*;

    const JOURNAL: Option<Identity> = Some(Identity([7; 16]));

    fn repository(upstream: u32, name: &str) -> Repository {
        Repository { upstream, name: name.parse().unwrap() }
    }

    fn backfilled() -> Covered {
        Covered { backfilled: Some(Timestamp::now()), ..Covered::default() }
    }

    fn is_complete(file: &Coverages, upstream: u32, name: &str) -> bool {
        file.of(&repository(upstream, name)) == Coverage::Complete
    }

    #[test]
    fn what_was_read_is_known_after_a_restart_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = Coverages::open(directory.path(), JOURNAL);
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
            let file = Coverages::open(directory.path(), JOURNAL);
            assert!(is_complete(&file, 0, "a"));
            assert_eq!(file.of(&repository(0, "b")), Coverage::Since(began));
            assert_eq!(file.of_all(0), Coverage::Since(began));
            assert!(is_complete(&file, 1, "a") && file.of_all(1) == Coverage::Complete);
            assert!(!is_complete(&file, 2, "a"));
            // Already begun.
            file.begin(0);
        }
        Coverages::open(directory.path(), JOURNAL).void(0);
        let file = Coverages::open(directory.path(), JOURNAL);
        assert!(!is_complete(&file, 0, "a") && is_complete(&file, 1, "a"));
        file.begin(0);
        assert!(!is_complete(&file, 0, "a"));
        assert_ne!(file.of(&repository(0, "a")), Coverage::Since(began));
    }

    #[test]
    fn what_was_missed_voids_only_what_was_begun_and_also_if_it_cannot_be_written() {
        for is_writable in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let file = Coverages::open(directory.path(), JOURNAL);
            file.restart(0);
            assert_eq!(file.list(0), None);
            file.begin(0);
            file.add(0, None, backfilled());
            if !is_writable {
                file.file.lock().unwrap().fail();
            }
            file.restart(0);
            assert!(!is_complete(&file, 0, "a") && file.list(0).is_some());
            let after = Coverages::open(directory.path(), JOURNAL);
            assert_eq!(after.list(0).is_some(), is_writable);
            assert!(!is_complete(&after, 0, "a"));
        }
    }

    #[test]
    fn another_journal_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let file = Coverages::open(directory.path(), JOURNAL);
        file.add(0, None, backfilled());
        assert!(!is_complete(&file, 0, "a"), "nothing was recorded yet");
        file.begin(0);
        file.add(0, None, backfilled());
        assert!(is_complete(&Coverages::open(directory.path(), JOURNAL), 0, "a"));
        assert!(!is_complete(&Coverages::open(directory.path(), Some(Identity([8; 16]))), 0, "a"));
        assert!(!is_complete(&Coverages::open(directory.path(), JOURNAL), 0, "a"));
        assert!(!is_complete(&Coverages::open(directory.path(), None), 0, "a"));
    }

    #[test]
    fn a_file_cut_or_damaged_anywhere_says_no_more_than_was_known() {
        let directory = tempfile::tempdir().unwrap();
        let file = Coverages::open(directory.path(), JOURNAL);
        file.begin(0);
        file.add(0, Some(&"a".parse().unwrap()), backfilled());
        file.void(0);
        file.begin(0);
        file.add(0, Some(&"b".parse().unwrap()), backfilled());
        let path = directory.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let file = Coverages::open(directory.path(), JOURNAL);
            assert!(!is_complete(&file, 0, "c"), "{length}");
            // Never both: `a` was void before `b` was read.
            assert!(!(is_complete(&file, 0, "a") && is_complete(&file, 0, "b")), "{length}");
        }
    }
}
