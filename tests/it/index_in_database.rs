//! `refshim index` with an index in PostgreSQL: migrating, copying from a refshim that serves, and one clear line for
//! whatever is wrong.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::support::postgres::{PASSWORD, Postgres, ask};
use crate::support::{Refshim, Registry, about, binary};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("index").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn index(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

#[track_caller]
fn succeed(arguments: &[&str]) -> String {
    let output = index(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Checks the exit code and that there is one line, with this in it.
#[track_caller]
fn refused(arguments: &[&str], code: i32, part: &str) {
    let output = index(arguments);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), told.lines().count()), (Some(code), 1), "{told}");
    assert!(told.contains(part) && !told.contains(PASSWORD), "{told}");
}

#[test]
fn ten_that_migrate_at_once_all_succeed() {
    let postgres = Postgres::start_fast();
    let url = postgres.url();
    let ten: Vec<Child> = (0..10).map(|_| command(&["migrate", "--url", &url]).spawn().unwrap()).collect();
    for one in ten {
        let output = one.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8(output.stdout).unwrap().contains("version 1"));
    }
    assert_eq!(succeed(&["migrate", "--url", &url]), "the schema is of version 1 already\n");
    assert!(succeed(&["check", "--url", &url]).ends_with("intact\n"));
    let by_variable = command(&["check"]).env("REFSHIM_INDEX_URL", &url).output().unwrap();
    assert!(String::from_utf8(by_variable.stdout).unwrap().starts_with("0 repositories"));
}

#[test]
fn whatever_is_wrong_with_the_database_is_one_clear_line() {
    let postgres = Postgres::start_fast();
    let url = postgres.url();
    refused(&["check", "--url", &url], 1, "run refshim index migrate");
    refused(&["check", "--url", &url.replace(PASSWORD, "wrong")], 1, "password authentication failed");
    refused(&["dump", "--url", &url.replace("/refshim?", "/other?")], 1, "create the database");
    refused(&["check", "--url", "postgres://a@127.0.0.1:1/b?sslmode=disable"], 1, "cannot be reached");
    refused(&["check", "--url", "mysql://a@127.0.0.1:1/b"], 64, "--url: not the URL of a database");
    refused(&["migrate", "--data-dir", "x"], 64, "is for an index in a database");
    refused(&["rebuild", "--url", &url], 64, "is for an index in a data directory");
    refused(&["copy", "--from", "a", "--to", "b", "--url", &url], 64, "takes --from and --to");
    postgres.psql("CREATE ROLE guest LOGIN PASSWORD 'guest'");
    let guest = url.replace(&format!("refshim:{PASSWORD}@"), "guest:guest@");
    refused(&["migrate", "--url", &guest], 1, "CREATE on their schema");
    succeed(&["migrate", "--url", &url]);
    refused(&["check", "--url", &guest], 1, "grant SELECT");
    ask(&url, "UPDATE schema_version SET version = 9, usable_from = 9").unwrap();
    for action in ["migrate", "check", "dump"] {
        refused(&[action, "--url", &url], 1, "use a newer build");
    }
}

#[tokio::test]
async fn the_index_of_a_refshim_that_serves_moves_to_a_database_and_back() {
    let (registry, postgres) = (Registry::start(), Postgres::start_fast());
    let directory = tempfile::tempdir().unwrap();
    let (data, back) = (directory.path().join("data"), directory.path().join("back"));
    let refshim = Refshim::start(registry.address, &data).await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push_as("a", "latest", &image).await;
    let mut expected = Vec::new();
    for name in ["one", "two"] {
        let signature = about(&image, &image, name);
        client.push("a", &signature).await;
        expected.push(signature.digest);
    }
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let url = postgres.url();
    let told = succeed(&["copy", "--from", &text(&data), "--to", &url]);
    assert!(told.ends_with("equal\n") && told.contains("2 referrers added"), "{told}");
    refused(&["copy", "--from", &url, "--to", &text(&data)], 1, "in use by another process");
    let following = command(&["copy", "--follow", "--quiet", "--from", &text(&data), "--to", &url]).spawn();
    let following = following.unwrap();
    let signature = about(&image, &image, "three");
    client.push("a", &signature).await;
    expected.push(signature.digest);
    let count = "SELECT count(*) FROM referrer WHERE NOT pending";
    while ask(&url, count).unwrap() != "3" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(refshim.stop().success());
    let pid = following.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let followed = following.wait_with_output().unwrap();
    assert!(followed.status.success() && followed.stdout.ends_with(b"equal\n"), "{followed:?}");

    let replica = directory.path().join("replica");
    let replica = Refshim::prepare(registry.address, &replica).with("INDEX_URL", &url).launch().await;
    assert_eq!(replica.client().referrers("a", "latest", "").await, expected);
    assert!(replica.stop().success());
    assert!(succeed(&["copy", "--from", &url, "--to", &text(&back)]).ends_with("equal\n"));
    let refshim = Refshim::start(registry.address, &back).await;
    assert_eq!(refshim.client().referrers("a", "latest", "").await, expected);
}
