//! What people use to push and pull: each does its usual round of work against one side.

use std::path::Path;
use std::process::Command;

use super::containerd::Containerd;
use super::outcome::Outcome;
use super::side::Side;

const POLICY: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;

/// A command of the containers tools, with a policy of the test's own.
fn containers(side: &Side, program: &str) -> Command {
    let registries = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", side.door.host);
    let registries = if side.door.trusted.is_some() { String::new() } else { registries };
    std::fs::write(side.path("policy.json"), POLICY).unwrap();
    std::fs::write(side.path("registries.conf"), format!("unqualified-search-registries = []\n{registries}"))
        .unwrap();
    let mut command = as_root(program);
    command.env("CONTAINERS_REGISTRIES_CONF", side.path("registries.conf"));
    command
}

/// A program that needs to be root, as it is in the tests' usual surroundings.
pub(super) fn as_root(program: &str) -> Command {
    let id = Command::new("id").arg("-u").output().unwrap();
    if id.stdout == b"0\n" {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["--non-interactive", "--preserve-env", program]);
    command
}

fn skopeo(side: &Side, arguments: &[&str]) -> Command {
    let mut command = containers(side, "skopeo");
    command.args(["--policy", &side.path("policy.json")]).args(arguments);
    command
}

/// `--creds` and `--cert-dir` for one end, `prefix` being `--`, `--src-` or `--dest-`.
fn ways_in(side: &Side, prefix: &str) -> Vec<String> {
    let mut flags = Vec::new();
    if let Some((name, password)) = side.user {
        flags.extend([format!("{prefix}creds"), format!("{name}:{password}")]);
    }
    if let Some(directory) = &side.door.trusted {
        flags.extend([format!("{prefix}cert-dir"), directory.to_str().unwrap().to_owned()]);
    }
    flags
}

/// Copies in, as it is and converted, looks, copies back out, and deletes.
pub(super) fn skopeo_round(side: &Side) -> Outcome {
    skopeo_push(side).then(skopeo_pull(side)).then(skopeo_delete(side))
}

pub(super) fn skopeo_push(side: &Side) -> Outcome {
    let host = &side.door.host;
    let layout = format!("oci:{}:v1", side.path("layout"));
    let into = ways_in(side, "--dest-");
    let all = format!("docker://{host}/skopeo:v1");
    let converted = format!("docker://{host}/skopeo:docker");
    side.run(skopeo(side, &["copy", "--all", &layout, &all]).args(&into))
        .then(side.run(skopeo(side, &["copy", "--format", "v2s2", &layout, &converted]).args(&into)))
        // The blobs are in the registry already, in another repository.
        .then(
            side.run(
                skopeo(side, &["copy", "--all", &all, &format!("docker://{host}/other:v1")])
                    .args(&into)
                    .args(ways_in(side, "--src-")),
            ),
        )
}

pub(super) fn skopeo_pull(side: &Side) -> Outcome {
    let host = &side.door.host;
    let image = format!("docker://{host}/skopeo:v1");
    let out = side.path("out");
    let pulled = side.run(
        skopeo(side, &["copy", "--all", &image, &format!("oci:{out}:v1")]).args(ways_in(side, "--src-")),
    );
    let same =
        Command::new("diff").args(["-r", &side.path("layout/blobs"), &format!("{out}/blobs")]).output();
    let same = if same.unwrap().status.success() { "same bytes" } else { "other bytes" };
    let looked = |arguments: &[&str]| side.run(skopeo(side, arguments).args(ways_in(side, "--")));
    pulled
        .told(same)
        .then(looked(&["inspect", &image]))
        .then(looked(&["inspect", "--raw", &image]))
        .then(looked(&["inspect", "--config", &format!("docker://{host}/skopeo:docker")]))
        .then(looked(&["list-tags", &format!("docker://{host}/skopeo")]))
        .then(looked(&["inspect", &format!("docker://{host}/skopeo:none")]))
        .then(looked(&["inspect", &format!("docker://{host}/none:v1")]))
}

fn skopeo_delete(side: &Side) -> Outcome {
    let image = format!("docker://{}/other:v1", side.door.host);
    side.run(skopeo(side, &["delete", &image]).args(ways_in(side, "--")))
        .then(side.run(skopeo(side, &["inspect", &image]).args(ways_in(side, "--"))))
}

/// With a wrong password.
pub(super) fn skopeo_refused(side: &Side) -> Outcome {
    let mut command = skopeo(side, &["inspect", "--creds", "alice:wrong"]);
    if let Some(directory) = &side.door.trusted {
        command.arg("--cert-dir").arg(directory);
    }
    side.run(command.arg(format!("docker://{}/skopeo:v1", side.door.host)))
}

/// podman or buildah, with storage of its own that needs no kernel support.
fn engine(side: &Side, program: &str) -> Command {
    let mut command = containers(side, program);
    command.args(["--root", &side.path("engine"), "--runroot", &side.path("engine-run")]);
    command.args(["--storage-driver", "vfs"]);
    command
}

/// Logs in where there are users, pulls what skopeo pushed, pushes it elsewhere, and pulls that.
pub(super) fn podman_round(side: &Side) -> Outcome {
    engine_round(side, "podman", "list")
}

pub(super) fn buildah_round(side: &Side) -> Outcome {
    engine_round(side, "buildah", "images")
}

fn engine_round(side: &Side, program: &str, images: &str) -> Outcome {
    let host = &side.door.host;
    let certificates: Vec<&Path> = match &side.door.trusted {
        Some(directory) => vec![Path::new("--cert-dir"), directory],
        None => vec![],
    };
    let file = side.path(&format!("{program}-auth.json"));
    let mut outcome = Outcome::of(program, Vec::new());
    if let Some((name, password)) = side.user {
        let mut login = engine(side, program);
        login
            .args(["login", "--authfile", &file, "--username", name, "--password", password])
            .args(&certificates);
        outcome = outcome.then(side.run(login.arg(host)));
    } else {
        std::fs::write(&file, "{}").unwrap();
    }
    let policy = side.path("policy.json");
    let work = |arguments: &[&str]| {
        let mut command = engine(side, program);
        command
            .arg(arguments[0])
            .args(["--signature-policy", &policy, "--authfile", &file])
            .args(&certificates);
        side.run(command.args(&arguments[1..]))
    };
    let (image, pushed) = (format!("{host}/skopeo:v1"), format!("{host}/{program}:v1"));
    let digest = side.path("digest");
    let outcome = outcome
        .then(work(&["pull", "--quiet", &image]))
        .then(side.run(engine(side, program).args(["tag", &image, &pushed])))
        .then(work(&["push", "--digestfile", &digest, &pushed]))
        .then(side.run(engine(side, program).args(["rmi", "--force", &pushed, &image])))
        .then(work(&["pull", "--quiet", &pushed]))
        .then(work(&["pull", "--quiet", &format!("{host}/{program}:none")]));
    let mut outcome = outcome;
    let digest = std::fs::read_to_string(&digest).unwrap_or_else(|error| panic!("{error}: {outcome:?}"));
    outcome.details.push(digest);
    let listing = side.run(engine(side, program).args([
        if images == "list" { "images" } else { images },
        "--digests",
        "--noheading",
    ]));
    outcome.then(listing)
}

/// containerd pulls what skopeo pushed and pushes it elsewhere.
pub(super) fn containerd_round(side: &Side, containerd: &Containerd) -> Outcome {
    let host = &side.door.host;
    let ctr = |arguments: &[&str]| {
        let mut command = containerd.ctr(side.way);
        command.args(arguments);
        command
    };
    let work = |arguments: &[&str], last: &[&str]| {
        let mut command = ctr(arguments);
        match &side.door.trusted {
            Some(directory) => command.arg("--tlscacert").arg(directory.join("ca.crt")),
            None => command.arg("--plain-http"),
        };
        if let Some((name, password)) = side.user {
            command.args(["--user", &format!("{name}:{password}")]);
        }
        // Progress bars tell the time, so that of these only the exit counts.
        let mut outcome = side.run(command.args(last));
        outcome.details.clear();
        outcome
    };
    let (image, pushed) = (format!("{host}/skopeo:v1"), format!("{host}/containerd:v1"));
    let pull = ["images", "pull", "--snapshotter", "native", "--all-platforms"];
    let listed = side.run(&mut ctr(&["images", "list"]));
    work(&pull, &[&image])
        .then(side.run(&mut ctr(&["images", "tag", &image, &pushed])))
        .then(work(&["images", "push"], &[&pushed]))
        .then(work(&["content", "fetch"], &[&pushed]))
        .then(work(&pull, &[&format!("{host}/containerd:none")]))
        .then(listed)
}

/// A push, a pull, tags and their end by the Python client.
pub(super) fn oras_round(side: &Side) -> Outcome {
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("oras/bin/python");
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/comparison/oras_round.py"));
    command.args([&side.door.host, &format!("{}/oras", side.door.host)]);
    command.env("ORAS_TLS", side.door.trusted.is_some().to_string());
    if let Some(directory) = &side.door.trusted {
        command.env("REQUESTS_CA_BUNDLE", directory.join("ca.crt"));
    }
    if let Some((name, password)) = side.user {
        command.env("ORAS_AUTH", if side.tokens.is_some() { "token" } else { "basic" });
        command.env("ORAS_USER", name).env("ORAS_PASSWORD", password);
    }
    side.run(&mut command)
}

/// A blob up and down and an error, by curl.
pub(super) fn curl_round(side: &Side, version: &str) -> Outcome {
    let content = vec![b'x'; 300_000];
    std::fs::write(side.path("blob"), &content).unwrap();
    let digest = crate::support::digest_of(&content);
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", version]);
        if let Some(directory) = &side.door.trusted {
            command.arg("--cacert").arg(directory.join("ca.crt"));
        }
        if let Some((name, password)) = side.user {
            command.args(["--user", &format!("{name}:{password}")]);
        }
        command.args(arguments);
        side.run(&mut command)
    };
    let status = ["-o", "/dev/null", "-w", "%{http_code} %{size_download} %{content_type}"];
    let base = &side.door.base;
    let blob = format!("{base}/v2/curl/blobs/{digest}");
    let upload = format!("{base}/v2/curl/blobs/uploads/?digest={digest}");
    let body = format!("@{}", side.path("blob"));
    let send =
        ["-X", "POST", "-H", "content-type: application/octet-stream", "--data-binary", &body, &upload];
    curl(&[&status[..], &send[..]].concat())
        .then(curl(&[&status[..], &["-L", &blob]].concat()))
        .then(curl(&[&status[..], &["-L", "-r", "5-9", &blob]].concat()))
        .then(curl(&[&status[..], &["-I", &blob]].concat()))
        .then(curl(&["-w", "%{http_code}", &format!("{base}/v2/curl/manifests/none")]))
}
