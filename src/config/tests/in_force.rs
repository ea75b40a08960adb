//! What is shown of the settings in force, and what is found to have changed.

use std::collections::BTreeSet;

use super::super::in_force::Changes;
use super::super::notifications::SOURCE_SETTINGS;
use super::super::settings::SETTINGS;
use super::super::upstream::UPSTREAM_SETTINGS;
use super::database::DATABASE;
use super::settings::{EVERY_SETTING, NOTIFICATIONS, UPSTREAMS};
use super::{Sources, from_file, from_variables};

/// What the texts of the other tests leave out of an upstream.
const REST: &str = r#"
    upstream = "https://a"
    [upstreams.default]
    mode = "learn"
    insecure_skip_verify = true
    response = "2s"
    service.docker_config = "config.json"
    [upstreams.other]
    url = "https://a"
    hosts = ["other"]
    shares = "default"
"#;

fn shown(sources: &Sources) -> String {
    sources.load_settings().unwrap().settings.to_string()
}

#[test]
fn every_setting_is_read_back_as_it_is_shown() {
    let database = format!("upstream = \"https://a\"\n{DATABASE}");
    // The password is in the URL or in the file.
    let with_password = database.replace("me@", "me:p%40:%2F@").replace("password_file", "#");
    let files = [EVERY_SETTING, NOTIFICATIONS, UPSTREAMS, REST, &database, &with_password];
    let mut stated = BTreeSet::new();
    for text in files {
        let loaded = from_file(text).load_settings().unwrap();
        let shown = loaded.settings.with_secrets();
        let again = from_file(&shown).load_settings();
        assert_eq!(again.map(|again| again.config), Ok(loaded.config), "{shown}");
        let all = loaded.settings.to_json();
        let from_file =
            all.as_object().unwrap().iter().filter(|(_, it)| {
                it["source"].as_str().is_some_and(|source| source.contains("refshim.toml:"))
            });
        stated.extend(from_file.map(|(key, _)| match key.split_once('.') {
            Some(("upstreams" | "notifications", rest)) => {
                rest.split_once('.').unwrap_or((rest, rest)).1.to_owned()
            }
            _ => key.clone(),
        }));
    }
    // Each was there at another value than its default.
    let common = SETTINGS.iter().map(|setting| setting.key.trim_start_matches("notifications."));
    let of_upstreams = UPSTREAM_SETTINGS.iter().map(|setting| setting.key);
    let all = common.chain(of_upstreams).chain(SOURCE_SETTINGS.iter().map(|setting| setting.key));
    assert_eq!(all.filter(|key| !stated.contains(*key)).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn each_value_is_shown_with_its_source() {
    let mut sources =
        from_file("upstream = \"https://a\"\n[timeouts]\nconnect = \"1500ms\"\nresponse = \"3s\"\n");
    sources.variables = vec![("REFSHIM_LIMITS_QUESTIONS".into(), "9".into())];
    sources.given.listen = Some("127.0.0.1:1".to_owned());
    let shown = shown(&sources);
    for line in [
        "upstream = \"https://a\"  # refshim.toml:1",
        "listen = \"127.0.0.1:1\"  # --listen",
        "admin_listen = \"127.0.0.1:5001\"  # default",
        "[timeouts]",
        "connect = \"1500ms\"  # refshim.toml:3",
        "questions = 9  # REFSHIM_LIMITS_QUESTIONS",
        "manifest_bytes = \"256MiB\"  # default",
        "[upstreams.default]",
        "response = \"3s\"  # as timeouts.response",
    ] {
        assert!(
            shown.lines().any(|shown| shown.replace(&directory(shown), "") == line),
            "no {line} in\n{shown}"
        );
    }
    assert!(!shown.contains("external_url"), "is not set: {shown}");
}

/// The directory of the file that a line names.
fn directory(line: &str) -> String {
    let path = line.split_once("# ").map_or("", |(_, source)| source);
    path.rfind("refshim.toml").and_then(|end| path.get(..end)).unwrap_or_default().to_owned()
}

#[test]
fn the_url_of_the_default_upstream_is_shown_once_with_its_last_source() {
    let sources =
        from_variables(&[("REFSHIM_UPSTREAM", "https://a"), ("REFSHIM_UPSTREAMS_DEFAULT_URL", "https://b")]);
    let shown = shown(&sources);
    let urls: Vec<&str> = shown.lines().filter(|line| line.contains("https://")).collect();
    assert_eq!(urls, ["upstream = \"https://b\"  # REFSHIM_UPSTREAMS_DEFAULT_URL"]);
}

#[test]
fn a_password_is_masked_and_a_file_with_one_is_named() {
    let sources = from_variables(&[
        ("REFSHIM_UPSTREAM", "https://a"),
        ("REFSHIM_INDEX_URL", "postgres://me:s%65cret@db/index?sslmode=disable"),
        ("REFSHIM_UPSTREAMS_DEFAULT_SERVICE_TOKEN_FILE", "/etc/token"),
    ]);
    let settings = sources.load_settings().unwrap().settings;
    let (toml, json) = (settings.to_string(), settings.to_json().to_string());
    assert!(toml.contains("url = \"postgres://me:********@db/index?sslmode=disable\""), "{toml}");
    assert!(toml.contains("service.token_file = \"/etc/token\""), "{toml}");
    for shown in [toml, json, format!("{settings:?}")] {
        assert!(!shown.contains("secret") && !shown.contains("s%65cret"), "{shown}");
    }
}

#[track_caller]
fn check_changes(before: &str, after: &str, live: &[&str], fixed: &[&str]) {
    let [before, after] = [before, after].map(|text| {
        let text = format!("upstream = \"https://a\"\n{text}");
        from_file(&text).load_settings().unwrap().settings
    });
    let owned = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(before.changes(&after), Changes { live: owned(live), fixed: owned(fixed) });
}

#[test]
fn what_changed_is_found_whatever_its_source() {
    let hub = "[upstreams.hub]\nurl = \"http://b\"\nhosts = [\"b\"]\n";
    check_changes("", "timeouts.connect = \"10s\"", &[], &[]);
    check_changes(
        "",
        "timeouts.connect = \"1s\"\nlisten = \"127.0.0.1:9\"",
        &["timeouts.connect"],
        &["listen"],
    );
    check_changes("external_url = \"http://a\"", "", &["external_url"], &[]);
    check_changes(
        "index.url = \"postgres://me:one@db/index\"",
        "index.url = \"postgres://me:two@db/index\"",
        &[],
        &["index.url"],
    );
    check_changes(
        hub,
        &hub.replace("hosts = [\"b\"]", "prefixes = [\"b\"]"),
        &["upstreams.hub.hosts", "upstreams.hub.prefixes"],
        &[],
    );
    let [before, after] =
        ["", hub].map(|text| from_file(&format!("upstream = \"https://a\"\n{text}")).load_settings());
    let changes = before.unwrap().settings.changes(&after.unwrap().settings);
    let expected = |key: &str| vec![key.to_owned()];
    assert_eq!(
        (changes.live, changes.fixed),
        (expected("upstreams.hub.hosts"), expected("upstreams.hub.url"))
    );
}
