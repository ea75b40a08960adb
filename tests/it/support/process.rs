//! refshim as a child process on ports of the system's choice, and what a child of a test is.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::postgres::Postgres;
use super::{Client, Http, Identity, Registry};

/// Long enough for a busy machine; reaching it is a failure.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The real binary.
pub(crate) struct Refshim {
    process: Logged,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// The web page, if it was asked for.
    web: Option<SocketAddr>,
}

/// How a refshim is started.
pub(crate) struct Start<'a> {
    upstream: String,
    data_dir: &'a Path,
    variables: Vec<(&'a str, String)>,
    environment: Vec<(&'a str, String)>,
    wrapper: Vec<String>,
    listen: [String; 2],
}

impl Refshim {
    /// A refshim with defaults, waited for until it answers queries.
    pub(crate) async fn start(upstream: SocketAddr, data_dir: &Path) -> Self {
        Self::prepare(upstream, data_dir).launch().await
    }

    pub(crate) fn prepare(upstream: SocketAddr, data_dir: &Path) -> Start<'_> {
        Self::in_front_of(&format!("http://{upstream}"), data_dir)
    }

    /// In front of whatever is at this URL.
    pub(crate) fn in_front_of<'a>(upstream: &str, data_dir: &'a Path) -> Start<'a> {
        let listen = ["127.0.0.1:0", "127.0.0.1:0"].map(str::to_owned);
        let (variables, environment, wrapper) = Default::default();
        Start { upstream: upstream.to_owned(), data_dir, variables, environment, wrapper, listen }
    }

    /// In front of this registry, whose certificate it trusts if there is one.
    pub(crate) fn before<'a>(registry: &Registry, data_dir: &'a Path) -> Start<'a> {
        let start = Self::in_front_of(&registry.url(), data_dir);
        match registry.trusted_by() {
            Some(certificate) => start.with("UPSTREAMS_DEFAULT_CA", certificate.to_str().unwrap()),
            None => start,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// A visitor of the web page.
    #[allow(dead_code, reason = "the other suite has none")]
    pub(crate) fn web(&self) -> Client {
        Client::new(self.web.expect("a web page: Start::with_web"))
    }

    /// A visitor of the pages of the default upstream.
    #[allow(dead_code, reason = "the other suite has none")]
    pub(crate) fn visitor(&self) -> Client {
        Client::to(&self.web_url("/registry/default"), Http::One, None)
    }

    /// The URL of a path of the web page.
    #[allow(dead_code, reason = "the other suite has none")]
    pub(crate) fn web_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.web.expect("a web page: Start::with_web"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// SIGKILL, as the out-of-memory killer sends it.
    pub(crate) fn kill(mut self) {
        self.process.kill();
    }

    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// SIGHUP: the configuration and the TLS files are loaded again.
    pub(crate) fn hang_up(&self) {
        self.signal("-HUP");
    }

    pub(crate) fn signal(&self, signal: &str) {
        let kill = Command::new("kill").args([signal, &self.pid().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    /// SIGTERM, and the end within the limit.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.terminate();
        self.process.wait()
    }

    /// Waits for the end of a process that was told to stop.
    pub(crate) fn wait(mut self) -> ExitStatus {
        self.process.wait()
    }

    /// No file may get longer than this from here on, as if the disk were full.
    pub(crate) fn limit_file_size(&self, bytes: u64) {
        let limit = format!("--fsize={bytes}:");
        let prlimit = Command::new("prlimit").args(["--pid", &self.pid().to_string(), &limit]).status();
        assert!(prlimit.unwrap().success());
    }

    /// What was logged so far, a JSON object a line.
    pub(crate) fn logged(&self, part: &str) -> bool {
        self.process.lines.lock().unwrap().iter().any(|line| line.contains(part))
    }

    /// All lines that were logged so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.process.lines.lock().unwrap().clone()
    }

    /// How many lines with this in them were logged so far.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.process.lines.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }

    /// Waits until so many lines with this in them were logged; the latest.
    pub(crate) async fn logs(&self, part: &str, count: usize) -> String {
        let began = Instant::now();
        loop {
            let lines = self.process.lines.lock().unwrap().clone();
            let mut found = lines.iter().filter(|line| line.contains(part));
            if let Some(line) = found.nth(count - 1) {
                return line.clone();
            }
            assert!(
                began.elapsed() < START_LIMIT,
                "not {count} lines with {part:?} in: {}",
                lines.join("\n")
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the index answers queries.
    pub(crate) async fn ready(&self) {
        let began = Instant::now();
        let admin = Client::new(self.admin);
        while !admin.text("/metrics").await.contains("refshim_index_ready 1") {
            assert!(began.elapsed() < START_LIMIT, "the index did not open");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The most memory the process ever held, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// The memory that the process holds, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// How much of that is the program and the libraries it uses, in bytes.
    pub(crate) fn program_memory(&self) -> u64 {
        self.status("RssFile:")
    }

    fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kibibytes * 1024
    }
}

impl Start<'_> {
    /// Sets a setting by its variable, without the prefix.
    pub(crate) fn with(mut self, variable: &'static str, value: &str) -> Self {
        self.variables.push((variable, value.to_string()));
        self
    }

    #[allow(dead_code, reason = "one suite uses it")]
    /// With a variable of its environment that is not a setting.
    pub(crate) fn in_environment(mut self, variable: &'static str, value: &str) -> Self {
        self.environment.push((variable, value.to_owned()));
        self
    }

    /// With the web page.
    #[allow(dead_code, reason = "the other suite does without")]
    pub(crate) fn with_web(self) -> Self {
        self.with("WEB_LISTEN", "127.0.0.1:0")
    }

    /// With its index in this database, if there is one.
    pub(crate) fn with_index(self, postgres: Option<&Postgres>) -> Self {
        match postgres {
            Some(postgres) => self.with("INDEX_URL", &postgres.url()).with("INDEX_MIGRATE", "true"),
            None => self,
        }
    }

    /// Shows clients this certificate, and speaks TLS only.
    pub(crate) fn with_tls(self, identity: &Identity) -> Self {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        self.with("TLS_CERTIFICATE", &path(&identity.certificate)).with("TLS_KEY", &path(&identity.key))
    }

    /// A write past [`Refshim::limit_file_size`] fails, and the process is not killed for it.
    pub(crate) fn surviving_limits(self) -> Self {
        self.under(["bash", "-c", r#"trap "" XFSZ; exec "$0" "$@""#])
    }

    /// Started by this command, which gets refshim's as further arguments.
    pub(crate) fn under<S: Into<String>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    #[allow(dead_code, reason = "the other suite uses it")]
    /// On these ports of 127.0.0.1, for clients and for health and metrics, not on some of the system's choice.
    pub(crate) fn at(mut self, port: u16, admin: u16) -> Self {
        self.listen = [port, admin].map(|port| format!("127.0.0.1:{port}"));
        self
    }

    pub(crate) async fn launch(self) -> Refshim {
        let refshim = self.launch_unready();
        refshim.ready().await;
        refshim
    }

    pub(crate) fn launch_unready(self) -> Refshim {
        let process = Logged::spawn(self.command());
        let line = process.wait_for("\"serving\"");
        let address = |key: &str| line[key].as_str().unwrap().parse().unwrap();
        let web = line["web_listen"].as_str().map(|address| address.parse().unwrap());
        Refshim { address: address("listen"), admin: address("admin_listen"), web, process }
    }

    /// What starts it.
    pub(crate) fn command(self) -> Command {
        let mut command = match self.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary());
                command
            }
            None => Command::new(binary()),
        };
        command.arg("serve").arg("--upstream").arg(self.upstream);
        let [listen, admin_listen] = &self.listen;
        command.args(["--listen", listen, "--admin-listen", admin_listen, "--data-dir"]);
        command.arg(self.data_dir).env("REFSHIM_LOG_FORMAT", "json");
        if std::env::var("TEST_INDEX").is_ok_and(|index| index == "postgresql")
            && !self.variables.iter().any(|(name, _)| *name == "INDEX_URL")
        {
            command.env("REFSHIM_INDEX_URL", database_of(self.data_dir)).env("REFSHIM_INDEX_MIGRATE", "true");
        }
        for (name, value) in self.variables {
            command.env(format!("REFSHIM_{name}"), value);
        }
        command.envs(self.environment);
        command
    }
}

/// The one that was built for the tests, or what `TEST_BINARY` names: a release build, to measure.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_refshim").into(), PathBuf::from)
}

/// The database for the refshims with this data directory, in a server of this process. For runs by hand of tests that
/// are the same on both engines, with `TEST_INDEX=postgresql`.
fn database_of(data_dir: &Path) -> String {
    static SERVER: OnceLock<(Postgres, Mutex<HashMap<PathBuf, String>>)> = OnceLock::new();
    let (server, databases) = SERVER.get_or_init(|| (Postgres::start_fast(), Mutex::default()));
    let mut databases = databases.lock().unwrap();
    let name = format!("index{}", databases.len());
    databases.entry(data_dir.to_owned()).or_insert_with(|| server.database(&name)).clone()
}

/// A child whose standard error is kept, and which does not outlive its test.
pub(super) struct Logged {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    arrived: Mutex<Receiver<()>>,
}

impl Logged {
    pub(super) fn spawn(command: Command) -> Self {
        Self::spawn_writing(command, Stdio::null())
    }

    /// With the child's standard output somewhere else than nowhere.
    pub(super) fn spawn_writing(mut command: Command, stdout: Stdio) -> Self {
        command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        let name = command.get_program().to_owned();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", name.display()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (arrive, arrived) = channel();
        let kept = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line);
                if arrive.send(()).is_err() {
                    // Nobody waits any more; the rest is kept all the same.
                }
            }
        });
        Self { child, lines, arrived: Mutex::new(arrived) }
    }

    /// The first JSON line with this in it.
    pub(super) fn wait_for(&self, part: &str) -> Value {
        let began = Instant::now();
        loop {
            let lines = self.lines.lock().unwrap().clone();
            if let Some(line) = lines.iter().find(|line| line.contains(part)) {
                return serde_json::from_str(line).unwrap();
            }
            let left = START_LIMIT.saturating_sub(began.elapsed());
            let arrived = self.arrived.lock().unwrap().recv_timeout(left);
            assert!(arrived.is_ok(), "no line with {part:?} in: {}", lines.join("\n"));
        }
    }

    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill();
        }
    }
}
