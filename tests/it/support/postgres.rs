//! A PostgreSQL of a test's own: its server on a free port of 127.0.0.1, a database and a role for refshim, and what
//! may happen to a server.
//!
//! Uses nothing else of the tests, so that the unit tests of the index can include it by path (with `dead_code` and
//! `unused_imports` allowed, as far as they do not use it all). PostgreSQL refuses to run as root: for root, its
//! programs run as the user `postgres` of the Debian package.

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

// By path, because a file that was itself included by path looks for its modules elsewhere.
#[path = "postgres/pgbouncer.rs"]
mod pgbouncer;
#[path = "postgres/process.rs"]
mod process;
#[path = "postgres/template.rs"]
mod template;

pub(crate) use pgbouncer::Pgbouncer;
pub(crate) use process::Port;
use process::{Process, wait_until};
use template::{give_to_server, output_of, program};

/// The role that refshim connects as, and the database that it owns.
pub(crate) const ROLE: &str = "refshim";
/// The password of [`ROLE`].
pub(crate) const PASSWORD: &str = "refshim-test";

/// Settings of every server, in `postgresql.conf`: [`Postgres::set`] overrides them.
const SETTINGS: &str = "\
    listen_addresses = '127.0.0.1'\n\
    max_connections = 200\n\
    shared_buffers = '16MB'\n\
    min_wal_size = '2MB'\n\
    max_wal_size = '256MB'\n\
    dynamic_shared_memory_type = mmap\n\
    cluster_name = 'refshim test'\n\
    timezone = 'UTC'\n\
    log_timezone = 'UTC'\n\
    log_line_prefix = '%m [%p] %q%u@%d '\n\
    unix_socket_permissions = 0700\n";

/// For tests that never cut the power. SIGKILL of the server costs nothing even so: the kernel has what was written.
const FAST: &str = "fsync = off\nfull_page_writes = off\n";

/// A server, running or stopped. It ends with the test, also with one that is killed.
pub(crate) struct Postgres {
    process: Process,
    port: Port,
    settings: String,
    has_tls: bool,
}

impl Postgres {
    /// A durable server: `fsync` and `synchronous_commit` are on.
    pub(crate) fn start() -> Self {
        Self::from_template("", false, |_| {})
    }

    /// A server that does not wait for the disk.
    pub(crate) fn start_fast() -> Self {
        Self::from_template(FAST, false, |_| {})
    }

    /// A server that accepts TLS connections only and shows this certificate, in PEM. With `client_ca`, in PEM, a
    /// client needs a certificate of that authority besides its password.
    pub(crate) fn with_tls(certificate: &str, key: &str, client_ca: Option<&str>) -> Self {
        let mut settings = format!("{FAST}ssl = on\n");
        if client_ca.is_some() {
            settings.push_str("ssl_ca_file = 'client-ca.crt'\n");
        }
        Self::from_template(&settings, true, |data| {
            // These are PostgreSQL's default names.
            write_private(&data.join("server.crt"), certificate);
            write_private(&data.join("server.key"), key);
            if let Some(client_ca) = client_ca {
                write_private(&data.join("client-ca.crt"), client_ca);
            }
            let asked = if client_ca.is_some() { " clientcert=verify-ca" } else { "" };
            write_private(&data.join("pg_hba.conf"), &access("hostssl", asked));
        })
    }

    fn from_template(settings: &str, has_tls: bool, prepare: impl FnOnce(&Path)) -> Self {
        let process = Process::in_new_directory();
        let data = process.directory().join("data");
        template::copy_to(&data);
        write_private(&data.join("pg_hba.conf"), &access("host", ""));
        prepare(&data);
        Self { process, port: Port::reserve(), settings: settings.to_owned(), has_tls }.started()
    }

    fn started(mut self) -> Self {
        let mut settings = format!("{SETTINGS}{}port = {}\n", self.settings, self.port.number());
        writeln!(settings, "unix_socket_directories = '{}'", self.process.directory().display()).unwrap();
        write_private(&self.data().join("postgresql.conf"), &settings);
        self.start_again();
        self
    }

    fn data(&self) -> PathBuf {
        self.process.directory().join("data")
    }

    /// Where refshim's database is.
    pub(crate) fn url(&self) -> String {
        self.url_of(ROLE)
    }

    /// Creates another database that refshim owns, and returns its URL.
    pub(crate) fn database(&self, name: &str) -> String {
        self.psql(&format!("CREATE DATABASE \"{name}\" OWNER {ROLE}"));
        self.url_of(name)
    }

    fn url_of(&self, database: &str) -> String {
        let mode = if self.has_tls { "require" } else { "disable" };
        format!("postgres://{ROLE}:{PASSWORD}@127.0.0.1:{}/{database}?sslmode={mode}", self.port.number())
    }

    /// The port on 127.0.0.1. It stays reserved while the server is stopped.
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// What the server logged so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Runs SQL in refshim's database as superuser. Each statement is a transaction; columns are separated by `|`.
    pub(crate) fn psql(&self, sql: &str) -> String {
        let socket = self.process.directory();
        let target =
            format!("host={} port={} user=postgres dbname={ROLE}", socket.display(), self.port.number());
        ask(&target, sql).unwrap_or_else(|error| panic!("{sql}: {error}\n{}", self.log()))
    }

    /// Sets a parameter of the server for good. Connections see it at their next statement, those that need a restart
    /// at the next start.
    pub(crate) fn set(&self, parameter: &str, value: &str) {
        self.psql(&format!("ALTER SYSTEM SET {parameter} = '{value}'"));
        let loaded = "SELECT pg_conf_load_time()";
        let before = self.psql(loaded);
        self.psql("SELECT pg_reload_conf()");
        // The first process forked with the new values shows that all others were signalled, and a process that was
        // signalled reads the values before its next statement.
        wait_until("the new configuration", || self.psql(loaded) != before);
    }

    /// Makes the server reject writes of everyone but the superuser, or accept them again.
    pub(crate) fn read_only(&self, is_read_only: bool) {
        self.set("default_transaction_read_only", if is_read_only { "on" } else { "off" });
    }

    /// Ends all connections of refshim's role from the server's side, and returns how many there were.
    pub(crate) fn cut_connections(&self) -> usize {
        let cut = format!(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 60000)) FROM pg_stat_activity \
             WHERE usename = '{ROLE}'"
        );
        self.psql(&cut).parse().unwrap()
    }

    /// SIGKILL for all of its processes. Returns when they are gone.
    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Stops it in order: transactions are rolled back, connections closed, a checkpoint written.
    pub(crate) fn stop(&mut self) {
        self.process.end_by("-INT");
    }

    /// Stops it without a checkpoint; the next start has to recover.
    pub(crate) fn stop_immediate(&mut self) {
        self.process.end_by("-QUIT");
    }

    /// Starts a stopped server on the same port, and waits until it has recovered.
    pub(crate) fn start_again(&mut self) {
        let data = self.data();
        let mut server = template::command("postgres");
        server.arg("-D").arg(&data);
        self.process.spawn(server);
        let pid = self.process.pid().to_string();
        let status_file = data.join("postmaster.pid");
        self.process.wait_until("PostgreSQL answers", || {
            // As pg_ctl does it. The file of a server that was killed names another process.
            let status = fs::read_to_string(&status_file).unwrap_or_default();
            let mut lines = status.lines();
            lines.next() == Some(&pid)
                && lines.nth(6).is_some_and(|state| matches!(state.trim(), "ready" | "standby"))
        });
    }

    /// Stops all of its processes where they are: connections stay open, new ones are taken by the kernel, and nothing
    /// is answered. [`Postgres::kill9`] ends a paused server, the other ends want [`Postgres::resume`] first.
    pub(crate) fn pause(&self) {
        self.process.pause();
    }

    /// Lets them go on.
    pub(crate) fn resume(&self) {
        self.process.resume();
    }

    /// A second server that follows this one by streaming replication. From here on, a commit on this one waits until
    /// the other has it on disk.
    pub(crate) fn standby(&self) -> Self {
        let process = Process::in_new_directory();
        let mut backup = template::command("pg_basebackup");
        backup.args(["--checkpoint=fast", "--wal-method=stream", "--no-sync", "--write-recovery-conf"]);
        backup.args(["--username=postgres", "--port", &self.port.number().to_string(), "--host"]);
        backup.arg(self.process.directory()).arg("--pgdata").arg(process.directory().join("data"));
        output_of(backup);
        let settings = self.settings.clone();
        let standby = Self { process, port: Port::reserve(), settings, has_tls: self.has_tls }.started();
        self.set("synchronous_standby_names", "*");
        wait_until("the standby is synchronous", || {
            self.psql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1"
        });
        standby
    }

    /// Makes a standby accept writes.
    pub(crate) fn promote(&self) {
        assert_eq!(self.psql("SELECT pg_promote(true, 60)"), "t", "{}", self.log());
    }
}

/// Runs SQL at a URL, or with libpq's other kind of connection string, by psql; the error is what psql printed.
pub(crate) fn ask(target: &str, sql: &str) -> Result<String, String> {
    let mut psql = Command::new(program("psql"));
    psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", target]).env("LC_ALL", "C");
    let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if let Err(error) = psql.stdin.take().unwrap().write_all(sql.as_bytes()) {
        // psql ended before it read; its standard error says why.
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
    let done = psql.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
}

/// `pg_hba.conf`: the superuser through the socket, which is in a private directory, everyone else by password.
fn access(kind: &str, options: &str) -> String {
    format!(
        "local all postgres trust\nlocal replication postgres trust\n\
         {kind} all all 127.0.0.1/32 scram-sha-256{options}\n"
    )
}

/// Writes a file that only the server may read.
fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    give_to_server(path);
}
