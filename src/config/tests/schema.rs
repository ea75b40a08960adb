//! The JSON Schema: every setting is in it, described. `tests/deploy` validates files by it.

use serde_json::Value as Json;

use super::super::notifications::SOURCE_SETTINGS;
use super::super::schema;
use super::super::settings::{SETTINGS, Setting};
use super::super::upstream::UPSTREAM_SETTINGS;

/// The schema of a key with dots, from the schema of a table.
fn at<'a>(table: &'a Json, key: &str) -> &'a Json {
    key.split('.').fold(table, |table, part| &table["properties"][part])
}

#[track_caller]
fn check<D>(table: &Json, settings: &[Setting<D>]) {
    for setting in settings {
        let found = at(table, setting.key);
        let described = found["description"].as_str().unwrap_or_default();
        // More than what the table itself says.
        let own =
            described.split(" From ").next().unwrap_or_default().replace("A change takes a restart.", "");
        assert!(own.len() > 20, "{}: {found}", setting.key);
        assert_eq!(setting.is_live, !described.contains("takes a restart"), "{}", setting.key);
        assert!(found["type"].is_string() || found["type"].is_array(), "{}: {found}", setting.key);
    }
}

#[test]
fn every_setting_is_in_the_schema_and_described_by_the_example_file() {
    let schema = schema();
    check(&schema, SETTINGS);
    check(&schema["$defs"]["upstream"], UPSTREAM_SETTINGS);
    check(&schema["$defs"]["source"], SOURCE_SETTINGS);
}

#[test]
fn the_schema_says_types_bounds_words_and_defaults() {
    let schema = schema();
    let description = |key: &str| at(&schema, key)["description"].as_str().unwrap().to_owned();
    let questions = at(&schema, "limits.questions");
    assert_eq!((&questions["minimum"], &questions["maximum"]), (&Json::from(8), &Json::from(1_000_000)));
    assert_eq!(questions["default"], 256);
    assert!(description("timeouts.connect").contains("From 1ms to 24h."), "{schema}");
    assert_eq!(at(&schema, "timeouts.connect")["default"], "10s");
    assert_eq!(at(&schema, "log.format")["enum"], serde_json::json!(["text", "json"]));
    assert_eq!(at(&schema, "upstream")["default"], Json::Null);
    assert!(description("tls.key").starts_with("TLS towards clients: PEM files"), "{schema}");
}
