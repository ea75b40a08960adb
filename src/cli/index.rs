//! `refshim index`: checks, repairs and backs up the index.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::{CONFIGURATION_ERROR, fail};
use crate::config::{CommandLine, Config};
use crate::index::Order;
use crate::index::maintenance::{self, CheckReport, Dumped, Gap, MaintenanceError, Rebuilt};

/// Look after the index: check it, mend it, back it up.
#[derive(Debug, Args)]
pub(super) struct IndexCommand {
    /// Where the index is kept [default: ./refshim-data].
    #[arg(long, global = true, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// The TOML file that refshim is served with.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Read the journal and sled from end to end; exit code 1 if anything is damaged. Not while it is served.
    Check,
    /// Keep what is intact of a damaged journal, say what is not, and have sled rebuilt at the next start. Not
    /// while it is served. The damaged journal is set aside, not removed.
    Rebuild,
    /// Write the whole index as JSON Lines, also while it is served.
    Dump {
        /// The file to write, which must not exist; - is standard output [default: -].
        #[arg(value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make an index of what was dumped, in a directory that has none.
    Load {
        /// The file to read; - is standard input [default: -].
        #[arg(value_name = "FILE")]
        input: Option<PathBuf>,
    },
}

impl IndexCommand {
    pub(super) fn run(self) -> ExitCode {
        let given = CommandLine { data_dir: self.data_dir, config: self.config, ..CommandLine::default() };
        let data_dir = match Config::data_dir(&given, std::env::vars_os()) {
            Ok(data_dir) => data_dir,
            Err(mistakes) => return fail(CONFIGURATION_ERROR, &mistakes.to_string()),
        };
        match self.action.run(&data_dir) {
            Ok(code) => code,
            Err(error) => fail(1, &error.to_string()),
        }
    }
}

impl Action {
    fn run(self, data_dir: &Path) -> Result<ExitCode, MaintenanceError> {
        let printed = |source| MaintenanceError::Io { what: "writing to standard output", source };
        match self {
            Self::Check => {
                let report = maintenance::check(data_dir)?;
                print_report(&report, &mut io::stdout()).map_err(printed)?;
                Ok(if report.gaps.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Self::Rebuild => {
                let rebuilt = maintenance::rebuild(data_dir)?;
                print_rebuilt(&rebuilt, &mut io::stdout()).map_err(printed)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Dump { output } => match output.filter(|path| !is_standard(path)) {
                None => {
                    maintenance::dump(data_dir, BufWriter::new(io::stdout().lock()))?;
                    Ok(ExitCode::SUCCESS)
                }
                Some(path) => {
                    let dumped = dump_to(data_dir, &path)?;
                    writeln!(io::stdout(), "{} records", dumped.records).map_err(printed)?;
                    Ok(ExitCode::SUCCESS)
                }
            },
            Self::Load { input } => {
                let loaded = match input.filter(|path| !is_standard(path)) {
                    None => maintenance::load(data_dir, io::stdin().lock())?,
                    Some(path) => {
                        let what = "reading the dump";
                        let file =
                            File::open(path).map_err(|source| MaintenanceError::Io { what, source })?;
                        maintenance::load(data_dir, BufReader::new(file))?
                    }
                };
                writeln!(io::stdout(), "{} records", loaded.records).map_err(printed)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// Dumps to a file that must not exist yet. The dump is written to a temporary file beside it, which gets the
/// name when it is complete and synced.
fn dump_to(data_dir: &Path, path: &Path) -> Result<Dumped, MaintenanceError> {
    let failed = |what| move |source| MaintenanceError::Io { what, source };
    // An empty file holds the name until then, so that the rename replaces nothing of anyone else's.
    File::create_new(path)
        .map_err(|error| if_taken(path, error))
        .map_err(failed("making the file to dump to"))?;
    let write = || {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let partial = partial_in(directory, path).map_err(failed("making the file to dump to"))?;
        let dumped = maintenance::dump(data_dir, BufWriter::new(partial.as_file()))?;
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

fn print_report(report: &CheckReport, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "journal: {} commits with {} records are intact", report.commits, report.records)?;
    report.gaps.iter().try_for_each(|gap| print_gap(gap, out))?;
    if let Some(torn) = &report.torn {
        let (path, offset) = (torn.path.display(), torn.offset);
        writeln!(
            out,
            "journal: {path} ends at byte {offset} in a write that a crash interrupted: no damage"
        )?;
    }
    match &report.sled {
        Ok((referrers, links)) => writeln!(out, "sled: {referrers} referrers with {links} links")?,
        Err(why) => writeln!(out, "sled: {why}; it will be rebuilt at the next start")?,
    }
    if report.gaps.is_empty() {
        writeln!(out, "intact")
    } else {
        writeln!(
            out,
            "damaged: restore a backup (refshim index load), or keep what is intact (refshim index rebuild)"
        )
    }
}

fn print_gap(gap: &Gap, out: &mut impl Write) -> io::Result<()> {
    let Gap { path, offset, bytes, what } = gap;
    writeln!(out, "journal: {} at byte {offset}, {bytes} bytes: {what}", path.display())
}

fn print_rebuilt(rebuilt: &Rebuilt, out: &mut impl Write) -> io::Result<()> {
    if rebuilt.gaps.is_empty() {
        return writeln!(
            out,
            "the journal is intact, with {} referrers; sled will be rebuilt at the next start",
            rebuilt.referrers
        );
    }
    for (gap, (before, after)) in rebuilt.gaps.iter().zip(&rebuilt.between) {
        print_gap(gap, out)?;
        let (from, to) = (time(*before, "the beginning"), time(*after, "the end"));
        writeln!(out, "    links recorded between {from} and {to} may be missing")?;
    }
    writeln!(out, "{} referrers are kept", rebuilt.referrers)?;
    for (repository, count) in &rebuilt.doubted {
        writeln!(
            out,
            "{} (upstream {}): {count} referrers will be asked of the registry before they are listed",
            repository.name, repository.upstream
        )?;
    }
    let lost: BTreeMap<_, Vec<_>> =
        rebuilt.lost.iter().fold(BTreeMap::new(), |mut lost, (repository, digest)| {
            lost.entry(repository).or_insert_with(Vec::new).push(digest);
            lost
        });
    for (repository, digests) in lost {
        for digest in digests {
            writeln!(out, "{}@{digest}: its links are lost; pull or push it again", repository.name)?;
        }
    }
    writeln!(out, "what was pushed in the times above and is missing is learnt again when it is pulled")?;
    let aside = rebuilt.set_aside.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    writeln!(out, "the damaged journal is now {aside}")
}

/// The time at which a referrer was recorded, which its order is.
fn time(order: Option<Order>, otherwise: &str) -> String {
    let at = |order: Order| {
        let at = i64::try_from(order.0).ok().and_then(|at| Timestamp::from_microsecond(at).ok());
        at.unwrap_or(Timestamp::MAX).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    };
    order.map_or_else(|| otherwise.to_owned(), at)
}
