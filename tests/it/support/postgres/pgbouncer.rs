//! pgbouncer in front of a server.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpStream};

use super::process::{Port, Process};
use super::template::command_at;
use super::{PASSWORD, Postgres, ROLE, write_private};

/// A pgbouncer in transaction mode: each transaction of a client may run in another session of the server.
pub(crate) struct Pgbouncer {
    process: Process,
    port: Port,
}

impl Pgbouncer {
    pub(crate) fn start(postgres: &Postgres) -> Self {
        let process = Process::in_new_directory();
        let port = Port::reserve();
        let file = |name: &str| process.directory().join(name);
        let (settings, users) = (file("pgbouncer.ini"), file("users.txt"));
        let mut text = format!("[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\n", postgres.port());
        write!(
            text,
            "listen_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\npool_mode = transaction\n\
             auth_type = scram-sha-256\nauth_file = {}\nmax_client_conn = 500\ndefault_pool_size = 20\n",
            port.number(),
            users.display()
        )
        .unwrap();
        write_private(&settings, &text);
        // In the clear: pgbouncer logs in to the server with it as well.
        write_private(&users, &format!("\"{ROLE}\" \"{PASSWORD}\"\n"));
        let mut pgbouncer = Self { process, port };
        pgbouncer.start_again();
        pgbouncer
    }

    /// SIGKILL; its port stays reserved.
    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts one that was killed.
    pub(crate) fn start_again(&mut self) {
        // Debian has it where only root's PATH leads.
        let installed = "/usr/sbin/pgbouncer";
        let program = if std::path::Path::new(installed).exists() { installed } else { "pgbouncer" };
        let mut pgbouncer = command_at(OsStr::new(program));
        pgbouncer.arg(self.process.directory().join("pgbouncer.ini"));
        self.process.spawn(pgbouncer);
        let port = self.port.number();
        self.process
            .wait_until("pgbouncer listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
    }

    /// Where refshim's database is, through it.
    pub(crate) fn url(&self) -> String {
        format!("postgres://{ROLE}:{PASSWORD}@127.0.0.1:{}/{ROLE}?sslmode=disable", self.port.number())
    }
}
