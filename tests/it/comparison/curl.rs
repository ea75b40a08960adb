//! curl: a blob up and down, whole and in part, and errors.

use std::process::Command;

use super::outcome::Outcome;
use super::side::Side;
use crate::support::digest_of;

pub(super) fn round(side: &Side, version: &str) -> Outcome {
    let content = b"0123456789".repeat(30_000);
    std::fs::write(side.path("blob"), &content).unwrap();
    let digest = digest_of(&content);
    let curl = |arguments: &[&str]| curl(side, version, arguments);
    let start = curl(&["-X", "POST", &format!("{}/v2/curl/blobs/uploads/", side.door.base)]);
    let location = location(side);
    let put = [
        "-T",
        "blob",
        "-H",
        "Content-Type: application/octet-stream",
        &format!("{location}&digest={digest}"),
    ];
    let blob = format!("{}/v2/curl/blobs/{digest}", side.door.base);
    start
        .then(curl(&put))
        .then(curl(&["-L", &blob]))
        .then(curl(&["-L", "-r", "5-9", &blob]))
        .then(curl(&["-L", "-I", &blob]))
        .then(curl(&[&format!("{}/v2/curl/manifests/none", side.door.base)]))
        .then(curl(&["-X", "DELETE", &blob]))
        .then(curl(&["-H", "Authorization: Basic YWxpY2U6d3Jvbmc=", &format!("{}/v2/", side.door.base)]))
}

/// One request, and those that it is redirected to.
fn curl(side: &Side, version: &str, arguments: &[&str]) -> Outcome {
    let mut command = Command::new("curl");
    command.args(["-sS", version, "-D", "head", "-o", "body", "-w", "%{http_version}"]);
    if let Some(directory) = &side.door.trusted {
        command.arg("--cacert").arg(directory.join("ca.crt"));
    }
    match (&side.token, side.user) {
        (Some(token), _) => drop(command.args(["--oauth2-bearer", token])),
        (None, Some((name, password))) => drop(command.args(["--user", &format!("{name}:{password}")])),
        (None, None) => {}
    }
    std::fs::write(side.path("body"), "").unwrap();
    let ended = side.run(command.args(arguments));
    // What curl puts out for -I is the head again.
    let is_head = arguments.contains(&"-I");
    let body = if is_head { Vec::new() } else { std::fs::read(side.path("body")).unwrap() };
    let head = std::fs::read_to_string(side.path("head")).unwrap();
    let heads: Vec<_> = head.trim_end().split("\r\n\r\n").map(|head| one_head(side, head)).collect();
    let status = heads.last().unwrap().0.clone();
    let body = side.normal().text(&String::from_utf8_lossy(&body));
    let body = if body.len() > 1000 { digest_of(body.as_bytes()) } else { body };
    Outcome::new(status, format!("{heads:?} {body} {:?}", ended.said()))
}

/// The status and the fields of an answer's head.
fn one_head(side: &Side, head: &str) -> (String, Vec<String>) {
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let fields = lines.filter_map(|line| line.split_once(':'));
    (status, side.normal().fields(fields.map(|(name, value)| (name, value.trim()))))
}

/// Where the last answer sent the client.
fn location(side: &Side) -> String {
    let head = std::fs::read_to_string(side.path("head")).unwrap();
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let location = fields.find(|(name, _)| name.eq_ignore_ascii_case("location")).unwrap().1;
    if location.starts_with('/') { format!("{}{location}", side.door.base) } else { location.to_owned() }
}
