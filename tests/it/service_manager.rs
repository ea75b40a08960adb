//! Under a service manager: sockets that it hands over, and what it is told.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reqwest::StatusCode;

use crate::support::postgres::Port;
use crate::support::{Client, Refshim, Registry, binary};

/// What a manager hears.
struct Manager {
    socket: UnixDatagram,
    directory: tempfile::TempDir,
}

impl Manager {
    fn listen() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        // Long enough for a busy machine; reaching it is a failure.
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { socket, directory }
    }

    fn path(&self) -> String {
        self.directory.path().join("notify").to_str().unwrap().to_owned()
    }

    /// Waits for one of these, with all that was heard until then.
    fn hears(&self, state: &str) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            let mut bytes = [0; 512];
            let length =
                self.socket.recv(&mut bytes).unwrap_or_else(|error| panic!("no {state}: {error}: {heard:?}"));
            let said = std::str::from_utf8(&bytes[..length]).unwrap();
            heard.extend(said.lines().map(str::to_owned));
            if heard.iter().any(|said| said == state) {
                return heard;
            }
        }
    }
}

#[tokio::test]
async fn a_service_manager_hears_when_it_is_ready_alive_reloading_and_stopping() {
    let (registry, directory, manager) = (Registry::start(), tempfile::tempdir().unwrap(), Manager::listen());
    let refshim = Refshim::before(&registry, directory.path())
        .in_environment("NOTIFY_SOCKET", &manager.path())
        .in_environment("WATCHDOG_USEC", "100000")
        .launch_unready();
    assert_eq!(manager.hears("READY=1").iter().filter(|said| *said == "READY=1").count(), 1);
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
    refshim.hang_up();
    let reloading = manager.hears("RELOADING=1");
    assert!(!reloading.contains(&"READY=1".to_owned()), "{reloading:?}");
    let reloaded = manager.hears("READY=1");
    assert!(
        reloading.iter().chain(&reloaded).any(|said| said.starts_with("MONOTONIC_USEC=")),
        "{reloaded:?}"
    );
    refshim.terminate();
    manager.hears("STOPPING=1");
    assert!(refshim.wait().success());
}

/// Also while it drains: it may take longer than the manager waits for a sign of life.
#[tokio::test]
async fn it_is_alive_until_the_last_request_has_ended() {
    let (registry, directory, manager) = (Registry::start(), tempfile::tempdir().unwrap(), Manager::listen());
    let refshim = Refshim::before(&registry, directory.path())
        .in_environment("NOTIFY_SOCKET", &manager.path())
        .in_environment("WATCHDOG_USEC", "50000")
        .launch_unready();
    // A push whose body does not come.
    let mut push = std::net::TcpStream::connect(refshim.address).unwrap();
    write!(
        push,
        "PUT /v2/a/manifests/x HTTP/1.1\r\nhost: x\r\ncontent-type: a/b\r\ncontent-length: 9\r\n\r\n{{"
    )
    .unwrap();
    refshim.logs("\"serving\"", 1).await;
    Client::new(refshim.address).get("/v2/").await;
    refshim.terminate();
    manager.hears("STOPPING=1");
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
    drop(push);
    assert!(refshim.wait().success());
}

/// The real one, which starts the program with the first connection.
#[tokio::test]
async fn systemd_hands_over_its_sockets() {
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let ports = [Port::reserve(), Port::reserve()];
    let [clients, admins] = ports.each_ref().map(address);
    let command = Refshim::before(&registry, directory.path()).at(clients.port(), admins.port()).command();
    let systemd = Activated::start([clients, admins], &command);
    // By the second socket first: each is served by what its port is for.
    assert_eq!(Client::new(admins).get("/healthz").await.status, StatusCode::OK);
    assert_eq!(Client::new(clients).get("/v2/").await.status, StatusCode::OK);
    assert_eq!(Client::new(clients).get("/healthz").await.status, StatusCode::NOT_FOUND);
    drop(systemd);
}

#[test]
fn a_socket_that_nothing_listens_at_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ports = [Port::reserve(), Port::reserve()];
    let [clients, other] = ports.each_ref().map(address);
    let mut command = Command::new(binary());
    command.args(["serve", "--upstream", "http://127.0.0.1:9", "--listen", &clients.to_string()]);
    command.args(["--admin-listen", "127.0.0.1:0", "--data-dir"]).arg(directory.path());
    let mut systemd = Activated::start([clients, other], &command);
    let _starts = std::net::TcpStream::connect(clients).unwrap();
    let said: Vec<String> = systemd.lines.by_ref().map_while(Result::ok).collect();
    let expected =
        format!("the socket {other} was handed over (LISTEN_FDS), but it is at the port of none of listen");
    assert!(said.iter().any(|line| line.contains(&expected)), "{said:?}");
    assert_eq!(systemd.process.wait().unwrap().code(), Some(1));
}

fn address(port: &Port) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()))
}

/// `systemd-socket-activate` with a program that gets these sockets.
struct Activated {
    process: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Activated {
    fn start(sockets: [SocketAddr; 2], program: &Command) -> Self {
        let mut activate = Command::new("systemd-socket-activate");
        activate.args(sockets.iter().map(|address| format!("--listen={address}")));
        activate.arg(program.get_program()).args(program.get_args());
        let mut process = activate.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        for _ in sockets {
            let line = lines.next().unwrap().unwrap();
            assert!(line.contains("Listening on"), "{line}");
        }
        Self { process, lines }
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }
}

/// One of the same port at another address is not what the setting says.
#[test]
fn a_socket_of_another_address_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let port = Port::reserve();
    let other = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port.number()));
    let mut command = Command::new(binary());
    command.args(["serve", "--upstream", "http://127.0.0.1:9", "--listen", "127.0.0.1:0"]);
    command.args(["--admin-listen", &format!("127.0.0.1:{}", port.number())]);
    command.arg("--data-dir").arg(directory.path());
    let second = Port::reserve();
    let mut systemd = Activated::start([other, address(&second)], &command);
    let _starts = std::net::TcpStream::connect(other).unwrap();
    let said: Vec<String> = systemd.lines.by_ref().map_while(Result::ok).collect();
    assert!(said.iter().any(|line| line.contains("was handed over (LISTEN_FDS)")), "{said:?}");
    assert_eq!(systemd.process.wait().unwrap().code(), Some(1));
}

/// Restarted again and again under clients that each open a new connection.
#[tokio::test]
async fn a_restart_refuses_no_connection_where_the_manager_keeps_the_sockets() {
    const RESTARTS: usize = 4;
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let mut supervisor = Supervisor::start(&registry, directory.path());
    let (ended, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let asking: Vec<_> = (0..4)
        .map(|_| {
            let (ended, answers, clients) = (Arc::clone(&ended), Arc::clone(&answers), supervisor.clients);
            tokio::spawn(async move {
                while !ended.load(Ordering::Relaxed) {
                    let answer = Client::new(clients).get("/v2/").await;
                    assert_eq!(answer.status, StatusCode::OK);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..RESTARTS {
        let before = answers.load(Ordering::Relaxed);
        while answers.load(Ordering::Relaxed) < before + 40 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(asking.iter().all(|asking| !asking.is_finished()), "a client failed");
        }
        supervisor = tokio::task::spawn_blocking(move || supervisor.restart()).await.unwrap();
    }
    ended.store(true, Ordering::Relaxed);
    for asking in asking {
        asking.await.unwrap();
    }
}

/// `supervisor.py` with a refshim.
struct Supervisor {
    process: Child,
    said: BufReader<ChildStdout>,
    clients: SocketAddr,
}

impl Supervisor {
    fn start(registry: &Registry, directory: &std::path::Path) -> Self {
        let mut command = Command::new("python3");
        command
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/service_manager/supervisor.py"))
            .arg(binary());
        command.args(["serve", "--listen", "{clients}", "--admin-listen", "{admins}", "--upstream"]);
        command.arg(registry.url()).arg("--data-dir").arg(directory);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap());
        let mut addresses = String::new();
        said.read_line(&mut addresses).unwrap();
        let clients = addresses.split_whitespace().next().unwrap().parse().unwrap();
        Self { process, said, clients }
    }

    /// Returns once the old process ended and a new one was started.
    fn restart(mut self) -> Self {
        writeln!(self.process.stdin.as_ref().unwrap()).unwrap();
        self.said.read_line(&mut String::new()).unwrap();
        self
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}
