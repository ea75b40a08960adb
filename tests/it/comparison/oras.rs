//! The Python client oras.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::outcome::Outcome;
use super::side::Side;

/// Pushes in both ways, pulls, and looks, with a script of the clients' tests.
pub(super) fn round(side: &Side) -> Outcome {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let argument = json!({
        "registry": side.door.host,
        "credentials": side.user,
        "token": side.token,
        "tls": side.door.trusted.is_some(),
    });
    let mut command = Command::new(target.join("clients/python/bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/round.py"));
    command.arg(argument.to_string()).env("NO_PROXY", "127.0.0.1,localhost");
    if let Some(directory) = &side.door.trusted {
        command.env("REQUESTS_CA_BUNDLE", directory.join("ca.crt"));
    }
    side.run(&mut command)
}
