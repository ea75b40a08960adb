//! PostgreSQL and pgbouncer as the other tests start them, and what may happen to them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::postgres::{Pgbouncer, Postgres, ask};
use crate::support::{Authority, Identity};

const TABLE: &str = "CREATE TABLE word (word text PRIMARY KEY)";
const WORDS: &str = "SELECT word FROM word ORDER BY word";

/// Adds a word as refshim's role, and returns once it is committed.
fn add(url: &str, word: &str) {
    ask(url, &format!("INSERT INTO word VALUES ('{word}')")).unwrap();
}

/// A connection that stays open between statements.
struct Session {
    psql: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Session {
    /// As refshim's role.
    fn open(url: &str) -> Self {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-A", "-t", "-q", "-d", url]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut psql = psql.stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(psql.stdout.take().unwrap());
        let mut session = Self { psql, lines };
        assert_eq!(session.after("SELECT 1"), "1 00000");
        session
    }

    /// The lines that a statement gives and its SQLSTATE; no SQLSTATE if the connection is lost.
    fn after(&mut self, sql: &str) -> String {
        let input = self.psql.stdin.as_mut().unwrap();
        write!(input, "{sql};\n\\echo :SQLSTATE\n\\echo\n").unwrap();
        let lines = self.lines.by_ref().lines().map(Result::unwrap);
        lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.psql.kill().unwrap();
        self.psql.wait().unwrap();
    }
}

#[test]
fn a_server_has_a_database_for_refshim_and_makes_more() {
    let postgres = Postgres::start_fast();
    assert_eq!(ask(&postgres.url(), "SELECT current_user, current_database()").unwrap(), "refshim|refshim");
    ask(&postgres.url(), TABLE).unwrap();
    add(&postgres.url(), "one");
    assert_eq!(postgres.psql(WORDS), "one");
    let other = postgres.database("other");
    assert_eq!(ask(&other, "SELECT current_database()").unwrap(), "other");
    assert!(ask(&other, WORDS).unwrap_err().contains("does not exist"));
    let stranger = postgres.url().replace("refshim-test", "wrong");
    assert!(ask(&stranger, WORDS).unwrap_err().contains("password authentication failed"));
}

#[test]
fn only_the_fast_server_risks_anything() {
    let settings = "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings
        WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')";
    assert_eq!(Postgres::start().psql(settings), "on on on");
    assert_eq!(Postgres::start_fast().psql(settings), "off off on");
}

#[test]
fn what_was_committed_is_there_after_each_kind_of_end() {
    let mut postgres = Postgres::start();
    let url = postgres.url();
    ask(&url, TABLE).unwrap();
    let ends: [fn(&mut Postgres); 3] = [Postgres::kill9, Postgres::stop_immediate, Postgres::stop];
    for (word, end) in ends.into_iter().enumerate() {
        add(&url, &word.to_string());
        end(&mut postgres);
        assert!(ask(&url, WORDS).unwrap_err().contains("Connection refused"));
        postgres.start_again();
    }
    assert_eq!(ask(&url, WORDS).unwrap(), "0\n1\n2");
    assert_eq!(postgres.log().matches("was not properly shut down").count(), 2);
}

#[test]
fn open_connections_become_read_only_and_are_cut() {
    let postgres = Postgres::start_fast();
    ask(&postgres.url(), TABLE).unwrap();
    let mut session = Session::open(&postgres.url());
    for (is_read_only, state) in [(true, "25006"), (false, "00000")] {
        postgres.read_only(is_read_only);
        assert_eq!(session.after("DELETE FROM word"), state);
        assert_eq!(ask(&postgres.url(), "DELETE FROM word").is_err(), is_read_only);
        postgres.psql("DELETE FROM word");
    }
    assert_eq!(postgres.cut_connections(), 1);
    assert!(!session.after("SELECT 1").ends_with("00000"));
    assert_eq!(postgres.cut_connections(), 0);
}

#[test]
fn a_parameter_that_is_set_outlives_a_restart() {
    let mut postgres = Postgres::start_fast();
    postgres.set("max_connections", "20");
    postgres.set("lock_timeout", "5s");
    postgres.stop();
    postgres.start_again();
    assert_eq!(postgres.psql("SHOW max_connections; SHOW lock_timeout"), "20\n5s");
}

#[test]
fn a_paused_server_takes_connections_and_answers_when_it_goes_on() {
    /// Asks whether the server speaks TLS; the answer is one letter.
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let postgres = Postgres::start_fast();
    let mut session = Session::open(&postgres.url());
    postgres.pause();
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, postgres.port())).unwrap();
    connection.write_all(&SSL_REQUEST).unwrap();
    connection.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut answer = [0];
    assert_eq!(connection.read(&mut answer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    postgres.resume();
    connection.set_read_timeout(None).unwrap();
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"N");
    assert_eq!(session.after("SELECT 2"), "2 00000");
    // Nor does a paused one outlive its test.
    postgres.pause();
}

#[test]
fn a_standby_has_what_was_committed_before_the_failover() {
    let mut postgres = Postgres::start();
    ask(&postgres.url(), TABLE).unwrap();
    add(&postgres.url(), "before");
    let standby = postgres.standby();
    add(&postgres.url(), "while it follows");
    assert!(ask(&standby.url(), "DELETE FROM word").unwrap_err().contains("read-only"));
    postgres.kill9();
    standby.promote();
    add(&standby.url(), "after");
    assert_eq!(ask(&standby.url(), WORDS).unwrap(), "after\nbefore\nwhile it follows");
}

#[test]
fn a_commit_waits_for_the_standby() {
    let postgres = Postgres::start_fast();
    ask(&postgres.url(), TABLE).unwrap();
    let standby = postgres.standby();
    standby.pause();
    let url = postgres.url();
    let adding = std::thread::spawn(move || add(&url, "one"));
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'refshim' AND wait_event = 'SyncRep'";
    while postgres.psql(waiting) != "1" {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(postgres.psql(WORDS), "");
    standby.resume();
    adding.join().unwrap();
    assert_eq!(postgres.psql(WORDS), "one");
}

#[test]
fn a_server_with_tls_takes_those_who_trust_it_and_whom_it_trusts() {
    let authority = Authority::new();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let Identity { certificate, key } = authority.server("postgres", &["127.0.0.1"]);
    let (certificate, key) = (read(&certificate), read(&key));
    let verifying = |postgres: &Postgres, authority: &Authority, client: Option<&Identity>| {
        let (url, trusted) = (postgres.url(), authority.certificate());
        let url = url.replace("=require", &format!("=verify-full&sslrootcert={}", trusted.display()));
        let url = client.map_or_else(
            || format!("{url}&sslcert=none"),
            |client| {
                format!("{url}&sslcert={}&sslkey={}", client.certificate.display(), client.key.display())
            },
        );
        ask(&url, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    };

    let postgres = Postgres::with_tls(&certificate, &key, None);
    assert_eq!(verifying(&postgres, &authority, None).unwrap(), "t");
    assert!(verifying(&postgres, &Authority::new(), None).unwrap_err().contains("certificate verify failed"));
    let plain = postgres.url().replace("=require", "=disable");
    assert!(ask(&plain, "SELECT 1").unwrap_err().contains("no encryption"));

    let clients = Authority::new();
    let postgres = Postgres::with_tls(&certificate, &key, Some(&read(&clients.certificate())));
    let client = private(clients.client("refshim"));
    assert_eq!(verifying(&postgres, &authority, Some(&client)).unwrap(), "t");
    assert!(
        verifying(&postgres, &authority, None).unwrap_err().contains("requires a valid client certificate")
    );
    let stranger = private(authority.client("refshim"));
    assert!(verifying(&postgres, &authority, Some(&stranger)).unwrap_err().contains("unknown ca"));
}

/// psql wants nobody else to be able to read its key.
fn private(identity: Identity) -> Identity {
    std::fs::set_permissions(&identity.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    identity
}

#[test]
fn pgbouncer_gives_each_transaction_some_session() {
    let postgres = Postgres::start_fast();
    let pgbouncer = Pgbouncer::start(&postgres);
    ask(&postgres.url(), TABLE).unwrap();
    add(&pgbouncer.url(), "one");
    assert_eq!(postgres.psql(WORDS), "one");
    let (mut one, mut two) = (Session::open(&pgbouncer.url()), Session::open(&pgbouncer.url()));
    let backend = "SELECT pg_backend_pid()";
    assert_eq!(one.after(backend), two.after(backend));
}

/// Started by [`nothing_outlives_a_test_that_is_killed`], the binary of the tests waits there to be killed.
const WAITS: &str = "REFSHIM_TEST_WAITS";

#[test]
fn nothing_outlives_a_test_that_is_killed() {
    const NAME: &str = "test_databases::nothing_outlives_a_test_that_is_killed";
    if std::env::var_os(WAITS).is_some() {
        let postgres = Postgres::start_fast();
        let pgbouncer = Pgbouncer::start(&postgres);
        println!("\nstarted {} {}", postgres.psql("SHOW data_directory"), pgbouncer.url());
        postgres.pause();
        println!("paused");
        loop {
            std::thread::park();
        }
    }
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", NAME, "--nocapture"]).env(WAITS, "1").stdout(Stdio::piped()).stderr(Stdio::null());
    let mut test = test.spawn().unwrap();
    let mut lines = BufReader::new(test.stdout.take().unwrap()).lines().map(Result::unwrap);
    let started = lines.find(|line| line.starts_with("started ")).unwrap();
    let [_, data, url] = started.split(' ').collect::<Vec<_>>()[..] else { panic!("{started}") };
    lines.find(|line| line == "paused").unwrap();
    let (data, url) = (PathBuf::from(data), url::Url::parse(url).unwrap());
    let status = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
    let server = PathBuf::from(format!("/proc/{}", status.lines().next().unwrap()));
    assert!(server.exists());
    test.kill().unwrap();
    test.wait().unwrap();
    let pgbouncer = (Ipv4Addr::LOCALHOST, url.port().unwrap());
    while data.parent().unwrap().exists() || server.exists() || TcpStream::connect(pgbouncer).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
}
