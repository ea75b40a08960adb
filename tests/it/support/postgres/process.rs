//! A server's processes, directory and port, which end with the test.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::template::give_to_server;

/// Long enough for a busy machine; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(60);

/// Ends the server and removes its directory as soon as the test is gone: its standard input then ends. It reads a
/// line for each start, with the process's id, and an empty one for each end. `--pdeathsig` would kill the server with
/// the thread that started it, long before the process ends. SIGQUIT lets PostgreSQL remove its System V shared memory;
/// after SIGKILL, line 7 of its file names it.
const WATCHDOG: &str = r#"
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
    kill -CONT "$pid" $(cat "/proc/$pid/task/$pid/children")
    kill -QUIT "$pid"
    tries=0
    while kill -0 "$pid" && [ "$((tries += 1))" -lt 1000 ]; do sleep 0.01; done
    kill -KILL "$pid" $(cat "/proc/$pid/task/$pid/children")
fi
memory=$(sed -n '7s/.* //p' "$1/data/postmaster.pid")
[ -z "$memory" ] || ipcrm -m "$memory"
rm -rf "$1"
"#;

/// A server that runs, or ran, in a directory of its own.
pub(super) struct Process {
    directory: PathBuf,
    child: Option<Child>,
    watchdog: Child,
    /// Where the watchdog reads.
    told: Option<ChildStdin>,
}

impl Process {
    /// No process yet, in a directory that only the server and root can read.
    pub(super) fn in_new_directory() -> Self {
        let directory = tempfile::tempdir().unwrap().keep();
        give_to_server(&directory);
        let mut watchdog = Command::new("sh");
        watchdog.args(["-c", WATCHDOG, "watchdog"]).arg(&directory).current_dir("/");
        // In a group of its own, so that what kills the test's group spares it.
        watchdog.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut watchdog = watchdog.spawn().unwrap();
        let told = watchdog.stdin.take();
        Self { directory, child: None, watchdog, told }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the server wrote to its outputs.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    pub(super) fn spawn(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "it is running");
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        self.tell(&child.id().to_string());
        self.child = Some(child);
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.told.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.as_ref().expect("a server that runs").id()
    }

    /// Waits for something that a running server brings about.
    pub(super) fn wait_until(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        wait_until(what, || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{what}: {ended:?}\n{}", self.log());
            condition()
        });
    }

    /// Has it end by a signal.
    pub(super) fn end_by(&mut self, signal: &str) {
        send(signal, &[self.pid()]);
        self.ended();
    }

    /// SIGKILL for it and its children, none of which is there when this returns.
    pub(super) fn kill9(&mut self) {
        let processes = self.pause_first();
        send("-KILL", &processes);
        self.ended();
        wait_until("its children are gone", || {
            processes.iter().all(|&process| matches!(state(process), None | Some('Z' | 'X')))
        });
    }

    fn ended(&mut self) {
        self.child.take().unwrap().wait().unwrap();
        self.tell("");
    }

    pub(super) fn pause(&self) {
        let processes = self.pause_first();
        send("-STOP", &processes);
        wait_until("all are paused", || {
            processes.iter().all(|&process| matches!(state(process), None | Some('T' | 'Z' | 'X')))
        });
    }

    pub(super) fn resume(&self) {
        send("-CONT", &self.processes());
    }

    /// Pauses the first process, which alone makes others; all of them.
    fn pause_first(&self) -> Vec<u32> {
        send("-STOP", &[self.pid()]);
        wait_until("it is paused", || state(self.pid()) == Some('T'));
        self.processes()
    }

    fn processes(&self) -> Vec<u32> {
        let first = self.pid();
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap();
        let children = children.split_whitespace().map(|child| child.parse().unwrap());
        std::iter::once(first).chain(children).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The one way to end: the same as when the test is killed.
        drop(self.told.take());
        if let Some(mut child) = self.child.take() {
            child.wait().ok();
        }
        self.watchdog.wait().ok();
    }
}

/// A port of 127.0.0.1 that nobody else is given while this lives: a socket that is bound to it and does not listen
/// keeps it from the system's choice, and from nobody who binds it by number with `SO_REUSEADDR`, as servers do.
pub(crate) struct Port {
    number: u16,
    _socket: Socket,
}

impl Port {
    pub(crate) fn reserve() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let number = socket.local_addr().unwrap().as_socket().unwrap().port();
        Self { number, _socket: socket }
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

/// Waits for what is bound to come.
pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        sleep(Duration::from_millis(2));
    }
}

/// Sends a signal to those that are still there.
fn send(signal: &str, processes: &[u32]) {
    let mut kill = Command::new("kill");
    kill.arg(signal).args(processes.iter().map(u32::to_string)).stderr(Stdio::null());
    kill.status().unwrap();
}

/// The state of a process as the kernel names it by a letter, if the process is there.
fn state(process: u32) -> Option<char> {
    let status = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which may have anything in it.
    status.rsplit_once(") ")?.1.chars().next()
}
