//! Modules stand in one order and each big dependency in its rooms.

use std::path::Path;

/// Innermost first; a module names only those before it.
const ORDER: [&str; 25] = [
    "oci",
    "config",
    "http",
    "tls",
    "index",
    "queue",
    "telemetry",
    "client",
    "proxy",
    "registry",
    "recording",
    "notifications",
    "backfill",
    "export",
    "referrers_tags",
    "garbage",
    "compare",
    "jobs",
    "queries",
    "attach",
    "web",
    "admin",
    "server",
    "cli",
    "fuzzing",
];

/// What may be named in which rooms only.
const ROOMS: [(&str, &[&str]); 20] = [
    ("sled::", &["index/local/sled"]),
    ("rustls::", &["tls"]),
    ("opentelemetry", &["telemetry/traces"]),
    ("listenfd::", &["server/service_manager"]),
    ("sd_notify::", &["server/service_manager"]),
    ("deadpool_postgres", &["index/postgres"]),
    ("tokio_postgres::", &["config/database", "config/tests/database", "index/postgres", "tls/database"]),
    ("hyper::client::", &["proxy/upstream"]),
    ("hyper_util::client::legacy;", &["client/transport", "client/error", "telemetry/traces"]),
    ("prometheus_client", &["telemetry"]),
    ("askama::", &["web"]),
    ("multer::", &["attach/files"]),
    ("clap::", &["cli"]),
    ("minijinja::", &["cli/format"]),
    ("toml::", &["config"]),
    ("docker_credential::", &["client/credentials"]),
    ("http_auth::", &["client/session"]),
    ("rustix::", &["cli/terminal"]),
    // What blocks on it elsewhere does not end on Ctrl-C. In `cli/output` it is only looked at, and `serve` and the
    // commands of `index` leave Ctrl-C to the system while they read.
    ("io::stdin()", &["cli/terminal", "cli/output", "cli/index/files", "client/artifact", "config/load"]),
    (
        "crate::client::",
        &[
            "admin",
            "backfill",
            "cli",
            "compare",
            "export",
            "garbage",
            "jobs",
            "notifications",
            "referrers_tags",
            "web",
        ],
    ),
];

fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
            let name = path.strip_prefix(root).unwrap().with_extension("");
            found.push((name.to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

#[test]
fn each_module_uses_only_those_before_it() {
    for (name, text) in all_sources() {
        let module = name.split('/').next().unwrap();
        if matches!(module, "lib" | "main") {
            continue;
        }
        let place = ORDER.iter().position(|known| *known == module);
        let place = place.unwrap_or_else(|| panic!("{module} has no place in the order"));
        for later in &ORDER[place + 1..] {
            assert!(!text.contains(&format!("crate::{later}::")), "{name} uses {later}");
        }
    }
}

#[test]
fn each_big_dependency_has_its_rooms() {
    for (name, text) in all_sources() {
        for (dependency, rooms) in ROOMS {
            let named = text.lines().any(|line| {
                line.match_indices(dependency).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                })
            });
            let is_at_home = rooms.iter().any(|room| name.starts_with(room));
            assert!(!named || is_at_home || name == "main", "{name} names {dependency}");
        }
    }
}
