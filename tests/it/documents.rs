//! What the documents for people show is so: sessions run as they stand there, configurations load, tables name
//! everything there is, and links lead somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use serde_json::Value;

use crate::support::{Authority, Refshim, Registry, binary};

const README: &str = "README.md";
const API: &str = "deploy/API.md";
const MANUAL: &str = "deploy/MANUAL.md";
const CONTRIBUTING: &str = ".github/CONTRIBUTING.md";
const DOCUMENTS: [&str; 10] = [
    README,
    API,
    MANUAL,
    "deploy/ROLLOUT.md",
    "deploy/REPLICAS.md",
    "deploy/METRICS.md",
    "deploy/CHANGES.md",
    "deploy/notifications/README.md",
    CONTRIBUTING,
    ".github/SECURITY.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The fenced blocks of this language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("\n```{language}\n");
    let blocks = text.split(&fence).skip(1);
    blocks.map(|block| block.split("\n```").next().unwrap().to_owned()).collect()
}

/// The blocks of this language in the section with this title.
fn session(document: &str, title: &str, language: &str) -> Vec<String> {
    let text = read(document);
    let (_, section) = text.split_once(&format!("\n## {title}\n")).unwrap();
    blocks(section.split("\n## ").next().unwrap(), language)
}

/// A registry and refshim as `deploy/quickstart` leaves them, and the directory that it tells to go to.
struct Quickstart {
    refshim: Refshim,
    directory: tempfile::TempDir,
    _registry: Registry,
}

impl Quickstart {
    async fn start() -> Self {
        let registry = Registry::start();
        let directory = tempfile::tempdir().unwrap();
        let refshim = Refshim::start(registry.address, &directory.path().join("data")).await;
        let client = refshim.client();
        let hello = client.image("hello", "hello").await;
        client.push_as("hello", "v1", &hello).await;
        fs::create_dir(directory.path().join("try")).unwrap();
        let quickstart = Self { refshim, directory, _registry: registry };
        // In the order of the tree, which is that of their types for what is attached within the same second.
        let attach = r#"
            signature='signature.json:application/json --artifact-type application/vnd.example.signature'
            printf '{"signed":"an image"}' > signature.json
            printf '{"spdxVersion":"SPDX-2.3","name":"hello"}' > sbom.json
            sbom=$(refshim attach "$REGISTRY/hello:v1" sbom.json --artifact-type application/spdx+json)
            refshim attach "$REGISTRY/hello@$sbom" $signature
            refshim attach "$REGISTRY/hello:v1" $signature --tag signature
            rm signature.json sbom.json"#;
        quickstart.run(attach);
        quickstart
    }

    fn home(&self) -> PathBuf {
        self.directory.path().join("try")
    }

    /// What a session prints that must succeed to its last command.
    #[track_caller]
    fn run(&self, session: &str) -> String {
        let binaries = binary().parent().unwrap().display().to_string();
        let path = format!("{binaries}:{}", std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", session]).current_dir(self.home());
        bash.env("PATH", path).env("HOME", self.home()).env("NO_PROXY", "127.0.0.1");
        bash.env("REGISTRY", self.refshim.address.to_string());
        bash.env("DATA_DIR", self.directory.path().join("data"));
        let output = bash.output().unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "{session}\n{out}\n{err}");
        out
    }

    /// Runs each command of a block that shows what commands print, and compares what they print but for digests,
    /// sizes and times.
    #[track_caller]
    fn prints(&self, block: &str) {
        for shown in block.split("$ ").skip(1) {
            let (command, printed) = shown.split_once('\n').unwrap();
            let found = self.run(&command.replace("localhost:5000", &self.refshim.address.to_string()));
            assert_eq!(alike(found.replace('\r', "").trim_end()), alike(printed.trim_end()), "{command}");
        }
    }
}

/// Without what differs from one run to the next.
fn alike(text: &str) -> String {
    let mut text = text.to_owned();
    for (varies, name) in [
        (r"sha256:[0-9a-f]{12,64}", "DIGEST"),
        (r"\d{4}-\d\d-\d\dT[\d:]+Z", "TIME"),
        (r#"("size":\s*)\d+"#, "${1}SIZE"),
        (r" +[\d.]+ [KM]?i?B", " SIZE"),
        (r" +\d+[smhd]\b", " AGE"),
    ] {
        text = Regex::new(varies).unwrap().replace_all(&text, name).into_owned();
    }
    text
}

#[tokio::test]
async fn what_the_readme_shows_by_hand_works_on_any_port() {
    let quickstart = Quickstart::start().await;
    let [signing, copying] = &session(README, "Sixty seconds by hand", "sh")[..] else {
        panic!("two sessions")
    };

    let said = quickstart.run(signing);
    assert!(said.contains("Signature Verified Successfully"), "{said}");
    let said = quickstart.run(copying);
    assert!(said.contains("application/vnd.example.ed25519"), "{said}");
    assert!(said.contains("application/vnd.example.signature"), "{said}");
}

#[tokio::test]
async fn the_tree_of_the_readme_is_the_one_that_the_quickstart_draws() {
    let quickstart = Quickstart::start().await;
    let [tree] = &blocks(&read(README), "console")[..] else { panic!("one tree") };
    quickstart.prints(tree);
}

#[tokio::test]
async fn what_the_api_reference_shows_is_what_is_answered() {
    let quickstart = Quickstart::start().await;
    let [answers] = &blocks(&read(API), "console")[..] else { panic!("one block") };
    quickstart.prints(answers);
}

#[tokio::test]
async fn the_sessions_of_the_api_reference_do_what_they_say() {
    let quickstart = Quickstart::start().await;
    let [proposal, listing] = &session(API, "From the command line", "sh")[..] else {
        panic!("two sessions")
    };

    let said = quickstart.run(proposal);
    let manifest = fs::read(quickstart.home().join("ref-to-ubuntu/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let (_, _, hello) = quickstart.refshim.client().served("hello", "v1").await;
    assert_eq!(manifest["reference"]["digest"], hello.as_str());
    assert!(said.contains(&hello), "the referring manifest is shown: {said}");
    assert!(said.contains(r#""io.refshim.repository":"ref-to-ubuntu""#), "{said}");

    let said = quickstart.run(listing);
    assert_eq!(said.matches("application/vnd.example.signature").count(), 4, "once or twice in each: {said}");
}

#[tokio::test]
async fn the_backup_of_the_manual_is_restored() {
    let quickstart = Quickstart::start().await;
    let sessions = session(MANUAL, "Backup, and a damaged disk", "sh");
    assert_eq!(sessions.len(), 2, "a dump, and a copy of the files");
    for backup in &sessions {
        let said = quickstart.run(backup);
        assert!(said.ends_with("intact\n"), "{said}");
    }
}

#[tokio::test]
async fn configurations_of_the_documents_load() {
    let authority = Authority::new();
    let directory = authority.directory();
    for name in ["hub", "mirror"] {
        let identity = authority.server(name, &[&format!("{name}.example.com")]);
        fs::copy(&identity.certificate, directory.join(format!("{name}.crt"))).unwrap();
        fs::copy(&identity.key, directory.join(format!("{name}.key"))).unwrap();
    }
    fs::copy(authority.certificate(), directory.join("registry-ca.crt")).unwrap();
    fs::copy(authority.certificate(), directory.join("database-ca.crt")).unwrap();
    for name in ["password", "notifications-secret", "index-password"] {
        fs::write(directory.join(name), "secret").unwrap();
    }
    let mut loaded = 0;
    for document in DOCUMENTS {
        for block in blocks(&read(document), "toml") {
            let table: toml::Table = toml::from_str(&block).unwrap();
            // The one for containerd.
            if table.contains_key("server") {
                continue;
            }
            let (file, data) = (directory.join("refshim.toml"), tempfile::tempdir().unwrap());
            let settings = block.replace("/etc/refshim/", &format!("{}/", directory.display()));
            // Upstreams that share have one URL, also here.
            let settings = settings.replace("\"https://registry.example\"", "\"http://127.0.0.1:9\"");
            fs::write(&file, settings).unwrap();
            // With another upstream, of which nobody is asked here.
            let with_file = format!(r#"exec "$0" "$@" --config {}"#, file.display());
            let start = Refshim::prepare("127.0.0.1:9".parse().unwrap(), data.path());
            drop(start.under(["bash", "-c", &with_file]).launch_unready());
            loaded += 1;
        }
    }
    assert_eq!(loaded, 9);
}

/// The settings of the example file and their defaults, as the manual writes them.
fn settings() -> Vec<(String, String)> {
    let (header, setting) =
        (Regex::new(r"^#? ?\[([\w.]+)\]$").unwrap(), Regex::new(r"^(#? ?)([a-z_0-9]+) = (.*)$"));
    let (setting, mut table, mut found) = (setting.unwrap(), String::new(), Vec::new());
    let (named, mut seen) = (Regex::new(r"^(upstreams|notifications)\.\w+").unwrap(), BTreeSet::new());
    for line in read("config/refshim.toml").lines() {
        if let Some(header) = header.captures(line) {
            table = named.replace(&header[1], "$1.<name>").into_owned() + ".";
        } else if let Some(line) = setting.captures(line) {
            let value = line[3].trim_matches('"');
            // What stands behind "# " is an example, but for these.
            let is_default = &line[1] == "#" || ["false", "never", "full"].contains(&value);
            let default = if is_default && value != "[]" { format!("`{value}`") } else { String::new() };
            let key = format!("{table}{}", &line[2]);
            // Settings that exclude each other are shown at several upstreams.
            if seen.insert(key.clone()) {
                found.push((key, default));
            }
        }
    }
    found
}

#[test]
fn the_manual_has_every_setting_with_its_default() {
    let row = Regex::new(r"(?m)^\| `([a-z_.<>0-9]+)` \| (.*?) \| .+ \|$").unwrap();
    let manual = read(MANUAL);
    let (_, section) = manual.split_once("\n## Configuration\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = row.captures_iter(section).map(|row| (row[1].to_owned(), row[2].trim().to_owned()));
    assert_eq!(rows.collect::<Vec<_>>(), settings());
}

#[test]
fn metrics_that_the_documents_name_are_in_the_list() {
    let name = Regex::new(r"\brefshim_[a-z_]+[a-z]\b").unwrap();
    let list = read("deploy/METRICS.md");
    let listed: BTreeSet<&str> = name.find_iter(&list).map(|name| name.as_str()).collect();
    for document in DOCUMENTS {
        for found in name.find_iter(&read(document)) {
            let is_listed = listed.iter().any(|known| known.starts_with(found.as_str()));
            assert!(is_listed, "{document}: {}", found.as_str());
        }
    }
}

#[test]
fn the_map_of_the_tests_names_every_file() {
    let map = read(CONTRIBUTING);
    for directory in ["tests/it", "tests/faults", "tests/fuzz/targets"] {
        for entry in fs::read_dir(root().join(directory)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let is_named =
                [format!("`{name}`"), format!("`{name}/`")].iter().any(|named| map.contains(named));
            let is_test = path.extension().is_some_and(|kind| kind == "rs") && name != "main";
            assert!(is_named || !is_test, "{CONTRIBUTING} does not name {}", path.display());
        }
    }
    let variable = Regex::new(r"\bFAULT_[A-Z_]+").unwrap();
    for variable in variable.find_iter(&read("tests/faults/run")) {
        assert!(map.contains(&format!("`{}`", variable.as_str())), "{CONTRIBUTING}: {}", variable.as_str());
    }
}

#[test]
fn what_a_change_must_pass_is_what_ci_runs() {
    let required = blocks(&read(CONTRIBUTING), "text").swap_remove(0);
    let ci = read(".ci/run");
    for command in required.lines() {
        assert!(ci.lines().any(|line| line.ends_with(command)), ".ci/run does not run {command}");
    }
    assert!(read(".github/workflows/ci.yml").contains("run: .ci/run\n"));
    let [commands] = &session(README, "Two commands", "sh")[..] else { panic!("one block") };
    for command in ["deploy/quickstart", "tests/run"] {
        assert!(commands.lines().any(|line| line.split(' ').next() == Some(command)) && ci.contains(command));
    }
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let (mut anchors, mut is_code) = (Vec::new(), false);
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let heading = line.trim_start_matches('#');
        if !is_code && heading.len() < line.len() && heading.starts_with(' ') {
            let kept = heading.trim().to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            anchors.push(kept.collect::<String>().replace(' ', "-"));
        }
    }
    anchors
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let link = Regex::new(r"\]\(([^()\s]+)\)").unwrap();
    for document in DOCUMENTS {
        let text = read(document);
        for link in link.captures_iter(&text).map(|link| link[1].to_owned()) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) =
                link.split_once('#').map_or((&link[..], None), |(path, at)| (path, Some(at)));
            let target = match path {
                "" => root().join(document),
                path => root().join(document).parent().unwrap().join(path),
            };
            assert!(target.exists(), "{document}: {link} leads nowhere");
            if let Some(anchor) = anchor {
                let anchors = anchors(&read(&target));
                assert!(
                    anchors.iter().any(|known| known == anchor),
                    "{document}: {link}: none of {anchors:?}"
                );
            }
        }
    }
}

#[test]
fn every_document_is_looked_at() {
    let listed = Command::new("git").args(["ls-files", "*.md"]).current_dir(root()).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let listed: BTreeSet<&str> = listed.lines().collect();
    assert!(listed.is_empty() || listed == BTreeSet::from(DOCUMENTS), "{listed:?}");
}
