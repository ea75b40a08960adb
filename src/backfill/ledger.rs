//! What was read: a file of lines, `repository digest` or `repository digest tag`, to which each manifest is added when
//! it and all that it leads to are recorded; with `+` before the digest if it is a referrer. The first line names the
//! journal that has the links: for another one, nothing was read.
//!
//! It is not synced: what a power cut takes from it is read once more. Half a line at its end is what a kill left.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::walk::Item;
use crate::oci::RepositoryName;

/// Before the name of the journal, in the first line.
const TITLE: &str = "journal ";

#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    read: Mutex<Read>,
}

#[derive(Debug)]
struct Read {
    file: File,
    /// By repository, and whether they are referrers.
    items: HashMap<String, HashMap<String, bool>>,
}

/// The ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", .path.display())]
pub struct LedgerError {
    path: PathBuf,
    source: io::Error,
}

impl Ledger {
    /// The ledger of an upstream; `anew` forgets what was read.
    pub(super) fn open(
        data_dir: &Path,
        upstream: u32,
        journal: &str,
        anew: bool,
    ) -> Result<Self, LedgerError> {
        let directory = data_dir.join("backfill");
        let path = directory.join(format!("{upstream:08x}.read"));
        let opened = || {
            fs::create_dir_all(&directory)?;
            let title = format!("{TITLE}{journal}\n");
            let mut text = read(&path)?;
            if anew || !text.starts_with(title.as_bytes()) {
                text.clear();
            }
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.set_len(whole as u64)?;
            if whole == 0 {
                file.write_all(title.as_bytes())?;
            }
            let text = String::from_utf8_lossy(text.get(..whole).unwrap_or_default()).into_owned();
            let mut items: HashMap<String, HashMap<String, bool>> = HashMap::new();
            for (name, item) in text.lines().skip(1).filter_map(|line| line.split_once(' ')) {
                let referrer = item.strip_prefix('+');
                let item = referrer.unwrap_or(item).to_owned();
                items.entry(name.to_owned()).or_default().insert(item, referrer.is_some());
            }
            Ok(Read { file, items })
        };
        match opened() {
            Ok(read) => Ok(Self { path, read: Mutex::new(read) }),
            Err(source) => Err(LedgerError { path, source }),
        }
    }

    /// Whether it was read, and if so, whether it is a referrer.
    pub(super) fn read(&self, name: &RepositoryName, item: &Item) -> Option<bool> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.items.get(name.as_str())?.get(&item.to_string()).copied()
    }

    pub(super) fn add(
        &self,
        name: &RepositoryName,
        item: &Item,
        is_referrer: bool,
    ) -> Result<(), LedgerError> {
        let mark = if is_referrer { "+" } else { "" };
        let item = item.to_string();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        // In one write, so that a kill leaves a line or a part of one, and never parts of two.
        let written = read.file.write_all(format!("{name} {mark}{item}\n").as_bytes());
        written.map_err(|source| LedgerError { path: self.path.clone(), source })?;
        read.items.entry(name.as_str().to_owned()).or_default().insert(item, is_referrer);
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.tag {
            None => write!(f, "{}", self.digest),
            Some(tag) => write!(f, "{} {tag}", self.digest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(letter: &str, tag: Option<&str>) -> Item {
        let digest = format!("sha256:{}", letter.repeat(64)).parse().unwrap();
        Item { digest, tag: tag.map(|tag| tag.parse().unwrap()) }
    }

    #[test]
    fn what_was_read_is_known_to_the_next_run_whatever_ended_this_one() {
        let data_dir = tempfile::tempdir().unwrap();
        let (one, other): (RepositoryName, RepositoryName) = ("a/b".parse().unwrap(), "a".parse().unwrap());
        let open = |upstream, journal, anew| Ledger::open(data_dir.path(), upstream, journal, anew).unwrap();
        let ledger = open(7, "j", false);
        ledger.add(&one, &item("a", None), false).unwrap();
        ledger.add(&one, &item("b", Some("x.sig")), true).unwrap();
        let path = data_dir.path().join("backfill/00000007.read");
        let whole = fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let ledger = open(7, "j", false);
            let lines = whole[..length].split(|byte| *byte == b'\n').count() - 1;
            assert_eq!(ledger.read(&one, &item("a", None)), (lines > 1).then_some(false));
            assert_eq!(ledger.read(&one, &item("b", Some("x.sig"))), (lines > 2).then_some(true));
            assert_eq!(
                ledger.read(&one, &item("b", None)),
                None,
                "its tag tells of links that its bytes do not"
            );
            assert_eq!(ledger.read(&other, &item("a", None)), None);
            ledger.add(&other, &item("c", None), false).unwrap();
            assert_eq!(open(7, "j", false).read(&other, &item("c", None)), Some(false));
        }
        assert_eq!(open(8, "j", false).read(&one, &item("a", None)), None);
        assert_eq!(open(7, "k", false).read(&one, &item("a", None)), None, "of another journal");
        assert_eq!(open(7, "j", false).read(&one, &item("a", None)), None, "it began anew for that one");
        open(7, "j", false).add(&one, &item("a", None), true).unwrap();
        assert_eq!(open(7, "j", true).read(&one, &item("a", None)), None);
    }
}
