//! Every place where a link may stand, and everything that may be wrong with it.

use serde_json::{Value, json};

use super::*;

fn digest(n: u8) -> Digest {
    Digest::Sha256([n; 32])
}

fn descriptor(n: u8) -> Value {
    json!({"mediaType": media_type::IMAGE_MANIFEST, "digest": digest(n), "size": 7})
}

fn with(mut descriptor: Value, reference: &Value) -> Value {
    descriptor["reference"] = reference.clone();
    descriptor
}

#[track_caller]
fn check(manifest: &Value, media_type: &str, expected: &[(LinkKind, u8)], refused: &[&str]) {
    check_bytes(&serde_json::to_vec(manifest).unwrap(), media_type, expected, refused);
}

#[track_caller]
fn check_bytes(manifest: &[u8], media_type: &str, expected: &[(LinkKind, u8)], refused: &[&str]) {
    let found = links_of(manifest, Some(media_type));
    let mut expected: Vec<Link> =
        expected.iter().map(|(kind, n)| Link { subject: digest(*n), kind: *kind }).collect();
    expected.sort();
    assert_eq!(found.links, expected);
    assert_eq!(found.refusals.iter().map(ToString::to_string).collect::<Vec<_>>(), refused);
    assert_eq!(found.refused, refused.len());
}

use super::LinkKind::{Parent, Reference};
use super::media_type::{DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST};

#[test]
fn a_reference_is_found_wherever_it_may_stand() {
    let to = descriptor;
    check(&json!({"reference": to(1)}), DOCKER_MANIFEST, &[(Reference, 1)], &[]);
    check(&json!({"manifests": [], "reference": to(1)}), IMAGE_INDEX, &[(Reference, 1)], &[]);
    check(&json!({"config": with(to(9), &to(1))}), IMAGE_MANIFEST, &[(Reference, 1)], &[]);
    check(&json!({"layers": [to(8), with(to(9), &to(1))]}), IMAGE_MANIFEST, &[(Reference, 1)], &[]);
    check(&json!({"blobs": [with(to(9), &to(1))]}), "application/x", &[(Reference, 1)], &[]);
    check(&json!({"manifests": [with(to(9), &to(1))]}), IMAGE_INDEX, &[(Parent, 9), (Reference, 1)], &[]);
    check(
        &json!({"reference": with(to(1), &with(to(2), &to(3)))}),
        IMAGE_MANIFEST,
        &[(Reference, 1), (Reference, 2), (Reference, 3)],
        &[],
    );
    check(
        &json!({"reference": [to(1), to(2), to(1)]}),
        IMAGE_MANIFEST,
        &[(Reference, 1), (Reference, 2)],
        &[],
    );
}

#[test]
fn an_index_is_the_parent_of_its_manifests() {
    check(
        &json!({"manifests": [descriptor(1), descriptor(2)]}),
        DOCKER_MANIFEST_LIST,
        &[(Parent, 1), (Parent, 2)],
        &[],
    );
    check(&json!({"manifests": [descriptor(1)]}), "application/x", &[], &[]);
    check(
        &json!({"manifests": 5}),
        IMAGE_INDEX,
        &[],
        &["manifests: neither a descriptor nor a list of descriptors"],
    );
    check(
        &json!({"manifests": [descriptor(1), 5]}),
        IMAGE_INDEX,
        &[(Parent, 1)],
        &["manifests[1]: neither a descriptor nor a list of descriptors"],
    );
}

#[test]
fn a_malformed_link_is_left_out_and_told() {
    let reference = |value: Value, refusal: &str| {
        check(
            &json!({"reference": value}),
            IMAGE_MANIFEST,
            &[],
            &[&format!("manifest.reference: {refusal}")],
        );
    };
    reference(json!("sha256:"), "neither a descriptor nor a list of descriptors");
    reference(json!(5), "neither a descriptor nor a list of descriptors");
    reference(json!({"size": 1}), "the descriptor has no digest");
    reference(json!({"digest": "sha256:XYZ"}), "the digest is not the right number of lower-case hex digits");
    reference(json!({"digest": 5}), "a digest has the form algorithm:hex");
    reference(
        json!({"digest": format!("md5:{}", "0".repeat(32))}),
        "the digest's algorithm is neither sha256 nor sha512",
    );
    let size = "the descriptor's size is not an integer from 0 to 2^63-1";
    reference(json!({"digest": digest(1), "size": -1}), size);
    reference(json!({"digest": digest(1), "size": 1u64 << 63}), size);
    reference(json!({"digest": digest(1), "size": "1"}), size);
    reference(json!({"digest": digest(1), "mediaType": 1}), "the descriptor's mediaType is not a string");
    check(
        &json!({"reference": [descriptor(1), "x", descriptor(2)]}),
        IMAGE_MANIFEST,
        &[(Reference, 1), (Reference, 2)],
        &["manifest.reference[1]: neither a descriptor nor a list of descriptors"],
    );
    check(
        &json!({"reference": {"reference": descriptor(1)}}),
        IMAGE_MANIFEST,
        &[(Reference, 1)],
        &["manifest.reference: the descriptor has no digest"],
    );
}

#[test]
fn what_cannot_be_read_carries_no_links() {
    let unreadable = ["manifest: not a JSON object in which each member stands once"];
    check_bytes(b"", IMAGE_MANIFEST, &[], &unreadable);
    check_bytes(b"hello", IMAGE_MANIFEST, &[], &unreadable);
    check_bytes(b"[]", IMAGE_MANIFEST, &[], &unreadable);
    let whole = serde_json::to_vec(&json!({"reference": descriptor(1)})).unwrap();
    check_bytes(&whole[..whole.len() - 1], IMAGE_MANIFEST, &[], &unreadable);
    check_bytes("[".repeat(4 << 20).as_bytes(), IMAGE_MANIFEST, &[], &unreadable);
    let nested = format!("{{\"reference\":{}{}}}", "[".repeat(2 << 20), "]".repeat(2 << 20));
    check_bytes(
        nested.as_bytes(),
        IMAGE_MANIFEST,
        &[],
        &["manifest.reference[0]: neither a descriptor nor a list of descriptors"],
    );
    let twice = format!("{{\"reference\":{0},\"reference\":{0}}}", descriptor(1));
    check_bytes(twice.as_bytes(), IMAGE_MANIFEST, &[], &unreadable);
    let twice = format!("{{\"layers\":[{{\"reference\":{0},\"reference\":{0}}}]}}", descriptor(1));
    check_bytes(
        twice.as_bytes(),
        IMAGE_MANIFEST,
        &[],
        &["layers[0]: not a JSON object in which each member stands once"],
    );
}

#[test]
fn nesting_ends_somewhere() {
    let mut reference = descriptor(0);
    for n in 1..20 {
        reference = with(descriptor(n), &reference);
    }
    let found = links_of(&serde_json::to_vec(&json!({"reference": reference})).unwrap(), None);
    assert_eq!(found.links.len(), NESTING_LIMIT);
    assert_eq!(found.refusals.len(), 1);
    assert_eq!(found.refusals[0].reason, RefusalReason::Nesting);
}

#[test]
fn ten_thousand_references_are_ten_thousand_links() {
    let references: Vec<_> = (0..10_000u32)
        .map(|n| json!({"digest": Digest::of(crate::oci::Algorithm::Sha256, &n.to_be_bytes())}))
        .collect();
    let found = links_of(&serde_json::to_vec(&json!({"reference": references})).unwrap(), None);
    assert_eq!((found.links.len(), found.refused), (10_000, 0));
}

#[test]
fn is_listed_with_the_type_and_annotations_of_the_manifest() {
    let manifest = json!({
        "mediaType": IMAGE_MANIFEST,
        "config": {"mediaType": "application/vnd.config"},
        "annotations": {"a": "b", "n": 5},
    });
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let found = links_of(&bytes, Some("application/x; charset=utf-8"));
    assert_eq!(found.media_type, "application/x");
    assert_eq!(found.artifact_type.as_deref(), Some("application/vnd.config"));
    assert_eq!(found.annotations, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    assert_eq!(links_of(&bytes, None).media_type, IMAGE_MANIFEST);
    assert_eq!(links_of(&bytes, Some(IMAGE_INDEX)).artifact_type, None);
    let own = json!({"artifactType": "own", "config": {"mediaType": "application/vnd.config"}});
    assert_eq!(links_of(&serde_json::to_vec(&own).unwrap(), None).artifact_type.as_deref(), Some("own"));
}
