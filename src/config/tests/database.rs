//! The index in a database: its settings, what does not go together, and where its password is shown (nowhere).

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio_postgres::config::{Host, TargetSessionAttrs};

use super::super::{
    CommandLine, Config, DatabaseConfig, DatabaseTls, DatabaseUrl, IndexConfig, InvalidDatabaseUrl,
    Statements, TlsChecks,
};
use super::mistakes::check_file;
use super::{from_file, from_variables};

const UPSTREAM: &str = "upstream = \"https://registry.example\"\n";

fn url(text: &str) -> DatabaseUrl {
    text.parse().unwrap()
}

fn database(text: &str) -> DatabaseConfig {
    let config = from_file(&format!("{UPSTREAM}{text}")).load();
    config.unwrap().index.database.unwrap()
}

/// The hosts and ports, the user, the database and whether there is TLS.
#[track_caller]
fn check_url(text: &str, expected: &str) {
    let url = url(text);
    let config = url.config();
    let hosts = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    let found = format!(
        "{} {:?} {} {} {}",
        hosts.collect::<Vec<_>>().join(" "),
        config.get_ports(),
        config.get_user().unwrap(),
        config.get_dbname().unwrap(),
        url.is_tls()
    );
    assert_eq!(found, expected);
    assert_eq!(url.to_string(), text);
    assert_eq!(config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
}

#[test]
fn a_url_names_user_hosts_and_database() {
    check_url("postgres://me@db.example/index", "db.example [5432] me index true");
    check_url("postgresql://me@db.example:5433/index", "db.example [5433] me index true");
    check_url("postgres://m%40e@[::1]:5433/in%2Fdex", "::1 [5433] m@e in/dex true");
    check_url("postgres://me@a,b:5433,10.0.0.1/index", "a b 10.0.0.1 [5432, 5433, 5432] me index true");
    check_url("postgres://db/index?user=me&sslmode=disable", "db [5432] me index false");
    check_url("postgres://me@db/index?sslmode=require", "db [5432] me index true");
    check_url("postgres://me@/index?host=a,b&port=1,2", "a b [1, 2] me index true");
    check_url("postgres://me@/index?port=1&host=a,b", "a b [1] me index true");
}

#[test]
fn a_unix_socket_has_no_tls() {
    check_url("postgres://me@/index?host=/run/postgresql", "/run/postgresql [] me index false");
    check_url("postgres:///index?host=%2Frun&user=me&sslmode=require", "/run [] me index false");
    check_url("postgres://me@%2Frun%2Fpostgresql:5433/index", "/run/postgresql [5433] me index false");
}

#[test]
fn parameters_mean_what_they_mean_in_libpq() {
    let plain = url("postgres://me@db/index");
    assert_eq!(plain.config().get_application_name(), Some("refshim"));
    assert!(plain.config().get_keepalives());
    let all = url("postgres://me@db/index?application_name=r%201&keepalives=0&keepalives_idle=9\
                   &keepalives_interval=8&keepalives_count=7&tcp_user_timeout=1500\
                   &target_session_attrs=read-write");
    let config = all.config();
    assert_eq!(config.get_application_name(), Some("r 1"));
    assert!(!config.get_keepalives());
    assert_eq!(config.get_keepalives_idle(), Duration::from_secs(9));
    assert_eq!(config.get_keepalives_interval(), Some(Duration::from_secs(8)));
    assert_eq!(config.get_keepalives_retries(), Some(7));
    assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_millis(1500)));
}

#[test]
fn a_password_is_used_and_not_shown() {
    let text = "postgres://me:s%40cr%2Fet:@db/index?sslmode=disable";
    let found = url(text);
    assert_eq!(found.config().get_password(), Some(&b"s@cr/et:"[..]));
    assert_eq!(found.to_string(), "postgres://me@db/index?sslmode=disable");
    let config = from_file(&format!("{UPSTREAM}index.url = \"{text}\"")).load().unwrap();
    for shown in [format!("{found:?}"), format!("{config:?}"), format!("{config:#?}")] {
        assert!(shown.contains("me@db/index") && !shown.contains("cr"), "{shown}");
    }
    let without = url("postgres://me:@db/index");
    assert!(!without.has_password());
    assert_eq!(without, url("postgres://me@db/index"));
}

#[track_caller]
fn check_invalid(text: &str, expected: &str) {
    let invalid = text.parse::<DatabaseUrl>().unwrap_err().to_string();
    assert_eq!(invalid, expected, "{text}");
}

#[test]
fn what_is_no_url_of_a_database_is_not_repeated() {
    let example = "(write postgres://refshim@db.example:5432/refshim)";
    for text in [
        "",
        "me@db/index",
        "host=db user=me password=secret",
        "mysql://me@db/index",
        "https://me:secret@db/index",
        "postgres://me:secret",
        "postgres://me@db:port/index",
        "postgres://me@db:0/index",
        "postgres://me@db:65536/index",
        "postgres://me@[::1/index",
        "postgres://me@d*b/index",
        "postgres://me@db /index",
        "postgres://me@db/in%00dex?sslmode=%00",
        "postgres://m%ffe@db/index",
        "postgres://me@db/index?pass:word=1",
    ] {
        check_invalid(text, &format!("not the URL of a database {example}"));
    }
    for (text, part) in [
        ("postgres://db/index", "user"),
        ("postgres://:secret@db/index", "user"),
        ("postgres://me@db", "database"),
        ("postgres://me@db/?sslmode=disable", "database"),
        ("postgres://me@/index", "host"),
        ("postgres://me@db,,other/index", "host"),
        ("postgres://me@:5432/index", "host"),
    ] {
        check_invalid(text, &format!("has no {part} {example}"));
    }
    for text in [
        "postgres://me:s@cret@db/index",
        "postgres://me:s/cret@db/index",
        "postgres://me:s?cret=1@db/index",
        "postgres://me:s#cret@db/index",
        "postgres://me@db/index/",
        "postgres://me@db/index#a",
        "postgres://me@db/index?application_name=a@b",
    ] {
        check_invalid(text, "has @, /, ? or # within a part (write %40, %2F, %3F or %23)");
    }
}

#[track_caller]
fn check_parameter(parameter: &str, expected: &str) {
    check_invalid(&format!("postgres://me:secret@db/index?{parameter}"), expected);
}

#[test]
fn a_parameter_that_is_not_accepted_is_named() {
    let value = |name: &str, write: &str| {
        format!("the parameter {name} has another value than is accepted (write {write})")
    };
    for mode in ["prefer", "allow", "verify-full", ""] {
        let write = "disable or require; require also verifies the certificate";
        check_parameter(&format!("sslmode={mode}"), &value("sslmode", write));
    }
    check_parameter(
        "target_session_attrs=any",
        &value("target_session_attrs", "read-write, which is the default here"),
    );
    check_parameter("keepalives=2", &value("keepalives", "0 or 1"));
    check_parameter("keepalives_count=0", &value("keepalives_count", "1 to 127"));
    for name in ["keepalives_idle", "keepalives_interval"] {
        check_parameter(&format!("{name}=0"), &value(name, "a number of seconds, 1 to 32767"));
    }
    check_parameter("tcp_user_timeout=1s", &value("tcp_user_timeout", "a number of milliseconds"));
    let ports = value("port", "a port for all hosts, or one for each");
    check_invalid("postgres://me@/index?host=a&port=x", &ports);
    check_invalid("postgres://me@/index?host=a,b,c&port=1,2", &ports);
    for name in ["options", "sslnegotiation", "hostaddr", "load_balance_hosts", "SSLMODE"] {
        check_parameter(&format!("{name}=a"), &format!("has the parameter {name}, which is not accepted"));
    }
    for (name, setting) in [
        ("connect_timeout", "timeouts.connect"),
        ("sslrootcert", "index.tls.ca"),
        ("sslcert", "index.tls.certificate"),
        ("sslkey", "index.tls.key"),
        ("password", "index.password_file"),
        ("passfile", "index.password_file"),
    ] {
        check_parameter(&format!("{name}=3"), &format!("has the parameter {name} (set {setting} instead)"));
    }
    for parameter in ["user=a", "host=a", "port=1"] {
        let (name, _) = parameter.split_once('=').unwrap();
        check_parameter(parameter, &format!("has {name} twice"));
    }
    check_parameter("sslmode=disable&sslmode=require", "has sslmode twice");
    check_invalid("postgres://me@db,%2Frun/index", &InvalidDatabaseUrl::Mixed.to_string());
}

pub(super) const DATABASE: &str = r#"
    [index]
    url = "postgres://me@db/index"
    password_file = "password"
    statements = "unnamed"
    connections = 9
    migrate = true
    readiness = false
    forget_after = "2h"
    [index.tls]
    ca = "ca"
    certificate = "crt"
    key = "key"
    server_name = "inside"
"#;

#[test]
fn every_setting_of_the_database_reaches_its_field() {
    let plain = DatabaseConfig {
        url: url("postgres://me@db/index"),
        password_file: None,
        tls: DatabaseTls { required: true, ..DatabaseTls::default() },
        statements: Statements::Prepared,
        connections: 10,
        migrate: false,
        readiness: true,
    };
    assert_eq!(database("index.url = \"postgres://me@db/index\""), plain);
    let expected = DatabaseConfig {
        password_file: Some("password".into()),
        tls: DatabaseTls {
            required: true,
            ca: Some("ca".into()),
            certificate: Some("crt".into()),
            key: Some("key".into()),
            server_name: Some("inside".to_owned()),
        },
        statements: Statements::Unnamed,
        connections: 9,
        migrate: true,
        readiness: false,
        ..plain
    };
    assert_eq!(database(DATABASE), expected);
    let index = from_variables(&[
        ("REFSHIM_UPSTREAM", "https://registry.example"),
        ("REFSHIM_INDEX_URL", "postgres://me@db/index"),
        ("REFSHIM_INDEX_PASSWORD_FILE", "password"),
        ("REFSHIM_INDEX_STATEMENTS", "unnamed"),
        ("REFSHIM_INDEX_CONNECTIONS", "9"),
        ("REFSHIM_INDEX_MIGRATE", "true"),
        ("REFSHIM_INDEX_READINESS", "false"),
        ("REFSHIM_INDEX_TLS_CA", "ca"),
        ("REFSHIM_INDEX_TLS_CERTIFICATE", "crt"),
        ("REFSHIM_INDEX_TLS_KEY", "key"),
        ("REFSHIM_INDEX_TLS_SERVER_NAME", "inside"),
    ]);
    let index = index.load().unwrap().index;
    assert_eq!(index, IndexConfig { database: Some(expected), ..IndexConfig::default() });
}

#[test]
fn a_value_of_the_database_is_named_by_line_and_key() {
    check_file(
        "[index]\nurl = \"postgres://me:secret@db\"\nstatements = \"none\"\nconnections = 1001\nmigrate = 1\n\
         tls.cert = \"a\"\ntls.server_name = \"a b\"",
        &[
            "refshim.toml:3: index.url: has no database (write postgres://refshim@db.example:5432/refshim)",
            "refshim.toml:4: index.statements: not a way of sending statements: \"none\" (write prepared or unnamed)",
            "refshim.toml:5: index.connections: out of bounds: \"1001\" (write 1 to 1000)",
            "refshim.toml:6: index.migrate: not true or false but an integer",
            "refshim.toml:7: index.tls.cert: unknown key",
            "refshim.toml:8: index.tls.server_name: not a server name: \"a b\" (write registry.example)",
        ],
    );
    check_file(
        "[index.tls]\nserver_nam = \"a\"\n[index]\ntlss.ca = \"a\"",
        &[
            "refshim.toml:3: index.tls.server_nam: unknown key, did you mean index.tls.server_name?",
            "refshim.toml:5: index.tlss: unknown key, did you mean index.tls?",
        ],
    );
    check_file(
        "index.tls = true",
        &[
            "refshim.toml:2: index.tls: not a table but true or false (write [index.tls] and its settings below)",
        ],
    );
}

#[test]
fn what_is_of_a_database_needs_one() {
    check_file(
        "[index]\npassword_file = \"a\"\nstatements = \"unnamed\"\nconnections = 1\nmigrate = true\n\
         readiness = false\ntls.ca = \"a\"",
        &[
            "index.password_file: needs index.url",
            "index.statements: needs index.url",
            "index.connections: needs index.url",
            "index.migrate: needs index.url",
            "index.readiness: needs index.url",
            "index.tls: needs index.url",
        ],
    );
}

#[test]
fn what_does_not_go_with_a_database_is_told() {
    let local = |key: &str| {
        format!(
            "index.{key}: is of the index in data_dir, but index.url names a database: remove one of them"
        )
    };
    check_file(
        "[index]\nurl = \"postgres://me:secret@db/index\"\npassword_file = \"a\"\ntls.key = \"a\"\n\
         cache_bytes = \"1MiB\"\ncompact_bytes = \"1MiB\"",
        &[
            &local("cache_bytes"),
            &local("compact_bytes"),
            "index.password_file: the password is in index.url already: remove one of them",
            "index.tls: set both certificate and key, or neither",
        ],
    );
    let no_tls = "index.tls: has no effect without TLS (index.url has sslmode=disable or a Unix socket)";
    for url in ["postgres://me@db/index?sslmode=disable", "postgres://me@/index?host=/run"] {
        check_file(&format!("[index]\nurl = \"{url}\"\ntls.server_name = \"a\""), &[no_tls]);
    }
}

fn fails(file: &Path) -> Result<(), String> {
    Err(format!("{}: is bad", file.display()))
}

#[test]
fn files_of_the_database_are_checked_with_the_configuration() {
    let checks = TlsChecks { certificate: fails, key: fails, pair: |_, _| Ok(()), authorities: fails };
    let directory = tempfile::tempdir().unwrap();
    let (file, password) = (directory.path().join("refshim.toml"), directory.path().join("password"));
    fs::write(&password, "").unwrap();
    let text = format!(
        "{UPSTREAM}[index]\nurl = \"postgres://me@db/index\"\npassword_file = \"{}\"\n\
         [index.tls]\nca = \"ca\"\ncertificate = \"crt\"\nkey = \"key\"",
        password.display()
    );
    fs::write(&file, text).unwrap();
    let given = CommandLine { config: Some(file.clone()), ..CommandLine::default() };
    let mistakes = Config::load_and_check(&given, [], &checks).unwrap_err().to_string();
    let mut told: Vec<String> = mistakes.lines().map(str::to_owned).collect();
    told.sort();
    let place = file.display();
    let expected = [
        format!("{place}:4: index.password_file: {}: is empty", password.display()),
        format!("{place}:6: index.tls.ca: ca: is bad"),
        format!("{place}:7: index.tls.certificate: crt: is bad"),
        format!("{place}:8: index.tls.key: key: is bad"),
    ];
    assert_eq!(told, expected);
}

#[test]
fn the_password_is_read_at_each_connection() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    let text = format!("[index]\nurl = \"postgres://me@db/index\"\npassword_file = \"{}\"", file.display());
    let database = database(&text);
    for password in ["first", "second"] {
        fs::write(&file, format!("{password}\n")).unwrap();
        assert_eq!(database.connection().unwrap().get_password(), Some(password.as_bytes()));
    }
    fs::remove_file(&file).unwrap();
    assert!(database.connection().unwrap_err().starts_with("cannot read "));
}
