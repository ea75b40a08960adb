//! What a PUT carries is recorded, once the registry took it and never before.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    Client, Content, DOCKER_LIST, DOCKER_MANIFEST, IMAGE_MANIFEST, Refshim, Registry, Said, Scripted, Shelf,
    about, descriptor, digest_of, put, shelf_registry,
};

/// The worked example of the proposal (24 March 2021): an image, a signature whose layer refers to it, and a
/// manifest list that contains it.
#[tokio::test]
async fn the_proposals_worked_example() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let image = client.image("debian", "debian").await;
    let image = Content::new(
        DOCKER_MANIFEST,
        &json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": change_type(&image.value["config"], "application/vnd.docker.container.image.v1+json"),
            "layers": [change_type(&image.value["layers"][0], "application/vnd.docker.image.rootfs.diff.tar.gzip")],
        }),
    );
    client.push_as("debian", "latest", &image).await;

    let signature = br#"{"signed": "debian"}"#;
    client.push_blob("debian", signature).await;
    client.push_blob("debian", b"{}").await;
    let mut layer = descriptor("application/vnd.example.signature+json", signature);
    layer["reference"] = image.descriptor();
    let signature = Content::new(
        IMAGE_MANIFEST,
        &json!({
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": descriptor("application/vnd.example.config+json", b"{}"),
            "layers": [layer],
        }),
    );
    client.push("debian", &signature).await;
    let mut child = image.descriptor();
    child["platform"] = json!({"architecture": "amd64", "os": "linux"});
    let list = Content::new(
        DOCKER_LIST,
        &json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [child]}),
    );
    client.push_as("debian", "multi", &list).await;

    for reference in ["latest", &image.digest] {
        let listed = client.references("debian", reference, "").await;
        assert_eq!(listed.len(), 2);
        for (entry, pushed) in listed.iter().zip([&signature, &list]) {
            let (media_type, size, digest) = registry.client().served("debian", &pushed.digest).await;
            assert_eq!(entry["mediaType"], media_type);
            assert_eq!(entry["size"], size);
            assert_eq!(entry["digest"], digest);
        }
        assert_eq!(listed[0]["artifactType"], "application/vnd.example.config+json");
        assert_eq!(listed[1]["artifactType"], Value::Null);
    }
    let empty = client.get("/v2/debian/manifests/multi/references").await;
    assert_eq!(
        empty.json(),
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []})
    );
}

fn change_type(descriptor: &Value, media_type: &str) -> Value {
    let mut changed = descriptor.clone();
    changed["mediaType"] = media_type.into();
    changed
}

#[tokio::test]
async fn a_reference_is_found_from_its_subject_wherever_it_stands() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push("a", &image).await;
    let subject = |n: u8| descriptor(IMAGE_MANIFEST, &[n]);
    let referring =
        |n: u8, place: fn(&mut Value) -> &mut Value| image.changed(|manifest| *place(manifest) = subject(n));
    let index = Content::index(&[&image]);
    let nested = {
        let mut outer = subject(7);
        outer["reference"] = subject(8);
        image.changed(|manifest| manifest["reference"] = outer)
    };
    let list = image.changed(|manifest| manifest["reference"] = json!([subject(9), subject(10), subject(9)]));
    let pushed = [
        (referring(1, |manifest| &mut manifest["reference"]), vec![1]),
        (index.changed(|index| index["reference"] = subject(2)), vec![2]),
        (referring(3, |manifest| &mut manifest["config"]["reference"]), vec![3]),
        (referring(4, |manifest| &mut manifest["layers"][0]["reference"]), vec![4]),
        (index.changed(|index| index["manifests"][0]["reference"] = subject(5)), vec![5]),
        (nested, vec![7, 8]),
        (list, vec![9, 10]),
    ];
    for (content, _) in &pushed {
        client.push("a", content).await;
    }
    for (content, subjects) in &pushed {
        for n in subjects {
            let found = client.referrers("a", &digest_of(&[*n]), "").await;
            assert_eq!(found, [content.digest.clone()], "subject {n}");
        }
    }
}

#[tokio::test]
async fn what_is_malformed_passes_unchanged_and_is_not_recorded() {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&taken);
    let upstream = Scripted::start(move |exchange| {
        exchange.read_body();
        kept.lock().unwrap().push(exchange.request.body.clone());
        exchange.answer("HTTP/1.1 201 Created\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    let good = descriptor(IMAGE_MANIFEST, b"subject");
    let digest = good["digest"].as_str().unwrap().to_owned();
    let reference = |value: &Value| serde_json::to_vec(&json!({ "reference": value })).unwrap();
    let mut truncated = reference(&good);
    truncated.pop();
    let bodies = [
        b"not JSON".to_vec(),
        Vec::new(),
        truncated,
        vec![b'['; 4 << 20],
        format!("{{\"reference\":{good},\"reference\":{good}}}").into_bytes(),
        reference(&json!(digest)),
        reference(&json!(1)),
        reference(&json!({"size": 1})),
        reference(&json!({"digest": "sha256:XYZ"})),
        reference(&json!({"digest": digest, "size": -1})),
        reference(&json!({"digest": digest, "size": 1u64 << 63})),
        reference(&json!({"digest": format!("md5:{}", "0".repeat(32))})),
    ];
    for body in &bodies {
        let put = client.request(reqwest::Method::PUT, "/v2/a/manifests/latest").body(body.clone());
        assert_eq!(client.send(put).await.status, StatusCode::CREATED);
        assert!(taken.lock().unwrap().last().unwrap() == body);
    }
    refshim.logs("the descriptor has no digest", 1).await;
    refshim.logs("not a JSON object", 1).await;
    let metrics = Client::new(refshim.admin).text("/metrics").await;
    assert!(metrics.contains("refshim_index_referrers 0"));
    let refused =
        format!("refshim_unrecorded_total{{upstream=\"default\",reason=\"malformed\"}} {}", bodies.len());
    assert!(metrics.contains(&refused), "{metrics}");
}

#[tokio::test]
async fn ten_thousand_references_are_ten_thousand_links() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    let subjects: Vec<Vec<u8>> = (0..10_000u32).map(|n| n.to_be_bytes().to_vec()).collect();
    let references: Vec<Value> = subjects.iter().map(|subject| descriptor(IMAGE_MANIFEST, subject)).collect();
    let many = image.changed(|manifest| manifest["reference"] = references.into());
    client.push("a", &many).await;
    for subject in [&subjects[0], &subjects[4_321], &subjects[9_999]] {
        assert_eq!(client.referrers("a", &digest_of(subject), "").await, [many.digest.clone()]);
    }
    let metrics = Client::new(refshim.admin).text("/metrics").await;
    assert!(metrics.contains("refshim_index_links 10000"));
}

#[tokio::test]
async fn a_manifest_over_the_limit_passes_unrecorded_and_is_counted() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push("a", &image).await;
    let padded = |length: usize| {
        let short = about(&image, &image, "");
        let padding = "x".repeat(length - short.bytes.len());
        about(&image, &image, &padding)
    };
    let (at_limit, over) = (padded(4 << 20), padded((4 << 20) + 1));
    assert_eq!((at_limit.bytes.len(), over.bytes.len()), (4 << 20, (4 << 20) + 1));
    let registrys_word = registry.client().put_manifest("a", "over", &over).await.status;
    assert_eq!(client.put_manifest("a", "over", &over).await.status, registrys_word);
    client.push("a", &at_limit).await;
    assert_eq!(client.referrers("a", &image.digest, "").await, [at_limit.digest]);
    let metrics = Client::new(refshim.admin).text("/metrics").await;
    assert!(
        metrics.contains(r#"refshim_unrecorded_total{upstream="default",reason="too_long"} 1"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn pushing_again_changes_nothing() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push("a", &image).await;
    let (first, second) = (about(&image, &image, "1"), about(&image, &image, "2"));
    for content in [&first, &second, &first] {
        client.push("a", content).await;
    }
    assert_eq!(client.referrers("a", &image.digest, "").await, [first.digest, second.digest]);
}

#[tokio::test]
async fn deleting_a_referrer_removes_it_and_deleting_the_subject_does_not() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let image = client.image("a", "image").await;
    client.push("a", &image).await;
    let (first, second) = (about(&image, &image, "1"), about(&image, &image, "2"));
    client.push("a", &first).await;
    client.push("a", &second).await;
    assert_eq!(
        client.delete(&format!("/v2/a/manifests/{}", first.digest)).await.status,
        StatusCode::ACCEPTED
    );
    assert_eq!(client.referrers("a", &image.digest, "").await, [second.digest.clone()]);
    assert_eq!(
        client.delete(&format!("/v2/a/manifests/{}", image.digest)).await.status,
        StatusCode::ACCEPTED
    );
    assert_eq!(client.referrers("a", &image.digest, "").await, [second.digest]);
    client.push("a", &first).await;
    assert_eq!(client.referrers("a", &image.digest, "").await.len(), 2);
}

/// A registry that stores nothing, answers PUTs with a status of the test's choice, and HEADs of manifests
/// with another.
/// A registry that has the image, and whatever is put onto its shelf.
fn two_faced(image: &Content, put: &Arc<AtomicU16>, read: &Arc<AtomicU16>) -> (Scripted, Shelf) {
    let (to_put, to_read) = (Arc::clone(put), Arc::clone(read));
    let shelf = Shelf::default();
    self::put(&shelf, "a", &[], image);
    let registry = shelf_registry(&shelf, move |turn| {
        let status = if turn.is_read() { &to_read } else { &to_put }.load(Ordering::SeqCst);
        match (turn.is_read(), status) {
            (_, 0) => None,
            (true, 200) => Some(turn.right.clone()),
            (_, status) => Some(Said::status(&format!("{status} Scripted"))),
        }
    });
    (registry, shelf)
}

#[tokio::test]
async fn the_upstreams_answer_decides_what_becomes_of_a_link() {
    let (put, head) = (Arc::new(AtomicU16::new(201)), Arc::new(AtomicU16::new(200)));
    let image = Content::image("{}", "x");
    let (upstream, shelf) = two_faced(&image, &put, &head);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    let digest = image.digest.clone();
    let push = async |name: &str, status: u16, expected: u16| {
        put.store(status, Ordering::SeqCst);
        let content = about(&image, &image, name);
        // It has it, whatever it says.
        self::put(&shelf, "a", &[], &content);
        assert_eq!(client.put_manifest("a", &content.digest, &content).await.status, expected);
        content.digest
    };
    let taken = push("taken", 201, 201).await;
    push("refused", 400, 400).await;
    push("denied", 401, 401).await;
    // Status 0: the upstream takes the request and hangs up without a word.
    let broken = push("broken", 0, 502).await;
    let failed = push("failed", 500, 500).await;
    let metrics = Client::new(refshim.admin).text("/metrics").await;
    assert!(metrics.contains("refshim_index_pending 2"), "{metrics}");

    // While the upstream cannot be asked, the answer is no list at all.
    head.store(500, Ordering::SeqCst);
    let answer = client.get(&format!("/v2/a/manifests/{digest}/references")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    // It has them: both are found, though nobody acknowledged them.
    head.store(200, Ordering::SeqCst);
    assert_eq!(client.referrers("a", &digest, "").await, [taken, broken, failed]);
    let metrics = Client::new(refshim.admin).text("/metrics").await;
    assert!(metrics.contains("refshim_index_pending 0"), "{metrics}");
}

#[tokio::test]
async fn a_pending_link_whose_manifest_is_not_there_is_forgotten() {
    let upstream = Scripted::start(|exchange| {
        exchange.read_body();
        let subject = Content::image("{}", "x");
        match exchange.request.line.clone() {
            line if line.starts_with("PUT") => exchange.answer_status("500 Failed"),
            line if line.contains(&subject.digest) => exchange.answer_manifest(&subject),
            _ => exchange.answer_status("404 Not Found"),
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, directory.path()).with("INDEX_FORGET_AFTER", "100ms");
    let refshim = refshim.launch().await;
    let client = refshim.client();
    let image = Content::image("{}", "x");
    let content = about(&image, &image, "lost");
    assert_eq!(client.put_manifest("a", &content.digest, &content).await.status, 500);
    let admin = Client::new(refshim.admin);
    while !admin.text("/metrics").await.contains("refshim_index_referrers 0") {
        assert_eq!(client.referrers("a", &image.digest, "").await, Vec::<String>::new());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_refused_push_of_a_stranger_removes_nothing() {
    let (put, head) = (Arc::new(AtomicU16::new(201)), Arc::new(AtomicU16::new(200)));
    let image = Content::image("{}", "x");
    let (upstream, shelf) = two_faced(&image, &put, &head);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    let content = about(&image, &image, "signature");
    self::put(&shelf, "a", &[], &content);
    client.put_manifest("a", &content.digest, &content).await;
    put.store(401, Ordering::SeqCst);
    assert_eq!(client.put_manifest("a", &content.digest, &content).await.status, 401);
    head.store(404, Ordering::SeqCst);
    client.references("a", &digest_of(b"other"), "").await;
    head.store(200, Ordering::SeqCst);
    assert_eq!(client.referrers("a", &image.digest, "").await, [content.digest]);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_stop_a_recording() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let upstream = Scripted::start(move |exchange| {
        exchange.read_body();
        if exchange.request.line.starts_with("PUT") {
            held.lock().unwrap().recv().unwrap();
        }
        exchange.answer("HTTP/1.1 201 Created\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    let image = Content::image("{}", "x");
    let content = about(&image, &image, "signature");
    let put = tokio::spawn({
        let (client, content) = (client.clone(), content.clone());
        async move { client.put_manifest("a", &content.digest, &content).await }
    });
    while upstream.requests().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    put.abort();
    assert!(put.await.unwrap_err().is_cancelled());
    release.send(()).unwrap();
    while !refshim.logged("recorded a manifest's links") {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_digest_is_the_upstreams() {
    let image = Content::image("{}", "x");
    let signature = about(&image, &image, "signature");
    // A registry that keeps another form of what it is given.
    let kept = about(&image, &image, "kept");
    let (stored, upstreams) = ([image.clone(), kept.clone()], kept.digest.clone());
    let answer = format!(
        "HTTP/1.1 201 Created\r\ndocker-content-digest: {upstreams}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    let upstream = Scripted::start(move |exchange| {
        exchange.read_body();
        let line = exchange.request.line.clone();
        match stored.iter().find(|content| line.contains(&format!("/manifests/{}", content.digest))) {
            _ if line.starts_with("PUT") => exchange.answer(&answer),
            Some(content) => exchange.answer_manifest(content),
            None => exchange.answer_status("404 Not Found"),
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    client.put_manifest("a", "tag", &signature).await;
    assert_eq!(client.referrers("a", &image.digest, "").await, [upstreams]);
}
