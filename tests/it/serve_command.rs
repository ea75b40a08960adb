//! The command line: mistakes are told, all at once, and with the right exit code.

use std::process::Command;

use crate::support::{Authority, Refshim, Registry};

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
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("refshim.toml");
    for (filter, wrong) in
        [("verbose", "verbose"), ("info,foo=bar", "foo=bar"), ("=?=[", "=?=["), ("hyper", "hyper")]
    {
        let text = format!("upstream = \"http://127.0.0.1:1\"\n[log]\nfilter = \"{filter}\"\n");
        std::fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        let (code, said) = refshim(&["serve", "--config", file], &[]);
        assert_eq!(code, 64, "{said}");
        let place = format!("{file}:3: log.filter: not a log filter: {wrong:?}");
        assert!(said.contains(&place) && said.contains("error, warn, info, debug, trace or off"), "{said}");
        let (code, said) =
            refshim(&["serve", "--upstream", "http://127.0.0.1:1"], &[("REFSHIM_LOG_FILTER", filter)]);
        assert_eq!((code, said.contains("REFSHIM_LOG_FILTER: ")), (64, true), "{said}");
    }
}

/// Every file of TLS, each wrong in every way, and a mistake that has nothing to do with it.
#[test]
fn wrong_tls_files_are_mistakes_like_all_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let authority = Authority::new();
    let (one, other) = (authority.server("one", &["x"]), authority.server("other", &["x"]));
    for (name, from) in [("crt", &one.certificate), ("key", &one.key), ("other", &other.key)] {
        std::fs::copy(from, path(name)).unwrap();
    }
    let whole = std::fs::read_to_string(path("crt")).unwrap();
    std::fs::write(path("empty"), "").unwrap();
    std::fs::write(path("garbage"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    std::fs::write(path("broken"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(
        path("locked"),
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    std::fs::create_dir(path("directory")).unwrap();
    let nothing = [("missing", "No such file"), ("directory", "directory"), ("empty", "no "), ("broken", "")];
    let certificates = nothing.iter().copied().chain([("key", "no certificate in it")]);
    let keys = nothing.iter().copied().chain([
        ("crt", "no private key in it"),
        ("locked", "encrypted"),
        ("other", "not that of the certificate"),
    ]);
    let mut cases: Vec<(&str, &str, &str)> = Vec::new();
    cases.extend(certificates.clone().map(|(name, why)| ("certificate", name, why)));
    cases.extend(keys.map(|(name, why)| ("key", name, why)));
    cases.extend(certificates.chain([("garbage", "")]).map(|(name, why)| ("authorities", name, why)));
    let file = path("refshim.toml");
    for (setting, name, why) in cases {
        let chosen = |wanted: &str, sound: &str| path(if setting == wanted { name } else { sound });
        let (crt, key, ca) =
            (chosen("certificate", "crt"), chosen("key", "key"), chosen("authorities", "crt"));
        let text = format!(
            "upstream = \"https://x\"\n[tls]\ncertificate = [\"{crt}\"]\nkey = \"{key}\"\nclient_ca = \"{ca}\"\n\
             [upstreams.hub]\nurl = \"https://y\"\nprefixes = [\"hub\"]\ncertificate = \"{crt}\"\nkey = \"{key}\"\n\
             ca = \"{ca}\"\n"
        );
        let places: [&str; 2] = match setting {
            "certificate" => [":3: tls.certificate: ", ":9: upstreams.hub.certificate: "],
            "key" => [":4: tls.key: ", ":10: upstreams.hub.key: "],
            _ => [":5: tls.client_ca: ", ":11: upstreams.hub.ca: "],
        };
        for (further, mistakes) in [("", 2), ("[log]\nfilter = \"verbose\"\nfromat = \"x\"\n", 4)] {
            std::fs::write(&file, format!("{text}{further}")).unwrap();
            let (code, said) = refshim(&["serve", "--config", &file], &[]);
            assert_eq!((code, said.lines().count()), (64, mistakes), "{setting} {name}: {said}");
            for place in places {
                let line = said.lines().find(|line| line.contains(&format!("{file}{place}")));
                let line = line.unwrap_or_else(|| panic!("no {place} in {said}"));
                assert!(line.contains(&path(name)) && line.contains(why), "{line}");
            }
        }
    }
}

#[test]
fn a_file_that_another_setting_overrides_need_not_be_there() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("refshim.toml");
    std::fs::write(&file, "upstream = \"https://x\"\nlisten = \"x\"\n[upstreams.default]\nca = \"none\"\n")
        .unwrap();
    let authority = Authority::new();
    let ca = authority.certificate();
    let variables = [("REFSHIM_UPSTREAMS_DEFAULT_CA", ca.to_str().unwrap())];
    let (code, said) = refshim(&["serve", "--config", file.to_str().unwrap()], &variables);
    assert_eq!((code, said.lines().count()), (64, 1), "{said}");
    assert!(said.contains(":2: listen"), "{said}");
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
