//! What a refshim that serves does for a command, and how far it says that it knows the registry.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Ended, Shell};
use crate::commands::backfill::catalogued;
use crate::support::{
    Answer, Client, Content, Random, Refshim, Registry, Said, Shelf, about, fill, listed, put,
};

const SEED: u64 = 41;
/// Time enough for a busy machine.
const SOON: Duration = Duration::from_secs(120);

impl Shell {
    /// A command whose work is done by this refshim.
    fn through(&self, refshim: &Refshim, command: &[&str]) -> Ended {
        let admin = format!("http://{}", refshim.admin);
        self.run(&[command, &["--admin", &admin, "--json"]].concat())
    }
}

#[track_caller]
fn report(ended: Ended) -> Value {
    serde_json::from_str(&ended.ok()).unwrap()
}

/// The `Warning` of both lists about a manifest.
async fn warning(refshim: &Refshim, repository: &str, subject: &str) -> Option<String> {
    let of = |answer: Answer| {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.headers.get("warning").map(|warning| warning.to_str().unwrap().to_owned())
    };
    let referrers = of(refshim.client().get(&format!("/v2/{repository}/referrers/{subject}")).await);
    let references =
        of(refshim.client().get(&format!("/v2/{repository}/manifests/{subject}/references")).await);
    assert_eq!(referrers, references);
    referrers
}

#[track_caller]
fn assert_may_miss(warning: Option<String>) {
    let warning = warning.expect("there is no Warning");
    assert!(warning.starts_with("299 - \"refshim: links pushed before 2"), "{warning}");
}

/// Whether all of the default upstream, and these repositories, are known completely.
fn complete(shell: &Shell, refshim: &Refshim, repositories: &[&str]) -> (bool, Vec<bool>) {
    let coverage = report(shell.through(refshim, &["coverage"]));
    let known = |known: &Value| known["is_complete"].as_bool().unwrap_or(false);
    let repository = |name: &&str| known(&coverage[0]["repositories"][*name]);
    (known(&coverage[0]), repositories.iter().map(repository).collect())
}

#[tokio::test]
async fn a_serving_refshim_does_what_the_commands_do_alone() {
    let (registry, data, shell) = (Registry::start(), tempfile::tempdir().unwrap(), Shell::new());
    let filled = fill(&registry.client(), 6, 60, SEED).await;
    let refshim = Refshim::start(registry.address, data.path()).await;
    let (name, repository) = filled.repositories.iter().find(|(_, it)| !it.links.is_empty()).unwrap();
    let subject = repository.links.keys().next().unwrap();
    assert_may_miss(warning(&refshim, name, subject).await);
    assert_eq!(complete(&shell, &refshim, &[name]), (false, vec![false]));

    let first = report(shell.through(&refshim, &["backfill"]));
    assert_eq!((&first["tags"], &first["unreadable"]), (&json!(60), &json!([])));
    assert_eq!(listed(&refshim.client(), &filled).await, filled.links());
    assert_eq!(complete(&shell, &refshim, &[name]), (true, vec![true]));
    assert_eq!(warning(&refshim, name, subject).await, None);
    let metrics = Client::new(refshim.admin).text("/metrics").await;
    assert!(metrics.contains("refshim_coverage_complete{upstream=\"default\"} 1"), "{metrics}");

    // What comes later comes through refshim.
    let image = refshim.client().image("later", "an image").await;
    refshim.client().push("later", &image).await;
    assert_eq!(warning(&refshim, "later", &image.digest).await, None);
    refshim.stop();
    let refshim = Refshim::start(registry.address, data.path()).await;
    assert_eq!(warning(&refshim, name, subject).await, None);
    let again = report(shell.through(&refshim, &["backfill"]));
    // Nor is there anything new with a tag; of what has none, the registry knows no list.
    let lacking = again["missing"].as_u64().unwrap();
    assert!(again["read"].as_u64().unwrap() <= 2 * lacking, "{again}");
    assert_eq!(again["unreadable"], json!([]));

    let dry = report(shell.through(&refshim, &["export", "--dry-run"]));
    let exported = report(shell.through(&refshim, &["export"]));
    assert_eq!(exported["written"], dry["written"]);
    let nothing = report(shell.through(&refshim, &["export"]));
    assert_eq!(nothing["written"], json!(0), "{nothing}");
    report(shell.through(&refshim, &["gc"]));
    refshim.stop();
    let url = registry.url();
    let alone = ["export", "--upstream", &url, "--data-dir", data.path().to_str().unwrap(), "--json"];
    assert_eq!(report(shell.run(&alone))["written"], json!(0));
}

#[tokio::test]
async fn only_what_was_read_whole_is_complete() {
    let (content, data, shell) = (Shelf::default(), tempfile::tempdir().unwrap(), Shell::new());
    let image = Content::image("config", "layer");
    let hidden = about(&image, &image, "hidden");
    for name in ["team/one", "team/two", "other"] {
        put(&content, name, &["v1"], &image);
    }
    put(&content, "team/two", &["sbom"], &hidden);
    let denied = hidden.digest.clone();
    let registry = catalogued(&content, move |turn| {
        let is_hidden = turn.path().contains("team/two") && turn.path().contains(&denied);
        Some(if is_hidden { Said::status("403 Forbidden") } else { turn.right.clone() })
    });
    let refshim = Refshim::start(registry.address, data.path()).await;
    let repositories = ["team/one", "team/two", "other"];
    let ended = shell.through(&refshim, &["backfill", "--repository", "team/*"]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(complete(&shell, &refshim, &repositories), (false, vec![true, false, false]));
    assert_eq!(warning(&refshim, "team/one", &image.digest).await, None);
    assert_may_miss(warning(&refshim, "team/two", &image.digest).await);
    assert_may_miss(warning(&refshim, "other", &image.digest).await);
    let across = format!("/v2/team/one/manifests/{}/references?scope=registry", image.digest);
    assert!(refshim.client().get(&across).await.headers.contains_key("warning"));
    // A dry run reads nothing, and one with gaps does not know all.
    for more in [&["--dry-run"][..], &[]] {
        shell.through(&refshim, &[&["backfill"][..], more].concat());
        let is_read = more.is_empty();
        assert_eq!(complete(&shell, &refshim, &repositories), (false, vec![true, false, is_read]));
    }
    // Those that were read since are left out.
    let since = shell.through(&refshim, &["backfill", "--since", "2020-01-01T00:00:00Z"]);
    let told: Value = serde_json::from_str(&since.out).unwrap();
    assert_eq!(told["repositories"], json!(1), "{since:?}");
}

#[tokio::test]
async fn a_loaded_dump_does_not_know_what_its_index_knew() {
    let (registry, data, shell) = (Registry::start(), tempfile::tempdir().unwrap(), Shell::new());
    let refshim = Refshim::start(registry.address, data.path()).await;
    let image = refshim.client().image("app", "an image").await;
    refshim.client().push_as("app", "v1", &image).await;
    let sbom = about(&image, &image, "sbom");
    refshim.client().push("app", &sbom).await;
    report(shell.through(&refshim, &["backfill"]));
    assert_eq!(warning(&refshim, "app", &image.digest).await, None);
    refshim.stop();
    let (dump, loaded) = (shell.path("dump"), shell.path("loaded"));
    let (dump, loaded) = (dump.to_str().unwrap(), loaded.to_str().unwrap());
    shell.run(&["index", "dump", "--data-dir", data.path().to_str().unwrap(), dump]).ok();
    shell.run(&["index", "load", "--data-dir", loaded, dump]).ok();
    let refshim = Refshim::start(registry.address, loaded.as_ref()).await;
    assert_may_miss(warning(&refshim, "app", &image.digest).await);
}

#[tokio::test]
async fn jobs_are_taken_from_this_machine_alone_and_one_at_a_time() {
    let (content, data, shell) = (Shelf::default(), tempfile::tempdir().unwrap(), Shell::new());
    put(&content, "app", &["v1"], &Content::image("config", "layer"));
    // Throttled for so long that it cannot end.
    let registry = catalogued(&content, |turn| {
        let is_tag = turn.path().ends_with("/v1");
        let wait = Said::status("429 Too Many Requests").with("retry-after", "60");
        Some(if is_tag { wait } else { turn.right.clone() })
    });
    let refshim = Refshim::start(registry.address, data.path()).await;
    let admin = Client::new(refshim.admin);
    let spec = json!({
        "upstream": null, "repositories": [], "jobs": 1, "rate": null,
        "task": {"backfill": {"listed": null, "since": null, "mode": "read"}},
    });
    let ask = |method: Method, path: &str, host: Option<&str>, kind: Option<&str>, body: &Value| {
        let request = admin.request(method, path).body(body.to_string());
        let request = host.iter().fold(request, |request, host| request.header("host", *host));
        let request = kind.iter().fold(request, |request, kind| request.header("content-type", *kind));
        admin.send(request)
    };
    let json_type = Some("application/json");
    for (host, kind) in [(Some("evil.example"), json_type), (None, None), (None, Some("text/plain"))] {
        for (method, path) in [(Method::POST, "/jobs"), (Method::DELETE, "/jobs"), (Method::GET, "/coverage")]
        {
            let answer = ask(method, path, host, kind, &spec).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{host:?} {kind:?} {answer:?}");
        }
    }
    for body in [json!({}), json!("x"), json!({"task": "everything"})] {
        assert_eq!(ask(Method::POST, "/jobs", None, json_type, &body).await.status, StatusCode::BAD_REQUEST);
    }
    let mut elsewhere = spec.clone();
    elsewhere["upstream"] = json!("nobody");
    assert_eq!(ask(Method::POST, "/jobs", None, json_type, &elsewhere).await.status, StatusCode::NOT_FOUND);
    let begun = ask(Method::POST, "/jobs", None, json_type, &spec).await.json();
    assert_eq!(begun["outcome"], Value::Null, "{begun}");
    let same = ask(Method::POST, "/jobs", Some("localhost:1"), json_type, &spec).await.json();
    assert_eq!(same["id"], begun["id"]);
    shell.through(&refshim, &["export"]).failed(1, &["busy backfilling", "--stop"]);
    shell.through(&refshim, &["backfill", "--username", "me", "--password-stdin"]).failed(2, &["service"]);
    shell.through(&refshim, &["backfill", "--upstream", "nobody"]).failed(1, &["nobody"]);
    shell.through(&refshim, &["backfill", "--stop"]).ok();
    let stopped = ask(Method::GET, "/jobs?upstream=default", None, json_type, &spec).await.json();
    assert!(stopped["outcome"].to_string().contains("stopped"), "{stopped}");
    report(shell.through(&refshim, &["export"]));
    // Nobody serves there.
    let nobody = shell.run(&["backfill", "--admin", "http://127.0.0.1:9"]);
    nobody.failed(1, &["is refshim serving", "--data-dir"]);
}

#[tokio::test]
async fn a_backfill_survives_the_refshim_that_does_it() {
    let (registry, data, shell) = (Registry::start(), tempfile::tempdir().unwrap(), Shell::new());
    let filled = fill(&registry.client(), 5, 80, SEED).await;
    let mut random = Random::new(SEED);
    for _ in 0..6 {
        let refshim = Refshim::start(registry.address, data.path()).await;
        let admin = format!("http://{}", refshim.admin);
        let mut run = shell.command(&["backfill", "--jobs", "2", "--admin", &admin]).spawn().unwrap();
        sleep(Duration::from_millis(random.below(400))).await;
        refshim.kill();
        run.wait().unwrap();
    }
    let refshim = Refshim::start(registry.address, data.path()).await;
    let whole = report(shell.through(&refshim, &["backfill"]));
    assert_eq!(whole["unreadable"], json!([]));
    assert_eq!(listed(&refshim.client(), &filled).await, filled.links());
    assert!(complete(&shell, &refshim, &[]).0);
}

#[tokio::test]
async fn a_sweep_finds_what_went_round_refshim_and_what_vanished() {
    let (registry, data, shell) = (Registry::start(), tempfile::tempdir().unwrap(), Shell::new());
    let start = Refshim::prepare(registry.address, data.path());
    let refshim = start.with("SWEEP_INTERVAL", "200ms").with("SWEEP_RATE", "1000").launch().await;
    let direct = registry.client();
    let image = direct.image("app", "an image").await;
    direct.push_as("app", "v1", &image).await;
    let refers = |expected: Vec<String>| {
        let (client, digest) = (refshim.client(), image.digest.clone());
        async move {
            let began = Instant::now();
            loop {
                let mut found = client.referrers("app", &digest, "").await;
                found.sort();
                if found == expected {
                    return;
                }
                assert!(began.elapsed() < SOON, "{found:?} and not {expected:?}");
                sleep(Duration::from_millis(50)).await;
            }
        }
    };
    let (sbom, other) = (about(&image, &image, "sbom"), about(&image, &image, "other"));
    direct.push_as("app", "sbom", &sbom).await;
    direct.push_as("app", "other", &other).await;
    let mut both = vec![sbom.digest.clone(), other.digest.clone()];
    both.sort();
    refers(both).await;
    let gone = direct.delete(&format!("/v2/app/manifests/{}", other.digest)).await;
    assert_eq!(gone.status, StatusCode::ACCEPTED);
    let began = Instant::now();
    // The sweep alone: no query has asked for it.
    while Client::new(refshim.admin)
        .text("/metrics")
        .await
        .contains("sweep_vanished_total{upstream=\"default\"} 0")
    {
        assert!(began.elapsed() < SOON, "the sweep does not notice");
        sleep(Duration::from_millis(50)).await;
    }
    refers(vec![sbom.digest.clone()]).await;
    let coverage = report(shell.through(&refshim, &["coverage"]));
    assert!(coverage[0]["swept"].is_string(), "{coverage}");
    assert_eq!(warning(&refshim, "app", &image.digest).await, None);
    // Whatever an operator wants comes first.
    report(shell.through(&refshim, &["backfill"]));
}
