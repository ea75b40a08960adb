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
    let found = links_of(manifest, Some(media_type), None);
    let mut expected: Vec<Link> =
        expected.iter().map(|(kind, n)| Link { subject: digest(*n), kind: *kind }).collect();
    expected.sort();
    assert_eq!(found.links, expected);
    assert_eq!(found.refusals.iter().map(ToString::to_string).collect::<Vec<_>>(), refused);
    assert_eq!(found.refused, refused.len());
}

use super::LinkKind::{Cosign, Parent, Reference, Subject};
use super::media_type::{
    DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST, OCI_ARTIFACT, ORAS_ARTIFACT,
};

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
    let found = links_of(&serde_json::to_vec(&json!({"reference": reference})).unwrap(), None, None);
    assert_eq!(found.links.len(), NESTING_LIMIT);
    assert_eq!(found.refusals.len(), 1);
    assert_eq!(found.refusals[0].reason, RefusalReason::Nesting);
}

#[test]
fn ten_thousand_references_are_ten_thousand_links() {
    let references: Vec<_> = (0..10_000u32)
        .map(|n| json!({"digest": Digest::of(crate::oci::Algorithm::Sha256, &n.to_be_bytes())}))
        .collect();
    let found = links_of(&serde_json::to_vec(&json!({"reference": references})).unwrap(), None, None);
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
    let found = links_of(&bytes, Some("application/x; charset=utf-8"), None);
    assert_eq!(found.media_type, "application/x");
    assert_eq!(found.artifact_type.as_deref(), Some("application/vnd.config"));
    assert_eq!(found.annotations, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    assert_eq!(links_of(&bytes, None, None).media_type, IMAGE_MANIFEST);
    assert_eq!(links_of(&bytes, Some(IMAGE_INDEX), None).artifact_type, None);
    let own = json!({"artifactType": "own", "config": {"mediaType": "application/vnd.config"}});
    assert_eq!(
        links_of(&serde_json::to_vec(&own).unwrap(), None, None).artifact_type.as_deref(),
        Some("own")
    );
}

#[test]
fn a_subject_counts_in_the_manifests_that_have_one() {
    for media_type in [IMAGE_MANIFEST, IMAGE_INDEX, OCI_ARTIFACT, ORAS_ARTIFACT] {
        check(&json!({"subject": descriptor(1)}), media_type, &[(Subject, 1)], &[]);
    }
    check(&json!({"subject": descriptor(1)}), DOCKER_MANIFEST, &[], &[]);
    check(&json!({"subject": null}), IMAGE_MANIFEST, &[], &[]);
    check(&json!({"subject": {"size": 1}}), IMAGE_MANIFEST, &[], &["subject: the descriptor has no digest"]);
    let list = json!({"subject": [descriptor(1)]});
    check(&list, IMAGE_MANIFEST, &[], &["subject: neither a descriptor nor a list of descriptors"]);
    let blobs = json!({"blobs": [descriptor(5)], "subject": descriptor(1), "artifactType": "own"});
    check(&blobs, OCI_ARTIFACT, &[(Subject, 1)], &[]);
    let both = json!({"subject": descriptor(1), "reference": descriptor(1)});
    check(&both, IMAGE_MANIFEST, &[(Reference, 1), (Subject, 1)], &[]);
    let found = links_of(&serde_json::to_vec(&both).unwrap(), None, None);
    assert_eq!(found.subject, Some(digest(1)));
}

/// What is found in a manifest at a tag.
fn tagged(manifest: &Value, media_type: &str, tag: &str) -> Vec<Link> {
    let bytes = serde_json::to_vec(manifest).unwrap();
    links_of(&bytes, Some(media_type), Some(&tag.parse().unwrap())).links
}

#[test]
fn a_cosign_tag_says_what_its_manifest_is_about() {
    let hex = "07".repeat(32);
    let expected = vec![Link { subject: digest(7), kind: Cosign }];
    for suffix in ["sig", "att", "sbom"] {
        let tag = format!("sha256-{hex}.{suffix}");
        assert_eq!(tagged(&json!({"layers": []}), IMAGE_MANIFEST, &tag), expected);
    }
    assert_eq!(tagged(&json!({"layers": []}), IMAGE_MANIFEST, "latest"), []);
}

#[test]
fn what_a_referrers_tag_lists_are_no_parts_of_an_index() {
    let index = json!({"manifests": [descriptor(1)], "subject": descriptor(2)});
    let tag = format!("sha256-{}", "07".repeat(32));
    assert_eq!(tagged(&index, IMAGE_INDEX, &tag), [Link { subject: digest(2), kind: Subject }]);
    assert_eq!(tagged(&index, IMAGE_INDEX, "latest").len(), 2);
}

#[test]
fn an_attestation_entry_is_about_another_entry() {
    let attested = |about: Value| {
        let mut entry = descriptor(2);
        entry["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        entry["annotations"]["vnd.docker.reference.digest"] = about;
        json!({"manifests": [descriptor(1), entry]})
    };
    let index = attested(json!(digest(1)));
    check(&index, IMAGE_INDEX, &[(Parent, 1), (Parent, 2)], &[]);
    let found = links_of(&serde_json::to_vec(&index).unwrap(), Some(IMAGE_INDEX), None);
    let [attestation] = &found.attestations[..] else { panic!("{found:?}") };
    assert_eq!(attestation.subject, digest(1));
    let listed = serde_json::to_value(&attestation.referrer).unwrap();
    assert_eq!(listed, index["manifests"][1]);

    let parents = &[(Parent, 1), (Parent, 2)];
    let no_digest = "manifests[1]: an attestation without the digest of what it is about";
    check(&attested(Value::Null), IMAGE_INDEX, parents, &[no_digest]);
    let form = "manifests[1]: a digest has the form algorithm:hex";
    check(&attested(json!("x")), IMAGE_INDEX, parents, &[form]);
    let mut other = index.clone();
    other["manifests"][1]["annotations"]["vnd.docker.reference.type"] = json!("other");
    check(&other, IMAGE_INDEX, parents, &[]);
    assert_eq!(links_of(&serde_json::to_vec(&other).unwrap(), None, None).attestations, []);
}
