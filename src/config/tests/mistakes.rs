//! Every kind of mistake, and its reported place.

use std::ffi::OsString;
use std::path::PathBuf;

use super::super::CommandLine;
use super::{Sources, from_file, from_variables};

const NO_UPSTREAM: &str = "upstream: not given (write --upstream https://registry.example, \
    REFSHIM_UPSTREAM=https://registry.example or, in the file that --config names, \
    upstream = \"https://registry.example\")";

#[track_caller]
fn check_mistakes(sources: &Sources, expected: &[&str]) {
    assert_eq!(sources.load().unwrap_err(), expected);
}

/// The mistakes of a file that gives the upstream in its first line.
#[track_caller]
pub(super) fn check_file(text: &str, expected: &[&str]) {
    check_mistakes(&from_file(&format!("upstream = \"https://registry.example\"\n{text}")), expected);
}

#[test]
fn what_does_not_go_together_is_told_with_its_table() {
    check_file(
        "tls.certificate = \"a\"",
        &["tls: certificate and key must have the same number of files, in the same order"],
    );
    check_file("tls.client_ca = \"a\"", &["tls: client_ca needs certificate and key"]);
    check_file(
        "[upstreams.hub]\nhosts = [\"a\"]",
        &["upstreams.hub: has no url (write url = \"https://registry.example\")"],
    );
    check_file(
        "[upstreams.hub]\nurl = \"http://a\"",
        &["upstreams.hub: no request is sent to it: set hosts, namespaces or prefixes"],
    );
    check_file(
        "[upstreams.default]\nstrip_prefix = true\nca = \"a\"\ninsecure_skip_verify = true\nkey = \"a\"",
        &[
            "upstreams.default: set both certificate and key, or neither",
            "upstreams.default: ca has no effect with insecure_skip_verify, which accepts any certificate: \
             set one of the two",
            "upstreams.default: strip_prefix needs prefixes",
        ],
    );
    check_file(
        "[upstreams.a]\nurl = \"http://a\"\nhosts = [\"x\"]\n[upstreams.b]\nurl = \"http://b\"\nhosts = [\"X\"]",
        &["upstreams.b: the host x is already used by upstreams.a"],
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
    let half = "upstreams.default: set both service.user and service.password_file, or neither";
    check_file("[upstreams.default.service]\nuser = \"a\"", &[half]);
    check_file("[upstreams.default]\nservice.password_file = \"a\"", &[half]);
    check_file(
        "[upstreams.default.service]\ntoken_file = \"a\"\ndocker_config = \"b\"",
        &["upstreams.default: several kinds of service credentials: set service.user and \
           service.password_file, or service.token_file, or service.docker_config"],
    );
    check_file(
        "[upstreams.default.service]\ntokenfile = \"a\"",
        &["refshim.toml:3: upstreams.default.service.tokenfile: unknown key, did you mean \
           upstreams.default.service.token_file?"],
    );
    check_file(
        "[upstreams.default]\nservice = \"a\"",
        &["refshim.toml:3: upstreams.default.service: not a table but a string (write \
           [upstreams.default.service] and its settings below)"],
    );
    check_file(
        "[notifications.a]\nkind = \"zot\"\n[notifications.b]\nupstream = \"hub\"\nuser = \"u\"",
        &[
            "notifications.a: anybody could send notifications: set secret_file, or user and password_file, or \
             allow_anonymous = true",
            "notifications.b: upstream: there is no [upstreams.hub]",
            "notifications.b: has no kind (write kind = \"distribution\", harbor, zot, quay or gitlab)",
            "notifications.b: set one of secret_file, user with password_file, and allow_anonymous = true",
        ],
    );
    check_file(
        "[notifications.A]\nkind = \"zot\"",
        &[
            "refshim.toml:2: notifications.A: not a name for a source: lower-case letters and digits, beginning \
           with a letter",
        ],
    );
    check_file(
        "[notifications.a]\nkid = \"zot\"\nkind = \"acr\"\n[notifications]\nrates = 1",
        &[
            "refshim.toml:3: notifications.a.kid: unknown key, did you mean notifications.a.kind?",
            "refshim.toml:4: notifications.a.kind: not a kind of notifications: \"acr\" (write distribution, \
             harbor, zot, quay or gitlab)",
            "refshim.toml:6: notifications.rates: unknown key, did you mean notifications.rate?",
        ],
    );
    check_file(
        "external_url = \"https://a/b\"",
        &["refshim.toml:2: external_url: has a path, but only scheme, host and port are accepted here \
           (write https://hub.example)"],
    );
    check_file(
        "trusted_proxies = [\"10.0.0.0/33\"]",
        &["refshim.toml:2: trusted_proxies: not an IP address or network: \"10.0.0.0/33\" \
           (write 10.0.0.0/8, 192.0.2.7 or fd00::/8)"],
    );
}

#[test]
fn two_logs_have_two_files() {
    check_file(
        "access_log.output = \"/a/b\"\naudit.output = \"/a/b\"",
        &["audit.output: the same file as access_log.output; give it one of its own"],
    );
}

#[test]
fn an_upstream_shares_with_another_one_of_the_same_registry() {
    let own = "url = \"https://registry.example\"\nhosts = [\"x\"]\n";
    check_file(
        &format!("[upstreams.a]\n{own}shares = \"b\"\nmode = \"shadow\""),
        &["refshim.toml:6: upstreams.a.mode: not a mode: \"shadow\" (write full, learn or pass)"],
    );
    check_file(
        &format!("[upstreams.a]\n{own}shares = \"b\""),
        &["upstreams.a: shares: there is no upstream b"],
    );
    check_file(
        &format!("[upstreams.a]\n{own}shares = \"a\""),
        &["upstreams.a: shares: this is itself (name another upstream of the same url)"],
    );
    check_file(
        "[upstreams.a]\nurl = \"https://registry.example/b\"\nhosts = [\"x\"]\nshares = \"default\"",
        &[
            "upstreams.a: shares: default has another url (https://registry.example); only one registry can be \
           shared",
        ],
    );
    check_file(
        &format!(
            "[upstreams.a]\n{own}shares = \"default\"\n[upstreams.b]\n{}shares = \"a\"",
            own.replace('x', "y").replace("eyample", "example")
        ),
        &["upstreams.b: shares: a itself shares with default (write shares = \"default\")"],
    );
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
    let given = CommandLine { config: Some(PathBuf::from("missing.toml")), ..CommandLine::default() };
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
        &[
            "REFSHIM_LOG_FILTER: not a log filter: \" \" (write error, warn, info, debug, trace or off, or one of them for a module: warn,refshim=debug)",
        ],
    );
    check_variable(
        "REFSHIM_ACCESS_LOG_OUTPUT",
        "stdin",
        &[
            "REFSHIM_ACCESS_LOG_OUTPUT: not a place for a log: \"stdin\" (write off, stdout, stderr, or a file with its \
           directory: /var/log/refshim/access.log)",
        ],
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
fn every_mistake_is_told_at_once_even_in_a_value_that_is_overridden() {
    let sources = Sources {
        file: Some("lisen = 1\nlisten = \"here\"\nreferences.concurrency = 0".to_owned()),
        variables: vec![("REFSHIM_LISTEN".into(), "there".into()), ("REFSHIM_X".into(), "1".into())],
        given: CommandLine {
            upstream: Some("https://user:secret@registry.example".to_owned()),
            listen: Some("somewhere".to_owned()),
            ..CommandLine::default()
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
            "--upstream: has credentials, but each request carries those of its client \
             (write https://registry.example)",
            &address("--listen", "somewhere"),
        ],
    );
}
