//! skopeo and buildah, which share libraries, settings and habits.

use std::process::Command;

use super::outcome::Outcome;
use super::side::Side;
use crate::support::Registry;

fn skopeo(side: &Side, arguments: &[&str]) -> Command {
    let mut command = Command::new("skopeo");
    command.args(["--policy", &policy(side)]).args(arguments);
    command
}

/// The path of a policy that asks for no signatures.
fn policy(side: &Side) -> String {
    let path = side.path("policy.json");
    std::fs::write(&path, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    path
}

/// What makes one end trusted, `prefix` being `--`, `--src-` or `--dest-`.
fn trust(side: &Side, prefix: &str) -> String {
    match &side.door.trusted {
        Some(directory) => format!("{prefix}cert-dir={}", directory.display()),
        None => format!("{prefix}tls-verify=false"),
    }
}

/// How to get in at one end.
fn ways_in(side: &Side, prefix: &str) -> Vec<String> {
    let user = side.user.map(|(name, password)| format!("{prefix}creds={name}:{password}"));
    user.into_iter().chain([trust(side, prefix)]).collect()
}

/// Copies in, as it is and converted, looks, copies back out, and deletes.
pub(super) fn skopeo_round(side: &Side) -> Outcome {
    skopeo_push(side).then(skopeo_pull(side)).then(skopeo_delete(side))
}

/// Copies an image for two platforms in, one of them as Docker's schema 2, and all from there to another
/// repository, whose blobs the registry then has already.
pub(super) fn skopeo_push(side: &Side) -> Outcome {
    let host = &side.door.host;
    let layout = format!("oci:{}:v1", side.path("layout"));
    let (image, other) = (format!("docker://{host}/skopeo:v1"), format!("docker://{host}/other:v1"));
    let converted = format!("docker://{host}/skopeo:docker");
    let (from, into) = (ways_in(side, "--src-"), ways_in(side, "--dest-"));
    side.run(skopeo(side, &["copy", "--quiet", "--all", &layout, &image]).args(&into))
        .then(
            side.run(skopeo(side, &["copy", "--quiet", "--format", "v2s2", &layout, &converted]).args(&into)),
        )
        .then(side.run(skopeo(side, &["copy", "--quiet", "--all", &image, &other]).args(&from).args(&into)))
}

/// Copies out and looks at everything, and at what is not there.
pub(super) fn skopeo_pull(side: &Side) -> Outcome {
    let repository = format!("docker://{}/skopeo", side.door.host);
    let (image, out) = (format!("{repository}:v1"), format!("oci:{}:v1", side.path("out")));
    let copy =
        side.run(skopeo(side, &["copy", "--quiet", "--all", &image, &out]).args(ways_in(side, "--src-")));
    let look = |arguments: &[&str]| side.run(skopeo(side, arguments).args(ways_in(side, "--")));
    copy.then(same_blobs(side))
        .then(look(&["inspect", &image]))
        .then(look(&["inspect", "--raw", &image]))
        .then(look(&["inspect", "--config", &image]))
        .then(look(&["list-tags", &repository]))
        .then(look(&["inspect", &format!("{repository}:none")]))
        .then(look(&["list-tags", &format!("docker://{}/none", side.door.host)]))
}

/// Gives a registry that anyone may write to what [`skopeo_pull`] looks for.
pub(super) fn skopeo_fill(side: &Side, origin: &Registry) {
    let layout = format!("oci:{}:v1", side.path("layout"));
    let image = format!("docker://{}/skopeo:v1", origin.address);
    let mut copy = skopeo(side, &["copy", "--quiet", "--all", "--dest-tls-verify=false", &layout, &image]);
    let copied = copy.output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
}

/// Whether what came back is what went in.
fn same_blobs(side: &Side) -> Outcome {
    let mut diff = Command::new("diff");
    side.run(diff.args(["--recursive", "--brief", "layout/blobs", "out/blobs"]))
}

fn skopeo_delete(side: &Side) -> Outcome {
    let image = format!("docker://{}/other:v1", side.door.host);
    let delete = || side.run(skopeo(side, &["delete", &image]).args(ways_in(side, "--")));
    delete().then(delete())
}

/// Looks without a password, with a wrong one, and without trust in a certificate.
pub(super) fn skopeo_refused(side: &Side) -> Outcome {
    let image = format!("docker://{}/skopeo:v1", side.door.host);
    let trust = trust(side, "--");
    let look = |flags: &[&str]| side.run(skopeo(side, &["inspect", &image]).args(flags));
    look(&[&trust]).then(look(&[&trust, "--creds=alice:wrong"])).then(look(&["--creds=alice:correct horse"]))
}

/// buildah with storage of its own that needs nothing of the kernel but root.
fn buildah(side: &Side, arguments: &[&str]) -> Command {
    let mut command = as_root("buildah");
    command.args(["--storage-driver", "vfs"]);
    command.args(["--root", &side.path("storage"), "--runroot", &side.path("run")]).args(arguments);
    command
}

/// A program that needs root, which tests on a developer's machine have by sudo.
pub(super) fn as_root(program: &str) -> Command {
    let id = Command::new("id").arg("-u").output().unwrap();
    if id.stdout == b"0\n" {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["--non-interactive", "--preserve-env", program]);
    sudo
}

/// Logs in where there are users, pulls what skopeo pushed, pushes it in both formats, forgets it and pulls
/// that.
pub(super) fn buildah_round(side: &Side) -> Outcome {
    let host = &side.door.host;
    let trust = trust(side, "--");
    let logins = side.path("logins.json");
    std::fs::write(&logins, "{}").unwrap();
    let work = |command: &str, more: &[&str]| {
        side.run(buildah(side, &[command, "--authfile", &logins]).arg(&trust).args(more))
    };
    let policy = ["--signature-policy", &policy(side)[..]];
    let pull = |image: &str| work("pull", &[&policy[..], &["--quiet", image]].concat());
    let image = format!("{host}/skopeo:v1");
    let login = side.user.map(|(name, password)| {
        let wrong = work("login", &["--username", name, "--password", "wrong", host]);
        wrong.then(work("login", &["--username", name, "--password", password, host]))
    });
    let mut outcome = login.unwrap_or_default().then(pull(&image));
    for format in ["oci", "v2s2"] {
        let (pushed, digest) = (format!("{host}/buildah:{format}"), side.path(format));
        let push =
            ["--quiet", "--format", format, "--digestfile", &digest, &image, &format!("docker://{pushed}")];
        outcome = outcome.then(work("push", &[&policy[..], &push].concat()));
        outcome = outcome.saying(std::fs::read_to_string(digest).unwrap_or_default());
        outcome = outcome.then(side.run(&mut buildah(side, &["rmi", "--all", "--force"])));
        outcome = outcome.then(pull(&pushed)).then(pull(&image));
    }
    let listed =
        side.run(&mut buildah(side, &["images", "--format", "{{.Name}}:{{.Tag}} {{.Digest}} {{.ID}}"]));
    outcome.then(listed).then(pull(&format!("{host}/buildah:none")))
}
