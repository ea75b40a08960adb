//! HAProxy in front of replicas of refshim.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::postgres::Port;
use super::process::Logged;

/// Long enough for a busy machine; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(60);

/// Gives each request to the next replica that its health checks find ready. Nothing is sent twice, so that what a
/// replica did is never mistaken for what another one did.
pub(crate) struct Balancer {
    /// Ends with the test.
    _process: Logged,
    _port: Port,
    _directory: tempfile::TempDir,
    pub(crate) address: SocketAddr,
}

impl Balancer {
    /// In front of these, by their ports for clients and for their health.
    pub(crate) fn before(replicas: &[(u16, u16)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = Port::reserve();
        let mut settings = format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  timeout check 10s\n  retries 0\n\
             listen refshim\n  bind 127.0.0.1:{}\n  balance roundrobin\n  option httpchk GET /readyz\n",
            port.number()
        );
        for (n, (port, admin)) in replicas.iter().enumerate() {
            let check = format!("check port {admin} inter 200ms fastinter 50ms fall 1 rise 1");
            writeln!(settings, "  server replica{n} 127.0.0.1:{port} {check}").unwrap();
        }
        let file = directory.path().join("haproxy.cfg");
        std::fs::write(&file, settings).unwrap();
        // Debian has it where only root's PATH leads.
        let installed = "/usr/sbin/haproxy";
        let mut haproxy = Command::new(if Path::new(installed).exists() { installed } else { "haproxy" });
        haproxy.args(["-db", "-f"]).arg(&file);
        let process = Logged::spawn(haproxy);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < LIMIT, "HAProxy does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { _process: process, _port: port, _directory: directory, address }
    }
}
