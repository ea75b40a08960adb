//! The commands of the client, as they are typed: against refshim in front of a real registry, against the
//! registry alone, and against OCI layouts.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, Content, IMAGE_INDEX, IMAGE_MANIFEST, Refshim, Registry, digest_of};

mod attaching;
mod attestations;
mod backfill;
mod choosing;
mod collecting;
mod comparing;
mod copying;
mod credentials;
mod exporting;
mod failures;
mod listing;
mod logins;
mod pages;
mod proxies;
mod redirects;
mod serving;
mod terminal;
mod what_it_is;

const SBOM: &str = "application/spdx+json";
const SIGNATURE: &str = "application/vnd.example.signature";
const CREATED: &str = "org.opencontainers.image.created";

/// Where commands are typed: a home of its own, with the files that a test puts there.
struct Shell {
    home: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

/// A command that has ended.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Shell {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    fn with(mut self, variable: &str, value: &str) -> Self {
        self.variables.push((variable.to_owned(), value.to_owned()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A command in that home, with nothing of the environment that could log in somewhere or lead elsewhere.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_refshim"));
        command.args(arguments).current_dir(self.home.path()).env("HOME", self.home.path());
        for variable in ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"] {
            command.env_remove(variable);
        }
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(variable).env_remove(variable.to_lowercase());
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments).spawn().unwrap())
    }

    fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Ended {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        Ended::of(child)
    }

    /// What a command prints that must succeed.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok()
    }

    /// The tree of an image without its first line, which says how it was named.
    #[track_caller]
    fn tree_below(&self, image: &str) -> String {
        self.ok(&["tree", image]).split_once('\n').unwrap().1.to_owned()
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }
}

impl Ended {
    fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.err);
        self.out.trim_end().to_owned()
    }

    /// The command failed like this, and said all of that.
    #[track_caller]
    fn failed(&self, code: i32, said: &[&str]) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{}", self.err);
        for part in said {
            assert!(self.err.contains(part), "no {part:?} in\n{}", self.err);
        }
    }
}

/// refshim in front of a registry.
struct Scene {
    registry: Registry,
    refshim: Refshim,
    client: Client,
    shell: Shell,
    _data: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let (registry, data) = (Registry::start(), tempfile::tempdir().unwrap());
        let refshim = Refshim::start(registry.address, data.path()).await;
        let client = refshim.client();
        Self { registry, refshim, client, shell: Shell::new(), _data: data }
    }

    /// An image or repository, through refshim.
    fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.refshim.address)
    }

    /// The same in the registry itself.
    fn behind(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.address)
    }

    /// A manifest as it is behind refshim.
    async fn manifest(&self, repository: &str, reference: &str) -> Content {
        manifest(&self.registry.client(), repository, reference).await
    }

    async fn image(&self, repository: &str, tag: &str) -> Content {
        let image = self.client.image(repository, repository).await;
        self.client.push_as(repository, tag, &image).await;
        image
    }

    /// An index of two platforms, an SBOM on each, a signature on each SBOM, and one on the index. Its root.
    async fn graph(&self, repository: &str) -> Content {
        let amd = self.client.image(repository, "amd64").await;
        let arm = self.client.image(repository, "arm64").await;
        let index = Content::index(&[&amd, &arm]).changed(|index| {
            for (entry, architecture) in [(0, "amd64"), (1, "arm64")] {
                index["manifests"][entry]["platform"] = json!({"os": "linux", "architecture": architecture});
            }
        });
        self.client.push(repository, &amd).await;
        self.client.push(repository, &arm).await;
        self.client.push_as(repository, "v1", &index).await;
        for platform in ["linux/amd64", "linux/arm64"] {
            let image = self.at(&format!("{repository}:v1"));
            self.shell.write("sbom.json", format!(r#"{{"name":"{platform}"}}"#));
            let sbom = ["attach", &image, "sbom.json", "--artifact-type", SBOM, "--platform", platform];
            let sbom = self.shell.ok(&[&sbom[..], &created("2024-05-01T00:00:00Z")].concat());
            self.shell.write("sbom.sig", format!("signed {platform}"));
            self.sign(repository, &sbom);
        }
        self.shell.write("sbom.sig", "signed index");
        self.sign(repository, &index.digest);
        assert_eq!(index.media_type, IMAGE_INDEX);
        index
    }

    fn sign(&self, repository: &str, digest: &str) -> String {
        let subject = self.at(&format!("{repository}@{digest}"));
        let sign = ["attach", &subject, "sbom.sig", "--artifact-type", SIGNATURE];
        self.shell.ok(&[&sign[..], &created("2024-05-02T00:00:00Z")].concat())
    }
}

async fn manifest(client: &Client, repository: &str, reference: &str) -> Content {
    let get = client.request(Method::GET, &format!("/v2/{repository}/manifests/{reference}"));
    let answer = client.send(get.header("accept", format!("{IMAGE_MANIFEST}, {IMAGE_INDEX}"))).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let media_type = answer.header("content-type").to_owned();
    let (digest, value) = (digest_of(&answer.body), answer.json());
    Content { media_type, bytes: answer.body, digest, value }
}

/// Makes the digest of what is attached the same each time.
fn created(time: &str) -> [&str; 2] {
    ["--annotation", Box::leak(format!("{CREATED}={time}").into_boxed_str())]
}

/// The first 12 digits, as a tree shows them.
fn short(digest: &str) -> &str {
    &digest[.."sha256:".len() + 12]
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path).unwrap()
}
