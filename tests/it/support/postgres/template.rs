//! PostgreSQL's programs, and a data directory that is made once and copied for each server.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{PASSWORD, ROLE};

/// Small segments: there is one in each copy.
const INITDB: [&str; 7] = [
    "--username=postgres",
    "--encoding=UTF8",
    "--locale=C",
    "--wal-segsize=1",
    "--auth=trust",
    "--no-sync",
    "--no-instructions",
];

/// A program of the newest PostgreSQL below `/usr/lib/postgresql`, else one in `PATH`.
pub(super) fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let versions =
        versions.filter_map(|version| version.ok()?.file_name().into_string().ok()?.parse::<u32>().ok());
    let programs = versions.map(|version| (version, format!("/usr/lib/postgresql/{version}/bin/{name}")));
    let newest = programs.filter(|(_, program)| Path::new(program).exists()).max();
    newest.map_or_else(|| name.into(), |(_, program)| program.into())
}

/// A command that runs a program of PostgreSQL, as the user `postgres` if the test runs as root.
pub(super) fn command(name: &str) -> Command {
    command_at(program(name).as_os_str())
}

/// [`command`] for a program that is found by this path or name.
pub(super) fn command_at(program: &OsStr) -> Command {
    let mut command = match server_user() {
        Some((user, group)) => {
            let mut setpriv = Command::new("setpriv");
            setpriv.args([format!("--reuid={user}"), format!("--regid={group}")]);
            setpriv.args(["--clear-groups", "--"]).arg(program);
            setpriv
        }
        None => Command::new(program),
    };
    // Any directory that this user can read; messages in English.
    command.current_dir("/").env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Makes a file or an empty directory the server's.
pub(super) fn give_to_server(path: &Path) {
    if let Some((user, group)) = server_user() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// Whom the server runs as, if not as the user of the test.
fn server_user() -> Option<(u32, u32)> {
    if own_user() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let fields: Vec<&str> = line.expect("the user postgres, of the package postgresql").split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

fn own_user() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

/// What a command prints on both outputs. Fails if the command does.
pub(super) fn output_of(mut command: Command) -> String {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [done.stdout, done.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(done.status.success(), "{command:?}: {text}");
    text
}

/// A data directory with refshim's role and database.
pub(super) fn copy_to(data: &Path) {
    copy(&template(), data);
}

/// With owners, which `std::fs` would not keep.
fn copy(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    output_of(copy);
}

/// The one of this version, for this user; made by the first test that needs it.
fn template() -> PathBuf {
    let mut version = Command::new(program("postgres"));
    version.arg("--version");
    let mut made_of = DefaultHasher::new();
    (output_of(version), own_user(), INITDB, statements()).hash(&mut made_of);
    // Beside the tests' own binaries, in cargo's target directory.
    let binary = std::env::current_exe().unwrap();
    let templates = binary.ancestors().nth(2).unwrap().join("postgres");
    let template = templates.join(format!("template-{:016x}", made_of.finish()));
    if !template.exists() {
        fs::create_dir_all(&templates).unwrap();
        let lock = File::create(templates.join("lock")).unwrap();
        lock.lock().unwrap();
        if !template.exists() {
            make(&template);
        }
    }
    template
}

fn make(template: &Path) {
    // The server's user may have no way into the target directory: made elsewhere, and moved there as a whole.
    let directory = tempfile::tempdir().unwrap();
    give_to_server(directory.path());
    let data = directory.path().join("data");
    let mut initdb = command("initdb");
    initdb.args(INITDB).arg("-D").arg(&data);
    output_of(initdb);
    let mut single = command("postgres");
    single.args(["--single", "-F", "-D"]).arg(&data).arg("postgres");
    let mut single =
        single.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    single.stdin.take().unwrap().write_all(statements().as_bytes()).unwrap();
    let done = single.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    // A statement that fails does not change the exit code.
    assert!(done.status.success() && !said.contains("ERROR"), "{said}");
    let unfinished = template.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).unwrap();
    }
    copy(&data, &unfinished);
    fs::rename(&unfinished, template).unwrap();
}

/// A statement a line, as single-user mode reads them. Without `template0` there is a quarter less to copy, and to
/// sync at the first start after a kill.
fn statements() -> String {
    format!(
        "CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'\n\
         CREATE DATABASE {ROLE} OWNER {ROLE}\n\
         ALTER ROLE postgres SET default_transaction_read_only = off\n\
         ALTER DATABASE template0 IS_TEMPLATE false\n\
         DROP DATABASE template0\n"
    )
}
