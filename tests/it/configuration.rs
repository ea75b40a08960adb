//! `refshim config`, `serve --check` and `refshim health`: what is told without serving, and of the refshim that
//! serves.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Refshim, Registry, Scripted, binary};

/// Exit code, standard output and standard error of a command with this on its standard input.
fn refshim(arguments: &[&str], variables: &[(&str, &str)], input: &str) -> (i32, String, String) {
    let mut command = Command::new(binary());
    command.args(arguments).envs(variables.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // What does not read its input may have ended before it was written.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn write(directory: &Path, text: &str) -> String {
    let file = directory.join("refshim.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_configuration_is_checked_as_serving_would() {
    let directory = tempfile::tempdir().unwrap();
    let file = write(directory.path(), "upstream = \"https://registry.example\"\n");
    assert_eq!(refshim(&["config", "check", &file], &[], "").0, 0);
    let by_variable = refshim(&["config", "check"], &[("REFSHIM_CONFIG", &file)], "");
    assert_eq!(by_variable, (0, "the configuration: ok\n".to_owned(), String::new()));
    let without = refshim(&["config", "check"], &[], "");
    assert_eq!((without.0, without.2.contains("upstream: not given")), (64, true), "{}", without.2);
    let by_flag = refshim(&["config", "check", "--upstream", "https://registry.example"], &[], "");
    assert_eq!(by_flag.0, 0);
    let wrong = "upstream = \"https://x\"\nlisten = \"here\"\n[upstreams.default]\nca = \"/missing.crt\"\nheads = 1\n";
    for (named, place, input) in
        [(write(directory.path(), wrong), file.as_str(), ""), ("-".to_owned(), "standard input", wrong)]
    {
        let (code, out, told) =
            refshim(&["config", "check", &named], &[("REFSHIM_LOG_FILTER", "loud")], input);
        assert_eq!((code, out.as_str(), told.lines().count()), (64, "", 4), "{told}");
        for part in [
            &format!("{place}:2: listen: "),
            &format!("{place}:4: upstreams.default.ca: "),
            &format!("{place}:5: upstreams.default.heads: unknown key"),
            "REFSHIM_LOG_FILTER: ",
        ] {
            assert!(told.contains(part), "no {part} in {told}");
        }
    }
}

#[test]
fn what_is_in_force_is_shown_and_can_be_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let text = "upstream = \"https://registry.example\"\n[limits]\nquestions = 9\n[upstreams.hub]\n\
                url = \"https://hub.example\"\nhosts = [\"hub\"]\n[index]\nurl = \"postgres://me:hunter2@db/index\"\n";
    let file = write(directory.path(), text);
    let variables = [("REFSHIM_TIMEOUTS_CONNECT", "3s")];
    let (code, shown, told) = refshim(&["config", "show", &file, "--listen", "127.0.0.1:9"], &variables, "");
    assert_eq!((code, told.as_str()), (0, ""));
    for line in [
        &format!("upstream = \"https://registry.example\"  # {file}:1"),
        &format!("questions = 9  # {file}:3"),
        &format!("hosts = [\"hub\"]  # {file}:6"),
        "connect = \"3s\"  # REFSHIM_TIMEOUTS_CONNECT",
        "listen = \"127.0.0.1:9\"  # --listen",
        "admin_listen = \"127.0.0.1:5001\"  # default",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "no {line} in {shown}");
    }
    assert!(!shown.contains("hunter2") && shown.contains("postgres://me:********@db/index"), "{shown}");
    let values = |arguments: &[&str], input: &str| {
        let (code, json, told) =
            refshim(&[&["config", "show", "--format", "json"], arguments].concat(), &[], input);
        assert_eq!((code, told.as_str()), (0, ""));
        let all: serde_json::Value = serde_json::from_str(&json).unwrap();
        let all = all.as_object().unwrap().clone();
        let all = all.into_iter().map(|(key, it)| (key, it["value"].clone()));
        all.collect::<std::collections::BTreeMap<_, _>>()
    };
    let read_back = values(&["-"], &shown);
    assert_eq!(read_back["limits.questions"], 9);
    assert_eq!(read_back["upstreams.hub.connect"], "3s");
    let (_, again, _) = refshim(&["config", "show", "-"], &[], &shown);
    assert_eq!(values(&["-"], &again), read_back);
}

#[test]
fn the_schema_is_printed_as_json() {
    let (code, schema, _) = refshim(&["config", "schema"], &[], "");
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    assert_eq!((code, &schema["properties"]["log"]["properties"]["format"]["enum"][1]), (0, &"json".into()));
}

/// `serve --check` with these addresses.
fn checked(upstream: &str, data: &Path, listen: [&str; 2]) -> (i32, String, String) {
    let data = data.to_str().unwrap();
    let [listen, admin] = listen;
    let given = ["--upstream", upstream, "--data-dir", data, "--listen", listen, "--admin-listen", admin];
    refshim(&[&["serve", "--check"], &given[..]].concat(), &[("REFSHIM_LOG_FILTER", "error")], "")
}

const FREE: [&str; 2] = ["127.0.0.1:0"; 2];

#[track_caller]
fn told(out: &str, parts: &[&str]) {
    for part in parts {
        assert!(out.contains(part), "no {part} in {out}");
    }
}

#[tokio::test]
async fn everything_but_serving_is_checked() {
    let registry = Registry::start();
    let upstream = format!("http://{}", registry.address);
    let directory = tempfile::tempdir().unwrap();
    let (code, out, _) = checked(&upstream, directory.path(), FREE);
    let data = directory.path().display();
    assert_eq!(code, 0, "{out}");
    told(
        &out,
        &[
            "configuration: ok",
            "\nlisten 127.0.0.1:0: ok",
            "\nadmin_listen 127.0.0.1:0: ok",
            &format!("\nindex in {data}: ok"),
            &format!("\nupstream default at {upstream}: ok"),
        ],
    );
    // Nothing was left open or locked.
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let (listen, admin) = (refshim.address.to_string(), refshim.admin.to_string());
    let (code, out, _) = checked(&upstream, directory.path(), [&listen, &admin]);
    assert_eq!(
        (code, out.matches(": ok, in use by the refshim that serves already").count()),
        (0, 3),
        "{out}"
    );
}

#[tokio::test]
async fn what_would_keep_refshim_from_starting_is_a_failure_and_the_rest_a_warning() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let [address, closed] = [taken.local_addr().unwrap().to_string(), {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    }];
    let directory = tempfile::tempdir().unwrap();
    let (code, out, _) = checked(&format!("http://{closed}"), directory.path(), [&address, FREE[0]]);
    assert_eq!(code, 1, "{out}");
    told(
        &out,
        &[
            &format!("listen {address}: failed: cannot listen on"),
            ": warning: the registry cannot be reached",
        ],
    );
    let page = Scripted::probed(|exchange| {
        exchange.answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi");
    });
    let (code, out, _) = checked(&format!("http://{}", page.address), directory.path(), FREE);
    assert_eq!((code, out.contains(": warning: it answered /v2/ with 200")), (0, true), "{out}");
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (code, out, _) = checked("http://127.0.0.1:1", &file.join("data"), FREE);
    assert_eq!((code, out.contains("/file/data: failed: ")), (1, true), "{out}");
    let (code, out, told) = checked("ftp://x", directory.path(), FREE);
    assert_eq!((code, out.as_str(), told.contains("--upstream: ")), (64, "", true), "{told}");
}

#[test]
fn the_address_of_the_web_page_is_checked_as_the_others_are() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let given = [
        "serve",
        "--check",
        "--upstream",
        "http://127.0.0.1:1",
        "--listen",
        FREE[0],
        "--admin-listen",
        FREE[1],
    ];
    let data = ["--data-dir", directory.path().to_str().unwrap()];
    for (web, expected, failure) in [(address.as_str(), 1, "failed: cannot listen on"), (FREE[0], 0, "ok")] {
        let (code, out, _) = refshim(&[&given[..], &data].concat(), &[("REFSHIM_WEB_LISTEN", web)], "");
        assert_eq!(code, expected, "{out}");
        told(&out, &[&format!("\nweb.listen {web}: {failure}")]);
    }
}

#[tokio::test]
async fn health_is_that_of_the_refshim_that_serves() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let serving = Refshim::start(registry.address, directory.path()).await;
    let admin = format!("http://{}", serving.admin);
    let ready = refshim(&["health", "--admin", &admin], &[], "");
    assert_eq!(ready, (0, "index: ok\nupstream: ok\n".to_owned(), String::new()));
    // Also where the environment names a proxy, which does not lead here.
    let proxies = ["HTTP_PROXY", "http_proxy", "ALL_PROXY"].map(|name| (name, "http://127.0.0.1:1"));
    assert_eq!(refshim(&["health", "--live", "--admin", &admin], &proxies, "").1, "ok\n");
    drop(serving);
    let (code, out, told) = refshim(&["health", "--admin", &admin], &[], "");
    assert_eq!((code, out.as_str()), (1, ""), "{told}");

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let serving = Refshim::start(closed, directory.path()).await;
    let admin = format!("http://{}", serving.admin);
    let (code, out, told) = refshim(&["health", "--admin", &admin], &[], "");
    assert_eq!(
        (code, told.as_str()),
        (1, "refshim: asking refshim whether it is ready: it is not\n"),
        "{out}"
    );
    assert!(out.contains("upstream: the registry cannot be reached"), "{out}");
    assert_eq!(refshim(&["health", "--live", "--admin", &admin], &[], "").0, 0);
}
