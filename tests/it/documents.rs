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
const OUTAGE: &str = "deploy/OUTAGE.md";
const RECIPES: &str = "deploy/recipes/README.md";
const UPGRADING: &str = "deploy/UPGRADING.md";

/// Whatever is written for people: the top, and all below `deploy`.
fn documents() -> BTreeSet<String> {
    let mut found = BTreeSet::from([README, CONTRIBUTING, ".github/SECURITY.md"].map(str::to_owned));
    let mut directories = vec![root().join("deploy")];
    while let Some(directory) = directories.pop() {
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|kind| kind == "md") {
                found.insert(path.strip_prefix(root()).unwrap().display().to_string());
            }
        }
    }
    found
}

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
        bash.env("ADMIN", format!("http://{}", self.refshim.admin));
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
            let address = self.refshim.address.to_string();
            let found =
                self.run(&command.replace("localhost:5000", &address)).replace(&address, "localhost:5000");
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
    let [signing, attaching, copying] = &session(README, "Sixty seconds by hand", "sh")[..] else {
        panic!("three sessions")
    };

    let said = quickstart.run(signing);
    assert!(said.contains("Signature Verified Successfully"), "{said}");
    let said = quickstart.run(attaching);
    assert_eq!(said.matches(r#""artifactType":"application/vnd.example.scan""#).count(), 2, "{said}");
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
    let [answers, attaching] = &blocks(&read(API), "console")[..] else { panic!("two blocks") };
    quickstart.prints(answers);
    quickstart.prints(attaching);
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
    assert_eq!(
        said.matches("signature").count(),
        7,
        "in the table, the JSON, the template and the tree: {said}"
    );
}

#[tokio::test]
async fn backups_are_restored() {
    let quickstart = Quickstart::start().await;
    let mut sessions = session(MANUAL, "Backup, and a damaged disk", "sh");
    sessions.push(blocks(&read(UPGRADING), "sh").join("\n"));
    assert_eq!(sessions.len(), 3, "a dump, a copy of the files, and the way back of an upgrade");
    for backup in &sessions {
        let said = quickstart.run(backup);
        assert!(said.ends_with("intact\n"), "{said}");
    }
}

#[tokio::test]
async fn a_recipe_is_tried_and_after_an_outage_everything_is_known_again() {
    let quickstart = Quickstart::start().await;
    let [trial] = &blocks(&read(RECIPES), "sh")[..] else { panic!("one session") };
    let said = quickstart.run(trial);
    assert!(said.contains("application/vnd.example.trial"), "{said}");
    let [afterwards] = &blocks(&read(OUTAGE), "sh")[..] else { panic!("one session") };
    let whole = Regex::new(r"\(all\) +yes").unwrap();
    assert!(!whole.is_match(&quickstart.run(r#"refshim coverage --admin "$ADMIN""#)));
    let said = quickstart.run(afterwards);
    assert!(whole.is_match(&said), "{said}");
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
    for document in documents() {
        for block in blocks(&read(&document), "toml") {
            let table: toml::Table = toml::from_str(&block).unwrap();
            // Those for containerd and podman.
            if table.contains_key("server") || table.contains_key("registry") {
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
    assert_eq!(loaded, 23);
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
fn the_manual_says_what_a_reload_changes() {
    let manual = read(MANUAL);
    let (_, said) = manual.split_once("\nA reload changes ").unwrap();
    let (said, _) = said.split_once(" All else takes a restart").unwrap();
    let (common, of_upstreams) = said.split_once(" of each\nupstream ").unwrap();
    let quoted =
        |text: &str| -> Vec<String> { text.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let shown = Command::new(env!("CARGO_BIN_EXE_refshim")).args(["config", "schema"]).output().unwrap();
    let schema: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let mut live = BTreeSet::new();
    collect_live(&schema["properties"], "", &mut live);
    let is_said = |key: &String| {
        let table = key.split_once('.').map(|(table, _)| format!("{table}.*"));
        quoted(common).iter().any(|said| said == key || Some(said) == table.as_ref())
    };
    assert_eq!(live.iter().filter(|key| !is_said(key)).collect::<Vec<_>>(), Vec::<&String>::new());
    let known: BTreeSet<String> = quoted(common).into_iter().filter(|said| !said.ends_with(".*")).collect();
    assert_eq!(known.iter().filter(|said| !live.contains(*said)).collect::<Vec<_>>(), Vec::<&String>::new());
    let mut live = BTreeSet::new();
    collect_live(&schema["$defs"]["upstream"]["properties"], "", &mut live);
    assert_eq!(live, quoted(of_upstreams).into_iter().collect());
}

/// The keys in this part of the schema that a reload changes.
fn collect_live(properties: &Value, table: &str, live: &mut BTreeSet<String>) {
    for (name, setting) in properties.as_object().unwrap() {
        let key = format!("{table}{name}");
        if setting["properties"].is_object() {
            collect_live(&setting["properties"], &format!("{key}."), live);
        } else if name != "upstreams" && !setting["description"].as_str().unwrap().contains("takes a restart")
        {
            live.insert(key);
        }
    }
}

#[test]
fn metrics_that_the_documents_name_are_in_the_list() {
    let name = Regex::new(r"\brefshim_[a-z_]+[a-z]\b").unwrap();
    let list = read("deploy/METRICS.md");
    let listed: BTreeSet<&str> = name.find_iter(&list).map(|name| name.as_str()).collect();
    for document in documents() {
        for found in name.find_iter(&read(&document)) {
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
    for document in documents() {
        let text = read(&document);
        for link in link.captures_iter(&text).map(|link| link[1].to_owned()) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) =
                link.split_once('#').map_or((&link[..], None), |(path, at)| (path, Some(at)));
            let target = match path {
                "" => root().join(&document),
                path => root().join(&document).parent().unwrap().join(path),
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
    let listed: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
    assert!(listed.is_empty() || listed == documents(), "{listed:?}");
}
