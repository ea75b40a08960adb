//! `refshim compare`: what refshim knows, beside what the registry lists by itself.

use reqwest::StatusCode;
use serde_json::Value;

use super::exporting::{about, referrers_tag};
use super::{Ended, Shell};
use crate::support::{Content, Refshim, Registry, Scripted};

const LEARN: (&str, &str) = ("UPSTREAMS_DEFAULT_MODE", "learn");

/// A refshim that answers nothing, in front of this URL.
async fn watching(url: &str, data: &std::path::Path) -> Refshim {
    Refshim::in_front_of(url, data).with(LEARN.0, LEARN.1).launch().await
}

impl Shell {
    fn compare(&self, refshim: &Refshim, subjects: &str, more: &[&str]) -> Ended {
        let admin = format!("http://{}", refshim.admin);
        let arguments = ["compare", "--admin", &admin, "--subjects", "-", "--json"];
        self.run_with_input(&[&arguments, more].concat(), subjects.as_bytes())
    }
}

/// A difference as (referrer, refshim, API, tag, note).
type Row = (String, bool, Option<bool>, bool, Option<String>);

fn differences(report: &Value) -> Vec<Row> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let row = |it: &Value| {
        let lists = |name: &str| it[name].as_bool().unwrap();
        let referrer = text(&it["referrer"]).unwrap();
        (referrer, lists("refshim"), it["api"].as_bool(), lists("tag"), text(&it["note"]))
    };
    report["differences"].as_array().unwrap().iter().map(row).collect()
}

fn counts(report: &Value) -> [u64; 3] {
    ["subjects", "agreed", "missing"].map(|name| report[name].as_u64().unwrap())
}

fn parsed(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

#[tokio::test]
async fn what_is_not_on_all_lists_is_told_and_what_is_missing_fails() {
    let (registry, data, shell) = (Registry::start(), tempfile::tempdir().unwrap(), Shell::new());
    let refshim = watching(&registry.url(), data.path()).await;
    let (client, bare) = (refshim.client(), registry.client());
    let image = client.image("app", "image").await;
    client.push_as("app", "v1", &image).await;
    let [both, ours, theirs, gone] = ["both", "ours", "theirs", "gone"].map(|name| about(&image, name));
    let foreign = about(&ours, "foreign");
    for content in [&both, &ours] {
        client.push("app", content).await;
    }
    for content in [&theirs, &gone, &foreign] {
        bare.push("app", content).await;
    }
    let list = Content::index(&[&both, &theirs, &gone, &foreign]);
    bare.push_as("app", &referrers_tag(&image.digest), &list).await;
    let deleted = bare.delete(&format!("/v2/app/manifests/{}", gone.digest)).await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED);

    let subjects = format!("# images\n\napp@{} # v1\n", image.digest);
    let ended = shell.compare(&refshim, &subjects, &[]);
    let report = parsed(&ended);
    let note = |text: &str| Some(text.to_owned());
    let mut expected = vec![
        (ours.digest.clone(), true, None, false, None),
        (theirs.digest.clone(), false, None, true, None),
        (gone.digest, false, None, true, note("is not there")),
        (foreign.digest, false, None, true, note("is about another manifest")),
    ];
    expected.sort();
    assert_eq!(differences(&report), expected);
    assert_eq!(counts(&report), [1, 1, 1]);
    assert_eq!(ended.code, 1);
    for why in ["the registry lists 1 referrers that refshim does not know", "refshim backfill records what"]
    {
        assert!(ended.err.contains(why), "{}", ended.err);
    }

    let admin = format!("http://{}", refshim.admin);
    shell.ok(&["backfill", "--admin", &admin]);
    let ended = shell.compare(&refshim, &subjects, &[]);
    assert_eq!((ended.code, counts(&parsed(&ended))), (0, [1, 2, 0]), "{ended:?}");
    // Those that are on a list without right are still told.
    assert_eq!(differences(&parsed(&ended)).len(), 3);
    let table = shell.ok(&["compare", "--admin", &admin]);
    let line =
        |digest: &str| table.lines().find(|line| line.contains(&format!("  {digest}"))).unwrap().to_owned();
    assert!(table.starts_with("SUBJECT"), "{table}");
    assert!(line(&ours.digest).ends_with(&format!("{}  yes      -    no", ours.digest)), "{table}");
    // The foreign one is also where it belongs.
    assert!(table.ends_with("2 subjects, 2 referrers on all lists, 4 not; refshim misses 0"), "{table}");
}

#[tokio::test]
async fn the_registrys_own_api_is_asked() {
    let (registry, shell) = (Registry::start(), Shell::new());
    let data = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    // To whom it is behind, a refshim is a registry with the API.
    let with_api = Refshim::before(&registry, data[0].path()).launch().await;
    let refshim = watching(&format!("http://{}", with_api.address), data[1].path()).await;
    let client = refshim.client();
    let image = client.image("app", "image").await;
    client.push_as("app", "v1", &image).await;
    let (both, theirs) = (about(&image, "both"), about(&image, "theirs"));
    client.push("app", &both).await;
    with_api.client().push("app", &theirs).await;
    let ended = shell.compare(&refshim, &format!("app@{}", image.digest), &[]);
    assert_eq!((ended.code, counts(&parsed(&ended))), (1, [1, 1, 1]), "{ended:?}");
    assert_eq!(differences(&parsed(&ended)), [(theirs.digest, false, Some(true), false, None)]);
    // The subject of nothing is on no list.
    let ended = shell.compare(&refshim, &format!("app@{}", theirs_of(&image)), &[]);
    assert_eq!((ended.code, counts(&parsed(&ended))), (0, [1, 0, 0]), "{ended:?}");
}

fn theirs_of(image: &Content) -> String {
    about(image, "nothing refers to this").digest
}

#[tokio::test]
async fn a_sample_is_of_what_is_referred_to_in_the_wanted_repositories() {
    let (registry, data, shell) = (Registry::start(), tempfile::tempdir().unwrap(), Shell::new());
    let refshim = watching(&registry.url(), data.path()).await;
    let client = refshim.client();
    let mut last = String::new();
    for number in 0..12 {
        let name = format!("team/app{}", number % 3);
        let image = client.image(&name, &format!("image {number}")).await;
        client.push(&name, &image).await;
        client.push(&name, &about(&image, "one")).await;
        client.push(&name, &about(&image, "two")).await;
        last = format!("{name}@{}", image.digest);
    }
    let other = client.image("other", "image").await;
    client.push("other", &other).await;
    client.push("other", &about(&other, "one")).await;
    refshim.stop();
    let data_dir = data.path().to_str().unwrap();
    for (sample, expected) in [("5", 5), ("1", 1), ("100", 12)] {
        let arguments = ["compare", "--upstream", &registry.url(), "--data-dir", data_dir, "--json"];
        let report = shell.json(&[&arguments[..], &["--repository", "team/*", "--sample", sample]].concat());
        assert_eq!(counts(&report), [expected, 0, 0], "{report}");
        let told = report["differences"].as_array().unwrap();
        assert_eq!(told.len() as u64, 2 * expected);
        assert!(told.iter().any(|it| it["subject"] == last.as_str()), "the newest is always among them");
        assert!(told.iter().all(|it| it["subject"].as_str().unwrap().starts_with("team/")));
    }
}

#[tokio::test]
async fn what_cannot_be_compared_fails_and_is_told() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let broken =
        Scripted::answering("HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let refshim = watching(&format!("http://{}", broken.address), data.path()).await;
    let subject = format!("app@sha256:{:064}", 1);
    let ended = shell.compare(&refshim, &subject, &[]);
    assert_eq!((ended.code, counts(&parsed(&ended))), (1, [1, 0, 0]), "{ended:?}");
    assert!(ended.err.contains(&subject) && ended.err.contains("1 could not be compared"), "{}", ended.err);
    for (input, told) in [
        ("app", "line 1: \"app\": not repository@digest"),
        ("\n\napp@sha256:1", "line 3: \"app@sha256:1\": "),
        ("APP@sha256:1", "line 1: \"APP@sha256:1\": "),
    ] {
        // Told in JSON, since the result would be.
        shell.compare(&refshim, input, &[]).failed(2, &[&told.replace('"', "\\\"")]);
    }
    let admin = format!("http://{}", refshim.admin);
    shell.run(&["compare", "--admin", &admin, "--sample", "0"]).failed(2, &["--sample"]);
    shell.run(&["compare", "--admin", &admin, "--upstream", "none"]).failed(1, &["no upstream \"none\""]);
}
