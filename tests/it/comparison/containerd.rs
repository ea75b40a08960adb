//! A containerd of the test's own, with a namespace for each side.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::containers::as_root;
use super::outcome::Outcome;
use super::side::{Side, Way};

/// Long enough for a busy machine; reaching it is a failure.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Ends with its test, however that ends: it lives as long as the pipe into the shell that started it.
pub(super) struct Containerd {
    shell: Child,
    directory: tempfile::TempDir,
}

impl Containerd {
    pub(super) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let scratch = directory.path().to_owned();
        let path = |name: &str| scratch.join(name).display().to_string();
        // Isolated, so that what the one side pulled is not there for the other.
        let settings = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n\
             [plugins.'io.containerd.metadata.v1.bolt']\ncontent_sharing_policy = 'isolated'\n\
             [grpc]\naddress = '{}'\n",
            path("root"),
            path("state"),
            path("socket")
        );
        std::fs::write(path("containerd.toml"), settings).unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let mut shell = as_root("bash");
        shell.args(["-c", "containerd --config \"$0\" & cat; kill $!; wait", &path("containerd.toml")]);
        let shell = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let containerd = Self { shell, directory };
        let began = Instant::now();
        while !containerd.ctr(&["version"]).output().unwrap().status.success() {
            assert!(began.elapsed() < START_LIMIT, "{}", std::fs::read_to_string(path("log")).unwrap());
            std::thread::sleep(Duration::from_millis(50));
        }
        containerd
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = as_root("ctr");
        command.arg("--address").arg(self.directory.path().join("socket")).args(arguments);
        command
    }

    /// Pulls what skopeo pushed, and what is not there.
    pub(super) fn pull(&self, side: &Side) -> Outcome {
        let pull = |name: &str| {
            let command = ["images", "pull", "--snapshotter", "native", "--all-platforms"];
            self.work(side, &command, name)
        };
        pull("skopeo:v1")
            .then(pull("skopeo:none"))
            .then(self.run(side, &["images", "list"]))
            .then(self.run(side, &["content", "list", "--quiet"]))
    }

    /// Pulls, pushes what it pulled elsewhere, and fetches that.
    pub(super) fn round(&self, side: &Side) -> Outcome {
        let image = |name: &str| format!("{}/{name}", side.door.host);
        self.pull(side)
            .then(self.run(side, &["images", "tag", &image("skopeo:v1"), &image("containerd:v1")]))
            .then(self.work(side, &["images", "push"], "containerd:v1"))
            .then(self.work(side, &["content", "fetch"], "containerd:v1"))
    }

    /// A command about an image of the registry.
    fn work(&self, side: &Side, command: &[&str], name: &str) -> Outcome {
        let user = side.user.map(|(name, password)| format!("{name}:{password}"));
        let user: Vec<&str> = user.iter().flat_map(|user| ["--user", user]).collect();
        let (hosts, image) = (hosts(side), format!("{}/{name}", side.door.host));
        // What it says of its progress tells the time.
        self.run(side, &[command, &["--hosts-dir", &hosts], &user, &[&image]].concat()).silent()
    }

    fn run(&self, side: &Side, arguments: &[&str]) -> Outcome {
        let namespace = if side.way == Way::Alone { "alone" } else { "through" };
        side.run(self.ctr(&["--namespace", namespace]).args(arguments))
    }
}

/// Tells containerd how to get in, which takes a registry at a loopback address for one without TLS.
fn hosts(side: &Side) -> String {
    let authority = side.door.trusted.as_ref().map(|directory| directory.join("ca.crt"));
    let trust = authority.map(|file| format!("ca = '{}'\n", file.display())).unwrap_or_default();
    let scheme = if side.door.trusted.is_some() { "https" } else { "http" };
    let host = &side.door.host;
    let hosts = side.path("hosts");
    std::fs::create_dir_all(format!("{hosts}/{host}")).unwrap();
    let settings = format!("server = '{scheme}://{host}'\n[host.'{scheme}://{host}']\n{trust}");
    std::fs::write(format!("{hosts}/{host}/hosts.toml"), settings).unwrap();
    hosts
}

impl Drop for Containerd {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        self.shell.wait().unwrap();
    }
}
