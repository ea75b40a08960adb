//! The configuration from outside: what the sources give together.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use super::{CommandLine, Config, Http2, Loaded, Mode, TimeoutsConfig, UpstreamConfig, UpstreamTls};

mod database;
mod in_force;
mod mistakes;
mod modes;
mod schema;
mod settings;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/refshim.toml");

/// The sources of one configuration.
#[derive(Default)]
struct Sources {
    file: Option<String>,
    variables: Vec<(OsString, OsString)>,
    given: CommandLine,
}

impl Sources {
    fn load(&self) -> Result<Config, Vec<String>> {
        Ok(self.load_settings()?.config)
    }

    fn load_settings(&self) -> Result<Loaded, Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        let mut given = self.given.clone();
        if let Some(text) = &self.file {
            let path = directory.path().join("refshim.toml");
            fs::write(&path, text).unwrap();
            given.config = Some(path);
        }
        let place = format!("{}/", directory.path().display());
        Config::load_with(&given, self.variables.clone(), None)
            .map_err(|mistakes| mistakes.to_string().replace(&place, "").lines().map(str::to_owned).collect())
    }
}

fn from_file(text: &str) -> Sources {
    Sources { file: Some(text.to_owned()), ..Sources::default() }
}

fn from_variables(pairs: &[(&str, &str)]) -> Sources {
    let variables = pairs.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Sources { variables, ..Sources::default() }
}

fn defaults() -> Config {
    from_variables(&[("REFSHIM_UPSTREAM", "https://registry.example")]).load().unwrap()
}

fn upstream(name: &str, url: &str, timeouts: &TimeoutsConfig) -> UpstreamConfig {
    UpstreamConfig {
        name: name.parse().unwrap(),
        url: url.parse().unwrap(),
        hosts: Vec::new(),
        namespaces: Vec::new(),
        prefixes: Vec::new(),
        strip_prefix: false,
        mode: Mode::Full,
        shares: None,
        tls: UpstreamTls::default(),
        service: None,
        http2: Http2::Never,
        rewrite_realm: false,
        timeouts: timeouts.clone(),
    }
}

#[track_caller]
fn check_listen(file: bool, variable: bool, flag: bool, expected: &str) {
    let mut sources = from_variables(&[("REFSHIM_UPSTREAM", "https://registry.example")]);
    if file {
        sources.file = Some("listen = \"127.0.0.1:1\"".to_owned());
    }
    if variable {
        sources.variables.push(("REFSHIM_LISTEN".into(), "127.0.0.1:2".into()));
    }
    if flag {
        sources.given.listen = Some("127.0.0.1:3".to_owned());
    }
    assert_eq!(sources.load().unwrap().listen.to_string(), expected);
}

#[test]
fn a_flag_comes_before_a_variable_before_the_file_before_the_default() {
    check_listen(false, false, false, "127.0.0.1:5000");
    check_listen(true, false, false, "127.0.0.1:1");
    check_listen(true, true, false, "127.0.0.1:2");
    check_listen(true, true, true, "127.0.0.1:3");
    check_listen(true, false, true, "127.0.0.1:3");
    check_listen(false, true, true, "127.0.0.1:3");
}

#[test]
fn every_flag_reaches_its_field() {
    let given = CommandLine {
        upstream: Some("http://10.0.0.5".to_owned()),
        listen: Some("127.0.0.1:1".to_owned()),
        admin_listen: Some("127.0.0.1:2".to_owned()),
        data_dir: Some("/data".to_owned()),
        config: None,
        index_url: None,
    };
    let expected = Config {
        upstream: upstream("default", "http://10.0.0.5", &TimeoutsConfig::default()),
        listen: "127.0.0.1:1".parse().unwrap(),
        admin_listen: "127.0.0.1:2".parse().unwrap(),
        data_dir: PathBuf::from("/data"),
        ..defaults()
    };
    assert_eq!(Config::load(&given, []), Ok(expected));
}

#[test]
fn a_variable_names_the_file_and_a_flag_comes_before_it() {
    let variables = |path: &str| [("REFSHIM_CONFIG".into(), path.into())];
    assert_eq!(Config::load(&CommandLine::default(), variables(EXAMPLE)), Ok(defaults()));
    let given = CommandLine { config: Some(PathBuf::from(EXAMPLE)), ..CommandLine::default() };
    assert_eq!(Config::load(&given, variables("missing.toml")), Ok(defaults()));
}

#[test]
fn variables_of_others_are_left_alone() {
    let sources = from_variables(&[
        ("REFSHIM_UPSTREAM", "https://registry.example"),
        ("PATH", "/usr/bin"),
        ("REFSHIMMER", "1"),
        ("REFSHIM_SERVICE_HOST", "10.0.0.1"),
        ("REFSHIM_SERVICE_PORT", "5000"),
        ("REFSHIM_SERVICE_PORT_HTTP", "5000"),
        ("REFSHIM_PORT", "tcp://10.0.0.1:5000"),
        ("REFSHIM_PORT_5000_TCP_ADDR", "10.0.0.1"),
        ("REFSHIM_ADMIN_PORT_5001_TCP", "tcp://10.0.0.1:5001"),
    ]);
    assert_eq!(sources.load(), Ok(defaults()));
}
