//! Each registry's form, with what it really sends.

use http::{HeaderMap, HeaderName};

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

/// What is read, an event as `action repository digest-or-dash tag-or-dash`.
#[track_caller]
fn check(kind: SourceKind, fields: &[(&'static str, &str)], body: &str, events: &[&str], ignored: usize) {
    let body = body.replace("DIGEST", DIGEST);
    let told = read(kind, &headers(fields), body.as_bytes()).unwrap();
    let shown = |event: &Event| {
        let digest = event.digest.as_ref().map_or("-".to_owned(), ToString::to_string);
        let tag = event.tag.as_ref().map_or("-".to_owned(), ToString::to_string);
        format!("{:?} {} {digest} {tag}", event.action, event.repository).replace(DIGEST, "DIGEST")
    };
    let found: Vec<String> = told.events.iter().map(shown).collect();
    assert_eq!((found, told.ignored), (events.iter().map(ToString::to_string).collect(), ignored), "{body}");
}

#[track_caller]
fn check_malformed(kind: SourceKind, fields: &[(&'static str, &str)], body: &str, part: &str) {
    let problem = read(kind, &headers(fields), body.as_bytes()).unwrap_err();
    assert!(problem.contains(part), "{problem}");
}

#[test]
fn an_envelope_of_distribution_has_many_events() {
    let body = r#"{"events": [
        {"id": "5b1a7c1e", "timestamp": "2026-11-26T21:00:00Z", "action": "push",
         "target": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "DIGEST", "size": 2,
                    "length": 2, "repository": "team/app", "url": "http://registry:5000/v2/team/app/manifests/DIGEST",
                    "tag": "v1"},
         "request": {"id": "1", "addr": "10.0.0.1:4", "host": "registry:5000", "method": "PUT", "useragent": "curl"},
         "actor": {"name": "ci"}, "source": {"addr": "registry:5000", "instanceID": "2"}},
        {"action": "push", "target": {"mediaType": "application/octet-stream", "digest": "DIGEST", "repository": "a"}},
        {"action": "mount", "target": {"mediaType": "application/octet-stream", "digest": "DIGEST", "repository": "a"}},
        {"action": "pull", "target": {"digest": "DIGEST", "repository": "team/app", "tag": "v1"}},
        {"action": "delete", "target": {"digest": "DIGEST", "repository": "team/app"}},
        {"action": "delete", "target": {"tag": "v1", "repository": "team/app"}},
        {"action": "rename", "target": {"repository": "team/app"}},
        {}
    ]}"#;
    let events = ["Push team/app DIGEST v1", "Delete team/app DIGEST -"];
    for kind in [SourceKind::Distribution, SourceKind::Gitlab] {
        check(kind, &[], body, &events, 6);
        check(kind, &[], r#"{"events": []}"#, &[], 0);
        for body in ["", "{}", "[]", r#"{"events": {}}"#, r#"{"events": [1]}"#, "event=push"] {
            check_malformed(kind, &[], body, "not an envelope of distribution's");
        }
    }
}

#[test]
fn an_event_that_makes_no_sense_leaves_the_others_alone() {
    let body = r#"{"events": [
        {"action": "push", "target": {"digest": "sha256:1", "repository": "a"}},
        {"action": "push", "target": {"tag": "v1", "repository": "A B"}},
        {"action": "push", "target": {"repository": "a"}},
        {"action": "push", "target": {"tag": "v1", "repository": "a"}}
    ]}"#;
    let told = read(SourceKind::Distribution, &HeaderMap::new(), body.as_bytes()).unwrap();
    assert_eq!((told.events.len(), told.ignored, told.malformed.len()), (1, 0, 3), "{told:?}");
}

#[test]
fn harbor_has_two_forms() {
    let data = r#"{"resources": [{"digest": "DIGEST", "tag": "latest",
        "resource_url": "harbor.example/library/app:latest"}], "repository": {"date_created": 1680501893,
        "name": "app", "namespace": "library", "repo_full_name": "library/app", "repo_type": "private"}}"#;
    let default = |kind: &str| {
        format!(r#"{{"type": "{kind}", "occur_at": 1680501893, "operator": "ci", "event_data": {data}}}"#)
    };
    let cloud = |kind: &str| {
        format!(
            r#"{{"specversion": "1.0", "id": "66e1", "requestid": "51c0", "source": "/projects/1/webhook/policies/1",
                "type": "{kind}", "datacontenttype": "application/json", "time": "2026-11-26T21:00:00Z",
                "data": {data}, "operator": "ci"}}"#
        )
    };
    let fields = [("content-type", "application/cloudevents+json")];
    check(SourceKind::Harbor, &[], &default("PUSH_ARTIFACT"), &["Push library/app DIGEST latest"], 0);
    check(SourceKind::Harbor, &[], &default("DELETE_ARTIFACT"), &["Delete library/app DIGEST latest"], 0);
    check(SourceKind::Harbor, &[], &default("PULL_ARTIFACT"), &[], 1);
    check(
        SourceKind::Harbor,
        &fields,
        &cloud("harbor.artifact.pushed"),
        &["Push library/app DIGEST latest"],
        0,
    );
    check(
        SourceKind::Harbor,
        &fields,
        &cloud("harbor.artifact.deleted"),
        &["Delete library/app DIGEST latest"],
        0,
    );
    check(SourceKind::Harbor, &fields, &cloud("harbor.scan.completed"), &[], 1);
    let untagged = default("PUSH_ARTIFACT").replace(r#""tag": "latest""#, r#""tag": "DIGEST""#);
    check(SourceKind::Harbor, &[], &untagged, &["Push library/app DIGEST -"], 0);
    check(SourceKind::Harbor, &[], r#"{"type": "SCANNING_FAILED", "event_data": {"scan": {}}}"#, &[], 1);
    check_malformed(SourceKind::Harbor, &[], r#"{"type": "PUSH_ARTIFACT"}"#, "without a repository");
    check_malformed(SourceKind::Harbor, &[], r#"{"events": []}"#, "not a webhook of Harbor's");
}

#[test]
fn zot_sends_cloud_events() {
    let data = r#"{"name": "team/app", "reference": "v1", "digest": "DIGEST",
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "manifest": "{}"}"#;
    let binary = |kind| [("ce-type", kind), ("ce-specversion", "1.0"), ("content-type", "application/json")];
    check(SourceKind::Zot, &binary("zotregistry.image.updated"), data, &["Push team/app DIGEST v1"], 0);
    check(SourceKind::Zot, &binary("zotregistry.image.deleted"), data, &["Delete team/app DIGEST v1"], 0);
    check(SourceKind::Zot, &binary("zotregistry.repository.created"), r#"{"name": "team/app"}"#, &[], 1);
    let by_digest = data.replace(r#""reference": "v1""#, r#""reference": "DIGEST""#);
    check(SourceKind::Zot, &binary("zotregistry.image.updated"), &by_digest, &["Push team/app DIGEST -"], 0);
    let structured = [("content-type", "application/cloudevents+json; charset=utf-8")];
    let event = format!(r#"{{"specversion": "1.0", "type": "zotregistry.image.updated", "data": {data}}}"#);
    check(SourceKind::Zot, &structured, &event, &["Push team/app DIGEST v1"], 0);
    check_malformed(SourceKind::Zot, &[], data, "Ce-Type");
    check_malformed(SourceKind::Zot, &binary("zotregistry.image.updated"), "{}", "missing field `name`");
    check_malformed(SourceKind::Zot, &structured, r#"{"type": "zotregistry.image.updated"}"#, "no data");
}

#[test]
fn quay_names_tags() {
    let push = r#"{"name": "app", "repository": "team/app", "namespace": "team", "docker_url": "quay.io/team/app",
        "homepage": "https://quay.io/repository/team/app", "updated_tags": ["v1", "latest"]}"#;
    check(SourceKind::Quay, &[], push, &["Push team/app - v1", "Push team/app - latest"], 0);
    let old = push.replace(r#"["v1", "latest"]"#, r#"{"v1": "b750fe79"}"#);
    check(SourceKind::Quay, &[], &old, &["Push team/app - v1"], 0);
    check(SourceKind::Quay, &[], r#"{"repository": "team/app", "build_id": "1"}"#, &[], 1);
    check_malformed(SourceKind::Quay, &[], r#"{"updated_tags": 1}"#, "not a webhook of Quay's");
}
