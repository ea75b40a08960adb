//! The configuration from outside: what the sources give together, and every kind of mistake.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::settings::{Known, SETTINGS};
use super::upstream::UPSTREAM_SETTINGS;
use super::{
    ClientAuth, Config, Given, Http2, Index, Limits, Log, LogFormat, Manifests, References, Referrers,
    Timeouts, Tls, Upstream, UpstreamTls, file,
};
use crate::oci::LinkKind;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/refshim.toml");
const NO_UPSTREAM: &str = "upstream: not given (write --upstream https://registry.example, \
    REFSHIM_UPSTREAM=https://registry.example or, in the file that --config names, \
    upstream = \"https://registry.example\")";

/// The sources of one configuration.
#[derive(Default)]
struct Sources {
    file: Option<String>,
    variables: Vec<(OsString, OsString)>,
    given: Given,
}

impl Sources {
    fn load(&self) -> Result<Config, Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        let mut given = self.given.clone();
        if let Some(text) = &self.file {
            let path = directory.path().join("refshim.toml");
            fs::write(&path, text).unwrap();
            given.config = Some(path);
        }
        let place = format!("{}/", directory.path().display());
        Config::load(&given, self.variables.clone())
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

#[track_caller]
fn check_mistakes(sources: &Sources, expected: &[&str]) {
    assert_eq!(sources.load().unwrap_err(), expected);
}

/// The mistakes of a file that gives the upstream in its first line.
#[track_caller]
fn check_file(text: &str, expected: &[&str]) {
    check_mistakes(&from_file(&format!("upstream = \"https://registry.example\"\n{text}")), expected);
}

#[test]
fn an_upstream_is_enough() {
    let config = defaults();
    assert_eq!(config.upstream.url.to_string(), "https://registry.example");
    assert_eq!(config.listen.to_string(), "127.0.0.1:5000");
    assert_eq!(config.admin_listen.to_string(), "127.0.0.1:5001");
    assert_eq!(config.data_dir, Path::new("./refshim-data"));
}

#[test]
fn the_example_file_loads_as_it_stands() {
    let given = Given { config: Some(PathBuf::from(EXAMPLE)), ..Given::default() };
    assert_eq!(Config::load(&given, []), Ok(defaults()));
}

#[test]
fn the_example_file_holds_every_setting_at_its_default() {
    let text = fs::read_to_string(EXAMPLE).unwrap();
    let uncommented = text.lines().map(|line| line_of(line, "#")).collect::<Vec<_>>().join("\n");
    assert_eq!(from_file(&uncommented).load(), Ok(defaults()));
}

#[test]
fn the_example_file_shows_every_setting() {
    let text = fs::read_to_string(EXAMPLE).unwrap();
    let shown = text.lines().map(|line| line_of(line_of(line, "# "), "#")).collect::<Vec<_>>().join("\n");
    let contents = file::read(Path::new(EXAMPLE), &shown);
    let (of_upstream, common): (Vec<Known>, Vec<Known>) = contents
        .said
        .into_iter()
        .map(|said| said.unwrap().setting)
        .partition(|setting| matches!(setting, Known::OfUpstream(..)));
    let keys = |found: Vec<Known>| -> Vec<&str> {
        let key = |known| match known {
            Known::Common(setting) => setting.key,
            Known::OfUpstream(_, setting) => setting.key,
        };
        found.into_iter().map(key).collect()
    };
    assert_eq!(keys(common), SETTINGS.iter().map(|setting| setting.key).collect::<Vec<_>>());
    let expected: Vec<&str> = UPSTREAM_SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(keys(of_upstream), expected);
    assert!(from_file(&shown).load().is_ok());
}

/// A setting or a table behind this mark; any other line as it is.
fn line_of<'a>(line: &'a str, mark: &str) -> &'a str {
    let is_setting = |rest: &&str| {
        let (key, _) = rest.split_once(" = ").unwrap_or((rest, ""));
        let is_table = key.starts_with('[') && key.ends_with(']');
        is_table
            || (rest.contains(" = ")
                && key.chars().all(|c| c.is_ascii_lowercase() || matches!(c, '_' | '0'..='9')))
    };
    line.strip_prefix(mark).filter(is_setting).unwrap_or(line)
}

#[test]
fn every_setting_has_a_key_and_a_variable_of_its_own() {
    let keys: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    let variables: BTreeSet<String> = SETTINGS.iter().map(super::settings::Setting::variable).collect();
    assert_eq!((keys.len(), variables.len()), (SETTINGS.len(), SETTINGS.len()));
}

#[test]
fn every_setting_reaches_its_field() {
    let text = r#"
        upstream = "http://10.0.0.5"
        listen = "[::]:0"
        admin_listen = "0.0.0.0:0"
        data_dir = "/data"
        external_url = "https://hub.example.com"
        trusted_proxies = ["10.0.0.0/8", "::1"]
        tls = { certificate = ["a.crt", "b.crt"], key = "a.key, b.key", client_ca = "ca", client_auth = "optional", reload = "6s" }
        timeouts.connect = "1s"
        timeouts.response = "2s"
        timeouts.body_idle = "3m"
        timeouts.client_headers = "4h"
        timeouts.pool_idle = "5ms"
        timeouts.shutdown = "0s"
        manifests = { max_bytes = 1, max_links_bytes = "2KiB", learn_bytes = 0 }
        [references]
        page_bytes = 0x1_0000
        access_ttl = "0s"
        concurrency = "9"
        scope_repositories = 7
        [referrers]
        include = ["cosign", "parent"]
        upstream_ttl = "3s"
        [limits]
        connections = 11
        requests_per_client = 12
        manifest_bytes = "13MiB"
        questions = 14
        repository_referrers = 15
        [index]
        cache_bytes = "1GiB"
        flush_interval = "10ms"
        segment_bytes = "65536"
        compact_bytes = "3MiB"
        [log]
        format = "json"
        filter = "debug"
    "#;
    let timeouts = Timeouts {
        connect: Duration::from_secs(1),
        response: Duration::from_secs(2),
        body_idle: Duration::from_secs(3 * 60),
        client_headers: Duration::from_secs(4 * 3600),
        pool_idle: Duration::from_millis(5),
        shutdown: Duration::ZERO,
    };
    let expected = Config {
        upstream: upstream("default", "http://10.0.0.5", &timeouts),
        further_upstreams: Vec::new(),
        external_url: Some("https://hub.example.com".parse().unwrap()),
        trusted_proxies: vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        tls: Some(Tls {
            certificates: vec!["a.crt".into(), "b.crt".into()],
            keys: vec!["a.key".into(), "b.key".into()],
            client_ca: Some("ca".into()),
            client_auth: ClientAuth::Optional,
        }),
        tls_reload: Duration::from_secs(6),
        listen: "[::]:0".parse().unwrap(),
        admin_listen: "0.0.0.0:0".parse().unwrap(),
        data_dir: PathBuf::from("/data"),
        timeouts,
        manifests: Manifests { max_bytes: 1, max_links_bytes: 2 << 10, learn_bytes: 0 },
        references: References {
            page_bytes: 1 << 16,
            access_ttl: Duration::ZERO,
            concurrency: 9,
            scope_repositories: 7,
        },
        referrers: Referrers {
            include: [LinkKind::Cosign, LinkKind::Parent].into_iter().collect(),
            upstream_ttl: Duration::from_secs(3),
        },
        limits: Limits {
            connections: 11,
            requests_per_client: 12,
            manifest_bytes: 13 << 20,
            questions: 14,
            repository_referrers: 15,
        },
        index: Index {
            cache_bytes: 1 << 30,
            flush_interval: Duration::from_millis(10),
            segment_bytes: 1 << 16,
            compact_bytes: 3 << 20,
        },
        log: Log { format: LogFormat::Json, filter: "debug".to_owned() },
    };
    assert_eq!(from_file(text).load(), Ok(expected));
}

fn upstream(name: &str, url: &str, timeouts: &Timeouts) -> Upstream {
    Upstream {
        name: name.parse().unwrap(),
        url: url.parse().unwrap(),
        hosts: Vec::new(),
        namespaces: Vec::new(),
        prefixes: Vec::new(),
        strip_prefix: false,
        tls: UpstreamTls::default(),
        http2: Http2::Never,
        rewrite_realm: false,
        timeouts: timeouts.clone(),
    }
}

#[test]
fn every_setting_of_an_upstream_reaches_its_field() {
    let text = r#"
        upstream = "http://10.0.0.5"
        timeouts.response = "9s"
        [upstreams.default]
        http2 = "auto"
        [upstreams.hub]
        url = "https://hub.example/base"
        hosts = ["Hub.example.com", "hub:8443"]
        namespaces = "docker.io"
        prefixes = ["hub", "mirror/hub"]
        strip_prefix = true
        ca = "ca"
        certificate = "crt"
        key = "key"
        server_name = "inside"
        http2 = "always"
        rewrite_realm = "true"
        connect = "1s"
        body_idle = "3s"
        pool_idle = "4s"
    "#;
    let common = Timeouts { response: Duration::from_secs(9), ..Timeouts::default() };
    let own = Timeouts {
        connect: Duration::from_secs(1),
        body_idle: Duration::from_secs(3),
        pool_idle: Duration::from_secs(4),
        ..common.clone()
    };
    let hub = Upstream {
        hosts: vec!["hub.example.com".to_owned(), "hub:8443".to_owned()],
        namespaces: vec!["docker.io".to_owned()],
        prefixes: vec!["hub".parse().unwrap(), "mirror/hub".parse().unwrap()],
        strip_prefix: true,
        tls: UpstreamTls {
            ca: Some("ca".into()),
            certificate: Some("crt".into()),
            key: Some("key".into()),
            server_name: Some("inside".to_owned()),
            insecure_skip_verify: false,
        },
        http2: Http2::Always,
        rewrite_realm: true,
        ..upstream("hub", "https://hub.example/base", &own)
    };
    let mut sources = from_file(text);
    let config = sources.load().unwrap();
    assert_eq!(config.further_upstreams, [hub]);
    let expected = Upstream { http2: Http2::Auto, ..upstream("default", "http://10.0.0.5", &common) };
    assert_eq!(config.upstream, expected);
    sources.variables = vec![
        ("REFSHIM_UPSTREAMS_HUB_SERVER_NAME".into(), "outside".into()),
        ("REFSHIM_UPSTREAMS_HUB_HOSTS".into(), "a, b".into()),
        ("REFSHIM_UPSTREAMS_DEFAULT_INSECURE_SKIP_VERIFY".into(), "true".into()),
    ];
    let config = sources.load().unwrap();
    let hub = &config.further_upstreams[0];
    assert_eq!(hub.tls.server_name.as_deref(), Some("outside"));
    assert_eq!(hub.hosts, ["a", "b"]);
    assert!(config.upstream.tls.insecure_skip_verify);
}

#[test]
fn an_upstreams_number_follows_from_its_name_and_that_of_the_default_one_is_zero() {
    let number = |name| upstream(name, "http://a", &Timeouts::default()).number();
    assert_eq!((number("default"), number("hub")), (0, 0x08d3_3503));
}

#[test]
fn what_does_not_go_together_is_told_with_its_table() {
    check_file(
        "tls.certificate = \"a\"",
        &["tls: certificate and key must name as many files, in the same order"],
    );
    check_file("tls.client_ca = \"a\"", &["tls: client_ca needs certificate and key"]);
    check_file(
        "[upstreams.hub]\nhosts = [\"a\"]",
        &["upstreams.hub: has no url (write url = \"https://registry.example\")"],
    );
    check_file(
        "[upstreams.hub]\nurl = \"http://a\"",
        &["upstreams.hub: nothing chooses it: give it hosts, namespaces or prefixes"],
    );
    check_file(
        "[upstreams.default]\nstrip_prefix = true\nca = \"a\"\ninsecure_skip_verify = true\nkey = \"a\"",
        &[
            "upstreams.default: certificate and key go together: give both or neither",
            "upstreams.default: insecure_skip_verify takes any certificate, so that ca means nothing: \
             give one of the two",
            "upstreams.default: strip_prefix needs prefixes",
        ],
    );
    check_file(
        "[upstreams.a]\nurl = \"http://a\"\nhosts = [\"x\"]\n[upstreams.b]\nurl = \"http://b\"\nhosts = [\"X\"]",
        &["upstreams.b: the host x is that of upstreams.a as well"],
    );
    check_file(
        "[upstreams.Hub]\nurl = \"http://a\"",
        &["refshim.toml:2: upstreams.Hub: not a name for an upstream: lower-case letters and digits, \
           beginning with a letter"],
    );
    check_file(
        "[upstreams.hub]\nurl = \"http://a\"\nhost = [\"x\"]",
        &["refshim.toml:4: upstreams.hub.host: unknown key, did you mean upstreams.hub.hosts?"],
    );
    check_file(
        "[upstreams.hub]\nhosts = [\"a,b\", 1]\nstrip_prefix = 1\nprefixes = true\nhttp2 = \"h2\"",
        &[
            "refshim.toml:3: upstreams.hub.hosts: an element has a comma: \"a,b\"",
            "refshim.toml:4: upstreams.hub.strip_prefix: not true or false but an integer",
            "refshim.toml:5: upstreams.hub.prefixes: not a string or a list but true or false",
            "refshim.toml:6: upstreams.hub.http2: not a use of HTTP/2: \"h2\" (write never, auto or always)",
        ],
    );
    check_file(
        "external_url = \"https://a/b\"",
        &["refshim.toml:2: external_url: has a path, but only scheme, host and port are possible here \
           (write https://hub.example)"],
    );
    check_file(
        "trusted_proxies = [\"10.0.0.0/33\"]",
        &["refshim.toml:2: trusted_proxies: not an IP address or network: \"10.0.0.0/33\" \
           (write 10.0.0.0/8, 192.0.2.7 or fd00::/8)"],
    );
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
    let given = Given {
        upstream: Some("http://10.0.0.5".to_owned()),
        listen: Some("127.0.0.1:1".to_owned()),
        admin_listen: Some("127.0.0.1:2".to_owned()),
        data_dir: Some("/data".to_owned()),
        config: None,
    };
    let expected = Config {
        upstream: upstream("default", "http://10.0.0.5", &Timeouts::default()),
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
    assert_eq!(Config::load(&Given::default(), variables(EXAMPLE)), Ok(defaults()));
    let given = Given { config: Some(PathBuf::from(EXAMPLE)), ..Given::default() };
    assert_eq!(Config::load(&given, variables("missing.toml")), Ok(defaults()));
}

#[test]
fn a_missing_upstream_names_every_way_of_giving_it() {
    check_mistakes(&Sources::default(), &[NO_UPSTREAM]);
    check_mistakes(&from_file(""), &[NO_UPSTREAM]);
    check_mistakes(
        &from_file("upsteam = \"https://registry.example\""),
        &["refshim.toml:1: upsteam: unknown key, did you mean upstream?", NO_UPSTREAM],
    );
}

#[test]
fn a_value_in_the_file_is_named_by_line_and_key() {
    check_file(
        "\n[timeouts]\nconnect = \"5 bananas\"",
        &["refshim.toml:4: timeouts.connect: not a duration: \"5 bananas\" (write 500ms, 5s, 2m or 1h)"],
    );
    check_file(
        "timeouts.connect = 5",
        &["refshim.toml:2: timeouts.connect: not a duration: \"5\" (write 500ms, 5s, 2m or 1h)"],
    );
    check_file("listen = true", &["refshim.toml:2: listen: not a string or a number but true or false"]);
    check_file("[listen]", &["refshim.toml:2: listen: not a string or a number but a table"]);
    check_file(
        "listen = [\n\"127.0.0.1:1\"]",
        &["refshim.toml:2: listen: not a string or a number but a list"],
    );
    check_file(
        "timeouts = \"5s\"",
        &["refshim.toml:2: timeouts: not a table but a string (write [timeouts] and its settings below)"],
    );
    check_file(
        "[[timeouts]]\nconnect = \"5s\"",
        &["refshim.toml:2: timeouts: not a table but a list (write [timeouts] and its settings below)"],
    );
    check_file(
        "manifests.max_bytes = -1",
        &[
            "refshim.toml:2: manifests.max_bytes: not a size: \"-1\" (write 512KiB, 4MiB, 1GiB or a number of bytes)",
        ],
    );
}

#[test]
fn an_unknown_key_is_named_with_what_it_resembles() {
    check_file("\nlisen = \"\"", &["refshim.toml:3: lisen: unknown key, did you mean listen?"]);
    check_file("color = 1", &["refshim.toml:2: color: unknown key"]);
    check_file(
        "[timeout]\nconnect = \"1s\"",
        &["refshim.toml:2: timeout: unknown key, did you mean timeouts?"],
    );
    check_file(
        "[timeouts]\nresponse = \"1s\"\nconect = \"1s\"",
        &["refshim.toml:4: timeouts.conect: unknown key, did you mean timeouts.connect?"],
    );
    check_file("config = \"a\"", &["refshim.toml:2: config: unknown key"]);
}

#[test]
fn a_mistake_in_the_syntax_is_named_by_line() {
    check_file(
        "listen = 127.0.0.1:1\ndata_dir = data",
        &[
            "refshim.toml:2: listen: not TOML: invalid float, expected nothing",
            "refshim.toml:3: data_dir: not TOML: string values must be quoted, expected literal string",
        ],
    );
    check_file(
        "listen = \"127.0.0.1:1\"\nlisten = \"127.0.0.1:2\"",
        &["refshim.toml:3: listen: not TOML: duplicate key"],
    );
    check_file("[log]\n\n[log]", &["refshim.toml:4: not TOML: duplicate key"]);
    check_file("hello", &["refshim.toml:2: not TOML: key with no value, expected `=`"]);
    check_file(
        "listen = \"a\"\n[timeouts\nconnect = \"5 bananas\"",
        &[
            "refshim.toml:2: listen: not an IP address and port: \"a\" \
             (write 127.0.0.1:5000, 0.0.0.0:5000 or [::]:5000)",
            "refshim.toml:3: not TOML: unclosed table, expected `]`",
        ],
    );
}

#[test]
fn an_upstream_may_stand_in_what_could_not_be_read() {
    check_mistakes(
        &from_file("hello\nupstream = \"https://registry.example\""),
        &["refshim.toml:1: not TOML: key with no value, expected `=`"],
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_who_named_it() {
    let problem = "cannot read \"missing.toml\": No such file or directory (os error 2)";
    check_mistakes(
        &from_variables(&[("REFSHIM_CONFIG", "missing.toml")]),
        &[&format!("REFSHIM_CONFIG: {problem}")],
    );
    let given = Given { config: Some(PathBuf::from("missing.toml")), ..Given::default() };
    check_mistakes(&Sources { given, ..Sources::default() }, &[&format!("--config: {problem}")]);
}

#[track_caller]
fn check_variable(name: &str, value: &str, expected: &[&str]) {
    check_mistakes(
        &from_variables(&[("REFSHIM_UPSTREAM", "https://registry.example"), (name, value)]),
        expected,
    );
}

#[test]
fn a_mistake_in_a_variable_is_named_by_it() {
    check_variable(
        "REFSHIM_LISTEN",
        ":5000",
        &["REFSHIM_LISTEN: not an IP address and port: \":5000\" \
           (write 127.0.0.1:5000, 0.0.0.0:5000 or [::]:5000)"],
    );
    check_variable(
        "REFSHIM_TIMEOUTS_CONNECT",
        "0s",
        &["REFSHIM_TIMEOUTS_CONNECT: out of bounds: \"0s\" (write 1ms to 24h)"],
    );
    check_variable(
        "REFSHIM_DATA_DIR",
        "",
        &["REFSHIM_DATA_DIR: not a directory: \"\" (write /var/lib/refshim)"],
    );
    check_variable(
        "REFSHIM_LOG_FORMAT",
        "yaml",
        &["REFSHIM_LOG_FORMAT: not a log format: \"yaml\" (write text or json)"],
    );
    check_variable(
        "REFSHIM_LOG_FILTER",
        " ",
        &["REFSHIM_LOG_FILTER: not a log filter: \" \" (write info or warn,refshim=debug)"],
    );
    check_variable("REFSHIM_LISEN", "", &["REFSHIM_LISEN: unknown variable, did you mean REFSHIM_LISTEN?"]);
    check_variable("REFSHIM_COLOR", "", &["REFSHIM_COLOR: unknown variable"]);
}

#[test]
fn a_variable_that_is_not_utf_8_is_a_mistake() {
    use std::os::unix::ffi::OsStringExt;
    let mut sources = from_variables(&[("REFSHIM_UPSTREAM", "https://registry.example")]);
    sources.variables.push(("REFSHIM_DATA_DIR".into(), OsString::from_vec(vec![b'a', 0xff])));
    check_mistakes(&sources, &["REFSHIM_DATA_DIR: not UTF-8: \"a\u{fffd}\""]);
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

#[test]
fn every_mistake_is_told_at_once_even_in_a_value_that_is_overridden() {
    let sources = Sources {
        file: Some("lisen = 1\nlisten = \"here\"\nreferences.concurrency = 0".to_owned()),
        variables: vec![("REFSHIM_LISTEN".into(), "there".into()), ("REFSHIM_X".into(), "1".into())],
        given: Given {
            upstream: Some("https://user:secret@registry.example".to_owned()),
            listen: Some("somewhere".to_owned()),
            ..Given::default()
        },
    };
    let address = |place: &str, text: &str| {
        format!(
            "{place}: not an IP address and port: \"{text}\" (write 127.0.0.1:5000, 0.0.0.0:5000 or [::]:5000)"
        )
    };
    check_mistakes(
        &sources,
        &[
            "refshim.toml:1: lisen: unknown key, did you mean listen?",
            &address("refshim.toml:2: listen", "here"),
            "refshim.toml:3: references.concurrency: out of bounds: \"0\" (write 1 to 256)",
            &address("REFSHIM_LISTEN", "there"),
            "REFSHIM_X: unknown variable",
            "--upstream: holds credentials, but they come from the client (write https://registry.example)",
            &address("--listen", "somewhere"),
        ],
    );
}
