//! `config schema`: the JSON Schema (2020-12) of the configuration file, for editors, from the tables of settings.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::draft::Draft;
use super::example::descriptions;
use super::notifications::{SOURCE_SETTINGS, SourceDraft};
use super::settings::{SETTINGS, Setting};
use super::upstream::{UPSTREAM_SETTINGS, UpstreamDraft};
use super::value::NAME_PATTERN;

/// The JSON Schema of the configuration file.
#[must_use]
pub fn schema() -> Json {
    let described = descriptions();
    let mut root = properties(SETTINGS, "", &mut Draft::default(), &described);
    let upstream = properties(UPSTREAM_SETTINGS, "upstreams.", &mut UpstreamDraft::default(), &described);
    let source = properties(SOURCE_SETTINGS, "notifications.", &mut SourceDraft::default(), &described);
    root.insert(
        "upstreams".to_owned(),
        json!({
            "type": "object",
            "description": "The registries, by name; \"default\" is the one that `upstream` names.",
            "propertyNames": { "pattern": NAME_PATTERN },
            "additionalProperties": { "$ref": "#/$defs/upstream" },
        }),
    );
    // Its own settings stand beside the tables of the sources.
    if let Some(Json::Object(notifications)) = root.get_mut("notifications") {
        let own = notifications.get("properties").and_then(Json::as_object);
        let own: Vec<String> = own.into_iter().flat_map(Map::keys).cloned().collect();
        let names = json!({ "anyOf": [{ "enum": own }, { "pattern": NAME_PATTERN }] });
        notifications.insert("propertyNames".to_owned(), names);
        notifications.insert("additionalProperties".to_owned(), json!({ "$ref": "#/$defs/source" }));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "refshim",
        "description": "The configuration file of refshim.",
        "type": "object",
        "properties": root,
        "additionalProperties": false,
        "$defs": { "upstream": table(&upstream), "source": table(&source) },
    })
}

/// The members of a table and the tables in it, from the settings below `prefix`.
fn properties<D>(
    settings: &[Setting<D>],
    prefix: &str,
    defaults: &mut D,
    described: &BTreeMap<String, String>,
) -> Map<String, Json> {
    let mut root = Map::new();
    for setting in settings {
        let mut members = setting.field.schema();
        let description = described.get(&format!("{prefix}{}", setting.key));
        let mut sentences: Vec<String> = description.cloned().into_iter().collect();
        sentences.extend(setting.field.bounds().map(|bounds| format!("From {bounds}.")));
        if !setting.is_live {
            sentences.push("A change takes a restart.".to_owned());
        }
        if let Json::Object(members) = &mut members {
            members.insert("description".to_owned(), sentences.join(" ").into());
            let default = setting.field.show(defaults).and_then(|value| serde_json::to_value(value).ok());
            members.extend(default.map(|default| ("default".to_owned(), default)));
        }
        insert(&mut root, setting.key, members);
    }
    root
}

/// Puts a setting into the table that its key names.
fn insert(members: &mut Map<String, Json>, key: &str, setting: Json) {
    let Some((first, rest)) = key.split_once('.') else {
        members.insert(key.to_owned(), setting);
        return;
    };
    let inner = members.entry(first).or_insert_with(|| table(&Map::new()));
    if let Some(Json::Object(inner)) = inner.get_mut("properties") {
        insert(inner, rest, setting);
    }
}

fn table(properties: &Map<String, Json>) -> Json {
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}
