//! The files of the journal: their names, and how they are created and removed.
//!
//! A new file is written as `<name>.tmp`, synced, renamed, and its directory synced. So a file that has its name is
//! complete, and what a crash leaves is a `.tmp` that the next opening removes.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::format::{HEADER_BYTES, Header, Unusable};
use super::{Damage, JournalError};

/// Extension of segments.
const SEGMENT: &str = "journal";
/// Extension of snapshots.
const SNAPSHOT: &str = "snapshot";
/// Extension added to the name of an incomplete file.
const UNFINISHED: &str = "tmp";

/// A segment: the frames from one position to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The position of its first byte.
    pub(crate) base: u64,
    /// How many bytes it has, its header included.
    pub(crate) length: u64,
}

impl Segment {
    /// The position after its last byte.
    pub(crate) fn end(&self) -> u64 {
        self.base.saturating_add(self.length)
    }
}

/// A snapshot: replaces all segments before its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) position: u64,
    pub(crate) length: u64,
}

/// The files of the journal, each kind by position.
#[derive(Debug, Default)]
pub(crate) struct JournalFiles {
    pub(crate) segments: Vec<Segment>,
    pub(crate) snapshots: Vec<Snapshot>,
}

pub(crate) fn segment_path(directory: &Path, base: u64) -> PathBuf {
    directory.join(format!("{base:016x}.{SEGMENT}"))
}

pub(crate) fn snapshot_path(directory: &Path, position: u64) -> PathBuf {
    directory.join(format!("{position:016x}.{SNAPSHOT}"))
}

/// Lists the directory. Files of other names are ignored.
pub(crate) fn list(directory: &Path) -> Result<JournalFiles, JournalError> {
    let mut listing = JournalFiles::default();
    let entries = fs::read_dir(directory).map_err(|source| JournalError::io(directory, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| JournalError::io(directory, source))?;
        let path = entry.path();
        let Some((kind, position)) = parse_name(&path) else { continue };
        let length = entry.metadata().map_err(|source| JournalError::io(&path, source))?.len();
        match kind {
            Kind::Segment => listing.segments.push(Segment { base: position, length }),
            Kind::Snapshot => listing.snapshots.push(Snapshot { position, length }),
        }
    }
    listing.segments.sort_by_key(|segment| segment.base);
    listing.snapshots.sort_by_key(|snapshot| snapshot.position);
    Ok(listing)
}

enum Kind {
    Segment,
    Snapshot,
}

fn parse_name(path: &Path) -> Option<(Kind, u64)> {
    let kind = match path.extension()?.to_str()? {
        SEGMENT => Kind::Segment,
        SNAPSHOT => Kind::Snapshot,
        _ => return None,
    };
    let stem = path.file_stem()?.to_str()?;
    let position = u64::from_str_radix(stem, 16).ok()?;
    (stem == format!("{position:016x}")).then_some((kind, position))
}

fn unfinished_path(path: &Path) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(".");
    name.push(UNFINISHED);
    name.into()
}

/// Removes a file that will not be finished.
pub(crate) fn discard_unfinished(path: &Path) -> io::Result<()> {
    fs::remove_file(unfinished_path(path))
}

/// Removes what a crash left unfinished.
pub(crate) fn remove_unfinished(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == UNFINISHED) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Removes the segments and snapshots before `position`; the oldest first, so that what an interruption leaves has
/// no hole, which would be damage.
pub(crate) fn remove_before(directory: &Path, position: u64) -> Result<(), JournalError> {
    let listing = list(directory)?;
    let segments = listing.segments.iter().map(|segment| segment.base);
    let segments = segments.map(|base| (base, segment_path(directory, base)));
    let snapshots = listing.snapshots.iter().map(|snapshot| snapshot.position);
    let snapshots = snapshots.map(|at| (at, snapshot_path(directory, at)));
    for (at, path) in segments.chain(snapshots) {
        if at < position {
            fs::remove_file(&path).map_err(|source| JournalError::io(&path, source))?;
        }
    }
    sync_directory(directory).map_err(|source| JournalError::io(directory, source))
}

/// Makes the names of new files in `directory` durable: syncing a file does not sync its name.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// A file that gets its name when it is complete and synced.
pub(crate) struct UnfinishedFile {
    file: File,
    name: PathBuf,
    path: PathBuf,
}

impl UnfinishedFile {
    pub(crate) fn create(path: PathBuf, header: &Header) -> io::Result<Self> {
        let name = unfinished_path(&path);
        let mut file = File::create(&name)?;
        file.write_all(&header.encode())?;
        Ok(Self { file, name, path })
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Waits until all of it so far is on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the file its name. Returns the file, open for appending.
    pub(crate) fn finish(self) -> io::Result<File> {
        self.file.sync_all()?;
        fs::rename(&self.name, &self.path)?;
        if let Some(directory) = self.path.parent() {
            sync_directory(directory)?;
        }
        Ok(self.file)
    }
}

/// Opens a file of the journal and reads its header, which has to name `position`.
pub(crate) fn open(path: &Path, position: u64) -> Result<(File, Header), JournalError> {
    let io_error = |source| JournalError::io(path, source);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Damage::new(path, 0, "the file is missing").into());
        }
        Err(error) => return Err(io_error(error)),
    };
    let mut header = Vec::new();
    Read::by_ref(&mut file).take(HEADER_BYTES).read_to_end(&mut header).map_err(io_error)?;
    match Header::decode(&header) {
        Ok(header) if header.position == position => Ok((file, header)),
        Ok(_) => Err(Damage::new(path, 0, "the header names another position than the file's name").into()),
        Err(Unusable::Damaged) => Err(Damage::new(path, 0, "the header is not intact").into()),
        Err(Unusable::Newer(found)) => Err(JournalError::Newer { path: path.to_owned(), found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: Option<u64>) {
        assert_eq!(parse_name(Path::new(name)).map(|(_, position)| position), expected);
    }

    #[test]
    fn only_names_of_our_form_are_taken() {
        check("/a/0000000000000000.journal", Some(0));
        check("00000000000000ff.snapshot", Some(255));
        check("00000000000000FF.journal", None);
        check("ff.journal", None);
        check("+0000000000000ff.journal", None);
        check("00000000000000ff.journal.tmp", None);
        check("journal", None);
    }
}
