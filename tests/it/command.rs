//! The command line: mistakes are told, all at once, and with the right exit code.

use std::process::Command;

use crate::support::{Refshim, Registry};

fn refshim(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_refshim"))
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn every_mistake_is_named_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("refshim.toml");
    std::fs::write(&file, "lisen = \"x\"\n\n[timeouts]\nconnect = \"5 bananas\"\n").unwrap();
    let file = file.to_str().unwrap();
    let (code, said) = refshim(&["serve", "--config", file, "--listen", "here"], &[("REFSHIM_DATA_DIR", "")]);
    assert_eq!(code, 64, "{said}");
    for part in [
        &format!("{file}:1: lisen: "),
        &format!("{file}:4: timeouts.connect: "),
        "--listen: ",
        "REFSHIM_DATA_DIR: ",
        "upstream",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
}

#[test]
fn a_malformed_log_filter_is_a_mistake() {
    let (code, said) =
        refshim(&["serve", "--upstream", "http://127.0.0.1:1"], &[("REFSHIM_LOG_FILTER", "=?=[")]);
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("log.filter"), "{said}");
}

#[test]
fn an_address_in_use_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let arguments = ["serve", "--upstream", "http://127.0.0.1:1", "--listen", &address, "--data-dir", data];
    let (code, said) = refshim(&arguments, &[]);
    assert_eq!(code, 1);
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
}

#[test]
fn an_upstream_that_is_refshim_itself_is_told() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let upstream = format!("http://{free}");
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let arguments = ["serve", "--upstream", &upstream, "--listen", &free, "--data-dir", data];
    let (code, said) = refshim(&arguments, &[("REFSHIM_ADMIN_LISTEN", "127.0.0.1:0")]);
    assert_eq!(code, 1);
    assert!(said.contains("is where refshim itself listens"), "{said}");
}

#[tokio::test]
async fn a_data_directory_in_use_is_told() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let _first = Refshim::start(registry.address, directory.path()).await;
    let upstream = format!("http://{}", registry.address);
    let data = directory.path().to_str().unwrap();
    let arguments = ["serve", "--upstream", &upstream, "--listen", "127.0.0.1:0", "--data-dir", data];
    let variables = [("REFSHIM_ADMIN_LISTEN", "127.0.0.1:0")];
    let (code, said) = refshim(&arguments, &variables);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("cannot open the index"), "{said}");
}
