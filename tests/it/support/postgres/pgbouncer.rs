//! pgbouncer in front of a server.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpStream};

use super::process::{Port, Process};
use super::template::command_at;
use super::{PASSWORD, Postgres, ROLE, write_private};

/// A pgbouncer in transaction mode: each transaction of a client may run in another session of the server.
pub(crate) struct Pgbouncer {
    /// Ends with the test.
    _process: Process,
    port: Port,
}

impl Pgbouncer {
    pub(crate) fn start(postgres: &Postgres) -> Self {
        let mut process = Process::in_new_directory();
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
        // Debian has it where only root's PATH leads.
        let installed = "/usr/sbin/pgbouncer";
        let program = if std::path::Path::new(installed).exists() { installed } else { "pgbouncer" };
        let mut pgbouncer = command_at(OsStr::new(program));
        pgbouncer.arg(&settings);
        process.spawn(pgbouncer);
        process.wait_until("pgbouncer listens", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port.number())).is_ok()
        });
        Self { _process: process, port }
    }

    /// Where refshim's database is, through it.
    pub(crate) fn url(&self) -> String {
        format!("postgres://{ROLE}:{PASSWORD}@127.0.0.1:{}/{ROLE}?sslmode=disable", self.port.number())
    }
}
