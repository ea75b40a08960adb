//! What was read: a file of lines, `repository digest` or `repository digest tag`, to which each manifest is added when
//! it and all that it leads to are recorded.
//!
//! It is not synced: what a power cut takes from it is read once more. Half a line at its end is what a kill left.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::walk::Item;
use crate::oci::RepositoryName;

#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    read: Mutex<Read>,
}

#[derive(Debug)]
struct Read {
    file: File,
    items: HashMap<String, HashSet<String>>,
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
    pub(super) fn open(data_dir: &Path, upstream: u32, anew: bool) -> Result<Self, LedgerError> {
        let directory = data_dir.join("backfill");
        let path = directory.join(format!("{upstream:08x}.read"));
        let opened = || {
            fs::create_dir_all(&directory)?;
            let text = if anew { Vec::new() } else { read(&path)? };
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.set_len(whole as u64)?;
            let text = String::from_utf8_lossy(text.get(..whole).unwrap_or_default()).into_owned();
            let mut items: HashMap<String, HashSet<String>> = HashMap::new();
            for (name, item) in text.lines().filter_map(|line| line.split_once(' ')) {
                items.entry(name.to_owned()).or_default().insert(item.to_owned());
            }
            Ok(Read { file, items })
        };
        match opened() {
            Ok(read) => Ok(Self { path, read: Mutex::new(read) }),
            Err(source) => Err(LedgerError { path, source }),
        }
    }

    pub(super) fn has(&self, name: &RepositoryName, item: &Item) -> bool {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.items.get(name.as_str()).is_some_and(|items| items.contains(&item.to_string()))
    }

    pub(super) fn add(&self, name: &RepositoryName, item: &Item) -> Result<(), LedgerError> {
        let item = item.to_string();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        // In one write, so that a kill leaves a line or a part of one, and never parts of two.
        let written = read.file.write_all(format!("{name} {item}\n").as_bytes());
        written.map_err(|source| LedgerError { path: self.path.clone(), source })?;
        read.items.entry(name.as_str().to_owned()).or_default().insert(item);
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
        let ledger = Ledger::open(data_dir.path(), 7, false).unwrap();
        ledger.add(&one, &item("a", None)).unwrap();
        ledger.add(&one, &item("b", Some("x.sig"))).unwrap();
        let path = data_dir.path().join("backfill/00000007.read");
        let whole = fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let ledger = Ledger::open(data_dir.path(), 7, false).unwrap();
            let lines = whole[..length].split(|byte| *byte == b'\n').count() - 1;
            assert_eq!(ledger.has(&one, &item("a", None)), lines > 0);
            assert_eq!(ledger.has(&one, &item("b", Some("x.sig"))), lines > 1);
            assert!(!ledger.has(&one, &item("b", None)), "its tag tells of links that its bytes do not");
            assert!(!ledger.has(&other, &item("a", None)));
            ledger.add(&other, &item("c", None)).unwrap();
            assert!(Ledger::open(data_dir.path(), 7, false).unwrap().has(&other, &item("c", None)));
        }
        assert!(!Ledger::open(data_dir.path(), 8, false).unwrap().has(&one, &item("a", None)));
        assert!(!Ledger::open(data_dir.path(), 7, true).unwrap().has(&one, &item("a", None)));
    }
}
