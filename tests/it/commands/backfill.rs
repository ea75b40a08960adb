//! `refshim backfill`: what a registry held before, or took past refshim, is listed as if it had passed through.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Ended, Shell};
use crate::support::{
    Authority, Content, Filled, Links, Random, Refshim, Registry, Rules, Said, Scripted, Shelf, Target, Turn,
    USER, about, fill, listed, put, shelf_registry,
};

const SEED: u64 = 14;

/// How much a registry is filled with: repositories and tags. `BACKFILL_TAGS` for more of both.
fn size() -> (usize, usize) {
    let tags = std::env::var("BACKFILL_TAGS").map_or(200, |tags| tags.parse().unwrap());
    (tags / 25, tags)
}

impl Shell {
    fn backfill(&self, registry: &str, data_dir: &Path, more: &[&str]) -> Ended {
        let arguments =
            ["backfill", "--upstream", registry, "--data-dir", data_dir.to_str().unwrap(), "--json"];
        self.run(&[&arguments, more].concat())
    }
}

#[track_caller]
fn report(ended: Ended) -> Value {
    serde_json::from_str(&ended.ok()).unwrap()
}

async fn listed_after(registry: &Registry, data_dir: &Path, filled: &Filled) -> BTreeMap<String, Links> {
    let refshim = Refshim::start(registry.address, data_dir).await;
    listed(&refshim.client(), filled).await
}

#[tokio::test]
async fn what_a_registry_held_is_listed_and_is_not_fetched_again() {
    let (registry, data, shell) = (Registry::start(), tempfile::tempdir().unwrap(), Shell::new());
    let (repositories, tags) = size();
    let filled = fill(&registry.client(), repositories, tags, SEED).await;

    let dry = report(shell.backfill(&registry.url(), data.path(), &["--dry-run"]));
    assert_eq!((&dry["tags"], &dry["links"]), (&json!(tags), &json!(0)));
    let first = report(shell.backfill(&registry.url(), data.path(), &[]));
    assert_eq!((&first["tags"], &first["unreadable"]), (&json!(tags), &json!([])));
    assert!(first["read"].as_u64() >= dry["read"].as_u64(), "{first} {dry}");
    let second = report(shell.backfill(&registry.url(), data.path(), &[]));
    // Nothing is fetched twice, but for what leads to something that was not there: that may have come.
    let number = |report: &Value, name: &str| report[name].as_u64().unwrap();
    assert!(number(&second, "read") <= 2 * number(&first, "missing"), "{first} {second}");
    assert!(number(&second, "bytes") * 10 < number(&first, "bytes"), "{first} {second}");
    assert_eq!(listed_after(&registry, data.path(), &filled).await, filled.links());
    let again = report(shell.backfill(&registry.url(), data.path(), &["--again"]));
    assert_eq!(again["read"], first["read"]);
}

#[tokio::test]
async fn a_run_that_is_killed_goes_on_where_it_was() {
    let (registry, data, shell) = (Registry::start(), tempfile::tempdir().unwrap(), Shell::new());
    let (repositories, tags) = size();
    let filled = fill(&registry.client(), repositories, tags, SEED).await;
    let url = registry.url();
    let arguments = ["backfill", "--upstream", &url, "--data-dir", data.path().to_str().unwrap(), "--json"];
    // Few at a time, so that each kill meets some in the middle.
    let arguments = [&arguments[..], &["--jobs", "2"]].concat();
    let ledger = data.path().join("backfill/00000000.read");
    let length = || std::fs::metadata(&ledger).map_or(0, |ledger| ledger.len());
    let mut random = Random::new(SEED);
    for _ in 0..20 {
        // A line is about 90 bytes.
        let until = length() + random.below(90 * 20);
        let mut run = shell.command(&arguments).spawn().unwrap();
        while length() < until && run.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        run.kill().unwrap();
        run.wait().unwrap();
    }
    let whole = report(shell.run(&arguments));
    assert_eq!(whole["tags"], json!(tags));
    assert!(whole["known"].as_u64().unwrap() > 0, "{whole}");
    assert_eq!(listed_after(&registry, data.path(), &filled).await, filled.links());
}

/// A registry of this shelf that tells its repositories and tags.
pub(super) fn catalogued(
    shelf: &Shelf,
    odd: impl Fn(&Turn<'_>) -> Option<Said> + Send + Sync + 'static,
) -> Scripted {
    let content = Shelf::clone(shelf);
    shelf_registry(shelf, move |turn| {
        let said = odd(turn);
        if turn.target != Target::Other || said.as_ref().is_none_or(|said| said.status != turn.right.status) {
            return said;
        }
        let names = |repository: Option<&str>| {
            let content = content.lock().unwrap();
            let of = |(own, name): &(String, String)| match repository {
                None => Some(own.clone()),
                Some(repository) => (own == repository && !name.contains(':')).then(|| name.clone()),
            };
            content.keys().filter_map(of).collect::<std::collections::BTreeSet<_>>()
        };
        let path = turn.path().split('?').next().unwrap();
        let answer = match path.strip_suffix("/tags/list") {
            Some(repository) => json!({"tags": names(Some(repository.trim_start_matches("/v2/")))}),
            None if path == "/v2/_catalog" => json!({"repositories": names(None)}),
            None => return said,
        };
        Some(Said::typed("application/json", answer.to_string()))
    })
}

fn right(turn: &Turn<'_>) -> Said {
    turn.right.clone()
}

/// What is at a tag of a repository, without an answer where nothing refers to it.
async fn referrers(refshim: &Refshim, repository: &str, image: &Content) -> Vec<String> {
    let answer =
        refshim.client().get(&format!("/v2/{repository}/manifests/{}/references", image.digest)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let list = answer.json();
    list["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["digest"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_registry_that_asks_for_patience_is_waited_for() {
    let (content, data, shell) = (Shelf::default(), tempfile::tempdir().unwrap(), Shell::new());
    let image = Content::image("config", "layer");
    let sbom = about(&image, &image, "sbom");
    put(&content, "a/b", &["v1"], &image);
    put(&content, "a/b", &["sbom"], &sbom);
    // Of each three requests, the first is throttled, the second breaks off and the third fails; again they are
    // answered.
    let asked = Mutex::new(Vec::<String>::new());
    let registry = catalogued(&content, move |turn| {
        let mut asked = asked.lock().unwrap();
        if asked.contains(&turn.request.line) {
            return Some(right(turn));
        }
        asked.push(turn.request.line.clone());
        match asked.len() % 3 {
            1 => Some(Said::status("429 Too Many Requests").with("retry-after", "1")),
            2 => None,
            _ => Some(Said::status("503 Service Unavailable")),
        }
    });
    let url = format!("http://{}", registry.address);
    let report = report(shell.backfill(&url, data.path(), &["--jobs", "64"]));
    assert_eq!((&report["read"], &report["links"]), (&json!(2), &json!(1)));
    let again = catalogued(&content, |turn| Some(right(turn)));
    let refshim = Refshim::start(again.address, data.path()).await;
    assert_eq!(referrers(&refshim, "a/b", &image).await, [sbom.digest]);
}

#[tokio::test]
async fn what_cannot_be_read_is_told_and_all_else_is_recorded() {
    let (content, data, shell) = (Shelf::default(), tempfile::tempdir().unwrap(), Shell::new());
    let image = Content::image("config", "layer");
    let sbom = about(&image, &image, "sbom");
    put(&content, "good", &["v1"], &image);
    put(&content, "good", &["sbom"], &sbom);
    // An index of which one platform is there.
    let absent = Content::image("other", "layer");
    put(&content, "good", &["index"], &Content::index(&[&image, &absent]));
    put(&content, "denied", &["v1"], &image);
    let no_json = Content { bytes: b"<html>".to_vec(), ..Content::image("no", "json") };
    put(&content, "odd", &["no-json"], &no_json);
    let long = image.changed(|manifest| manifest["annotations"] = json!({"long": "x".repeat(5 << 20)}));
    put(&content, "odd", &["long"], &long);
    let (before, after) = (Content::image("before", "layer"), Content::image("after", "layer"));
    put(&content, "odd", &["moved"], &before);
    put(&content, "odd", &["gone"], &before);
    put(&content, "odd", &["signed"], &sbom);
    put(&content, "odd", &["v1"], &image);
    let registry = catalogued(&content, move |turn| {
        let path = turn.path();
        Some(match (path, turn.is_head()) {
            ("/v2/_catalog?n=1000", _) => {
                let page = json!({"repositories": ["good", "good", "Not A Name", "odd", "denied"]});
                Said::typed("application/json", page.to_string())
                    .with("link", "</v2/_catalog?n=1000&last=odd>; rel=\"next\"")
            }
            // Repeats, and tells null for the end.
            ("/v2/_catalog?n=1000&last=odd", _) => {
                Said::typed("application/json", r#"{"repositories": ["good", "odd"]}"#)
                    .with("link", "</v2/_catalog?last=x>; rel=\"next\"")
            }
            ("/v2/_catalog?last=x", _) => Said::typed("application/json", r#"{"repositories": null}"#),
            ("/v2/denied/tags/list", _) => Said::status("403 Forbidden"),
            ("/v2/odd/manifests/gone", _) => Said::status("404 Not Found"),
            // Served by its digest as something else.
            (by_digest, false) if by_digest.contains(&before.digest) => Said::manifest(&after),
            _ => right(turn),
        })
    });
    let url = format!("http://{}", registry.address);
    let ended = shell.backfill(&url, data.path(), &[]);
    assert_eq!(ended.code, 1, "{ended:?}");
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    let unreadable = report["unreadable"].as_array().unwrap();
    let whats: Vec<&str> = unreadable.iter().map(|it| it["what"].as_str().unwrap()).collect();
    let mut expected = vec![
        "Not A Name".to_owned(),
        "denied".to_owned(),
        format!("odd@{}", no_json.digest),
        format!("odd@{}", long.digest),
        format!("odd@{}", before_digest()),
    ];
    expected.sort();
    assert_eq!(whats, expected, "{report}");
    for reason in ["403", "longer than", "is no name"] {
        assert!(ended.err.contains(reason), "{reason}: {}", ended.err);
    }
    assert_eq!(report["missing"], json!(1));
    let ledger = std::fs::read_to_string(data.path().join("backfill/00000000.read")).unwrap();
    assert!(ledger.contains(&sbom.digest) && !ledger.contains(&absent.digest), "{ledger}");

    let refshim = Refshim::start(registry.address, data.path()).await;
    for repository in ["good", "odd"] {
        assert!(referrers(&refshim, repository, &image).await.contains(&sbom.digest), "{repository}");
    }
}

/// Some registries have the API for some repositories; and where one has it, what it does not list is no empty list.
#[tokio::test]
async fn a_referrers_api_of_some_repositories_is_asked_for_what_has_no_tag() {
    let (content, data, shell) = (Shelf::default(), tempfile::tempdir().unwrap(), Shell::new());
    let image = Content::image("config", "layer");
    let untagged = about(&image, &image, "untagged");
    let other = Content::image("other", "layer");
    put(&content, "a", &["v1"], &image);
    put(&content, "b", &["v1"], &image);
    put(&content, "b", &[], &untagged);
    put(&content, "b", &["v2"], &other);
    let (listed, silent) = (Content::index(&[&untagged]), other.digest.clone());
    let subject = image.digest.clone();
    let registry = catalogued(&content, move |turn| {
        let path = turn.path();
        Some(match path.strip_prefix("/v2/b/referrers/") {
            Some(digest) if digest == subject => Said::manifest(&listed),
            Some(digest) if digest == silent => right(turn),
            Some(_) => Said::manifest(&Content::index(&[])),
            None => right(turn),
        })
    });
    let url = format!("http://{}", registry.address);
    // One after the other, so that `v1` comes before `v2`.
    let ended = shell.backfill(&url, data.path(), &["--jobs", "1"]);
    assert_eq!(ended.code, 1, "{ended:?}");
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(report["unreadable"][0]["what"], format!("b@{}", other.digest), "{report}");
    assert_eq!(report["unreadable"].as_array().unwrap().len(), 1, "{report}");
    let refshim = Refshim::start(registry.address, data.path()).await;
    assert_eq!(referrers(&refshim, "b", &image).await, [untagged.digest]);
}

fn before_digest() -> String {
    Content::image("before", "layer").digest
}

#[tokio::test]
async fn repositories_are_chosen_by_name_or_given() {
    let (content, data, shell) = (Shelf::default(), tempfile::tempdir().unwrap(), Shell::new());
    let image = Content::image("config", "layer");
    for repository in ["team/a", "team/b", "other/a"] {
        put(&content, repository, &["v1"], &image);
    }
    put(&content, "team/a", &["sbom"], &about(&image, &image, "sbom"));
    let registry = catalogued(&content, |turn| {
        let is_catalog = turn.path().starts_with("/v2/_catalog");
        Some(if is_catalog { Said::status("401 Unauthorized") } else { right(turn) })
    });
    let url = format!("http://{}", registry.address);
    let ended = shell.backfill(&url, data.path(), &[]);
    ended.failed(4, &["log in", "--repositories-from"]);

    let names = shell.write("names", "# all of them\nteam/a\n\nteam/b # twice\nteam/b\nother/a\n");
    let from = ["--repositories-from", names.to_str().unwrap()];
    let told = report(shell.backfill(&url, data.path(), &[&from[..], &["--repository", "team/*"]].concat()));
    assert_eq!((&told["repositories"], &told["read"]), (&json!(2), &json!(3)));
    let told = report(shell.backfill(&url, data.path(), &from));
    assert_eq!((&told["repositories"], &told["read"], &told["known"]), (&json!(3), &json!(1), &json!(3)));

    let names = shell.write("names", "team/a\nNo Name\n");
    let from = ["--repositories-from", names.to_str().unwrap()];
    shell.backfill(&url, data.path(), &from).failed(2, &["names", "line 2", "No Name"]);
}

#[tokio::test]
async fn a_directory_that_is_served_from_is_left_alone() {
    let (registry, data, shell) = (Registry::start(), tempfile::tempdir().unwrap(), Shell::new());
    let _refshim = Refshim::start(registry.address, data.path()).await;
    let ended = shell.backfill(&registry.url(), data.path(), &[]);
    ended.failed(1, &["backfilling", "does it itself"]);
}

#[tokio::test]
async fn an_upstream_of_the_configuration_is_reached_as_refshim_reaches_it() {
    let (registry, data, shell) = (Registry::with_user(), tempfile::tempdir().unwrap(), Shell::new());
    let file = format!(
        "data_dir = {:?}\n[upstreams.hub]\nurl = \"{}\"\nhosts = [\"hub\"]\n[upstreams.default]\nurl = \"http://127.0.0.1:9\"\n",
        data.path(),
        registry.url()
    );
    let file = shell.write("refshim.toml", file);
    let arguments = ["backfill", "--config", file.to_str().unwrap(), "--upstream", "hub"];
    shell.run(&arguments).failed(4, &[]);
    let (user, password) = USER;
    let logged_in = [&arguments[..], &["--username", user, "--password-stdin"]].concat();
    assert!(shell.run_with_input(&logged_in, password.as_bytes()).ok().starts_with("0 repositories"));
    let arguments = ["backfill", "--config", file.to_str().unwrap(), "--upstream", "nobody"];
    shell.run(&arguments).failed(2, &["nobody"]);
}

/// What a backfill says that has these settings of the default upstream.
fn with_upstream(shell: &Shell, data: &Path, registry: &Registry, settings: &str) -> Ended {
    let url = registry.url();
    let text =
        format!("upstream = {url:?}\ndata_dir = \"{}\"\n[upstreams.default]\n{settings}", data.display());
    let file = shell.write("refshim.toml", text);
    shell.run(&["backfill", "--config", file.to_str().unwrap(), "--json"])
}

#[tokio::test]
async fn a_registry_below_a_path_that_wants_a_certificate_is_read() {
    let (shell, data, authority) = (Shell::new(), tempfile::tempdir().unwrap(), Authority::new());
    let registry =
        Registry::variant().below("/some/place").tls(&authority).for_clients_of(&authority).start();
    let ca = format!("ca = {:?}\n", authority.certificate());
    let own = authority.client("refshim");
    let serving = data.path().join("serving");
    let refshim = Refshim::in_front_of(&registry.url(), &serving)
        .with("UPSTREAMS_DEFAULT_CA", authority.certificate().to_str().unwrap())
        .with("UPSTREAMS_DEFAULT_CERTIFICATE", own.certificate.to_str().unwrap())
        .with("UPSTREAMS_DEFAULT_KEY", own.key.to_str().unwrap());
    let refshim = refshim.launch().await;
    let image = refshim.client().image("team/a", "image").await;
    refshim.client().push_as("team/a", "v1", &image).await;
    let certificate = format!("{ca}certificate = {:?}\nkey = {:?}", own.certificate, own.key);
    let report = report(with_upstream(&shell, data.path(), &registry, &certificate));
    assert_eq!((&report["tags"], &report["read"], &report["unreadable"]), (&json!(1), &json!(1), &json!([])));
}

#[tokio::test]
async fn service_credentials_are_used_where_there_are_any() {
    let (user, password) = USER;
    let resource = "registry:catalog:*";
    let tokens = Rules::default().user(user, password).grant(user, "registry:catalog", "*").start();
    let (basic, token) = (Registry::with_user(), Registry::variant().tokens_of(&tokens).start());
    let (shell, data) = (Shell::new(), tempfile::tempdir().unwrap());
    let files = [
        ("password", format!("{password}\n")),
        ("wrong", "wrong".to_owned()),
        ("token", tokens.token(Some(user), &[resource]).await),
        ("empty", "\n".to_owned()),
        ("config.json", json!({"auths": {basic.address.to_string(): {"auth": STANDARD.encode(format!("{user}:{password}"))}}}).to_string()),
        ("other.json", json!({"auths": {}}).to_string()),
    ];
    for (name, content) in files {
        shell.write(name, content);
    }
    let run = |registry: &Registry, settings: &str| with_upstream(&shell, data.path(), registry, settings);
    let by_password = format!("service = {{ user = {user:?}, password_file = \"password\" }}");
    for (registry, settings) in [
        (&basic, by_password.as_str()),
        (&token, by_password.as_str()),
        (&token, "service.token_file = \"token\""),
        (&basic, "service.docker_config = \"config.json\""),
    ] {
        let ended = run(registry, settings);
        assert_eq!(report(ended)["repositories"], json!(0), "{settings}");
    }
    let wrong = format!("service = {{ user = {user:?}, password_file = \"wrong\" }}");
    run(&basic, &wrong).failed(4, &["401"]);
    run(&basic, "service.docker_config = \"other.json\"").failed(1, &["other.json", "there are none"]);
    let mistakes = [
        ("token_file = \"missing\"", "missing: No such file"),
        ("token_file = \"empty\"", "empty: is empty"),
        ("docker_config = \"password\"", "password: is not the JSON"),
    ];
    for (settings, told) in mistakes {
        let said = ["refshim.toml:4: upstreams.default.service.", told];
        run(&basic, &format!("service.{settings}")).failed(2, &said);
    }
}
