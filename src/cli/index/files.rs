//! The files that `refshim index` dumps to and loads from; `-` is standard output or input.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

use crate::index::maintenance::{Dumped, MaintenanceError};

/// Dumps to a file, or to standard output. Tells how much was dumped to a file.
pub(super) fn dump_to(
    output: Option<PathBuf>,
    dump: impl FnOnce(&mut dyn Write) -> Result<Dumped, MaintenanceError>,
) -> Result<Option<Dumped>, MaintenanceError> {
    let bar = progress(None);
    let dump = |output: &mut dyn Write| dump(&mut bar.wrap_write(output));
    let dumped = match output.filter(|path| !is_standard(path)) {
        None => dump(&mut BufWriter::new(io::stdout().lock())).map(|_| None),
        Some(path) => dump_to_file(&path, dump).map(Some),
    };
    bar.finish_and_clear();
    dumped
}

/// The lines of a file, or of standard input.
pub(super) fn input_of(input: Option<PathBuf>) -> Result<Box<dyn BufRead>, MaintenanceError> {
    match input.filter(|path| !is_standard(path)) {
        None => Ok(Box::new(BufReader::new(progress(None).wrap_read(io::stdin())))),
        Some(path) => {
            let opened = File::open(path).and_then(|file| {
                let length = file.metadata()?.len();
                Ok(BufReader::with_capacity(READ_BYTES, progress(Some(length)).wrap_read(file)))
            });
            let opened = opened.map_err(|source| MaintenanceError::Io { what: "reading the dump", source });
            Ok(Box::new(opened?))
        }
    }
}

/// What is read at once: each time, the bar is brought up to date.
const READ_BYTES: usize = 64 << 10;

/// Bytes read or written, of so many, on a terminal; nothing elsewhere.
fn progress(length: Option<u64>) -> ProgressBar {
    let (bar, look) = match length {
        Some(length) => (ProgressBar::new(length), "{bytes} of {total_bytes} {wide_bar} {eta}"),
        None => (ProgressBar::no_length(), "{spinner} {bytes} {binary_bytes_per_sec}"),
    };
    ProgressStyle::with_template(look).map_or_else(|_| ProgressBar::hidden(), |style| bar.with_style(style))
}

fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// Dumps to a file that must not exist yet. The dump is written to a temporary file beside it, which gets the
/// name when it is complete and synced.
fn dump_to_file(
    path: &Path,
    dump: impl FnOnce(&mut dyn Write) -> Result<Dumped, MaintenanceError>,
) -> Result<Dumped, MaintenanceError> {
    let failed = |what| move |source| MaintenanceError::Io { what, source };
    // An empty file holds the name until then, so that the rename replaces nothing of anyone else's.
    File::create_new(path)
        .map_err(|error| if_taken(path, error))
        .map_err(failed("making the file to dump to"))?;
    let write = || {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let partial = partial_in(directory, path).map_err(failed("making the file to dump to"))?;
        let dumped = dump(&mut BufWriter::new(partial.as_file()))?;
        // Before the rename: after a power loss, the name could otherwise belong to an empty file.
        partial.as_file().sync_all().map_err(failed("writing the dump"))?;
        partial.persist(path).map_err(|error| failed("giving the dump its name")(error.error))?;
        // After it: the name could otherwise still be the empty file's.
        sync_directory(directory).map_err(failed("giving the dump its name"))?;
        Ok(dumped)
    };
    write().inspect_err(|_| {
        // If removing fails, too, the first failure is reported; a dump without its end is refused by `load`.
        fs::remove_file(path).ok();
    })
}

fn if_taken(path: &Path, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::AlreadyExists {
        return error;
    }
    let answer = format!("{} exists already: name another file, or move it away", path.display());
    io::Error::new(error.kind(), answer)
}

/// A file beside the dump, whose name is nobody else's. It is removed unless it gets the dump's name.
fn partial_in(directory: &Path, path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    // The umask applies. The default of temporary files, 0600, would stay when the file gets its name.
    let permissions = fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(&name).suffix(".partial").permissions(permissions).tempfile_in(directory)
}

/// Makes a new name in a directory durable, as far as that can be done: some file systems cannot sync
/// directories, and a directory that may be written need not be readable.
fn sync_directory(directory: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match File::open(directory).and_then(|directory| directory.sync_all()) {
        Err(error) if matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported) => Ok(()),
        synced => synced,
    }
}
